"""The model card of an ensemble, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from segan import storage
from segan.evaluation.bootstrap import Interval
from segan.evaluation.metrics import SCORE_NAMES
from segan.evaluation.result import EvaluationResult
from segan.evaluation.slices import MIN_IMAGES, SliceGroup
from segan.runs.ensemble import Ensemble, EnsembleMember
from segan.utils.html import render

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


def render_card(uri: str, ensemble: Ensemble, result: EvaluationResult) -> str:
    """The text of card.md.

    Args:
        result: of the ensemble on its validation split.
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
        slice_table=_slice_table(result.slice_groups),
        min_images=MIN_IMAGES,
    )
    return text + "\n"


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
    return _markdown_table(["", *_CONFIG_COLUMNS, "k", "epochs", "from"], rows)


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
    return _markdown_table(["", "accuracy", "Dice", "Jaccard", "threshold"], rows)


def _slice_table(slice_groups: Sequence[SliceGroup]) -> str:
    rows = []
    for group in slice_groups:
        for i, one in enumerate(group.slices):
            known = one.low is not None and one.high is not None
            interval = f"{one.low:.3f} to {one.high:.3f}" if known else "too few"
            name = group.attribute if i == 0 else ""
            rows.append([name, one.name, str(one.num_images), f"{one.jaccard:.3f}", interval])
    return _markdown_table(["", "", "images", "Jaccard", "95 % interval"], rows)


def _format_interval(score: Interval) -> str:
    return f"{score.mean:.4f} ({score.low:.3f} to {score.high:.3f})"


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
