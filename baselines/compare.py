"""Prints SegAN runs and baselines side by side, as a table in Markdown.

python -m baselines.compare runs/segan0 runs/segan1 runs/dynunet0 runs/dynunet1

Runs that differ in their seed only are one row. Each run is scored with the maps of its best epoch
at its best threshold, on the validation images. The first row is what the others are compared with.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from scipy.stats import t as student_t

from baselines.probabilities import read_probabilities, segment
from baselines.train import NETWORK_KEY, PARAMETERS_KEY, WIDTH_KEY
from segan.cli.commands.options import Debug, RecordsOption
from segan.cli.console import echo
from segan.cli.main import main
from segan.data.records.frames import FrameShare
from segan.data.records.versions import read_version
from segan.errors import StorageError, UsageError
from segan.evaluation.bootstrap import Interval, paired_interval
from segan.evaluation.compare import ModelScores, score_maps
from segan.inference.predictor import Member
from segan.networks.blocks import count_parameters
from segan.networks.segmentor import Segmentor
from segan.runs.checkpoint import Checkpoint
from segan.runs.run import Run
from segan.utils.text import markdown_table

SEED_KEY = "training.seed"
# Sections of the configuration that ought to be the same in all rows.
CONDITIONS = ("data.", "augment.", "training.", "evaluation.")
COLUMNS = (
    *("network", "parameters", "epochs", "seeds", "Jaccard of each", "mean", "std over seeds"),
    *("minus {first}", "95 % over images", "95 % over seeds", "roughness", "change"),
    *("s per epoch", "CPU s per epoch", "peak MiB"),
)

app = typer.Typer(pretty_exceptions_enable=False)


@dataclass(frozen=True)
class ScoredRun:
    """A run and the scores of its best epoch.

    Attributes:
        identity: of run.json.
        epochs: the metrics of its validated epochs.
    """

    run: Run
    identity: Mapping[str, Any]
    best: Checkpoint
    scores: ModelScores
    epochs: Sequence[Mapping[str, Any]]

    @property
    def seed(self) -> int:
        return int(self.identity[SEED_KEY])

    @property
    def jaccard(self) -> float:
        return float(self.scores.jaccard.mean())

    @property
    def mean_change(self) -> float:
        """Mean absolute change of the Jaccard from one epoch to the next; NaN of one epoch."""
        curve = [line["jaccard"] for line in self.epochs]
        return float(np.abs(np.diff(curve)).mean()) if len(curve) > 1 else math.nan


@dataclass(frozen=True)
class Row:
    """Runs that differ in their seed only, in its order."""

    label: str
    runs: Sequence[ScoredRun]

    @property
    def per_image_jaccard(self) -> np.ndarray:
        """Jaccard [N], mean over seeds."""
        mean: np.ndarray = np.mean([one.scores.jaccard for one in self.runs], axis=0)
        return mean

    @property
    def num_parameters(self) -> int:
        """Of the network that segments, without a critic."""
        first = self.runs[0]
        if PARAMETERS_KEY in first.identity:
            return int(first.identity[PARAMETERS_KEY])
        with torch.device("meta"):
            return count_parameters(Segmentor(first.best.config.network))

    def median_of(self, key: str, scale: float = 1.0) -> str:
        """The median over epochs and seeds of a metric, as text; "" where it was not recorded."""
        values = [line[key] for one in self.runs for line in one.epochs if key in line]
        return f"{median(values) * scale:.0f}" if values else ""


def seed_interval(values: Mapping[int, float], baseline: Mapping[int, float]) -> Interval | None:
    """Mean difference of two rows' scores with its 95 % interval, paired by seed.

    The interval is Student's, of the differences of equal seeds; None where the seeds are not the
    same, or there is one only.

    Args:
        values, baseline: a score by seed.
    """
    if values.keys() != baseline.keys() or len(values) < 2:
        return None
    differences = np.array([values[seed] - baseline[seed] for seed in values])
    mean, count = float(differences.mean()), len(differences)
    error = float(differences.std(ddof=1)) / math.sqrt(count)
    half = float(student_t.ppf(0.975, count - 1)) * error
    return Interval(mean, mean - half, mean + half)


def score_runs(uris: Sequence[str], records: str, tta: bool) -> list[ScoredRun]:
    """Scores each run's best epoch on the validation images.

    Args:
        records: URI; "" for those that the first run was trained on.

    Raises:
        UsageError: a run is given twice, or they have not the same validation images.
        StorageError: there is no such run, or it has no validated epoch or, of a baseline, no maps.
    """
    runs = [Run(uri) for uri in uris]
    if repeated := [run.uri for run in runs if sum(run.uri == other.uri for other in runs) > 1]:
        raise UsageError(f"{repeated[0]}: given more than once")
    frames: FrameShare | None = None
    scored: list[ScoredRun] = []
    for run in runs:
        identity, best = run.description()["identity"], run.best_checkpoint()
        if best is None:
            raise StorageError(f"{run}: no validated epoch yet; train it further")
        if frames is None:
            frames = _open_frames(records or best.config.data.records, identity)
            truth = np.concatenate([samples.mask for samples in frames.batches(frames.count)])
        elif _validation_data(identity) != _validation_data(scored[0].identity):
            raise UsageError(
                f"{run}: its records or their validation split are not those of {runs[0]}; compare "
                "runs on the same records"
            )
        echo(f"scoring {best.uri}")
        if NETWORK_KEY in identity:
            maps = read_probabilities(run, best, tta)
        else:
            maps = segment(Member.from_checkpoint(best, tta=tta), frames)
        if maps.shape != truth.shape:
            raise StorageError(f"{run}: maps of {maps.shape}, but masks of {truth.shape}")
        scores = score_maps(maps, truth)
        scored.append(ScoredRun(run, own_keys(identity), best, scores, run.validations()))
    return scored


def own_keys(identity: Mapping[str, Any]) -> Mapping[str, Any]:
    """The identity of a baseline without the keys of S and C, which it does not have."""
    if NETWORK_KEY not in identity:
        return identity
    return {key: value for key, value in identity.items() if not key.startswith("network.")}


def _validation_data(identity: Mapping[str, Any]) -> tuple[Any, Any]:
    return identity["fingerprint"], identity["data.validation"]


def _open_frames(records: str, identity: Mapping[str, Any]) -> FrameShare:
    fingerprint, split = _validation_data(identity)
    return FrameShare(records, read_version(records, fingerprint), split)


def make_rows(runs: Sequence[ScoredRun]) -> list[Row]:
    """Joins the runs that differ in their seed only, in the order of the first of each.

    Raises:
        UsageError: two runs do not even differ in their seed.
    """
    groups: list[list[ScoredRun]] = []
    for one in runs:
        group = next((g for g in groups if not _differing_keys([g[0], one]) - {SEED_KEY}), None)
        if group is None:
            groups.append([one])
        elif one.seed in (other.seed for other in group):
            raise UsageError(f"{one.run}: a run with the same configuration and seed is given")
        else:
            group.append(one)
    names = [_network_name(group[0]) for group in groups]
    rows = []
    for name, group in zip(names, groups, strict=True):
        alike = [other[0] for other, found in zip(groups, names, strict=True) if found == name]
        keys = sorted(_differing_keys(alike) - {SEED_KEY})
        label = ", ".join([name, *(f"{key}={group[0].identity.get(key)}" for key in keys)])
        rows.append(Row(label, sorted(group, key=lambda one: one.seed)))
    return rows


def _differing_keys(runs: Sequence[ScoredRun]) -> set[str]:
    keys = {key for one in runs for key in one.identity}
    return {k for k in keys if any(o.identity.get(k) != runs[0].identity.get(k) for o in runs)}


def _network_name(one: ScoredRun) -> str:
    if NETWORK_KEY in one.identity:
        return f"{one.identity[NETWORK_KEY]}, width {one.identity[WIDTH_KEY]}"
    return f"SegAN, w = {one.identity['network.width']}"


def differing_conditions(rows: Sequence[Row]) -> list[str]:
    """A line for each value of the configuration that ought to be the same in all rows."""
    keys = _differing_keys([row.runs[0] for row in rows]) - {SEED_KEY}
    return [
        f"{key} differs: " + ", ".join(str(row.runs[0].identity.get(key)) for row in rows)
        for key in sorted(keys)
        if key.startswith(CONDITIONS)
    ]


def format_table(rows: Sequence[Row]) -> str:
    """The table of COLUMNS in Markdown."""
    header = [column.format(first=rows[0].label) for column in COLUMNS]
    return markdown_table(header, [_cells(row, rows[0]) for row in rows])


def _cells(row: Row, first: Row) -> list[str]:
    by_seed = {one.seed: one.jaccard for one in row.runs}
    difference, over_images, over_seeds = "", "", ""
    if row is not first:
        images = paired_interval(row.per_image_jaccard, first.per_image_jaccard)
        difference, over_images = f"{images.mean:+.3f}", _format_bounds(images)
        over_seeds = _format_bounds(
            seed_interval(by_seed, {one.seed: one.jaccard for one in first.runs})
        )
    jaccards = list(by_seed.values())
    roughness = np.concatenate([one.scores.roughness.ravel() for one in row.runs])
    done = min(one.epochs[-1]["epoch"] for one in row.runs)
    return [
        row.label,
        f"{row.num_parameters / 1e6:.2f} M",
        f"{done} of {row.runs[0].identity['training.epochs']}",
        ", ".join(str(seed) for seed in by_seed),
        ", ".join(f"{jaccard:.3f}" for jaccard in jaccards),
        f"{np.mean(jaccards):.3f}",
        f"{np.std(jaccards, ddof=1):.3f}" if len(jaccards) > 1 else "",
        difference,
        over_images,
        over_seeds,
        f"{np.nanmedian(roughness):.2f}",
        f"{np.mean([one.mean_change for one in row.runs]):.3f}",
        row.median_of("seconds"),
        row.median_of("cpu_seconds"),
        row.median_of("peak_memory_bytes", 2**-20),
    ]


def _format_bounds(interval: Interval | None) -> str:
    return f"{interval.low:+.3f} to {interval.high:+.3f}" if interval else ""


@app.command(epilog="python -m baselines.compare runs/segan0 runs/dynunet0 --tta")
def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Runs of segan train and baselines.train.")
    ],
    records: RecordsOption = "",
    tta: Annotated[bool, typer.Option("--tta", help="Average the maps over flips.")] = False,
    debug: Debug = False,
) -> None:
    """Print runs side by side; those that differ in their seed only are one row."""
    rows = make_rows(score_runs(runs, records, tta))
    for line in differing_conditions(rows):
        echo(f"note: {line}")
    print(format_table(rows))


if __name__ == "__main__":
    sys.exit(main(commands=app, name="python -m baselines.compare"))
