"""Tables of runs, checkpoints and ablations, on stdout."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from segan.cli.console import echo, print_table
from segan.runs.listing import RunSummary


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
    "waiting": ("data_wait_fraction", ".1%"),
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


def show_ablation(report: Mapping[str, Any]) -> None:
    """Each variant's Jaccard beside the baseline's, and how steady its trainings were."""
    baseline = report["baseline"]
    rows = [*report["variants"], *report["evaluations"]]
    print_table(
        f"{report['study']}: Jaccard on {report['images']} validation images, mean over seeds; "
        f"less {baseline}'s on the same images, with its 95 % interval over images",
        ["variant", "seeds", "Jaccard", f"less {baseline}", "95 %", "of three"],
        [
            [
                row["variant"],
                row["scored"],
                _or_dash(row["jaccard"] and row["jaccard"]["mean"]),
                *_format_difference(row["difference"]),
                _or_dash(row["together"] and row["together"]["jaccard"]),
            ]
            for row in rows
        ],
    )
    names = ("last", "spread", "swing", "over_epochs", "roughness")
    print_table(
        f"trainings: diverged is not finite, or a last Jaccard below {report['diverged_below']:g}",
        ["variant", "diverged", *(name.replace("over_", "all ") for name in names)],
        [
            [
                row["variant"],
                f"{row['diverged']} of {row['over']}",
                *("-" if row[name] is None else f"{row[name]:.3f}" for name in names),
            ]
            for row in report["variants"]
        ],
    )
    echo(
        "spread: standard deviation over seeds; swing: mean change of Jaccard from epoch to epoch; "
        "all epochs: mean Jaccard of all of them; roughness: of the outline, 1 as the truth's. "
        f"To call every pixel lesion scores {report['all_lesion']:.3f}"
    )


def _format_difference(difference: Mapping[str, float] | None) -> tuple[str, str]:
    if difference is None:
        return "-", "-"
    return f"{difference['mean']:+.4f}", f"{difference['low']:+.3f} to {difference['high']:+.3f}"
