"""What an ablation came to: its variants beside the baseline, on the validation images.

Every model is scored at its own best threshold, image by image, at the records' size. Epoch and
threshold are chosen on these same images, for all variants alike, so no score here is a test score.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from segan import storage
from segan.ablation import evaluated, trial_name
from segan.config import Config, EvaluationConfig
from segan.data.records import Frames, read_frames, read_manifest
from segan.evaluation.bootstrap import mean_interval, paired_interval
from segan.evaluation.boundary import perimeter_ratio, roughness
from segan.evaluation.metrics import confusion
from segan.evaluation.sweep import Sweep
from segan.inference.predictor import Member
from segan.runs import Checkpoint
from segan.search import Study, Trial

REPORT = "ablation.json"
THREE = 3  # segmentors in the paper's final result
DIVERGED = "diverged"


@dataclass(frozen=True)
class Scores:
    """A model's, for each of N images in the records' order.

    Attributes:
        threshold: best on these images.
        jaccard: [N], the mean over classes.
        perimeter, roughness: [N, classes], NaN where there is no outline.
    """

    threshold: float
    jaccard: np.ndarray
    perimeter: np.ndarray
    roughness: np.ndarray


@dataclass
class Seen:
    """What there is of a variant: its trials in the order of their seeds, and what was scored."""

    trials: list[Trial]
    scores: list[Scores] = field(default_factory=list)
    together: Scores | None = None

    @property
    def each_image(self) -> np.ndarray:
        """Jaccard [N], the mean over seeds."""
        mean: np.ndarray = np.mean([one.jaccard for one in self.scores], axis=0)
        return mean


def compare(
    config: Config, study: Study, tell: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """The report of an ablation as far as its runs are there; written to ablation.json too.

    Args:
        tell: is given a line for each variant whose segmentors run over the validation images.

    Returns:
        `variants` and `evaluations`, a row each; `runs`, a row for each trial; and what they are
        of: `fingerprint`, `images`, `all_lesion` (the Jaccard of calling every pixel lesion).
    """
    manifest = read_manifest(config.data.records)
    frames = read_frames(config.data.records, manifest, config.data.validation)
    trials = {trial.name: trial for trial in study.trials()}
    ablation, seen = config.ablation, {}
    for name in ablation.variants:
        tell(f"scoring {name} on {len(frames.ids)} images of {config.data.validation}")
        mine = [trials[trial_name(name, seed)] for seed in seeds_of(config)]
        seen[name] = _score(mine, frames)
    base = seen[ablation.baseline]
    ways = {}
    for name, overrides in ablation.evaluations.items():
        tell(f"scoring {ablation.baseline} with {name}")
        ways[name] = _score(base.trials, frames, evaluated(config, name, overrides).evaluation)
    report = {
        "study": study.uri,
        "config": config.model_dump(mode="json"),
        "baseline": ablation.baseline,
        "fingerprint": manifest.fingerprint,
        "frame": [manifest.width, manifest.height],
        "images": len(frames.ids),
        "all_lesion": float((frames.mask != 0).mean((1, 2, 3)).mean()),
        "diverged_below": ablation.diverged_below,
        "variants": [
            {"variant": name, "overrides": ablation.variants[name], **_row(one, base, config)}
            for name, one in seen.items()
        ],
        "evaluations": [
            {"variant": name, "overrides": ablation.evaluations[name], **_quality(one, base)}
            for name, one in ways.items()
        ],
        "runs": [_run(trial) for one in seen.values() for trial in one.trials],
    }
    storage.write_json(storage.join(study.uri, REPORT), report)
    return report


def seeds_of(config: Config) -> range:
    """The seeds that each variant is trained with."""
    first = config.training.seed
    return range(first, first + config.ablation.seeds)


def score_maps(maps: np.ndarray, truth: np.ndarray) -> Scores:
    """A model's scores at its best threshold.

    Args:
        maps: float32 [N, classes, H, W] in [0, 1].
        truth: [N, classes, H, W], nonzero is lesion.
    """
    sweep, lesion = Sweep.empty(truth.shape[1]), truth != 0
    sweep.add(torch.from_numpy(maps), torch.from_numpy(lesion))
    threshold = sweep.best_threshold()
    drawn = maps > np.float32(threshold)
    return Scores(
        threshold,
        confusion(drawn, lesion).scores()["jaccard"].mean(1),
        perimeter_ratio(drawn, lesion),
        roughness(drawn, lesion),
    )


def _score(trials: list[Trial], frames: Frames, evaluation: EvaluationConfig | None = None) -> Seen:
    """Each trial's best checkpoint, and the first three as one model."""
    found = Seen(trials)
    best = [checkpoint for trial in trials if (checkpoint := trial.run.best())]
    total = np.zeros(0)
    for number, checkpoint in enumerate(best, 1):
        maps = _maps(checkpoint, frames, evaluation)
        found.scores.append(score_maps(maps, frames.mask))
        total = maps if number == 1 else total + maps
        if number == THREE:
            found.together = score_maps(total / THREE, frames.mask)
    return found


def _maps(
    checkpoint: Checkpoint, frames: Frames, evaluation: EvaluationConfig | None
) -> np.ndarray:
    """Probabilities float32 [N, classes, H, W] of all frames."""
    member = Member.of(checkpoint)
    if evaluation:
        config = member.config.model_copy(update={"evaluation": evaluation})
        member = dataclasses.replace(member, config=config)
    size = member.config.evaluation.batch_size
    return np.concatenate(
        [
            member(torch.tensor(frames.image[at : at + size])).cpu().numpy()
            for at in range(0, len(frames.ids), size)
        ]
    )


def _row(seen: Seen, base: Seen, config: Config) -> dict[str, Any]:
    """A variant's line: how good it is, and how steady its trainings were."""
    curves = [_curve(trial) for trial in seen.trials]
    over = [trial for trial in seen.trials if trial.result() is not None]
    below = config.ablation.diverged_below
    return {
        **_quality(seen, base),
        "runs": len(seen.trials),
        "over": len(over),
        "failed": sum(why(trial).startswith("failed") for trial in over),
        "diverged": sum(_diverged(trial, below) for trial in over),
        "last": _mean(curve[-1] for curve in curves if curve),
        "over_epochs": _mean(np.mean(curve) for curve in curves if curve),
        "swing": _mean(np.abs(np.diff(curve)).mean() for curve in curves if len(curve) > 1),
        "seconds": sum(result["seconds"] for t in over if (result := t.result())),
    }


def _quality(seen: Seen, base: Seen) -> dict[str, Any]:
    """Jaccard with its intervals, by seed and of three together; and the outline."""
    if not seen.scores:
        names = ("jaccard", "difference", "spread", "perimeter", "roughness", "together")
        return {"scored": 0, "each": [], **dict.fromkeys(names)}
    each = [float(one.jaccard.mean()) for one in seen.scores]
    rival = seen is not base and base.scores
    return {
        "scored": len(each),
        "each": each,
        "thresholds": [one.threshold for one in seen.scores],
        "jaccard": vars(mean_interval(seen.each_image)),
        "difference": vars(paired_interval(seen.each_image, base.each_image)) if rival else None,
        "spread": float(np.std(each, ddof=1)) if len(each) > 1 else None,
        "perimeter": _median([one.perimeter for one in seen.scores]),
        "roughness": _median([one.roughness for one in seen.scores]),
        "together": _together(seen),
    }


def _together(seen: Seen) -> dict[str, Any] | None:
    """The first three seeds as one model, and what that brings over each of them alone."""
    if seen.together is None:
        return None
    alone = np.mean([one.jaccard for one in seen.scores[:THREE]], axis=0)
    return {
        "jaccard": float(seen.together.jaccard.mean()),
        "threshold": seen.together.threshold,
        "difference": vars(paired_interval(seen.together.jaccard, alone)),
    }


def _run(trial: Trial) -> dict[str, Any]:
    epochs = trial.epochs()
    names = ("jaccard", "threshold", "critic_loss", "segmentor_loss", "images_per_second")
    best = trial.run.best()
    return {
        "trial": trial.name,
        "hardware": trial.run.description()["hardware"] if epochs else None,
        "parameters": trial.parameters,
        "why": why(trial),
        "seconds": (trial.result() or {"seconds": 0.0})["seconds"],
        "checkpoint": best.uri if best else None,
        "epoch": [line["epoch"] for line in epochs],
        **{name: [line.get(name) for line in epochs] for name in names},
    }


def why(trial: Trial) -> str:
    """What became of a trial, in words."""
    result: Mapping[str, Any] = trial.result() or {"why": "not over"}
    return str(result["why"])


def _diverged(trial: Trial, below: float) -> bool:
    """Not finite, or where the training ended no better than the bound."""
    curve = _curve(trial)
    return why(trial).startswith(DIVERGED) or (bool(curve) and curve[-1] < below)


def _curve(trial: Trial) -> list[float]:
    return [line["jaccard"] for line in trial.epochs()]


def _mean(values: Iterable[Any]) -> float | None:
    found = [float(value) for value in values]
    return sum(found) / len(found) if found else None


def _median(parts: Sequence[np.ndarray]) -> float | None:
    values = np.concatenate([part.ravel() for part in parts])
    values = values[~np.isnan(values)]
    return float(np.median(values)) if len(values) else None
