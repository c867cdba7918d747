"""Layouts: which file of an archive is an image or a mask, told by its folder and name alone.

    ISIC 2017   ISIC-2017_Training_Data/ISIC_0000000.jpg
                ISIC-2017_Training_Part1_GroundTruth/ISIC_0000000_segmentation.png
    ISIC 2016   ISBI2016_ISIC_Part1_Training_Data/ISIC_0000000.jpg
                ISBI2016_ISIC_Part1_Training_GroundTruth/ISIC_0000000_Segmentation.png
    ISIC 2018   ISIC2018_Task1-2_Training_Input/ISIC_0000000.jpg
                ISIC2018_Task1_Training_GroundTruth/ISIC_0000000_segmentation.png
    PH2         IMD002/IMD002_Dermoscopic_Image/IMD002.bmp
                IMD002/IMD002_lesion/IMD002_lesion.bmp

and the same with `Validation` and `Test` (`Test_v2` in 2017), at any depth. PH2 has no splits and
serves as an outside test set. A file that no layout names is no part of an archive.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

SPLIT_NAMES = {"training": "train", "validation": "validation", "test": "test"}
MASK_SUFFIX = "_segmentation"

_PART = r"_(?P<part>Training|Validation|Test)"
_IMAGE = r"/(?P<id>[^/]+)(?<!_superpixels)\.(?:jpe?g|png)"
_MASK = r"/(?P<id>[^/]+)(?<!_superpixels)_segmentation\.png"


@dataclass(frozen=True)
class Layout:
    """A data set's rule: patterns of `folder/file`, and the names that a partner would have."""

    image_pattern: str
    mask_pattern: str
    image_name: str = "{id}.jpg"
    mask_name: str = "{id}" + MASK_SUFFIX + ".png"


LAYOUTS = {
    "ISIC": Layout(  # the year is the data set's
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

_COMPILED_LAYOUTS = [
    (
        name,
        re.compile(one.image_pattern, re.IGNORECASE),
        re.compile(one.mask_pattern, re.IGNORECASE),
        one,
    )
    for name, one in LAYOUTS.items()
]


class FileRole(NamedTuple):
    """What a file is in its archive, and the name that its partner would have."""

    is_mask: bool
    partner_name: str
    split: str
    id: str
    dataset: str

    @property
    def pair_key(self) -> tuple[str, str, str]:
        """What image and mask of one pair have in common."""
        return self.split, self.id, self.dataset


def classify_path(path: str) -> FileRole | None:
    """The role of the file at `path`, or None for what is no part of an archive."""
    if is_hidden(path):
        return None
    tail = "/".join(path.rsplit("/", 2)[-2:])
    for dataset, images, masks, layout in _COMPILED_LAYOUTS:
        found, is_mask = images.fullmatch(tail), False
        if found is None:
            found, is_mask = masks.fullmatch(tail), True
        if found is not None:
            named = found.groupdict()
            split = SPLIT_NAMES[named.get("part", "test").lower()]
            partner = layout.image_name if is_mask else layout.mask_name
            dataset = f"{dataset} {named['year']}" if "year" in named else dataset
            return FileRole(is_mask, partner.format(id=named["id"]), split, named["id"], dataset)
    return None


def is_hidden(path: str) -> bool:
    """Whether `path` is a file that systems leave behind: .DS_Store, __MACOSX and the like."""
    return path.startswith((".", "__MACOSX/")) or "/." in path or "/__MACOSX/" in path
