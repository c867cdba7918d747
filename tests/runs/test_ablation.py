"""What an ablation trains, from its variants and seeds, and how it grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from segan.config import Config, load_config, parse_config
from segan.errors import SeganError, UsageError
from segan.runs.ablation import evaluation_config, prepare_trials, trial_overrides
from segan.runs.study import Study
from segan.runs.trial import TrialStatus

DICE_OVERRIDES = {"loss.dice_weight": 1.0}


def ablation_config(seeds: int = 2, **ablation: Any) -> Config:
    variants = {"paper": {}, "dice": DICE_OVERRIDES}
    section = {"variants": variants, **ablation, "seeds": seeds}
    return parse_config({"training": {"seed": 5}, "ablation": section})


def test_every_variant_has_every_seed_in_rounds_of_seeds() -> None:
    assert trial_overrides(ablation_config()) == {
        "paper-seed5": {"training.seed": 5},
        "dice-seed5": {**DICE_OVERRIDES, "training.seed": 5},
        "paper-seed6": {"training.seed": 6},
        "dice-seed6": {**DICE_OVERRIDES, "training.seed": 6},
    }


def test_a_trial_is_the_configuration_with_its_variant(tmp_path: Path) -> None:
    config, study = ablation_config(), Study(str(tmp_path / "study"))
    *_, last = prepare_trials(config, study, "data")
    mine = last.build_config(config)
    assert (mine.training.seed, mine.loss.dice_weight) == (6, 1.0)
    assert mine.optimizer == config.optimizer


def test_it_grows_by_seeds_and_variants(tmp_path: Path) -> None:
    study = Study(str(tmp_path / "study"))
    first = prepare_trials(ablation_config(1), study, "data")
    first[0].mark_done(TrialStatus.FINISHED, 1.0)
    variants = {"paper": {}, "sigmoid": {"logistic.final_k": 1.0}}
    again = prepare_trials(ablation_config(2, variants=variants), study, "data")
    names = [trial.name for trial in again]
    # In the order in which they came; dice-seed5 is not asked for and stays.
    assert names == ["paper-seed5", "sigmoid-seed5", "paper-seed6", "sigmoid-seed6"]
    assert [trial.name for trial in study.trials()] == [names[0], "dice-seed5", *names[1:]]
    assert [trial.result().has_ended for trial in again] == [True, False, False, False]


def test_an_ablation_is_over_when_its_own_trials_are(tmp_path: Path) -> None:
    study = Study(str(tmp_path / "study"))
    first = prepare_trials(ablation_config(1), study, "data")
    first[0].mark_done(TrialStatus.DIVERGED, 1.0, "a loss is not finite")
    first[1].mark_done(TrialStatus.FAILED, 1.0, "the bucket is gone")
    names = [trial.name for trial in first]
    with pytest.raises(SeganError, match=r"1 of 2 trials .* dice-seed5 \(failed: the bucket is g"):
        study.require_finished(names)
    first[1].mark_done(TrialStatus.FINISHED, 1.0)
    prepare_trials(ablation_config(2), study, "data")
    study.require_finished(names)
    with pytest.raises(SeganError, match=r"2 of 4 trials .* paper-seed6, dice-seed6; run"):
        study.require_finished()


def test_another_variant_of_the_same_name_is_refused(tmp_path: Path) -> None:
    study = Study(str(tmp_path / "study"))
    prepare_trials(ablation_config(), study, "data")
    variants = {"paper": {}, "dice": {"loss.dice_weight": 0.5}}
    with pytest.raises(UsageError, match=r"dice-seed5: parameters is .*1\.0.*expected .*0\.5"):
        prepare_trials(ablation_config(variants=variants), study, "data")
    config = ablation_config()
    longer = config.training.model_copy(update={"epochs": 7})
    with pytest.raises(UsageError, match=r"training.epochs is 300, expected 7"):
        prepare_trials(config.model_copy(update={"training": longer}), study, "data")


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("loss.dice_wieght", "ablation dice: .*nearest known one is loss.dice_weight"),
        ("training.seed", "ablation dice: training.seed cannot be overridden"),
        ("data.train", "ablation dice: data.train cannot be overridden"),
        ("cluster.workers", "cannot be overridden; expected section.key, but not of data, cluster"),
        ("loss", "ablation dice: loss cannot be overridden"),
    ],
)
def test_an_invalid_variant_is_named(key: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        trial_overrides(ablation_config(variants={"paper": {}, "dice": {key: 1}}))


def test_an_evaluation_changes_the_evaluation_alone() -> None:
    config = ablation_config()
    assert (
        evaluation_config(
            config, "padded", {"evaluation.resize_mode": "pad"}
        ).evaluation.resize_mode
        == "pad"
    )
    with pytest.raises(UsageError, match=r"wide: network.width .* expected evaluation.key"):
        trial_overrides(ablation_config(evaluations={"wide": {"network.width": 8}}))


def test_an_ablation_without_variants_is_refused() -> None:
    with pytest.raises(UsageError, match=r"ablation.variants: expected variants to compare"):
        trial_overrides(Config())


@pytest.mark.parametrize("name", ["ablation", "ablation_small"])
def test_the_shipped_configurations_are_valid(name: str) -> None:
    config = load_config(name)
    assert len(trial_overrides(config)) == config.ablation.seeds * len(config.ablation.variants)
    changed = [str(overrides) for overrides in config.ablation.variants.values()]
    assert len(set(changed)) == len(changed), "two variants are the same"
