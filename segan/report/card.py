"""The model card of an ensemble, in Markdown."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segan import storage
from segan.config import Config, format_value, parse_config
from segan.evaluation.bootstrap import Interval
from segan.evaluation.metrics import SCORE_NAMES
from segan.evaluation.result import EvaluationResult
from segan.evaluation.slices import MIN_IMAGES, SliceGroup
from segan.runs.checkpoint import short_name
from segan.runs.ensemble import Ensemble, EnsembleMember
from segan.runs.identity import config_identity
from segan.utils.html import render
from segan.utils.text import markdown_table

_RULE_DESCRIPTIONS = {
    "best": "The members are the best checkpoints of the three runs with the highest Jaccard.",
    "greedy": "The members are the best run and two more, each the one that raised the "
    "ensemble's Jaccard most.",
}
_CONFIG_COLUMNS = {  # config keys by column name
    "width": "network.width",
    "batch": "training.batch_size",
    "workers": "cluster.workers",
    "learning rate": "optimizer.learning_rate",
    "weight clip": "optimizer.weight_clip",
    "seed": "training.seed",
}


@dataclass(frozen=True)
class ArchiveScores:
    """Scores of an ensemble against an archive's masks, at the images' own sizes.

    Attributes:
        scores: mean of each score over `num_images` images.
    """

    num_images: int
    scores: Mapping[str, Interval]


def render_card(
    uri: str,
    ensemble: Ensemble,
    result: EvaluationResult,
    commands: Sequence[str],
    archive_scores: ArchiveScores | None = None,
) -> str:
    """The text of card.md.

    Args:
        result: of the ensemble on its validation split.
        commands: that make the ensemble from records, see `build_commands`.
        archive_scores: of the images of the validation split.
    """
    text = render(
        "segan/report/card.md.j2",
        uri=uri,
        name=storage.basename(uri),
        ensemble=ensemble,
        result=result,
        sizes=", ".join(f"{count} {split}" for split, count in ensemble.splits.items()),
        frame=f"{ensemble.frame['width']} x {ensemble.frame['height']}",
        rule=_RULE_DESCRIPTIONS[ensemble.rule],
        training_table=_training_table(ensemble.members),
        score_table=_score_table(ensemble, result),
        class_table=_class_table(result) if result.classes else "",
        slice_table=_slice_table(result.slice_groups),
        min_images=MIN_IMAGES,
        commands=commands,
        archive_scores=archive_scores,
        archive_table=_archive_table(archive_scores.scores) if archive_scores else "",
    )
    return text + "\n"


def build_commands(ensemble: Ensemble) -> list[str]:
    """The commands that train the members on records and build the ensemble of them."""
    runs = [f"runs/{short_name(member.uri).partition('/')[0]}" for member in ensemble.members]
    trainings = [
        shlex.join(["segan", "train", run, "data.records=RECORDS", *_overrides(member)])
        for run, member in zip(runs, ensemble.members, strict=True)
    ]
    members = [word for run in runs for word in ("--member", run)]
    build = shlex.join(["segan", "ensemble", "build", *members, "--out", "ENSEMBLE"])
    return [*trainings, build]


def _overrides(member: EnsembleMember) -> list[str]:
    """The values of a member's configuration that are not the defaults, as `section.key=value`."""
    config = parse_config(member.info.config)
    values, defaults = (
        config_identity(c, "search", "ablation", "cluster") | {"cluster.workers": c.cluster.workers}
        for c in (config, Config())
    )
    changed = {key: value for key, value in values.items() if value != defaults[key]}
    return [f"{key}={format_value(value)}" for key, value in changed.items()]


def _training_table(members: Sequence[EnsembleMember]) -> str:
    rows = [
        [
            f"member {i}",
            *_config_values(member),
            f"{member.k:g}",
            str(member.info.epochs),
            member.uri,
        ]
        for i, member in enumerate(members, 1)
    ]
    return markdown_table(["", *_CONFIG_COLUMNS, "k", "epochs", "from"], rows)


def _config_values(member: EnsembleMember) -> list[str]:
    config: dict[str, dict[str, Any]] = member.info.config
    keys = (key.split(".") for key in _CONFIG_COLUMNS.values())
    return [f"{config[section][key]:g}" for section, key in keys]


def _score_table(ensemble: Ensemble, result: EvaluationResult) -> str:
    rows = [
        [
            f"member {i}",
            *map(_format_interval, (member.scores[n] for n in SCORE_NAMES)),
            f"{member.threshold:g}",
        ]
        for i, member in enumerate(result.members, 1)
    ]
    ensemble_scores = [_format_interval(result.scores[name]) for name in SCORE_NAMES]
    rows.append(["ensemble", *ensemble_scores, f"{ensemble.threshold:g}"])
    return markdown_table(["", "accuracy", "Dice", "Jaccard", "threshold"], rows)


def _class_table(result: EvaluationResult) -> str:
    rows = [
        [
            one.name,
            str(one.num_images),
            *map(_format_interval, (one.scores[n] for n in SCORE_NAMES)),
            f"{one.threshold:g}",
        ]
        for one in result.classes
    ]
    return markdown_table(["", "images", "accuracy", "Dice", "Jaccard", "threshold"], rows)


def _slice_table(slice_groups: Sequence[SliceGroup]) -> str:
    rows = []
    for group in slice_groups:
        for i, one in enumerate(group.slices):
            known = one.low is not None and one.high is not None
            interval = f"{one.low:.3f} to {one.high:.3f}" if known else "too few"
            name = group.attribute if i == 0 else ""
            rows.append([name, one.name, str(one.num_images), f"{one.jaccard:.3f}", interval])
    return markdown_table(["", "", "images", "Jaccard", "95 % interval"], rows)


def _archive_table(scores: Mapping[str, Interval]) -> str:
    rows = [[name, _format_interval(score)] for name, score in scores.items()]
    return markdown_table(["score", "mean (95 % interval)"], rows)


def _format_interval(score: Interval) -> str:
    return f"{score.mean:.4f} ({score.low:.3f} to {score.high:.3f})"
