"""The card of an ensemble: what a person should know before using it, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from segan import storage
from segan.evaluation.bootstrap import Interval
from segan.evaluation.metrics import SCORE_NAMES
from segan.evaluation.result import EvaluationResult
from segan.evaluation.slices import MIN_IMAGES, SliceGroup
from segan.runs.ensemble import Ensemble, EnsembleMember

_RULE_DESCRIPTIONS = {
    "best": "The members are the best checkpoints of the three runs with the best Jaccard.",
    "greedy": "The members are the best run, then twice the one whose company scored best.",
}
_CONFIG_COLUMNS = {  # of a member's configuration, by what the card calls it
    "width": "network.width",
    "batch": "training.batch_size",
    "workers": "cluster.workers",
    "learning rate": "optimizer.learning_rate",
    "clamp": "optimizer.weight_clip",
    "seed": "training.seed",
}


def render_card(uri: str, ensemble: Ensemble, result: EvaluationResult) -> str:
    """The text of card.md.

    Args:
        findings: of the ensemble on its validation split.
    """
    sizes = ", ".join(f"{count} {split}" for split, count in ensemble.splits.items())
    frame = f"{ensemble.frame['width']} x {ensemble.frame['height']}"
    return f"""# {storage.basename(uri)}

An ensemble of {len(ensemble.members)} SegAN segmentors that draw a skin lesion's mask in a
dermoscopy image. Their probability maps are averaged, and a pixel above {ensemble.threshold:g} is
lesion. Method: Xue, Xu, Huang, "Adversarial learning with multi-scale loss for skin lesion
segmentation", ISBI 2018.

This is research software and no medical device. Do not use it for diagnosis or treatment.

## Data

Trained on the split `{ensemble.train_split}` of `{ensemble.records}`, images of {frame} pixels.
Sizes of the splits: {sizes}. Fingerprint: `{ensemble.fingerprint}`.

## Training

A segmentor and a critic take turns, and the segmentor learns from the critic's gradient alone.
{_RULE_DESCRIPTIONS[ensemble.rule]} There were {len(ensemble.candidates)} candidates.

{_training_table(ensemble.members)}

## Scores on `{ensemble.validation_split}`

Means over {len(result.images)} images, at {frame} pixels, with 95 % intervals (percentiles of
10,000 bootstrap samples of the images). Members, thresholds and checkpoints were chosen on these
same images, so the scores flatter; no other split was looked at, and none of these is a test score.

{_score_table(ensemble, result)}

Calibration: the probability of a pixel and how often it is lesion are
{result.calibration.expected_calibration_error:.3f} apart on average (expected calibration error).

## Jaccard by kind of image

{_slice_table(result.slice_groups)}

An interval needs at least {MIN_IMAGES} images. Skin tone is the individual typology angle of the
skin
around the lesion, estimated from the photograph; lamp and camera move it by more than a category.
Hair is the share of the skin under dark, thin, long lines, rulers and pen marks among them.

## Use

```sh
segan predict {uri} ./photographs ./masks
segan evaluate {uri} ARCHIVE --split test
segan report {uri}
```

```python
from segan import Predictor

mask = Predictor.load("{uri}")(image).mask      # image: a PIL image of any size
```

## Limits

- Every image is seen at {frame} pixels: finer detail of an outline is lost.
- It knows images like those it was trained on: another camera, skin tone, body site or kind of
  lesion may score lower, and kinds that are rare or missing in the table above were hardly tested.
- It says where a lesion is, never of what kind. Its probabilities are scores for a threshold; how
  much to trust a mask they say only roughly.
- It may draw a lesion where there is none, and in images that are no dermoscopy.
"""


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
