"""What the choices made on the validation images are worth on images that had no part in them.

python -m experiments.calibration runs/best0 runs/best1 runs/best2

prints, in Markdown, for each run's best epoch and for their ensemble: what a threshold that was
chosen on one half of the validation images loses on the other; temperature scaling (Guo et al.
2017, "On calibration of modern neural networks"), fitted on one half and measured on the other; the
ensemble's Jaccard by its number of members; and what the choice of the epoch gives. Models of one
class only.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import typer
from scipy.optimize import minimize_scalar

from segan.cli.commands.options import Debug, RecordsOption
from segan.cli.console import echo
from segan.cli.main import main
from segan.data.records.frames import FrameShare
from segan.data.records.versions import read_version
from segan.errors import StorageError, UsageError
from segan.evaluation.bootstrap import Interval
from segan.evaluation.result import CalibrationCounts
from segan.evaluation.sweep import confusion_at_thresholds
from segan.inference.predictor import Member
from segan.inference.thresholds import THRESHOLDS, threshold_index
from segan.runs.run import Run
from segan.utils.text import markdown_table

NUM_SPLITS = 200  # into random halves
NUM_TEMPERATURE_SPLITS = 5  # each fits a temperature twice to all pixels of a half
CLIP = 1e-6  # lower bound of p and 1 - p: float32 knows no p closer to 1
BATCH = 50  # images
WINDOW = 3  # epochs of a running mean

app = typer.Typer(pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Transfer:
    """A threshold chosen on one half of the images and used on the other; means over splits.

    Attributes:
        chosen: Jaccard on the other half.
        loss: of the best threshold of that half, minus `chosen`; with the 95 % of the splits.
        middle: Jaccard at a threshold of one half.
    """

    chosen: float
    loss: Interval
    middle: float


@dataclass(frozen=True)
class Calibration:
    """Of the pixels of one half, before and after a temperature that the other half gave.

    Attributes:
        temperature: mean over the halves; the logits are divided by it.
        cross_entropy, error: (before, after); see `calibration_error`.
    """

    temperature: float
    cross_entropy: tuple[float, float]
    error: tuple[float, float]


def jaccard_curves(maps: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Jaccard of each image at each of THRESHOLDS, [N, thresholds].

    Args:
        maps: float32 [N, 1, H, W] in [0, 1].
        truth: [N, 1, H, W], nonzero is lesion.
    """
    parts = []
    for start in range(0, len(maps), BATCH):
        batch = slice(start, start + BATCH)
        counts = confusion_at_thresholds(torch.tensor(maps[batch]), torch.tensor(truth[batch]))
        parts.append(counts.scores()["jaccard"][:, 0])
    return np.concatenate(parts)


def halves(count: int, splits: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Random halves of so many images, and each pair the other way round."""
    rng = np.random.default_rng(0)
    for _ in range(splits):
        order = rng.permutation(count)
        first, second = order[: count // 2], order[count // 2 :]
        yield first, second
        yield second, first


def transfer(curves: np.ndarray) -> Transfer:
    """What a threshold chosen elsewhere gives, by `jaccard_curves` [N, thresholds]."""
    chosen, losses, middle = [], [], []
    for here, there in halves(len(curves), NUM_SPLITS):
        index, found = int(curves[here].mean(0).argmax()), curves[there].mean(0)
        chosen.append(found[index])
        losses.append(found.max() - found[index])
        middle.append(found[threshold_index(0.5)])
    low, high = np.percentile(losses, (2.5, 97.5))
    loss = Interval(float(np.mean(losses)), float(low), float(high))
    return Transfer(float(np.mean(chosen)), loss, float(np.mean(middle)))


def calibrate(maps: np.ndarray, truth: np.ndarray) -> Calibration:
    """Temperature scaling of maps [N, 1, H, W], fitted and measured on different images."""
    p = np.clip(maps.reshape(len(maps), -1).astype(np.float64), CLIP, 1 - CLIP)
    logits, lesion = np.log(p / (1 - p)), truth.reshape(len(truth), -1) != 0
    temperatures, entropies, errors = [], [], []
    for here, there in halves(len(maps), NUM_TEMPERATURE_SPLITS):
        temperature = fit_temperature(logits[here], lesion[here])
        scaled = logits[there], logits[there] / temperature
        temperatures.append(temperature)
        entropies.append([_cross_entropy(z, lesion[there]) for z in scaled])
        errors.append([calibration_error(z, lesion[there]) for z in scaled])
    before, after = np.mean(entropies, axis=0)
    error_before, error_after = np.mean(errors, axis=0)
    return Calibration(
        float(np.mean(temperatures)),
        (float(before), float(after)),
        (float(error_before), float(error_after)),
    )


def fit_temperature(logits: np.ndarray, lesion: np.ndarray) -> float:
    """The temperature with the least cross-entropy of `logits / temperature`, 0.05 to 20."""
    found = minimize_scalar(
        lambda log_t: _cross_entropy(logits / np.exp(log_t), lesion),
        bounds=(np.log(0.05), np.log(20)),
        method="bounded",
        options={"xatol": 1e-3},
    )
    return float(np.exp(found.x))


def _cross_entropy(logits: np.ndarray, lesion: np.ndarray) -> float:
    return float(np.logaddexp(0, np.where(lesion, -logits, logits)).mean())


def calibration_error(logits: np.ndarray, lesion: np.ndarray) -> float:
    """The expected calibration error of pixels, as `segan.evaluation.result` computes it."""
    counts = CalibrationCounts()
    counts.update(torch.tensor(1 / (1 + np.exp(-logits))), torch.tensor(lesion))
    return counts.compute().expected_calibration_error


def jaccard_by_members(maps: Sequence[np.ndarray], truth: np.ndarray) -> list[float]:
    """For 1 to all members, the Jaccard at a threshold chosen elsewhere; mean over all subsets."""
    return [
        float(
            np.mean(
                [
                    transfer(jaccard_curves(np.mean(subset, axis=0), truth)).chosen
                    for subset in itertools.combinations(maps, size)
                ]
            )
        )
        for size in range(1, len(maps) + 1)
    ]


def choices_of_epoch(curve: Sequence[float]) -> dict[str, float]:
    """The running mean of the Jaccard around the epoch that each rule chooses.

    The mean of WINDOW epochs stands for what an epoch is worth without the luck of one validation.

    Args:
        curve: Jaccard by epoch.
    """
    values = np.asarray(curve, float)
    radius = WINDOW // 2
    smooth = np.array(
        [values[max(0, i - radius) : i + radius + 1].mean() for i in range(len(values))]
    )
    return {
        "best": float(values.max()),
        "at the best": float(smooth[values.argmax()]),
        "at the best running mean": float(smooth.max()),
        "at the last": float(smooth[-1]),
    }


def read_maps(uris: Sequence[str], records: str, tta: bool) -> tuple[list[np.ndarray], np.ndarray]:
    """The maps of each run's best epoch, and the truth: [N, 1, H, W] each.

    Raises:
        UsageError: a run has several classes, or other records than the first.
        StorageError: a run has no validated epoch.
    """
    maps: list[np.ndarray] = []
    data: tuple[str, str] | None = None
    for uri in uris:
        run = Run(uri)
        best, identity = run.best_checkpoint(), run.description()["identity"]
        if best is None:
            raise StorageError(f"{run}: no validated epoch yet; train it further")
        if best.config.network.classes != 1:
            raise UsageError(f"{run}: expected a run with one class")
        found = identity["fingerprint"], identity["data.validation"]
        if data is None:
            data, place = found, records or best.config.data.records
            frames = FrameShare(place, read_version(place, found[0]), found[1])
            truth = np.concatenate([samples.mask for samples in frames.batches(frames.count)])
        elif found != data:
            raise UsageError(f"{run}: its validation images are not those of {uris[0]}")
        echo(f"segmenting with {best.uri}")
        member = Member.from_checkpoint(best, tta=tta)
        batches = frames.batches(member.config.evaluation.batch_size)
        maps.append(np.concatenate([member(torch.tensor(s.image)).cpu().numpy() for s in batches]))
    return maps, truth


def format_models(models: Mapping[str, np.ndarray], truth: np.ndarray) -> str:
    """A row for each model's maps: threshold, transfer and calibration."""
    header = (
        *("model", "threshold", "Jaccard there", "chosen elsewhere", "loss, 95 %", "at 0.5"),
        *("temperature", "cross-entropy", "calibration error"),
    )
    rows = []
    for name, maps in models.items():
        curves = jaccard_curves(maps, truth)
        mean, moved, calibrated = curves.mean(0), transfer(curves), calibrate(maps, truth)
        before, after = calibrated.cross_entropy
        error_before, error_after = calibrated.error
        rows.append(
            [
                name,
                f"{THRESHOLDS[mean.argmax()]:g}",
                f"{mean.max():.4f}",
                f"{moved.chosen:.4f}",
                f"{moved.loss.mean:.4f}, {moved.loss.low:.4f} to {moved.loss.high:.4f}",
                f"{moved.middle:.4f}",
                f"{calibrated.temperature:.2f}",
                f"{before:.4f} to {after:.4f}",
                f"{error_before:.4f} to {error_after:.4f}",
            ]
        )
    return markdown_table(header, rows)


def format_members(jaccards: Sequence[float]) -> str:
    """A row for each number of members, of `jaccard_by_members`."""
    header = ("members", "Jaccard, threshold chosen elsewhere", "gain over one")
    rows = [
        [str(number), f"{jaccard:.4f}", f"{jaccard - jaccards[0]:+.4f}"]
        for number, jaccard in enumerate(jaccards, 1)
    ]
    return markdown_table(header, rows)


def format_epochs(curves: Mapping[str, Sequence[float]]) -> str:
    """A row for each run: what each choice of an epoch gives."""
    found = {name: choices_of_epoch(curve) for name, curve in curves.items()}
    header = ["run", *next(iter(found.values()))]
    rows = [[name, *(f"{value:.4f}" for value in one.values())] for name, one in found.items()]
    return markdown_table(header, rows)


@app.command(epilog="python -m experiments.calibration runs/best0 runs/best1 --tta")
def calibration(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs of segan train.")],
    records: RecordsOption = "",
    tta: Annotated[bool, typer.Option("--tta", help="Average the maps over flips.")] = False,
    debug: Debug = False,
) -> None:
    """Print what thresholds, temperature, epochs and members chosen on validation are worth."""
    maps, truth = read_maps(runs, records, tta)
    names = [uri.rstrip("/").rsplit("/", 1)[-1] for uri in runs]
    models = dict(zip(names, maps, strict=True))
    if len(maps) > 1:
        models[f"ensemble of {len(maps)}"] = np.mean(maps, axis=0)
    print(format_models(models, truth), end="\n\n")
    print(format_members(jaccard_by_members(maps, truth)), end="\n\n")
    curves = [[line["jaccard"] for line in Run(uri).validations()] for uri in runs]
    print(format_epochs(dict(zip(names, curves, strict=True))))


if __name__ == "__main__":
    sys.exit(main(commands=app, name="python -m experiments.calibration"))
