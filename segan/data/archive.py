"""Archives: images and masks in the challenge's own folder and file names, and how one is read.

    ISIC-2017_Training_Data/ISIC_0000000.jpg
    ISIC-2017_Training_Part1_GroundTruth/ISIC_0000000_segmentation.png

and the same with `Validation` and `Test_v2`, in a local folder or below an `s3://` prefix.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, UnidentifiedImageError

from segan import storage
from segan.data.records import Record
from segan.errors import SeganError

SPLITS = {"Training": "train", "Validation": "validation", "Test": "test"}
_IMAGE = re.compile(
    r"(?:^|.*/)ISIC-(?P<year>\d{4})_(?P<part>Training|Validation|Test)(?:_v2)?_Data/"
    r"(?P<id>[^/]+)\.(?:jpe?g|png)$",
    re.IGNORECASE,
)
_MASK = re.compile(
    r"(?:^|.*/)ISIC-(?P<year>\d{4})_(?P<part>Training|Validation|Test)(?:_v2)?_Part1_GroundTruth/"
    r"(?P<id>[^/]+)(?P<suffix>_segmentation)\.png$",
    re.IGNORECASE,
)
MASK_SUFFIX = "_segmentation"
# Not what else Pillow opens: for PostScript it would start a program.
FORMATS = ("JPEG", "PNG", "BMP", "TIFF")


class RejectedError(SeganError):
    """One image or mask that cannot be used; the reason is for the table of rejects."""


@dataclass(frozen=True)
class Pair:
    """An image and its mask, by URI; `mask` is None in an archive without truth."""

    id: str
    split: str
    image: str
    mask: str | None = None


@dataclass
class Archive:
    """What a listing found: usable pairs by id, and what is no pair, with reasons."""

    uri: str
    pairs: list[Pair] = field(default_factory=list)
    rejects: list[dict[str, str]] = field(default_factory=list)

    def split(self, name: str) -> list[Pair]:
        """The pairs of a split; raises SeganError where it has none."""
        found = [pair for pair in self.pairs if pair.split == name]
        if not found:
            known = ", ".join(sorted({pair.split for pair in self.pairs})) or "no pairs at all"
            raise SeganError(f"{self.uri}: no pairs in split {name!r}; it has {known}")
        return found


def open_archive(uri: str) -> Archive:
    """Lists an archive and pairs its images with its masks; no file is opened yet.

    Files that are neither image nor mask by their folder and name (superpixels, CSV files,
    licences) are not part of an archive. An image without its mask, or a mask without its image,
    is listed among the rejects.

    Raises:
        SeganError: there is no image in it.
        StorageError: it cannot be reached.
    """
    storage.check_access(uri)
    images: dict[tuple[str, str], str] = {}
    masks: dict[tuple[str, str], str] = {}
    rejects: list[dict[str, str]] = []
    for file in storage.list_files(uri):
        match, kind = _IMAGE.match(file.name), images
        if match is None:
            match, kind = _MASK.match(file.name), masks
        if match is None or match["id"].endswith("_superpixels"):
            continue
        split, sample_id = SPLITS[match["part"].capitalize()], match["id"]
        first = kind.setdefault((split, sample_id), file.name)
        if first != file.name:
            reason = f"another file of this id in the split; {first} is used"
            rejects.append({"name": file.name, "split": split, "reason": reason})
    if not images:
        raise SeganError(
            f"{uri}: no images found; expected folders such as ISIC-2017_Training_Data with .jpg "
            "files beside ISIC-2017_Training_Part1_GroundTruth with _segmentation.png files"
        )
    archive = _pair(uri, images, masks)
    archive.rejects += rejects
    return archive


def read_record(pair: Pair, size: tuple[int, int]) -> Record:
    """Reads, checks and resizes one pair: the image bilinear with antialiasing, the mask nearest.

    Args:
        size: (width, height) in pixels of the frame, 180 x 135 in the paper.

    Raises:
        RejectedError: with a reason that names the file, what was expected and what was found.
    """
    assert pair.mask is not None, "a record needs its mask"
    image = read_image(pair.image)
    mask = read_mask(pair.mask, image.size)
    frame = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    small = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    return Record(pair.id, frame, (small > 0).astype(np.uint8)[None], image.size)


def read_image(uri: str) -> Image.Image:
    """An image, decoded whole, in RGB; raises RejectedError for what is none."""
    return _decode(uri, storage.read_bytes(uri)).convert("RGB")


def read_mask(uri: str, size: tuple[int, int]) -> np.ndarray:
    """A mask as uint8 [H, W] of 0 and 255, checked against its image's (width, height)."""
    image = _decode(uri, storage.read_bytes(uri))
    if image.mode != "L":
        raise RejectedError(
            f"{_name(uri)}: expected a mask with one 8-bit channel, found {image.mode}"
        )
    if image.size != size:
        raise RejectedError(
            f"{_name(uri)}: expected the image's {size[0]} x {size[1]} pixels, "
            f"found {image.size[0]} x {image.size[1]}"
        )
    mask = np.asarray(image)
    counts = np.bincount(mask.ravel(), minlength=256)
    other = np.flatnonzero(counts[1:255]) + 1
    if other.size:
        raise RejectedError(
            f"{_name(uri)}: expected 0 and 255 alone, found {counts[other].sum()} pixels between "
            f"({', '.join(str(v) for v in other[:4])}{', ...' if other.size > 4 else ''})"
        )
    return mask


def check_rejects(rejects: Sequence[dict[str, str]], total: int, most: float, uri: str) -> None:
    """Raises SeganError when more than the share `most` of `total` pairs was rejected."""
    if total and len(rejects) / total > most:
        shown = "".join(f"\n  {row['name']}: {row['reason']}" for row in rejects[:5])
        raise SeganError(
            f"{uri}: {len(rejects)} of {total} pairs rejected, more than the share of {most:g} "
            f"that --max-rejects allows; the first:{shown}"
        )


def _pair(
    uri: str, images: dict[tuple[str, str], str], masks: dict[tuple[str, str], str]
) -> Archive:
    archive = Archive(uri)
    for (split, sample_id), name in sorted(images.items()):
        mask = masks.pop((split, sample_id), None)
        if mask is None:
            reason = f"no mask; expected {sample_id}{MASK_SUFFIX}.png among the split's masks"
            archive.rejects.append({"name": name, "split": split, "reason": reason})
            continue
        image_uri, mask_uri = storage.join(uri, name), storage.join(uri, mask)
        archive.pairs.append(Pair(sample_id, split, image_uri, mask_uri))
    for (split, sample_id), name in sorted(masks.items()):
        reason = f"no image; expected {sample_id}.jpg among the split's images"
        archive.rejects.append({"name": name, "split": split, "reason": reason})
    return archive


def _decode(uri: str, content: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            image.load()
    except UnidentifiedImageError:
        found = "an empty file" if not content else f"{len(content)} bytes that are none"
        raise RejectedError(f"{_name(uri)}: expected an image, found {found}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RejectedError(f"{_name(uri)}: too large to be a photograph ({error})") from None
    except (OSError, SyntaxError, ValueError, TypeError, EOFError) as error:
        raise RejectedError(f"{_name(uri)}: not a whole image ({error})") from None
    return image


def _name(uri: str) -> str:
    return uri.rsplit("/", 1)[-1]
