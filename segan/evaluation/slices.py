"""Mean Jaccard by kind of image, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from segan.data.profile.image_stats import TONE_CATEGORIES, tone_category
from segan.evaluation.bootstrap import mean_interval
from segan.utils.models import FrozenModel

# (upper bound, name) of bands of the frame's fraction that is lesion and the skin's that is hair.
LESION_BANDS = ((0.02, "up to 2 %"), (0.05, "2 to 5 %"), (0.15, "5 to 15 %"), (0.4, "15 to 40 %"))
LARGEST_LESION = "above 40 %"
HAIR_BANDS = ((0.01, "up to 1 %"), (0.03, "1 to 3 %"))
MOST_HAIR = "above 3 %"
MIN_IMAGES = 5  # fewest images that a slice's interval is computed from


class ImageScores(FrozenModel):
    """Scores and properties of one validation image.

    Attributes:
        accuracy, dice, jaccard: of the model's mask at its threshold, mean over classes.
        lesion_fraction: fraction of the frame that the true lesion covers.
        touches_border: whether the true lesion reaches the frame's edge.
        ita: individual typology angle in degrees; None if it could not be estimated.
        hair_fraction: fraction of the skin that looks like hair, see `segan.evaluation.hair`.
        disagreement: of an ensemble's members, see `compute_disagreement`; None for one model.
    """

    id: str
    accuracy: float
    dice: float
    jaccard: float
    lesion_fraction: float
    touches_border: bool
    ita: float | None
    hair_fraction: float
    disagreement: float | None = None


class Slice(FrozenModel):
    """The images of one kind.

    Attributes:
        jaccard: mean.
        low, high: 95 % bootstrap interval of the mean; None with fewer than MIN_IMAGES images.
    """

    name: str
    num_images: int
    jaccard: float
    low: float | None
    high: float | None


class SliceGroup(FrozenModel):
    """All images, grouped by one attribute; empty slices are left out."""

    attribute: str
    description: str
    slices: tuple[Slice, ...]


def slice_images(images: Sequence[ImageScores]) -> tuple[SliceGroup, ...]:
    """Groups the images by lesion size, border, estimated skin tone and hair."""
    tones = [name for name, _ in TONE_CATEGORIES]
    return (
        _slice_group(
            "Lesion size",
            "fraction of the frame that the lesion covers",
            images,
            ["none", *(name for _, name in LESION_BANDS), LARGEST_LESION],
            lambda image: (
                _band(image.lesion_fraction, LESION_BANDS, LARGEST_LESION)
                if image.lesion_fraction
                else "none"
            ),
        ),
        _slice_group(
            "Lesion and border",
            "whether the frame cuts the lesion off",
            images,
            ["lies inside", "touches the border"],
            lambda image: "touches the border" if image.touches_border else "lies inside",
        ),
        _slice_group(
            "Estimated skin tone",
            "individual typology angle of the skin around the lesion",
            images,
            [*tones, "unknown"],
            lambda image: (None if image.ita is None else tone_category(image.ita)) or "unknown",
        ),
        _slice_group(
            "Hair",
            "fraction of the skin under dark, thin, long lines; rulers and pen marks count too",
            images,
            [*(name for _, name in HAIR_BANDS), MOST_HAIR],
            lambda image: _band(image.hair_fraction, HAIR_BANDS, MOST_HAIR),
        ),
    )


def _slice_group(
    attribute: str,
    description: str,
    images: Sequence[ImageScores],
    names: Sequence[str],
    get_name: Callable[[ImageScores], str],
) -> SliceGroup:
    """Slices in the order of `names`, without the empty ones."""
    jaccards: dict[str, list[float]] = {name: [] for name in names}
    for image in images:
        jaccards[get_name(image)].append(image.jaccard)
    slices = tuple(_score_slice(name, values) for name, values in jaccards.items() if values)
    return SliceGroup(attribute=attribute, description=description, slices=slices)


def _score_slice(name: str, jaccards: Sequence[float]) -> Slice:
    interval = mean_interval(jaccards) if len(jaccards) >= MIN_IMAGES else None
    return Slice(
        name=name,
        num_images=len(jaccards),
        jaccard=float(np.mean(jaccards)),
        low=interval.low if interval else None,
        high=interval.high if interval else None,
    )


def _band(value: float, bands: Sequence[tuple[float, str]], above: str) -> str:
    return next((name for upper, name in bands if value <= upper), above)
