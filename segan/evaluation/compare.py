"""What an ablation came to: its variants beside the baseline, on the validation images.

Every model is scored at its own best threshold, image by image, at the records' size. Epoch and
threshold are chosen on these same images, for all variants alike, so no score here is a test score.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from segan import storage
from segan.config import Config, EvaluationConfig
from segan.data.records.format import Samples, read_manifest, read_samples
from segan.evaluation.bootstrap import mean_interval, paired_interval
from segan.evaluation.boundary import perimeter_ratio, roughness
from segan.evaluation.metrics import confusion
from segan.evaluation.sweep import Sweep
from segan.inference.predictor import Member
from segan.runs.ablation import evaluation_config, trial_name
from segan.runs.checkpoint import Checkpoint
from segan.runs.study import Study
from segan.runs.trial import Trial, TrialStatus

ABLATION_REPORT = "ablation.json"
NUM_MEMBERS = 3  # segmentors in the paper's final result


@dataclass(frozen=True)
class ModelScores:
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
class VariantRuns:
    """What there is of a variant: its trials in the order of their seeds, and what was scored."""

    trials: list[Trial]
    scores: list[ModelScores] = field(default_factory=list)
    ensemble_of_three: ModelScores | None = None

    @property
    def per_image_jaccard(self) -> np.ndarray:
        """Jaccard [N], the mean over seeds."""
        mean: np.ndarray = np.mean([one.jaccard for one in self.scores], axis=0)
        return mean


def compare_variants(
    config: Config, study: Study, log: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """The report of an ablation as far as its runs are there; written to ablation.json too.

    Args:
        tell: is given a line for each variant whose segmentors run over the validation images.

    Returns:
        `variants` and `evaluations`, a row each; `runs`, a row for each trial; and what they are
        of: `fingerprint`, `images`, `all_lesion` (the Jaccard of calling every pixel lesion).
    """
    manifest = read_manifest(config.data.records)
    frames = read_samples(config.data.records, manifest, config.data.validation)
    trials = {trial.name: trial for trial in study.trials()}
    ablation, variant_runs = config.ablation, {}
    for name in ablation.variants:
        log(f"scoring {name} on {len(frames.ids)} images of {config.data.validation}")
        variant_trials = [trials[trial_name(name, seed)] for seed in ablation_seeds(config)]
        variant_runs[name] = _score_trials(variant_trials, frames)
    baseline = variant_runs[ablation.baseline]
    evaluations = {}
    for name, overrides in ablation.evaluations.items():
        log(f"scoring {ablation.baseline} with {name}")
        evaluations[name] = _score_trials(
            baseline.trials, frames, evaluation_config(config, name, overrides).evaluation
        )
    report = {
        "study": study.uri,
        "config": config.model_dump(mode="json"),
        "baseline": ablation.baseline,
        "fingerprint": manifest.fingerprint,
        "frame": [manifest.width, manifest.height],
        "images": len(frames.ids),
        "all_lesion": float((frames.mask != 0).mean((1, 2, 3)).mean()),
        "diverged_below": ablation.divergence_threshold,
        "variants": [
            {
                "variant": name,
                "overrides": ablation.variants[name],
                **_variant_row(one, baseline, config),
            }
            for name, one in variant_runs.items()
        ],
        "evaluations": [
            {"variant": name, "overrides": ablation.evaluations[name], **_score_row(one, baseline)}
            for name, one in evaluations.items()
        ],
        "runs": [_trial_row(trial) for one in variant_runs.values() for trial in one.trials],
    }
    storage.write_json(storage.join(study.uri, ABLATION_REPORT), report)
    return report


def ablation_seeds(config: Config) -> range:
    """The seeds that each variant is trained with."""
    first = config.training.seed
    return range(first, first + config.ablation.seeds)


def score_maps(maps: np.ndarray, truth: np.ndarray) -> ModelScores:
    """A model's scores at its best threshold.

    Args:
        maps: float32 [N, classes, H, W] in [0, 1].
        truth: [N, classes, H, W], nonzero is lesion.
    """
    sweep, lesion = Sweep.empty(truth.shape[1]), truth != 0
    sweep.update(torch.from_numpy(maps), torch.from_numpy(lesion))
    threshold = sweep.best_threshold()
    predicted = maps > np.float32(threshold)
    return ModelScores(
        threshold,
        confusion(predicted, lesion).scores()["jaccard"].mean(1),
        perimeter_ratio(predicted, lesion),
        roughness(predicted, lesion),
    )


def _score_trials(
    trials: list[Trial], samples: Samples, evaluation: EvaluationConfig | None = None
) -> VariantRuns:
    """Each trial's best checkpoint, and the first three as one model."""
    runs = VariantRuns(trials)
    best = [checkpoint for trial in trials if (checkpoint := trial.run.best_checkpoint())]
    total = np.zeros(0)
    for number, checkpoint in enumerate(best, 1):
        maps = _predict_probabilities(checkpoint, samples, evaluation)
        runs.scores.append(score_maps(maps, samples.mask))
        total = maps if number == 1 else total + maps
        if number == NUM_MEMBERS:
            runs.ensemble_of_three = score_maps(total / NUM_MEMBERS, samples.mask)
    return runs


def _predict_probabilities(
    checkpoint: Checkpoint, samples: Samples, evaluation: EvaluationConfig | None
) -> np.ndarray:
    """Probabilities float32 [N, classes, H, W] of all frames."""
    member = Member.from_checkpoint(checkpoint)
    if evaluation:
        config = member.config.model_copy(update={"evaluation": evaluation})
        member = dataclasses.replace(member, config=config)
    size = member.config.evaluation.batch_size
    return np.concatenate(
        [
            member(torch.tensor(samples.image[at : at + size])).cpu().numpy()
            for at in range(0, len(samples.ids), size)
        ]
    )


def _variant_row(runs: VariantRuns, baseline: VariantRuns, config: Config) -> dict[str, Any]:
    """A variant's line: how good it is, and how steady its trainings were."""
    curves = [_jaccard_curve(trial) for trial in runs.trials]
    results = [trial.result() for trial in runs.trials]
    threshold = config.ablation.divergence_threshold
    return {
        **_score_row(runs, baseline),
        "runs": len(runs.trials),
        "over": sum(result.has_ended for result in results),
        "failed": sum(result.status is TrialStatus.FAILED for result in results),
        "diverged": sum(_has_diverged(trial, threshold) for trial in runs.trials),
        "last": _mean(curve[-1] for curve in curves if curve),
        "over_epochs": _mean(np.mean(curve) for curve in curves if curve),
        "swing": _mean(np.abs(np.diff(curve)).mean() for curve in curves if len(curve) > 1),
        "seconds": sum(result.seconds for result in results),
    }


def _score_row(runs: VariantRuns, baseline: VariantRuns) -> dict[str, Any]:
    """Jaccard with its intervals, by seed and of three together; and the outline."""
    if not runs.scores:
        names = ("jaccard", "difference", "spread", "perimeter", "roughness", "together")
        return {"scored": 0, "each": [], **dict.fromkeys(names)}
    jaccard_per_seed = [float(one.jaccard.mean()) for one in runs.scores]
    has_baseline = runs is not baseline and baseline.scores
    return {
        "scored": len(jaccard_per_seed),
        "each": jaccard_per_seed,
        "thresholds": [one.threshold for one in runs.scores],
        "jaccard": vars(mean_interval(runs.per_image_jaccard)),
        "difference": vars(paired_interval(runs.per_image_jaccard, baseline.per_image_jaccard))
        if has_baseline
        else None,
        "spread": float(np.std(jaccard_per_seed, ddof=1)) if len(jaccard_per_seed) > 1 else None,
        "perimeter": _median([one.perimeter for one in runs.scores]),
        "roughness": _median([one.roughness for one in runs.scores]),
        "together": _ensemble_row(runs),
    }


def _ensemble_row(runs: VariantRuns) -> dict[str, Any] | None:
    """The first three seeds as one model, and what that brings over each of them alone."""
    if runs.ensemble_of_three is None:
        return None
    mean_member_jaccard = np.mean([one.jaccard for one in runs.scores[:NUM_MEMBERS]], axis=0)
    return {
        "jaccard": float(runs.ensemble_of_three.jaccard.mean()),
        "threshold": runs.ensemble_of_three.threshold,
        "difference": vars(paired_interval(runs.ensemble_of_three.jaccard, mean_member_jaccard)),
    }


def _trial_row(trial: Trial) -> dict[str, Any]:
    epochs = trial.epoch_metrics()
    names = ("jaccard", "threshold", "critic_loss", "segmentor_loss", "images_per_second")
    best = trial.run.best_checkpoint()
    return {
        "trial": trial.name,
        "hardware": trial.run.description()["hardware"] if epochs else None,
        "parameters": trial.parameters,
        **vars(trial.result()),
        "checkpoint": best.uri if best else None,
        "epoch": [line["epoch"] for line in epochs],
        **{name: [line.get(name) for line in epochs] for name in names},
    }


def _has_diverged(trial: Trial, threshold: float) -> bool:
    """Whether an ended trial became non-finite, or its last Jaccard is below the threshold."""
    result, curve = trial.result(), _jaccard_curve(trial)
    is_poor = result.has_ended and bool(curve) and curve[-1] < threshold
    return result.status is TrialStatus.DIVERGED or is_poor


def _jaccard_curve(trial: Trial) -> list[float]:
    return [line["jaccard"] for line in trial.epoch_metrics()]


def _mean(values: Iterable[Any]) -> float | None:
    found = [float(value) for value in values]
    return sum(found) / len(found) if found else None


def _median(parts: Sequence[np.ndarray]) -> float | None:
    values = np.concatenate([part.ravel() for part in parts])
    values = values[~np.isnan(values)]
    return float(np.median(values)) if len(values) else None
