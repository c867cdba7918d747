"""Cases to look at: which images, and their outlines as paths over the photograph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from segan.evaluation.probability_cache import ProbabilityCache
from segan.evaluation.result import EvaluationResult, ImageScores
from segan.inference.frames import mean_map
from segan.runs.checkpoint import Checkpoint
from segan.utils.html import jpeg_data_uri
from segan.utils.outline import outline_path

CASES_PER_GROUP = 6  # images of a kind
_QUALITY = 82


class Outline(BaseModel):
    """An SVG path around a mask in the frame's pixels; `whose` is truth, model or member 1 to 3."""

    model_config = ConfigDict(frozen=True)

    source: str
    path: str


class Case(BaseModel):
    """An image with its outlines; `picture` is a data URI."""

    model_config = ConfigDict(frozen=True)

    scores: ImageScores
    image_data_uri: str
    outlines: tuple[Outline, ...]


class CaseGroup(BaseModel):
    model_config = ConfigDict(frozen=True)

    title: str
    description: str
    cases: tuple[Case, ...]


def choose_cases(
    images: Sequence[ImageScores], limit: int = CASES_PER_GROUP
) -> dict[str, list[int]]:
    """Positions of the best, the median and the worst images by Jaccard, none in two of them."""
    order = sorted(range(len(images)), key=lambda i: (-images[i].jaccard, images[i].id))
    limit = max(1, min(limit, len(order) // 3))
    start = (len(order) - limit) // 2
    chosen = {
        "best": order[:limit],
        "median": order[start : start + limit],
        "worst": order[-limit:],
    }
    used: set[int] = set()
    for kind in ("worst", "best", "median"):  # what matters most comes first where there are few
        chosen[kind] = [i for i in chosen[kind] if i not in used]
        used |= {*chosen[kind]}
    return chosen | {"worst": chosen["worst"][::-1]}


def choose_disagreement_cases(
    images: Sequence[ImageScores], limit: int = CASES_PER_GROUP
) -> list[int]:
    """Positions of the images on which the members of an ensemble disagree most."""
    order = sorted(range(len(images)), key=lambda i: (-(images[i].disagreement or 0), images[i].id))
    return [i for i in order[:limit] if images[i].disagreement]


def build_cases(
    maps: ProbabilityCache, result: EvaluationResult, members: Sequence[Checkpoint]
) -> list[CaseGroup]:
    """The groups that a report shows, none of them empty."""
    kinds = {
        "worst": ("The worst", "by Jaccard, the lowest first"),
        "median": ("In the middle", "around the median: what is usual"),
        "best": ("The best", "by Jaccard, the highest first"),
    }
    chosen = choose_cases(result.images)
    groups = [
        CaseGroup(
            title=title,
            description=about,
            cases=tuple(_make_case(maps, result, members, i) for i in chosen[kind]),
        )
        for kind, (title, about) in kinds.items()
        if chosen[kind]
    ]
    return groups


def build_disagreement_cases(
    maps: ProbabilityCache, result: EvaluationResult, members: Sequence[Checkpoint]
) -> list[Case]:
    """The images on which the members disagree most, with an outline of each member."""
    return [
        _make_disagreement_case(maps, result, members, i)
        for i in (choose_disagreement_cases(result.images) if len(members) > 1 else [])
    ]


def _make_case(
    maps: ProbabilityCache, result: EvaluationResult, members: Sequence[Checkpoint], index: int
) -> Case:
    mean = mean_map(torch.tensor(maps.get(member)[index]) for member in members).numpy()
    masks = {"truth": maps.samples.mask[index] != 0, "model": mean > result.threshold}
    return _outline_case(maps, result, index, masks)


def _make_disagreement_case(
    maps: ProbabilityCache, result: EvaluationResult, members: Sequence[Checkpoint], index: int
) -> Case:
    masks = {
        f"member {number}": np.asarray(maps.get(member)[index] > member.threshold)
        for number, member in enumerate(members, 1)
    }
    return _outline_case(maps, result, index, masks)


def _outline_case(
    maps: ProbabilityCache, result: EvaluationResult, index: int, masks: dict[str, np.ndarray]
) -> Case:
    return Case(
        scores=result.images[index],
        image_data_uri=jpeg_data_uri(maps.samples.image[index], quality=_QUALITY),
        outlines=tuple(
            Outline(source=whose, path=outline_path(np.asarray(mask.any(0))))
            for whose, mask in masks.items()
        ),
    )
