"""What is said of a prediction in numbers: area, confidence, disagreement, and flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import label

from segan.inference.predictor import Prediction

# Below this Jaccard the ISIC challenge of 2018 counted a mask as failed.
LOW_CONFIDENCE = 0.65
EIGHT_CONNECTED = np.ones((3, 3), int)  # neighbours of a pixel, the diagonal ones too


@dataclass(frozen=True, slots=True)
class RegionStats:
    """Of one image's mask, at the image's size.

    Attributes:
        area: lesion, pixels.
        share: of the image that is lesion, in [0, 1].
        parts: pieces of lesion that touch nowhere, not even at a corner.
        confidence: the Jaccard that the mask would have if each pixel were lesion as often as its
            probability says: sum of the probabilities inside over the area and the sum of those
            outside; in [0, 1], and 0 of an empty mask.
        disagreement: of the members' masks, each at its own threshold: one less the pixels of all
            over the pixels of any; in [0, 1], 0 where no member draws any, None of one member.
        flags: words of "empty" (no lesion), "border" (the lesion touches the image's edge),
            "parts" (more than one) and "unsure" (confidence below UNSURE_BELOW).
    """

    area: int
    area_fraction: float
    num_components: int
    confidence: float
    disagreement: float | None
    flags: str


def region_stats(prediction: Prediction, member_masks: Sequence[np.ndarray] = ()) -> RegionStats:
    """The figures of a prediction.

    Args:
        members: bool [H, W] each, the members' masks; none of a model of one.
    """
    mask, probability = prediction.mask, prediction.probability
    area = int(mask.sum())
    inside = float(probability.sum(where=mask, dtype=np.float64))
    outside = float(probability.sum(dtype=np.float64)) - inside
    confidence = min(1.0, inside / (area + outside)) if area else 0.0
    num_components = int(label(mask, EIGHT_CONNECTED)[1])
    edges = (mask[0], mask[-1], mask[:, 0], mask[:, -1])
    found = {
        "empty": not area,
        "border": any(edge.any() for edge in edges),
        "multiple_components": num_components > 1,
        "low_confidence": confidence < LOW_CONFIDENCE,
    }
    return RegionStats(
        area=area,
        area_fraction=area / mask.size,
        num_components=num_components,
        confidence=round(confidence, 6),
        disagreement=round(disagreement(member_masks), 6) if len(member_masks) > 1 else None,
        flags=" ".join(flag for flag, is_so in found.items() if is_so),
    )


def disagreement(masks: Sequence[np.ndarray]) -> float:
    """Of members' masks, bool [H, W] each: as of `Figures`, which rounds it."""
    some, every = int(np.any(masks, 0).sum()), int(np.all(masks, 0).sum())
    return 1 - every / some if some else 0.0
