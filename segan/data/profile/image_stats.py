"""Statistics of every image, computed at ingest from its frame: lesion, colours, tone and hash."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import ndimage

from segan.data.profile import duplicates
from segan.data.records.format import Samples

_COLOUR = pa.list_(pa.uint8(), 3)
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "original_width": pa.int32(),  # pixels
        "original_height": pa.int32(),  # pixels
        "lesion_fraction": pa.float32(),  # of the frame's pixels, 0 to 1
        "touches_border": pa.bool_(),  # whether a lesion pixel lies on the frame's edge
        "lesion_colour": _COLOUR,  # mean sRGB; null without a lesion
        "skin_colour": _COLOUR,  # mean sRGB; null with too little skin
        "ita": pa.float32(),  # individual typology angle, degrees; NaN: see find_skin
        "hash": pa.binary(duplicates.HASH_BYTES),
    }
)

# Categories of the individual typology angle with their lower bounds in degrees: Chardon, Cretois
# and Hourseau, "Skin colour typology and suntanning pathways", 1991; Del Bino and Bernerd, 2013.
TONE_CATEGORIES = (
    ("very light", 55.0),
    ("light", 41.0),
    ("intermediate", 28.0),
    ("tan", 10.0),
    ("brown", -30.0),
    ("dark", -90.0),
)

# Criteria of `find_skin`.
LESION_MARGIN = 1 / 16  # of the frame's short side
MIN_SKIN_LIGHTNESS, MAX_SKIN_LIGHTNESS = 15.0, 98.0  # L*
MAX_LIGHTNESS_DEVIATION = 12.0  # L*
MIN_SKIN_FRACTION = 0.02  # of the frame's pixels
STRIDE = 3  # every third row and column gives the same median in a ninth of the time

_SRGB_TO_LINEAR = np.arange(256) / 255
_SRGB_TO_LINEAR = np.where(
    _SRGB_TO_LINEAR <= 0.04045, _SRGB_TO_LINEAR / 12.92, ((_SRGB_TO_LINEAR + 0.055) / 1.055) ** 2.4
).astype(np.float32)
# IEC 61966-2-1, each row divided by the X, Y or Z of D65 white.
_RGB_TO_XYZ = np.array(
    [
        [0.4124, 0.3576, 0.1805],
        [0.2126, 0.7152, 0.0722],
        [0.0193, 0.1192, 0.9505],
    ]
)
_RGB_TO_XYZ = (_RGB_TO_XYZ / _RGB_TO_XYZ.sum(1, keepdims=True)).astype(np.float32)


def make_schema(classes: int) -> pa.Schema:
    """SCHEMA; with several classes also `class_fractions`, those of the frame's pixels, 0 to 1."""
    if classes == 1:
        return SCHEMA
    return SCHEMA.append(pa.field("class_fractions", pa.list_(pa.float32(), classes)))


def compute_stats(frames: Samples, original_sizes: Sequence[tuple[int, int]]) -> pa.Table:
    """A row of `make_schema` for every frame; with several classes, the lesion is all of them.

    Args:
        original_sizes: (width, height) of each original image in pixels.
    """
    rows = zip(frames.ids, frames.image, frames.mask, original_sizes, strict=True)
    schema = make_schema(frames.mask.shape[1])
    return pa.Table.from_pylist([_image_stats(*row) for row in rows], schema)


def _image_stats(
    sample_id: str, image: np.ndarray, mask: np.ndarray, original_size: tuple[int, int]
) -> dict[str, Any]:
    lesion = np.asarray(mask.any(0))
    sample = image[::STRIDE, ::STRIDE]
    skin, ita = find_skin(sample, lesion[::STRIDE, ::STRIDE])
    return {
        "id": sample_id,
        "original_width": original_size[0],
        "original_height": original_size[1],
        "lesion_fraction": lesion.mean(),
        "touches_border": bool(lesion[[0, -1]].any() or lesion[:, [0, -1]].any()),
        "lesion_colour": _mean_colour(image, lesion),
        "skin_colour": _mean_colour(sample, skin),
        "ita": ita,
        "hash": duplicates.hash_image(image),
        "class_fractions": mask.mean((1, 2)),
    }


def find_skin(image: np.ndarray, lesion: np.ndarray) -> tuple[np.ndarray, float]:
    """Finds the skin pixels and their individual typology angle.

    A skin pixel is outside the lesion dilated by 1/16 of the short side; is neither black (border,
    vignette: L* < 15) nor saturated (reflection: L* > 98); and its L* differs by at most 12 from
    the median of the remaining pixels, which excludes hair, shadow, ink and rulers. If less than
    2 % of the frame qualifies, there is no skin.

    Args:
        image: uint8 [H, W, 3], sRGB.
        lesion: bool [H, W].

    Returns:
        The skin pixels, bool [H, W], and the median of their angles in degrees. It is NaN without
        skin, and beyond +-90 degrees: skin bluer than grey is an effect of the light.
    """
    lab = rgb_to_lab(image)
    lightness, b_star = lab[..., 0], lab[..., 2]
    margin = max(1, round(LESION_MARGIN * min(lesion.shape)))
    skin = ~ndimage.maximum_filter(lesion, 2 * margin + 1, mode="constant")
    skin &= (lightness > MIN_SKIN_LIGHTNESS) & (lightness < MAX_SKIN_LIGHTNESS)
    if skin.any():
        skin &= abs(lightness - np.median(lightness[skin])) <= MAX_LIGHTNESS_DEVIATION
    if skin.sum() < MIN_SKIN_FRACTION * skin.size:
        return np.zeros_like(skin), float("nan")
    ita = float(np.median(typology_angle(lightness[skin], b_star[skin])))
    return skin, ita if abs(ita) < 90 else float("nan")


def typology_angle(lightness: np.ndarray, b_star: np.ndarray) -> np.ndarray:
    """ITA = arctan((L* - 50) / b*) in degrees. A larger angle is lighter; |ITA| > 90 if b* < 0."""
    angle: np.ndarray = np.degrees(np.arctan2(lightness - 50, b_star))
    return angle


def tone_category(ita: float) -> str | None:
    """The category of a typology angle in degrees; None for NaN."""
    return next((name for name, lower in TONE_CATEGORIES if ita > lower), None)


def rgb_to_lab(image: np.ndarray) -> np.ndarray:
    """Converts sRGB pixels, uint8 [..., 3], to CIELAB under D65, float32 [..., 3] of L*, a*, b*."""
    xyz = _SRGB_TO_LINEAR[image] @ _RGB_TO_XYZ.T
    x, y, z = np.moveaxis(
        np.where(xyz > 216 / 24389, np.cbrt(xyz), xyz * 841 / 108 + 4 / 29), -1, 0
    )
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def _mean_colour(image: np.ndarray, region: np.ndarray) -> list[int] | None:
    count = np.count_nonzero(region)
    if not count:
        return None
    total = region.reshape(-1).astype(np.float32) @ image.reshape(-1, 3).astype(np.float32)
    return [round(float(channel)) for channel in total / count]
