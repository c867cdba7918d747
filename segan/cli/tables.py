"""Tables of runs, checkpoints and ablations, on stdout."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from segan.cli.console import echo, print_table
from segan.runs.listing import RunSummary

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
    if any(summary.state == "open" for summary in summaries):
        echo("open: not over, written so long ago; with a host, held by a driver there")


def _run_row(summary: RunSummary) -> list[Any]:
    state = "given up" if summary.state.startswith("given up") else summary.state
    if state == "open" and summary.last_modified:
        state = f"open, {_format_age(summary.last_modified)}"
        state += f", on {summary.host}" if summary.host else ""
    return [
        summary.name,
        f"{summary.epochs}/{summary.total_epochs or '?'}",
        "-" if summary.jaccard is None else f"{summary.jaccard:.4f} at {summary.best_epoch}",
        state,
        _or_dash(summary.started_at and summary.started_at[:16].replace("T", " ")),
        _or_dash(summary.images_per_second and round(summary.images_per_second)),
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
    figures = [
        ["state", summary["state"]],
        ["driver on", summary["host"]],
        ["epochs", f"{summary['epochs']} of {summary['asked']}"],
        ["started", summary["started"]],
        ["last written", summary["written"]],
        ["data fingerprint", description["fingerprint"]],
        ["git commit", description["git_commit"]],
        ["hardware", description["hardware"]],
        [
            "packages",
            ", ".join(f"{name} {v}" for name, v in (description["packages"] or {}).items()),
        ],
    ]
    print_table(
        summary["run"],
        ["run", summary["name"]],
        [[key, _or_dash(value)] for key, value in figures],
        left_columns=(0, 1),
    )
    _show_config(description["config"], description["changed"])
    if description["epochs"]:
        _show_epochs(description["epochs"])
    show_checkpoints(summary["run"], description["checkpoints"])


def _show_config(
    config: Mapping[str, Mapping[str, Any]], non_default: Mapping[str, Mapping[str, Any]]
) -> None:
    differs = [
        [k, json.dumps(v["value"]), json.dumps(v["default"])] for k, v in non_default.items()
    ]
    print_table("configuration that is not the default", ["key", "value", "default"], differs)
    rest = [
        (
            section,
            [f"{k} {json.dumps(v)}" for k, v in b.items() if f"{section}.{k}" not in non_default],
        )
        for section, b in config.items()
    ]
    print_table(
        "as by default",
        ["section", "keys and values"],
        [[section, ", ".join(words)] for section, words in rest if words],
        left_columns=(0, 1),
    )


_EPOCH_COLUMNS = {  # heading: key of metrics.jsonl, format
    "epoch": ("epoch", ""),
    "C loss": ("critic_loss", ".4f"),
    "S loss": ("segmentor_loss", ".4f"),
    "jaccard": ("jaccard", ".4f"),
    "at": ("threshold", "g"),
    "k": ("k", ".3g"),
    "rate": ("learning_rate", ".3g"),
    "images/s": ("images_per_second", ".0f"),
    "waiting": ("wait_share", ".1%"),
}


def _show_epochs(epochs: Sequence[Mapping[str, Any]]) -> None:
    rows = [
        [
            format(line[key], form) if line.get(key) is not None else "-"
            for key, form in _EPOCH_COLUMNS.values()
        ]
        for line in epochs
    ]
    print_table("epochs, Jaccard at its best threshold", list(_EPOCH_COLUMNS), rows)


def show_checkpoints(run: str, rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        echo(f"{run}: no checkpoint yet")
        return
    shown = [
        [
            row["name"],
            _or_dash(row["epoch"]),
            _or_dash(row["jaccard"]),
            row["bytes"],
            row["wrong"] or "whole",
            ", ".join(row["is"]),
        ]
        for row in rows
    ]
    print_table(
        f"checkpoints of {run}", ["name", "epoch", "jaccard", "bytes", "state", "is"], shown, (0, 4)
    )


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
