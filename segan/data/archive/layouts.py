"""Archive layouts: classifies files as images or masks by folder and file name.

    ISIC 2017   ISIC-2017_Training_Data/ISIC_0000000.jpg
                ISIC-2017_Training_Part1_GroundTruth/ISIC_0000000_segmentation.png
    ISIC 2016   ISBI2016_ISIC_Part1_Training_Data/ISIC_0000000.jpg
                ISBI2016_ISIC_Part1_Training_GroundTruth/ISIC_0000000_Segmentation.png
    ISIC 2018   ISIC2018_Task1-2_Training_Input/ISIC_0000000.jpg
                ISIC2018_Task1_Training_GroundTruth/ISIC_0000000_segmentation.png
    PH2         IMD002/IMD002_Dermoscopic_Image/IMD002.bmp
                IMD002/IMD002_lesion/IMD002_lesion.bmp

The same with `Validation` and `Test` (`Test_v2` in 2017), at any depth. PH2 has no splits; it is an
external test set. A file that matches no layout does not belong to the archive.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

SPLIT_NAMES = {"training": "train", "validation": "validation", "test": "test"}
MASK_SUFFIX = "_segmentation"

_PART = r"_(?P<part>Training|Validation|Test)"
_IMAGE = r"/(?P<id>[^/]+)(?<!_superpixels)\.(?:jpe?g|png|dcm)"
_MASK = r"/(?P<id>[^/]+)(?<!_superpixels)_segmentation\.png"


@dataclass(frozen=True)
class Layout:
    """A dataset's regular expressions for `folder/file`, and its templates of file names."""

    image_pattern: str
    mask_pattern: str
    image_name: str = "{id}.jpg"
    mask_name: str = "{id}" + MASK_SUFFIX + ".png"


LAYOUTS = {
    "ISIC": Layout(  # the year completes the dataset's name
        rf"ISIC-(?P<year>\d{{4}}){_PART}(?:_v2)?_Data{_IMAGE}",
        rf"ISIC-(?P<year>\d{{4}}){_PART}(?:_v2)?_Part1_GroundTruth{_MASK}",
    ),
    "ISIC 2016": Layout(
        rf"ISBI2016_ISIC_Part1{_PART}_Data{_IMAGE}",
        rf"ISBI2016_ISIC_Part1{_PART}_GroundTruth{_MASK}",
        mask_name="{id}_Segmentation.png",
    ),
    "ISIC 2018": Layout(
        rf"ISIC2018_Task1-2{_PART}_Input{_IMAGE}",
        rf"ISIC2018_Task1{_PART}_GroundTruth{_MASK}",
    ),
    "PH2": Layout(
        r"(?P<id>IMD\d+)_Dermoscopic_Image/(?P=id)\.bmp",
        r"(?P<id>IMD\d+)_lesion/(?P=id)_lesion\.bmp",
        "{id}.bmp",
        "{id}_lesion.bmp",
    ),
}

_PH2_MASK_FOLDER = re.compile(r"IMD\d+_(?:lesion|roi)", re.IGNORECASE)
_COMPILED_LAYOUTS = [
    (
        name,
        layout,
        re.compile(layout.image_pattern, re.IGNORECASE),
        re.compile(layout.mask_pattern, re.IGNORECASE),
    )
    for name, layout in LAYOUTS.items()
]


class FileRole(NamedTuple):
    """What a file is in its archive, and the expected name of its partner (mask or image)."""

    is_mask: bool
    partner_name: str
    split: str
    id: str
    dataset: str

    @property
    def pair_key(self) -> tuple[str, str, str]:
        """Split, id and dataset: equal for the image and the mask of a pair."""
        return self.split, self.id, self.dataset


def classify_path(path: str) -> FileRole | None:
    """The role of the file at `path`; None if it does not belong to the archive."""
    if is_hidden(path):
        return None
    tail = "/".join(path.rsplit("/", 2)[-2:])
    for dataset, layout, image_pattern, mask_pattern in _COMPILED_LAYOUTS:
        image = image_pattern.fullmatch(tail)
        if match := image or mask_pattern.fullmatch(tail):
            groups = match.groupdict()
            split = SPLIT_NAMES[groups.get("part", "test").lower()]
            partner = (layout.mask_name if image else layout.image_name).format(id=groups["id"])
            name = f"{dataset} {groups['year']}" if "year" in groups else dataset
            return FileRole(image is None, partner, split, groups["id"], name)
    return None


def is_mask(path: str) -> bool:
    """Whether the file at `path` is a mask or another map of an image, in any layout.

    Names are compared without case. PH2's masks and regions are known by their folders alone.
    """
    stem = path.rpartition("/")[2].rpartition(".")[0].lower()
    if stem.endswith((MASK_SUFFIX, "_superpixels")) or "_attribute_" in stem:
        return True
    folder = path.rpartition("/")[0].rpartition("/")[2]
    return bool(_PH2_MASK_FOLDER.fullmatch(folder))


def is_hidden(path: str) -> bool:
    """Whether `path` is hidden or an operating system's own (.DS_Store, __MACOSX)."""
    return path.startswith((".", "__MACOSX/")) or "/." in path or "/__MACOSX/" in path
