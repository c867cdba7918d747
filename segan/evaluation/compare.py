"""The report of an ablation: its variants beside the baseline on the validation images.

Every model is scored per image at its own best threshold, at the frames' size. Epoch and threshold
are selected on the same images for all variants, so no score here is a test score.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segan import storage
from segan.config import Config, EvaluationConfig
from segan.data.records.format import Samples
from segan.data.records.frames import map_samples
from segan.data.records.versions import read_version
from segan.evaluation.bootstrap import Interval, mean_interval, paired_interval
from segan.evaluation.boundary import perimeter_ratio, roughness
from segan.evaluation.metrics import confusion
from segan.evaluation.probability_cache import BATCH_SIZE, batch_slices
from segan.evaluation.sweep import Sweep
from segan.inference.predictor import Member
from segan.inference.thresholds import above_thresholds
from segan.runs.ablation import evaluation_config, trial_name
from segan.runs.checkpoint import Checkpoint
from segan.runs.study import Study
from segan.runs.trial import Trial, TrialStatus

ABLATION_REPORT = "ablation.json"
NUM_MEMBERS = 3  # segmentors in the paper's final result


@dataclass(frozen=True)
class ModelScores:
    """Scores of one model on N images.

    Attributes:
        threshold: the best one on these images; of several classes, the best common one.
        jaccard: [N], mean over classes.
        perimeter, roughness: [N, classes] relative to the truth; NaN where there is no outline.
    """

    threshold: float
    jaccard: np.ndarray
    perimeter: np.ndarray
    roughness: np.ndarray


@dataclass
class VariantRuns:
    """A variant's trials in the order of their seeds, and the scores of those with a checkpoint."""

    trials: list[Trial]
    scores: list[ModelScores] = field(default_factory=list)
    ensemble_of_three: ModelScores | None = None

    @property
    def per_image_jaccard(self) -> np.ndarray:
        """Jaccard [N], mean over seeds."""
        mean: np.ndarray = np.mean([model.jaccard for model in self.scores], axis=0)
        return mean


@dataclass(frozen=True)
class EnsembleRow:
    """The first three seeds as one model.

    Attributes:
        difference: Jaccard of the ensemble minus the mean of its members', paired by image.
    """

    jaccard: float
    threshold: float
    difference: Interval


@dataclass(frozen=True)
class ScoreRow:
    """Scores of the best checkpoints of one variant, or of the baseline evaluated differently.

    Attributes:
        overrides: what the row changes in the configuration, by `section.key`.
        num_scored: trials with a checkpoint; without one the scores are None.
        jaccard_per_seed, thresholds: of each scored trial.
        jaccard: mean over images and seeds.
        difference_to_baseline: paired by image; None for the baseline itself.
        std_over_seeds: sample standard deviation of `jaccard_per_seed`.
        perimeter, roughness: median over images, classes and seeds, relative to the truth.
        ensemble_of_three: None with fewer than three scored trials.
    """

    variant: str
    overrides: dict[str, Any]
    num_scored: int
    jaccard_per_seed: list[float]
    thresholds: list[float]
    jaccard: Interval | None
    difference_to_baseline: Interval | None
    std_over_seeds: float | None
    perimeter: float | None
    roughness: float | None
    ensemble_of_three: EnsembleRow | None


@dataclass(frozen=True)
class VariantRow(ScoreRow):
    """A variant's scores, and how stable its trainings were.

    Attributes:
        num_runs, num_ended, num_failed, num_diverged: trials planned, ended, failed in their last
            attempt, and diverged: not finite, or a final Jaccard below the report's threshold.
        final_jaccard: on validation after the last epoch, mean over seeds.
        mean_jaccard_over_epochs: mean over all epochs and seeds.
        mean_epoch_change: mean |change| of the Jaccard from one epoch to the next.
        seconds: training time of all ended trials.
    """

    num_runs: int
    num_ended: int
    num_failed: int
    num_diverged: int
    final_jaccard: float | None
    mean_jaccard_over_epochs: float | None
    mean_epoch_change: float | None
    seconds: float


@dataclass(frozen=True)
class RunRow:
    """One trial.

    Attributes:
        hardware: that it ran on; None before its first validation.
        reason: explains a status other than finished; may be empty.
        checkpoint: URI of its best checkpoint.
        epoch, jaccard, threshold, critic_loss, segmentor_loss, images_per_second: of each
            validation.
    """

    trial: str
    hardware: str | None
    parameters: dict[str, Any]
    status: TrialStatus
    reason: str
    seconds: float
    checkpoint: str | None
    epoch: list[int]
    jaccard: list[float | None]
    threshold: list[float | None]
    critic_loss: list[float | None]
    segmentor_loss: list[float | None]
    images_per_second: list[float | None]


@dataclass(frozen=True)
class AblationReport:
    """The content of ablation.json.

    Attributes:
        study: URI.
        baseline: name of the variant that the others are compared with.
        fingerprint: of the records.
        frame: width and height in pixels.
        num_images: validation images.
        all_foreground_jaccard: Jaccard of calling every pixel lesion.
        divergence_threshold: final Jaccard below which a training counts as diverged.
        evaluations: the baseline's checkpoints with another `evaluation` configuration.
        runs: all trials.
    """

    study: str
    config: dict[str, Any]
    baseline: str
    fingerprint: str
    frame: dict[str, int]
    num_images: int
    all_foreground_jaccard: float
    divergence_threshold: float
    variants: list[VariantRow]
    evaluations: list[ScoreRow]
    runs: list[RunRow]


def compare_variants(
    config: Config, study: Study, log: Callable[[str], None] = lambda line: None
) -> AblationReport:
    """Scores every trial that has a checkpoint, and writes the report to ablation.json.

    Args:
        log: called with a message before the segmentors of each row run.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _compare_variants(config, study, Path(folder), log)


def _compare_variants(
    config: Config, study: Study, folder: Path, log: Callable[[str], None]
) -> AblationReport:
    manifest = read_version(config.data.records, study.fingerprint())
    samples = map_samples(config.data.records, manifest, config.data.validation, folder)
    trials = {trial.name: trial for trial in study.trials()}
    ablation, variant_runs = config.ablation, {}
    for name in ablation.variants:
        log(f"scoring {name} on {len(samples.ids)} images of {config.data.validation}")
        variant_trials = [trials[trial_name(name, seed)] for seed in ablation_seeds(config)]
        variant_runs[name] = _score_trials(variant_trials, samples, folder)
    baseline = variant_runs[ablation.baseline]
    evaluations = {}
    for name, overrides in ablation.evaluations.items():
        log(f"scoring {ablation.baseline} with {name}")
        evaluation = evaluation_config(config, name, overrides).evaluation
        evaluations[name] = _score_trials(baseline.trials, samples, folder, evaluation)
    report = AblationReport(
        study=study.uri,
        config=config.model_dump(mode="json"),
        baseline=ablation.baseline,
        fingerprint=manifest.fingerprint,
        frame={"width": manifest.width, "height": manifest.height},
        num_images=len(samples.ids),
        all_foreground_jaccard=_lesion_fraction(samples),
        divergence_threshold=ablation.divergence_threshold,
        variants=[
            VariantRow(
                **_score_fields(name, ablation.variants[name], runs, baseline),
                **_stability_fields(runs, ablation.divergence_threshold),
            )
            for name, runs in variant_runs.items()
        ],
        evaluations=[
            ScoreRow(**_score_fields(name, ablation.evaluations[name], runs, baseline))
            for name, runs in evaluations.items()
        ],
        runs=[_run_row(trial) for runs in variant_runs.values() for trial in runs.trials],
    )
    storage.write_json(storage.join(study.uri, ABLATION_REPORT), dataclasses.asdict(report))
    return report


def _lesion_fraction(samples: Samples) -> float:
    """Mean over the images of the fraction of their pixels that is lesion."""
    batches = batch_slices(len(samples.ids), BATCH_SIZE)
    fractions = [(samples.mask[batch] != 0).mean((1, 2, 3)) for batch in batches]
    return float(np.concatenate(fractions).mean())


def ablation_seeds(config: Config) -> range:
    """The seeds that each variant is trained with."""
    first = config.training.seed
    return range(first, first + config.ablation.seeds)


def score_maps(maps: np.ndarray, truth: np.ndarray) -> ModelScores:
    """Scores of a model at its best threshold; of several classes, each at its own.

    Only a batch of the arrays is in memory at once.

    Args:
        maps: float32 [N, classes, H, W] in [0, 1].
        truth: [N, classes, H, W], nonzero is lesion.
    """
    sweep, parts = Sweep.empty(truth.shape[1]), []
    for batch in batch_slices(len(maps), BATCH_SIZE):
        sweep.update(torch.tensor(maps[batch]), torch.tensor(truth[batch] != 0))
    thresholds = sweep.best_thresholds()
    for batch in batch_slices(len(maps), BATCH_SIZE):
        predicted, lesion = above_thresholds(maps[batch], thresholds), truth[batch] != 0
        jaccard = confusion(predicted, lesion).scores()["jaccard"].mean(1)
        parts.append((jaccard, perimeter_ratio(predicted, lesion), roughness(predicted, lesion)))
    return ModelScores(sweep.best_threshold(), *map(np.concatenate, zip(*parts, strict=True)))


def _score_trials(
    trials: list[Trial],
    samples: Samples,
    folder: Path,
    evaluation: EvaluationConfig | None = None,
) -> VariantRuns:
    """Scores each trial's best checkpoint, and the first three as an ensemble."""
    runs = VariantRuns(trials)
    best = [checkpoint for trial in trials if (checkpoint := trial.run.best_checkpoint())]
    for number, checkpoint in enumerate(best, 1):
        maps = _map_file(folder / "maps.npy", samples)
        _predict_probabilities(checkpoint, samples, evaluation, maps)
        runs.scores.append(score_maps(maps, samples.mask))
        if number == 1:
            total = _map_file(folder / "total.npy", samples)
        if number <= NUM_MEMBERS:
            for batch in batch_slices(len(maps), BATCH_SIZE):
                total[batch] += maps[batch]
        if number == NUM_MEMBERS:
            for batch in batch_slices(len(maps), BATCH_SIZE):
                total[batch] /= NUM_MEMBERS
            runs.ensemble_of_three = score_maps(total, samples.mask)
    return runs


def _map_file(file: Path, samples: Samples) -> np.ndarray:
    """Maps of all frames as a memory-mapped file of zeros, float32 [N, classes, H, W]."""
    maps: np.ndarray = np.lib.format.open_memmap(file, "w+", np.float32, samples.mask.shape)
    return maps


def _predict_probabilities(
    checkpoint: Checkpoint,
    samples: Samples,
    evaluation: EvaluationConfig | None,
    maps: np.ndarray,
) -> None:
    """Fills `maps`, float32 [N, classes, H, W], with the probabilities of all frames."""
    member = Member.from_checkpoint(checkpoint)
    if evaluation:
        config = member.config.model_copy(update={"evaluation": evaluation})
        member = dataclasses.replace(member, config=config)
    for batch in batch_slices(len(samples.ids), member.config.evaluation.batch_size):
        maps[batch] = member(torch.tensor(samples.image[batch])).cpu().numpy()


def _score_fields(
    name: str, overrides: dict[str, Any], runs: VariantRuns, baseline: VariantRuns
) -> dict[str, Any]:
    """The fields of a ScoreRow."""
    scores = runs.scores
    jaccard_per_seed = [float(model.jaccard.mean()) for model in scores]
    difference = None
    if runs is not baseline and scores and baseline.scores:
        difference = paired_interval(runs.per_image_jaccard, baseline.per_image_jaccard)
    return {
        "variant": name,
        "overrides": overrides,
        "num_scored": len(scores),
        "jaccard_per_seed": jaccard_per_seed,
        "thresholds": [model.threshold for model in scores],
        "jaccard": mean_interval(runs.per_image_jaccard) if scores else None,
        "difference_to_baseline": difference,
        "std_over_seeds": float(np.std(jaccard_per_seed, ddof=1)) if len(scores) > 1 else None,
        "perimeter": _median([model.perimeter for model in scores]),
        "roughness": _median([model.roughness for model in scores]),
        "ensemble_of_three": _ensemble_row(runs),
    }


def _stability_fields(runs: VariantRuns, divergence_threshold: float) -> dict[str, Any]:
    """The fields that a VariantRow has beyond those of a ScoreRow."""
    curves = [curve for trial in runs.trials if (curve := _jaccard_curve(trial))]
    results = [trial.result() for trial in runs.trials]
    return {
        "num_runs": len(runs.trials),
        "num_ended": sum(result.has_ended for result in results),
        "num_failed": sum(result.status is TrialStatus.FAILED for result in results),
        "num_diverged": sum(_has_diverged(trial, divergence_threshold) for trial in runs.trials),
        "final_jaccard": _mean(curve[-1] for curve in curves),
        "mean_jaccard_over_epochs": _mean(np.mean(curve) for curve in curves),
        "mean_epoch_change": _mean(np.abs(np.diff(c)).mean() for c in curves if len(c) > 1),
        "seconds": sum(result.seconds for result in results),
    }


def _ensemble_row(runs: VariantRuns) -> EnsembleRow | None:
    ensemble = runs.ensemble_of_three
    if ensemble is None:
        return None
    mean_member_jaccard = np.mean([model.jaccard for model in runs.scores[:NUM_MEMBERS]], axis=0)
    return EnsembleRow(
        float(ensemble.jaccard.mean()),
        ensemble.threshold,
        paired_interval(ensemble.jaccard, mean_member_jaccard),
    )


def _run_row(trial: Trial) -> RunRow:
    epochs = trial.epoch_metrics()
    names = ("jaccard", "threshold", "critic_loss", "segmentor_loss", "images_per_second")
    best, result = trial.run.best_checkpoint(), trial.result()
    return RunRow(
        trial=trial.name,
        hardware=trial.run.description()["hardware"] if epochs else None,
        parameters=trial.parameters,
        status=result.status,
        reason=result.reason,
        seconds=result.seconds,
        checkpoint=best.uri if best else None,
        epoch=[line["epoch"] for line in epochs],
        **{name: [line.get(name) for line in epochs] for name in names},
    )


def _has_diverged(trial: Trial, threshold: float) -> bool:
    """Whether an ended trial became non-finite, or its final Jaccard is below the threshold."""
    result, curve = trial.result(), _jaccard_curve(trial)
    is_poor = result.has_ended and bool(curve) and curve[-1] < threshold
    return result.status is TrialStatus.DIVERGED or is_poor


def _jaccard_curve(trial: Trial) -> list[float]:
    return [line["jaccard"] for line in trial.epoch_metrics()]


def _mean(values: Iterable[Any]) -> float | None:
    numbers = [float(value) for value in values]
    return sum(numbers) / len(numbers) if numbers else None


def _median(parts: Sequence[np.ndarray]) -> float | None:
    """Median of all values that are not NaN; None if there are none."""
    values = np.concatenate([np.zeros(0), *(part.ravel() for part in parts)])
    values = values[~np.isnan(values)]
    return float(np.median(values)) if len(values) else None
