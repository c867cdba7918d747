"""Tables of records, runs, studies, checkpoints, ensembles and ablations, on stdout."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from segan.cli.console import echo, print_table, stdout_console
from segan.cli.score_tables import show_classes
from segan.runs.checkpoint import short_name
from segan.runs.listing import RunSummary
from segan.runs.trial import TrialStatus

if TYPE_CHECKING:
    from segan.data.records.format import Manifest
    from segan.evaluation.bootstrap import Interval
    from segan.runs.ensemble import Ensemble
    from segan.runs.study import TrialRow

_SEARCHED_KEYS = {  # of `segan tune`: key, heading
    "optimizer.weight_clip": "clip",
    "optimizer.learning_rate": "rate",
    "logistic.final_k": "k",
}
_OVERRIDES = "overrides"  # heading of an ablation's parameters


def show_records(uri: str, manifest: Manifest) -> None:
    """The splits of records, and where their profile is."""
    if manifest.num_rejects:
        echo(
            f"{manifest.num_rejects} of {manifest.num_inputs} pairs rejected, with reasons "
            "in the data profile"
        )
    if names := ", ".join(manifest.class_names):
        echo(f"classes: {names}; train with network.classes={manifest.classes}")
    echo(f"data profile: {uri}/profile.html")
    rows = [
        [split, manifest.num_rows(split), len(manifest.shards(split))] for split in manifest.splits
    ]
    print_table(f"records at {uri}", ["split", "pairs", "shards"], rows)


if TYPE_CHECKING:  # segan.evaluation imports torch
    from segan.evaluation.bootstrap import Interval
    from segan.evaluation.compare import AblationReport, ScoreRow


def show_runs(uri: str, summaries: Sequence[RunSummary]) -> None:
    columns = ["run", "epochs", "jaccard", "state", "started", "images/s"]
    print_table(
        f"runs at {uri}, the best Jaccard with its epoch, times in UTC",
        columns,
        list(map(_run_row, summaries)),
        left_columns=(0, 3),
    )
    if any(summary.state == TrialStatus.UNFINISHED for summary in summaries):
        echo(
            "unfinished: with the time since the last write, and the host that holds the lease, "
            "if any"
        )


def _run_row(summary: RunSummary) -> list[Any]:
    state = summary.state
    if state == TrialStatus.UNFINISHED and summary.last_modified:
        state += f", {_format_age(summary.last_modified)}"
        state += f", on {summary.host}" if summary.host else ""
    return [
        summary.name,
        f"{summary.epochs}/{summary.total_epochs or '?'}",
        None if summary.jaccard is None else f"{summary.jaccard:.4f} at {summary.best_epoch}",
        state,
        summary.started_at and summary.started_at[:16].replace("T", " "),
        summary.images_per_second and round(summary.images_per_second),
    ]


def _or_dash(value: Any) -> Any:
    return "-" if value is None else value


def _format_age(timestamp: str) -> str:
    seconds = (datetime.now(UTC) - datetime.fromisoformat(timestamp)).total_seconds()
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def show_run_description(description: Mapping[str, Any]) -> None:
    summary = description["summary"]
    packages, device = description["packages"] or {}, description["device"] or {}
    rows = [
        ["state", summary["state"]],
        ["driver on", summary["host"]],
        ["epochs", f"{summary['epochs']} of {summary['total_epochs']}"],
        ["started", summary["started_at"]],
        ["last modified", summary["last_modified"]],
        ["data fingerprint", description["fingerprint"]],
        ["git commit", description["git_commit"]],
        ["hardware", description["hardware"]],
        ["device", ", ".join(f"{key} {value}" for key, value in device.items() if value)],
        ["packages", ", ".join(f"{name} {version}" for name, version in packages.items())],
    ]
    print_table(summary["uri"], ["run", summary["name"]], rows, left_columns=(0, 1))
    _show_config(description["config"], description["non_default"])
    if description["epochs"]:
        _show_epochs(description["epochs"])
    show_checkpoints(summary["uri"], description["checkpoints"])


def _show_config(
    config: Mapping[str, Mapping[str, Any]], non_default: Mapping[str, Mapping[str, Any]]
) -> None:
    changed = [
        [k, json.dumps(v["value"]), json.dumps(v["default"])] for k, v in non_default.items()
    ]
    print_table(
        "configuration: values other than the default", ["key", "value", "default"], changed
    )
    defaults = [
        (
            section,
            [f"{k} {json.dumps(v)}" for k, v in b.items() if f"{section}.{k}" not in non_default],
        )
        for section, b in config.items()
    ]
    print_table(
        "configuration: default values",
        ["section", "keys and values"],
        [[section, ", ".join(values)] for section, values in defaults if values],
        left_columns=(0, 1),
    )


_EPOCH_COLUMNS = {  # heading: key of metrics.jsonl, format
    "epoch": ("epoch", ""),
    "C loss": ("critic_loss", ".4f"),
    "S loss": ("segmentor_loss", ".4f"),
    "jaccard": ("jaccard", ".4f"),
    "threshold": ("threshold", "g"),
    "sat.": ("saturated_fraction", ".0%"),
    "wrong": ("wrong_saturated_fraction", ".0%"),
    "k": ("k", ".3g"),
    "rate": ("learning_rate", ".3g"),
    "images/s": ("images_per_second", ".0f"),
    "wait": ("data_wait_fraction", ".1%"),
}


def _show_epochs(epochs: Sequence[Mapping[str, Any]]) -> None:
    rows = [
        [
            format(line[key], form) if line.get(key) is not None else None
            for key, form in _EPOCH_COLUMNS.values()
        ]
        for line in epochs
    ]
    title = "epochs, each Jaccard at its best threshold; saturated pixels of all and of the wrong"
    print_table(title, list(_EPOCH_COLUMNS), rows)
    show_classes(max(epochs, key=lambda line: line.get("jaccard") or 0.0))


def show_checkpoints(run: str, rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        echo(f"{run}: no checkpoint yet")
        return
    shown = [
        [
            row["name"],
            row["epoch"],
            row["jaccard"],
            row["size"],
            row["error"] or "complete",
            ", ".join(row["aliases"]),
        ]
        for row in rows
    ]
    columns = ["name", "epoch", "jaccard", "bytes", "state", "alias"]
    print_table(f"checkpoints of {run}", columns, shown, (0, 4))


def show_ensemble(uri: str, ensemble: Ensemble) -> None:
    """An ensemble's validation scores with its members', and the members that each rule selects."""
    names = ["accuracy", "dice", "jaccard", "threshold"]
    member_scores = [member.info.metrics for member in ensemble.members]
    ensemble_scores = ensemble.scores | {"threshold": ensemble.threshold}
    rows = [
        [f"member {i}", *(scores[name] for name in names), short_name(member.uri)]
        for i, (scores, member) in enumerate(zip(member_scores, ensemble.members, strict=True), 1)
    ]
    rows.append(["ensemble", *(ensemble_scores[name] for name in names), ""])
    title = f"ensemble at {uri} on {ensemble.validation_split}"
    print_table(title, ["", *names, "checkpoint"], rows, left_columns=(0, 5))
    if ensemble.class_scores:
        print_table(
            "by class, each at its own threshold",
            ["class", *names],
            [
                [label, *(ensemble.class_scores[label][name] for name in names[:3]), f"{t:g}"]
                for label, t in zip(ensemble.labels, ensemble.thresholds, strict=True)
            ],
        )
    if len(ensemble.choices) > 1:
        choices = [
            [rule, choice.jaccard, choice.threshold, " ".join(map(short_name, choice.members))]
            for rule, choice in ensemble.choices.items()
        ]
        columns = ["", "jaccard", "threshold", "members"]
        print_table("selection rules", columns, choices, left_columns=(0, 3))
    if ensemble_scores["jaccard"] < max(scores["jaccard"] for scores in member_scores):
        echo("one member alone has a higher validation Jaccard: prefer it, it is also cheaper")


def show_study(uri: str, rows: Sequence[TrialRow]) -> None:
    """A study's leaderboard and its total cost in epochs."""
    headings, parameters = format_parameters([row.parameters for row in rows])
    shown = [
        [
            row.trial,
            *values,
            row.jaccard,
            None if row.threshold is None else f"{row.threshold:g}",
            f"{row.best_epoch}/{row.epochs}",
            row.status if row.status is TrialStatus.PRUNED else _format_status(row),
        ]
        for row, values in zip(rows, parameters, strict=True)
    ]
    print_table(
        f"{uri}, best first",
        ["trial", *headings, "jaccard", "thresh.", "epoch", "status"],
        shown,
        left_columns=(0, 1) if headings == [_OVERRIDES] else (0,),
    )
    epochs = sum(row.epochs for row in rows)
    stdout_console.print(
        f"best Jaccard {rows[0].jaccard:.4f}; {epochs} epochs in {len(rows)} trials",
        highlight=False,
    )


def format_parameters(
    trials: Sequence[Mapping[str, Any]],
) -> tuple[list[str], list[list[str]]]:
    """Headings, and each trial's parameters below them: a column each, or one for an ablation."""
    keys = dict.fromkeys(key for parameters in trials for key in parameters)
    if not keys:
        return [], [[] for _ in trials]
    if keys.keys() - _SEARCHED_KEYS:  # an ablation, whose trials change different keys
        return [_OVERRIDES], [[_format_overrides(parameters)] for parameters in trials]
    columns = {key: name for key, name in _SEARCHED_KEYS.items() if key in keys}
    values = [[f"{parameters[key]:.3g}" for key in columns] for parameters in trials]
    return list(columns.values()), values


def _format_overrides(parameters: Mapping[str, Any]) -> str:
    return " ".join(
        f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in parameters.items()
    )


def _format_status(row: TrialRow) -> str:
    return f"{row.status}: {row.reason}" if row.reason else row.status


def show_ablation(report: AblationReport) -> None:
    """Each variant's Jaccard compared with the baseline's, and how stable its trainings were."""
    baseline = report.baseline
    rows: list[ScoreRow] = [*report.variants, *report.evaluations]
    print_table(
        f"{report.study}: Jaccard on {report.num_images} validation images, mean over seeds; "
        f"difference to {baseline} on the same images with its 95 % interval over images",
        ["variant", "seeds", "Jaccard", f"minus {baseline}", "95 %", "ensemble of 3"],
        [
            [
                row.variant,
                row.num_scored,
                _or_dash(row.jaccard and row.jaccard.mean),
                *_format_difference(row.difference_to_baseline),
                _or_dash(row.ensemble_of_three and row.ensemble_of_three.jaccard),
            ]
            for row in rows
        ],
    )
    print_table(
        "stability: a training counts as diverged if it is not finite or its final Jaccard is "
        f"below {report.divergence_threshold:g}",
        ["variant", "diverged", "final", "std", "change", "all epochs", "roughness"],
        [
            [
                row.variant,
                f"{row.num_diverged} of {row.num_ended}",
                *(
                    "-" if value is None else f"{value:.3f}"
                    for value in (
                        row.final_jaccard,
                        row.std_over_seeds,
                        row.mean_epoch_change,
                        row.mean_jaccard_over_epochs,
                        row.roughness,
                    )
                ),
            ]
            for row in report.variants
        ],
    )
    echo(
        "final: Jaccard after the last epoch; std: standard deviation over seeds; change: mean "
        "change of the Jaccard from epoch to epoch; all epochs: mean Jaccard over all epochs; "
        "roughness: of the outline, 1 is as smooth as the truth. "
        f"Calling every pixel lesion scores {report.all_foreground_jaccard:.3f}"
    )


def _format_difference(difference: Interval | None) -> tuple[str, str]:
    if difference is None:
        return "-", "-"
    return f"{difference.mean:+.4f}", f"{difference.low:+.3f} to {difference.high:+.3f}"
