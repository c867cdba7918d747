"""What an ablation trains, from its variants and seeds, and how it grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import ray_jobs
from segan.ablation import begin, evaluated, points
from segan.config import Config, load_config, parse_config
from segan.errors import UsageError
from segan.search import Study

CONFIGS = Path(ray_jobs.__file__).parent / "configs"
DICE = {"loss.dice_weight": 1.0}


def configured(seeds: int = 2, **ablation: Any) -> Config:
    variants = {"paper": {}, "dice": DICE}
    section = {"variants": variants, **ablation, "seeds": seeds}
    return parse_config({"training": {"seed": 5}, "ablation": section})


def test_every_variant_has_every_seed_and_a_round_of_seeds_is_whole() -> None:
    assert points(configured()) == {
        "paper-seed5": {"training.seed": 5},
        "dice-seed5": {**DICE, "training.seed": 5},
        "paper-seed6": {"training.seed": 6},
        "dice-seed6": {**DICE, "training.seed": 6},
    }


def test_a_trial_is_the_configuration_with_its_variant(tmp_path: Path) -> None:
    config, study = configured(), Study(str(tmp_path / "study"))
    *_, last = begin(config, study, "data")
    mine = last.configure(config)
    assert (mine.training.seed, mine.loss.dice_weight) == (6, 1.0)
    assert mine.optimizer == config.optimizer


def test_it_grows_by_seeds_and_variants(tmp_path: Path) -> None:
    study = Study(str(tmp_path / "study"))
    first = begin(configured(1), study, "data")
    first[0].finish("finished", 1.0)
    variants = {"paper": {}, "sigmoid": {"logistic.final_k": 1.0}}
    again = begin(configured(2, variants=variants), study, "data")
    names = [trial.name for trial in again]
    # In the order in which they came; dice-seed5 is not asked for and stays.
    assert names == ["paper-seed5", "sigmoid-seed5", "paper-seed6", "sigmoid-seed6"]
    assert [trial.name for trial in study.trials()] == [names[0], "dice-seed5", *names[1:]]
    assert [trial.result() is not None for trial in again] == [True, False, False, False]


def test_what_failed_is_tried_again_and_what_diverged_is_not(tmp_path: Path) -> None:
    study = Study(str(tmp_path / "study"))
    one, two, *_ = begin(configured(), study, "data")
    one.finish("failed: the bucket is gone", 1.0)
    two.finish("diverged: a loss is not finite", 1.0)
    one, two, *_ = begin(configured(), study, "data")
    assert one.result() is None
    assert two.result() is not None


def test_another_variant_of_the_same_name_is_refused(tmp_path: Path) -> None:
    study = Study(str(tmp_path / "study"))
    begin(configured(), study, "data")
    variants = {"paper": {}, "dice": {"loss.dice_weight": 0.5}}
    with pytest.raises(UsageError, match=r"dice-seed5 began with .*1\.0.*now .*0\.5"):
        begin(configured(variants=variants), study, "data")
    config = configured()
    longer = config.training.model_copy(update={"epochs": 7})
    with pytest.raises(UsageError, match=r"training.epochs 300, now 7"):
        begin(config.model_copy(update={"training": longer}), study, "data")


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("loss.dice_wieght", "ablation dice: .*nearest known one is loss.dice_weight"),
        ("training.seed", "ablation dice: training.seed is not its to change"),
        ("data.train", "ablation dice: data.train is not its to change"),
        ("cluster.workers", "not its to change; expected section.key, but none of data, cluster"),
        ("loss", "ablation dice: loss is not its to change"),
    ],
)
def test_a_variant_that_is_none_is_named(key: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        points(configured(variants={"paper": {}, "dice": {key: 1}}))


def test_an_evaluation_changes_the_evaluation_alone() -> None:
    config = configured()
    assert evaluated(config, "padded", {"evaluation.frame": "padded"}).evaluation.frame == "padded"
    with pytest.raises(UsageError, match=r"wide: network.width .* expected evaluation.key"):
        points(configured(evaluations={"wide": {"network.width": 8}}))


def test_no_variant_is_no_ablation() -> None:
    with pytest.raises(UsageError, match=r"ablation.variants: expected variants to compare"):
        points(Config())


@pytest.mark.parametrize("name", ["ablation", "ablation_small"])
def test_the_shipped_ones_are_whole(name: str) -> None:
    config = load_config(CONFIGS / f"{name}.yaml")
    assert len(points(config)) == config.ablation.seeds * len(config.ablation.variants)
    changed = [str(overrides) for overrides in config.ablation.variants.values()]
    assert len(set(changed)) == len(changed), "two variants are the same"
