"""Generates synthetic images with several label maps, as archives of the two kinds.

    attributes    ISIC2018_Task1-2_Training_Input/ISIC_0000000.jpg
                  ISIC2018_Task2_Training_GroundTruth/ISIC_0000000_attribute_globules.png ...
    labels        ISIC-2017_Training_Data/ISIC_0000000.jpg
                  ISIC-2017_Training_Part1_GroundTruth/ISIC_0000000_labels.png

and classes.yaml. The attributes are those of ISIC 2018's second task, painted into a lesion of
`segan.data.synthetic`; their masks overlap. A label image has the lesion and two of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from segan.data.archive.label_classes import shipped_classes
from segan.data.synthetic import (
    Array,
    Rng,
    Write,
    WriteSample,
    encode_image,
    generate_pair,
    write_pair,
)

# Probability of each attribute in an image; the challenge's are 0.04 to 0.6.
ATTRIBUTES = {
    "pigment_network": 0.7,
    "negative_network": 0.5,
    "streaks": 0.5,
    "milia_like_cyst": 0.6,
    "globules": 0.6,
}
LABELS = ("lesion", "globules", "milia_like_cyst")  # of the values 1, 2 and 3
LABEL_CLASSES = "".join(
    ['mask: "{id}_labels.png"\nclasses:\n', *(f"  {n}: {i}\n" for i, n in enumerate(LABELS, 1))]
)
MIN_RADIUS = 6.0  # pixels of a lesion that attributes are painted into


def write_attributes(
    seed: int, index: int, short_side: int, name: str, folder: str, write: Write
) -> None:
    """Writes an image and a mask for each attribute, under the names of ISIC 2018."""
    image, masks = generate_classes(seed, index, short_side=short_side)
    part = folder.removesuffix("_v2")
    write(f"ISIC2018_Task1-2_{part}_Input/{name}.jpg", encode_image(image, "JPEG", quality=92))
    for attribute in ATTRIBUTES:
        file = f"ISIC2018_Task2_{part}_GroundTruth/{name}_attribute_{attribute}.png"
        write(file, encode_image(masks[attribute].astype(np.uint8) * 255, "PNG"))


def write_labels(
    seed: int, index: int, short_side: int, name: str, folder: str, write: Write
) -> None:
    """Writes an image and its label image; where classes overlap, it has the later one's label."""
    image, masks = generate_classes(seed, index, short_side=short_side)
    labels = np.zeros(image.shape[:2], np.uint8)
    for value, label in enumerate(LABELS, 1):
        labels[masks[label]] = value
    write(f"ISIC-2017_{folder}_Data/{name}.jpg", encode_image(image, "JPEG", quality=92))
    file = f"ISIC-2017_{folder}_Part1_GroundTruth/{name}_labels.png"
    write(file, encode_image(labels, "PNG"))


def generate_classes(
    seed: int, index: int, size: tuple[int, int] | None = None, short_side: int = 256
) -> tuple[Array, dict[str, Array]]:
    """An image, uint8 [H, W, 3], and its masks, bool [H, W]: of the lesion and the ATTRIBUTES.

    Args: see `generate_pair`.
    """
    pixels, lesion_mask = generate_pair(seed, index, size, short_side)
    image, lesion = pixels.astype(np.float32), lesion_mask > 0
    rng = np.random.default_rng([seed, index, len(ATTRIBUTES)])
    masks = {"lesion": lesion}
    radius = float(np.sqrt(lesion.sum() / np.pi))
    for (attribute, probability), own in zip(ATTRIBUTES.items(), rng.spawn(5), strict=True):
        mask = np.zeros_like(lesion)
        if own.random() < probability and radius >= MIN_RADIUS:
            mask = _PAINTERS[attribute](own, image, lesion, radius)
        masks[attribute] = mask
    return image.clip(0, 255).astype(np.uint8), masks


def _choose_region(rng: Rng, lesion: Array, radius: float) -> Array:
    """An ellipse about a pixel of the lesion, as far as it is lesion."""
    rows, columns = np.nonzero(lesion)
    centre = rng.integers(len(rows))
    u, v = _turned(rng, lesion.shape, rows[centre], columns[centre])
    long, short = radius * rng.uniform(0.6, 1.0), radius * rng.uniform(0.5, 0.8)
    region: Array = lesion & ((u / long) ** 2 + (v / short) ** 2 < 1)
    return region


def _turned(rng: Rng, shape: tuple[int, ...], row: float, column: float) -> tuple[Array, Array]:
    """Coordinates of the pixels, turned about one of them."""
    turn = rng.uniform(0, np.pi)
    y, x = np.ogrid[: shape[0], : shape[1]]
    x, y = x - column, y - row
    return np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x


def _grid(rng: Rng, shape: tuple[int, ...], radius: float) -> Array:
    """The lines of a net, bool [H, W]."""
    period = max(4.0, 0.16 * radius)
    u, v = _turned(rng, shape, 0, 0)
    lines: Array = np.minimum(u % period, v % period) < 0.35 * period
    return lines


def _paint_pigment_network(rng: Rng, image: Array, lesion: Array, radius: float) -> Array:
    """A net of dark brown lines."""
    region = _choose_region(rng, lesion, radius)
    image[region & _grid(rng, lesion.shape, radius)] *= np.array((0.5, 0.4, 0.35), np.float32)
    return region


def _paint_negative_network(rng: Rng, image: Array, lesion: Array, radius: float) -> Array:
    """A net of pale lines."""
    region = _choose_region(rng, lesion, radius)
    lines = region & _grid(rng, lesion.shape, radius)
    image[lines] += 0.55 * (np.array((250, 215, 225), np.float32) - image[lines])
    return region


def _paint_streaks(rng: Rng, image: Array, lesion: Array, radius: float) -> Array:
    """Dark rays in a part of the lesion's rim."""
    rows, columns = np.nonzero(lesion)
    y, x = np.ogrid[: lesion.shape[0], : lesion.shape[1]]
    angle = np.arctan2(y - rows.mean(), x - columns.mean()) + rng.uniform(0, 2 * np.pi)
    rim = lesion & (ndimage.distance_transform_edt(lesion) < 0.3 * radius)
    region: Array = rim & (angle % (2 * np.pi) < rng.uniform(2.0, 4.5))
    image[region & (np.sin(angle * 28) > 0)] *= np.float32(0.3)
    return region


def _paint_milia_like_cysts(rng: Rng, image: Array, lesion: Array, radius: float) -> Array:
    """Bright discs."""
    return _paint_discs(rng, image, lesion, radius, 0.16, (255, 250, 235), int(rng.integers(2, 7)))


def _paint_globules(rng: Rng, image: Array, lesion: Array, radius: float) -> Array:
    """Reddish dark dots."""
    region = _choose_region(rng, lesion, radius)
    _paint_discs(rng, image, region, radius, 0.08, (90, 20, 40), 40)
    return region


def _paint_discs(
    rng: Rng,
    image: Array,
    region: Array,
    radius: float,
    size: float,
    colour: tuple[int, int, int],
    count: int,
) -> Array:
    """Paints discs of `size` times the lesion's radius into a region; their mask."""
    rows, columns = np.nonzero(region)
    mask = np.zeros_like(region)
    y, x = np.ogrid[: region.shape[0], : region.shape[1]]
    for centre in rng.integers(len(rows), size=count):
        distance = np.hypot(y - rows[centre], x - columns[centre])
        mask |= distance < max(1.5, size * radius * rng.uniform(0.7, 1.2))
    mask &= region
    image[mask] += 0.8 * (np.array(colour, np.float32) - image[mask])
    return mask


_Painter = Callable[[Rng, Array, Array, float], Array]
_PAINTERS: dict[str, _Painter] = {
    "pigment_network": _paint_pigment_network,
    "negative_network": _paint_negative_network,
    "streaks": _paint_streaks,
    "milia_like_cyst": _paint_milia_like_cysts,
    "globules": _paint_globules,
}


@dataclass(frozen=True)
class SyntheticKind:
    """A kind of archive: what writes a sample, and the content of classes.yaml, b"" without one."""

    write_sample: WriteSample
    classes: bytes = b""


KINDS = {
    "lesion": SyntheticKind(write_pair),
    "attributes": SyntheticKind(
        write_attributes, shipped_classes()["isic2018_attributes"].read_bytes()
    ),
    "labels": SyntheticKind(write_labels, LABEL_CLASSES.encode()),
}
