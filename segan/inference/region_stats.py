"""Summary statistics of a predicted mask: area, confidence, disagreement and flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import label

from segan.inference.predictor import Prediction

# The ISIC challenge of 2018 counted masks with a lower Jaccard as failed.
LOW_CONFIDENCE = 0.65
EIGHT_CONNECTED = np.ones((3, 3), int)  # structuring element of scipy.ndimage.label


@dataclass(frozen=True, slots=True)
class RegionStats:
    """Statistics of one mask at its image's size.

    Attributes:
        area: of the lesion, pixels.
        area_fraction: fraction of the image that is lesion, in [0, 1].
        num_components: 8-connected components of the mask.
        confidence: the expected Jaccard if the probabilities were calibrated: the sum of the
            probabilities inside the mask, over its area plus the sum of those outside. In [0, 1]; 0
            for an empty mask.
        disagreement: 1 - IoU of the members' masks, see `disagreement`; None for a single member.
        flags: separated by blanks: "empty" (no lesion), "border" (the lesion touches the image's
            edge), "multiple_components" and "low_confidence" (below LOW_CONFIDENCE).
    """

    area: int
    area_fraction: float
    num_components: int
    confidence: float
    disagreement: float | None
    flags: str


def region_stats(prediction: Prediction, member_masks: Sequence[np.ndarray] = ()) -> RegionStats:
    """The statistics of a prediction.

    Args:
        member_masks: the members' masks at their own thresholds, bool [H, W] each.
    """
    mask, probability = prediction.mask, prediction.probability
    area = int(mask.sum())
    inside = float(probability.sum(where=mask, dtype=np.float64))
    outside = float(probability.sum(dtype=np.float64)) - inside
    confidence = min(1.0, inside / (area + outside)) if area else 0.0
    num_components = int(label(mask, EIGHT_CONNECTED)[1])
    edges = (mask[0], mask[-1], mask[:, 0], mask[:, -1])
    flags = {
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
        flags=" ".join(flag for flag, is_set in flags.items() if is_set),
    )


def disagreement(masks: Sequence[np.ndarray]) -> float:
    """1 - IoU of several masks, bool [H, W] each: in [0, 1], and 0 if all are empty.

    Of the pixels in any mask, the fraction that is not in every mask. The uncertainty map,
    `segan.inference.frames.std_map`, is the statistic per pixel.
    """
    union, intersection = int(np.any(masks, 0).sum()), int(np.all(masks, 0).sum())
    return 1 - intersection / union if union else 0.0
