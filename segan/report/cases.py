"""Example images for a report, with the outlines of their masks as SVG paths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from segan.evaluation.probability_cache import ProbabilityCache
from segan.evaluation.result import EvaluationResult
from segan.evaluation.slices import ImageScores
from segan.inference.frames import mean_map
from segan.inference.thresholds import above_thresholds
from segan.runs.checkpoint import Checkpoint
from segan.utils.html.images import jpeg_data_uri
from segan.utils.labels import css_colour
from segan.utils.outline import outline_path

CASES_PER_GROUP = 6
_QUALITY = 82


@dataclass(frozen=True)
class Case:
    """An image with the outlines of its masks.

    Attributes:
        outlines: SVG paths in the frame's pixels by source: truth, model, or member 1 to 3; of
            several classes, truth or model and a class's number from 1.
        colours: of the outlines of several classes, CSS by source.
    """

    scores: ImageScores
    image_data_uri: str
    outlines: dict[str, str]
    colours: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CaseGroup:
    title: str
    description: str
    cases: tuple[Case, ...]


def choose_cases(
    images: Sequence[ImageScores], limit: int = CASES_PER_GROUP
) -> dict[str, list[int]]:
    """Indices of the best, median and worst images by Jaccard, without repetitions."""
    order = sorted(range(len(images)), key=lambda i: (-images[i].jaccard, images[i].id))
    limit = max(1, min(limit, len(order) // 3))
    start = (len(order) - limit) // 2
    chosen = {
        "best": order[:limit],
        "median": order[start : start + limit],
        "worst": order[-limit:],
    }
    used: set[int] = set()
    for kind in ("worst", "best", "median"):  # by priority if there are few images
        chosen[kind] = [i for i in chosen[kind] if i not in used]
        used |= {*chosen[kind]}
    return chosen | {"worst": chosen["worst"][::-1]}


def choose_disagreement_cases(
    images: Sequence[ImageScores], limit: int = CASES_PER_GROUP
) -> list[int]:
    """Indices of the images with the largest disagreement of an ensemble's members."""
    order = sorted(range(len(images)), key=lambda i: (-(images[i].disagreement or 0), images[i].id))
    return [i for i in order[:limit] if images[i].disagreement]


def build_cases(
    maps: ProbabilityCache, result: EvaluationResult, members: Sequence[Checkpoint]
) -> list[CaseGroup]:
    """The worst, median and best cases, without empty groups."""
    thresholds = [one.threshold for one in result.classes] or [result.threshold]

    def case(index: int) -> Case:
        mean = mean_map(torch.tensor(maps.get(member)[index]) for member in members).numpy()
        masks = {
            "truth": maps.samples.mask[index] != 0,
            "model": above_thresholds(mean, thresholds),
        }
        if not result.classes:
            return _make_case(maps, result, index, masks)
        by_class = {
            f"{source} {i + 1}": mask[i : i + 1]
            for i in range(len(thresholds))
            for source, mask in masks.items()
        }
        colours = {source: css_colour(int(source.split()[1]) - 1) for source in by_class}
        return replace(_make_case(maps, result, index, by_class), colours=colours)

    titles = {
        "worst": ("Worst", "lowest Jaccard first"),
        "median": ("Median", "typical results"),
        "best": ("Best", "highest Jaccard first"),
    }
    chosen = choose_cases(result.images)
    return [
        CaseGroup(title, description, tuple(map(case, chosen[kind])))
        for kind, (title, description) in titles.items()
        if chosen[kind]
    ]


def build_disagreement_cases(
    maps: ProbabilityCache, result: EvaluationResult, members: Sequence[Checkpoint]
) -> list[Case]:
    """The images with the largest disagreement, with the outline of each member's mask."""
    if len(members) < 2:
        return []

    def case(index: int) -> Case:
        masks = {
            f"member {number}": above_thresholds(maps.get(member)[index], member.thresholds)
            for number, member in enumerate(members, 1)
        }
        return _make_case(maps, result, index, masks)

    return [case(index) for index in choose_disagreement_cases(result.images)]


def _make_case(
    maps: ProbabilityCache, result: EvaluationResult, index: int, masks: dict[str, np.ndarray]
) -> Case:
    """The case of one image, with masks bool [classes, H, W]."""
    return Case(
        result.images[index],
        jpeg_data_uri(maps.samples.image[index], quality=_QUALITY),
        {source: outline_path(np.asarray(mask.any(0))) for source, mask in masks.items()},
    )
