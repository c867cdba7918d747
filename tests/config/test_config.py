"""The configuration: the paper's defaults, YAML files, overrides, and error messages."""

import json
import math
import re
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from segan.cli.commands.options import ConfigSource, complete_config
from segan.config import (
    Config,
    format_value,
    iter_fields,
    load_config,
    parse_config,
    shipped_configs,
)
from segan.config.renamed import RENAMED_KEYS, RENAMED_VALUES
from segan.errors import UsageError

FIELDS = dict(iter_fields(Config))
NUMERIC_KEYS = [key for key, field in FIELDS.items() if field.annotation in (int, float)]

PAPER_VALUES = {
    "network.width": 64,
    "network.classes": 1,
    "network.global_conv_min_kernel": 7,
    "logistic.initial_k": 1.0,
    "logistic.final_k": 0.3,
    "logistic.decay": 0.9,
    "logistic.decay_every_epochs": 25,
    "logistic.stretch_to_run": False,
    "loss.reduction": "concatenated",
    "loss.level_weights": None,
    "loss.dice_weight": 0.0,
    "loss.critic": "multi_scale",
    "loss.adversarial_weight": 1.0,
    "loss.cross_entropy_weight": 0.0,
    "network.spectral_norm": False,
    "augment.resize_probability": 0.0,
    "optimizer.warmup_fraction": 0.0,
    "training.ema_decay": 0.0,
    "optimizer.learning_rate": 0.003,
    "optimizer.critic_rate": None,
    "optimizer.betas": (0.5, 0.999),
    "optimizer.schedule": "linear",
    "optimizer.weight_clip": 0.05,
    "optimizer.weight_clip_scope": "all",
    "augment.crop": 128,
    "augment.flip_horizontal": 0.5,
    "augment.flip_vertical": 0.5,
    "training.batch_size": 25,
    "evaluation.threshold": 0.4,
}

BOUNDS = [  # a value just outside, and what is expected instead
    ("network.width", 0, "greater than or equal to 1"),
    ("network.width", 513, "less than or equal to 512"),
    ("network.classes", 0, "greater than or equal to 1"),
    ("network.classes", 256, "less than or equal to 255"),
    ("network.residual_max_width", 65, "less than or equal to 64"),
    ("augment.crop", 2049, "less than or equal to 2048"),
    ("network.global_conv_min_kernel", 2, "greater than or equal to 3"),
    ("network.residual_expansion", 0, "greater than 0"),
    ("network.residual_expansion", 4.5, "less than or equal to 4"),
    ("network.residual_max_width", 0, "greater than or equal to 1"),
    ("logistic.initial_k", 0, "greater than 0"),
    ("logistic.final_k", 0, "greater than 0"),
    ("logistic.decay", 0, "greater than 0"),
    ("logistic.decay", 1, "less than 1"),
    ("logistic.decay_every_epochs", 0, "greater than 0"),
    ("loss.dice_weight", -0.5, "greater than or equal to 0"),
    ("optimizer.learning_rate", 0, "greater than 0"),
    ("optimizer.learning_rate", 1, "less than 1"),
    ("optimizer.critic_rate", 0, "greater than 0"),
    ("optimizer.critic_rate", 1, "less than 1"),
    ("optimizer.weight_clip", 0, "greater than 0"),
    ("loss.adversarial_weight", -1, "greater than or equal to 0"),
    ("loss.cross_entropy_weight", -1, "greater than or equal to 0"),
    ("optimizer.warmup_fraction", 1, "less than 1"),
    ("training.ema_decay", 1, "less than 1"),
    ("augment.resize_probability", 1.5, "less than or equal to 1"),
    ("ablation.seeds", 0, "greater than or equal to 1"),
    ("ablation.divergence_threshold", 1.5, "less than or equal to 1"),
    ("augment.crop", 63, "greater than or equal to 64"),
    ("augment.flip_horizontal", 1.5, "less than or equal to 1"),
    ("augment.flip_vertical", -0.5, "greater than or equal to 0"),
    ("augment.brightness", 1, "less than 1"),
    ("augment.contrast", 1, "less than 1"),
    ("augment.saturation", 1, "less than 1"),
    ("augment.hue", 0.75, "less than or equal to 0.5"),
    ("training.epochs", 0, "greater than or equal to 1"),
    ("training.batch_size", 0, "greater than or equal to 1"),
    ("training.seed", -1, "greater than or equal to 0"),
    ("training.validate_every_epochs", 0, "greater than or equal to 1"),
    ("training.log_every_steps", 0, "greater than or equal to 1"),
    ("evaluation.threshold", 0, "greater than 0"),
    ("evaluation.threshold", 1, "less than 1"),
    ("evaluation.batch_size", 0, "greater than or equal to 1"),
    ("cluster.workers", 0, "greater than or equal to 1"),
    ("cluster.cpus_per_worker", 0, "greater than 0"),
    ("cluster.step_timeout_s", -1, "greater than or equal to 0"),
    ("cluster.gpus_per_worker", -1, "greater than or equal to 0"),
    ("search.trials", 0, "greater than or equal to 1"),
    ("search.grace_period", 0, "greater than or equal to 1"),
    ("search.reduction_factor", 1, "greater than 1"),
]


def get_value(config: Config, key: str) -> Any:
    section, leaf = key.split(".")
    return getattr(getattr(config, section), leaf)


def error_message(*overrides: str, path: Path | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def is_accepted(override: str) -> bool:
    try:
        load_config(None, [override])
    except UsageError:
        return False
    return True


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def test_the_defaults_are_the_papers() -> None:
    assert {key: get_value(Config(), key) for key in PAPER_VALUES} == PAPER_VALUES
    assert load_config() == Config()


def test_every_key_is_described() -> None:
    assert len(FIELDS) > 30
    assert [key for key, field in FIELDS.items() if len(field.description or "") < 10] == []


# Files and overrides


def test_an_override_wins_over_the_file_and_the_file_over_the_default(config_file: Path) -> None:
    config_file.write_text(
        "network: {width: 16, global_conv_min_kernel: 9}\ntraining: {epochs: 3}\n"
    )
    config = load_config(config_file, ["network.width=8", "augment.crop=64"])
    assert (config.network.width, config.augment.crop) == (8, 64)
    assert (config.network.global_conv_min_kernel, config.training.epochs) == (9, 3)
    assert config.training.batch_size == 25


def test_of_two_overrides_the_last_wins() -> None:
    assert load_config(None, ["network.width=8", "network.width=4"]).network.width == 4


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("loss.level_weights=[1,1,2,2,2,2,4]", (1, 1, 2, 2, 2, 2, 4)),
        ("optimizer.betas=[0.9, 0.99]", (0.9, 0.99)),
        ("optimizer.learning_rate=1e-4", 1e-4),
        ("logistic.stretch_to_run=true", True),
        ("data.records=s3://bucket/a=b", "s3://bucket/a=b"),
        ("loss.reduction=per_level", "per_level"),
    ],
)
def test_the_value_of_an_override_is_yaml(override: str, expected: Any) -> None:
    assert get_value(load_config(None, [override]), override.partition("=")[0]) == expected


@pytest.mark.parametrize("word", ["off", "on", "yes", "no", "y", "n", "Off", "YES", "1:30", "1_0"])
def test_words_of_yaml_1_1_stay_strings(word: str, config_file: Path) -> None:
    config_file.write_text(
        f"data: {{train: {word}}}\nablation: {{variants: {{paper: {{a.b: {word}}}}}}}"
    )
    config = load_config(config_file)
    assert (config.data.train, config.ablation.variants) == (word, {"paper": {"a.b": word}})
    assert load_config(None, [f"data.train={word}"]).data.train == word


@pytest.mark.parametrize("text", ["2017-01-01", "2017-01-01 10:00:00", "0o_7", "=", "<<"])
def test_dates_and_the_like_stay_strings(text: str) -> None:
    assert load_config(None, [f"data.train={text}"]).data.train == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-3", 0.001),
        ("1.5E+2", 150.0),
        ("-.5", -0.5),
        ("017", 17),
        ("true", True),
        ("null", None),
    ],
)
def test_numbers_booleans_and_null_are_those_of_yaml_1_2(text: str, expected: Any) -> None:
    variants = load_config(
        None, [f"ablation.variants={{paper: {{a.b: {text}}}}}"]
    ).ablation.variants
    found = variants["paper"]["a.b"]
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    "value",
    [
        "off",
        "a b",
        "",
        "true",
        "1e-3",
        "0E0",
        "null",
        "[x",
        "a: b",
        "é",
        "'\U0001f600",  # quoted, and two characters in JSON's escapes
        1e-5,
        None,
        [1, 2.5],
        True,
    ],
)
def test_a_formatted_value_is_read_as_the_same(value: Any) -> None:
    override = f"ablation.variants={{paper: {{a.b: {format_value([value])}}}}}"
    assert load_config(None, [override]).ablation.variants["paper"]["a.b"] == [value]
    if isinstance(value, str):
        assert load_config(None, [f"data.train={format_value(value)}"]).data.train == value


def test_the_ablation_of_best_differs_from_it_in_size_and_tta_only() -> None:
    full_size = {
        "network.width": 64,
        "augment.crop": 128,
        "training.epochs": 300,
        "cluster.cpus_per_worker": 1.0,
        "cluster.threads_per_worker": 0,
        "evaluation.tta": True,
    }
    best = load_config("best")
    enlarged = load_config("ablation_best").with_overrides(full_size)
    assert enlarged.model_copy(update={"ablation": best.ablation}) == best


@pytest.mark.parametrize(
    "name", ["ablation", "ablation_best", "ablation_small", "best", "demo", "paper"]
)
def test_a_shipped_configuration_is_found_by_name(name: str, tmp_path: Path) -> None:
    assert name in shipped_configs()
    (tmp_path / "copy.yaml").write_text(shipped_configs()[name].read_text())
    assert load_config(name) == load_config(tmp_path / "copy.yaml")
    assert (load_config(name) == Config()) is (name == "paper")  # the defaults are the paper's


def test_every_shipped_configuration_is_named_in_the_help() -> None:
    """The help is fixed text, so that it loads no package."""
    help_text = ConfigSource.__metadata__[0].help
    listed = help_text.partition("configuration: ")[2].partition(";")[0]
    assert sorted(re.split(r", | or ", listed)) == [*shipped_configs()]
    assert complete_config("ab") == ["ablation", "ablation_best", "ablation_small"]


def test_a_file_takes_precedence_over_a_shipped_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()  # `make demo` makes such a folder
    assert load_config("demo") == load_config(shipped_configs()["demo"])
    (tmp_path / "demo").rmdir()
    (tmp_path / "demo").write_text("search: {trials: 7}")
    assert load_config("demo").search.trials == 7


def test_the_papers_file_keeps_the_papers_values() -> None:
    config = load_config("paper")
    assert {key: get_value(config, key) for key in PAPER_VALUES} == PAPER_VALUES


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "network: {}\n"])
def test_a_file_may_be_empty(config_file: Path, text: str) -> None:
    config_file.write_text(text)
    assert load_config(config_file) == Config()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "training:\n  epochs: 5\nnetwork:\n  width: 2\ntraining:\n  epochs: 6\n",
            "training",
        ),
        ("network:\n  width: 3\n  width: 4\n", "width"),
        ("network: {width: 3, width: 3}\n", "width"),
        ("network:\n  width: 3\n  'width': 4\n", "width"),
    ],
)
def test_a_key_that_stands_twice_is_an_error(config_file: Path, text: str, said: str) -> None:
    """YAML would take the last and drop the first without a word."""
    config_file.write_text(text)
    message = error_message(path=config_file)
    assert "\n" not in message
    assert re.search(rf"the key {said} stands twice, on lines \d and \d", message)


def test_a_file_nested_without_end_is_an_error(config_file: Path) -> None:
    config_file.write_text("network: " + "[" * 5000)
    assert "not YAML" in error_message(path=config_file)


def test_a_config_does_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config().network.width = 3  # type: ignore[misc]


# Mistakes


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("network.widht", "network.width"),
        ("netwrk.width", "network"),
        ("optimiser.rate", "optimizer"),
        ("training.learning_rate", "optimizer.learning_rate"),
        ("augment.crop_size", "augment.crop"),
        ("data.train.name", "data.train"),
    ],
)
def test_an_unknown_key_names_the_nearest(config_file: Path, key: str, nearest: str) -> None:
    section, leaf = key.split(".", 1)
    config_file.write_text(yaml.safe_dump({section: {leaf: 1}}))
    for said in (error_message(f"{key}=1"), error_message(path=config_file)):
        assert "unknown key" in said
        assert said.endswith(f"the nearest known one is {nearest}")


@pytest.mark.parametrize(("old", "new"), RENAMED_KEYS.items())
def test_a_renamed_key_names_the_new_one(old: str, new: str, config_file: Path) -> None:
    assert new in FIELDS
    section, leaf = old.split(".")
    config_file.write_text(f"{section}: {{{leaf}: 1}}\n")
    expected = f"configuration {old}: renamed to {new}"
    assert error_message(f"{old}=1") == error_message(path=config_file) == expected


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [(key, old, new) for key, values in RENAMED_VALUES.items() for old, new in values.items()],
)
def test_a_renamed_value_names_the_new_one(key: str, old: str, new: str) -> None:
    message = f"configuration {key}: the value {old!r} was renamed to {new!r}"
    assert error_message(f"{key}={old}") == message
    assert get_value(Config().with_overrides({key: new}), key) == new


def test_a_renamed_key_with_a_renamed_value_names_both() -> None:
    assert error_message("performance.compile=off") == (
        "configuration performance.compile: renamed to performance.compile_mode, and its value "
        "'off' to 'none'"
    )


def test_a_key_without_its_last_letter_names_itself() -> None:
    for key in FIELDS:
        assert error_message(f"{key[:-1]}=1").endswith(f"the nearest known one is {key}")


@pytest.mark.parametrize(("key", "outside", "expected"), BOUNDS)
def test_outside_its_bounds_a_value_is_named(key: str, outside: Any, expected: str) -> None:
    said = error_message(f"{key}={outside}")
    assert said.startswith(f"configuration {key}: ")
    assert expected in said
    assert said.endswith(f"found {outside!r}")


def test_no_number_may_be_negative() -> None:
    assert len(NUMERIC_KEYS) > 25
    assert [key for key in NUMERIC_KEYS if is_accepted(f"{key}=-1")] == []


@pytest.mark.parametrize("number", [".inf", ".nan"])
def test_every_number_is_finite(number: str) -> None:
    assert [key for key in NUMERIC_KEYS if is_accepted(f"{key}={number}")] == []


def test_betas_lie_between_0_and_1() -> None:
    """Adam itself refuses others, with a traceback."""
    assert [b for b in ("[0.5,1]", "[-0.1,0.9]") if is_accepted(f"optimizer.betas={b}")] == []


def test_no_level_weighs_less_than_nothing() -> None:
    assert not is_accepted("loss.level_weights=[1,1,1,1,1,1,-1]")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("network.width=wide", "configuration network.width: "),
        ("network.width=1.5", "found 1.5"),
        ("network.residual_activation=beside", "'after' or 'before', found 'beside'"),
        ("evaluation.resize_mode=crop", "'native', 'pad' or 'resize', found 'crop'"),
        (
            "loss.level_weights=[1,2]",
            "expected 7 weights (of the masked image and C1 to C6), found 2",
        ),
        ("logistic.final_k=2", "final_k 2.0 is above initial_k 1.0"),
        ("cluster.min_workers=2", "min_workers 2 is above workers 1; choose"),
        (
            "search.weight_clip=[0.1,0.01]",
            "weight_clip [0.1, 0.01]: expected two positive numbers, the smaller",
        ),
        ("search.learning_rate=[0,0.1]", "expected two positive numbers, the smaller first"),
        ("search.final_k=[0.3,0]", "final_k [0.3, 0.0]: expected positive numbers"),
        ("search.final_k=[]", "at least 1 item"),
        ("loss.critic=none", "without an adversarial term, set loss.dice_weight or"),
        ("loss.adversarial_weight=0", "S has no loss"),
        ("ablation.variants={Paper: {}}", "'Paper': a variant's name is lower-case letters"),
        ("ablation.variants={../up: {}}", "'../up': a variant's name is lower-case letters"),
        ("ablation.variants={a: {}}", "baseline 'paper': expected a variant, one of a"),
    ],
)
def test_a_wrong_value_says_what_is_expected_and_found(override: str, said: str) -> None:
    assert said in error_message(override)


def test_several_mistakes_are_all_named() -> None:
    said = error_message("network.width=0", "training.epochs=0", "augment.corp=64")
    assert all(key in said for key in ("network.width", "training.epochs", "augment.corp"))


def test_batch_norm_needs_two_values_per_channel() -> None:
    said = error_message("training.batch_size=1", "augment.crop=64")
    assert said.startswith("configuration training.batch_size 1 with augment.crop 64 leaves one")
    assert load_config(None, ["training.batch_size=1", "augment.crop=97"]).training.batch_size == 1
    assert load_config(None, ["training.batch_size=2", "augment.crop=64"]).augment.crop == 64


@pytest.mark.parametrize(
    "override", ["network.width", "width=8", ".width=8", "network.=8", "", "="]
)
def test_an_override_needs_section_key_and_value(override: str) -> None:
    assert error_message(override) == (
        f"override {override!r}: expected section.key=value, as in network.width=8"
    )


def test_an_override_whose_value_is_not_yaml_is_refused() -> None:
    assert error_message("network.width=[1") == "override 'network.width=[1': the value is not YAML"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"- network", "expected sections, found list"),
        (b"network", "expected sections, found str"),
        (b"network: [", "not YAML"),
        (b"\xff\xd8\xff\xe0 a photograph", "not YAML"),
        (b"network: {width: !!python/object:os.system 1}", "not YAML"),
    ],
)
def test_a_file_without_a_configuration_is_named(
    config_file: Path, content: bytes, expected: str
) -> None:
    config_file.write_bytes(content)
    said = error_message(path=config_file)
    assert said.startswith(f"configuration {config_file}: {expected}")
    assert "\n" not in said


@pytest.mark.parametrize(("name", "reason"), [("none.yaml", "No such file"), ("", "a directory")])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, reason: str) -> None:
    said = error_message(path=tmp_path / name)
    assert said.startswith(f"configuration {tmp_path / name}: cannot be read (")
    assert reason in said
    assert said.endswith(f"expected a YAML file or one of {', '.join(shipped_configs())}")


def test_a_section_has_keys_and_values(config_file: Path) -> None:
    config_file.write_text("network: 8")
    assert error_message(path=config_file).startswith("configuration network: ")
    assert error_message("network.width=8", path=config_file) == (
        "configuration network: expected keys and values, found 8"
    )


# Overrides of a configuration


def test_overrides_leave_the_other_values() -> None:
    config = load_config(
        None, ["network.width=8", "ablation.variants={paper: {loss.critic: none}}"]
    )
    changed = config.with_overrides({"training.epochs": 3, "optimizer.weight_clip": None})
    assert (changed.training.epochs, changed.optimizer.weight_clip) == (3, None)
    assert changed.with_overrides({"training.epochs": 300, "optimizer.weight_clip": 0.05}) == config
    assert config.training.epochs == 300


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"network.widht": 8}, "configuration network.widht: unknown key; the nearest"),
        ({"network.width": 0}, "configuration network.width: "),
        ({"loss.reading": "per_level"}, "configuration loss.reading: renamed to loss.reduction"),
        ({"network": 8}, "configuration network.: unknown key"),
        (
            {"training.batch_size": 1, "augment.crop": 64},
            "configuration training.batch_size 1 with",
        ),
    ],
)
def test_invalid_overrides_are_named(overrides: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        Config().with_overrides(overrides)
    assert str(caught.value).startswith(expected)


# Round trip


def field_strategy(key: str) -> st.SearchStrategy[Any]:
    field = FIELDS[key]
    kind = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    values = st.from_type(kind)
    return values.filter(math.isfinite) if field.annotation in (int, float) else values


def tree_strategy() -> st.SearchStrategy[dict[str, Any]]:
    special = {
        "loss.level_weights": st.none() | st.tuples(*[st.floats(0, 9)] * 7),
        "optimizer.betas": st.tuples(st.floats(0, 0.99), st.floats(0, 0.999)),
        "augment.crop": st.integers(97, 512),  # any batch goes with it
        "logistic.initial_k": st.floats(1, 9),
        "logistic.final_k": st.floats(0.1, 1),
        "search.learning_rate": st.tuples(st.floats(1e-5, 1e-3), st.floats(1e-3, 0.1)),
        "search.weight_clip": st.tuples(st.floats(0.01, 0.1), st.floats(0.1, 1)),
        "cluster.gpus_per_worker": st.none(),  # any device goes with it
        "cluster.min_workers": st.integers(0, 1),  # any number of workers goes with it
        "search.final_k": st.lists(st.floats(0.1, 2), min_size=1).map(tuple),
        "loss.critic": st.sampled_from(["multi_scale", "scalar"]),
        "loss.adversarial_weight": st.floats(0.1, 9),
        "optimizer.critic_rate": st.none() | st.floats(1e-5, 0.1),
        "optimizer.weight_clip": st.none() | st.floats(0.01, 1),
        "ablation.baseline": st.just("paper"),
        "ablation.variants": st.just({"paper": {}, "dice": {"loss.dice_weight": 1.0}}),
        "ablation.evaluations": st.just({"padded": {"evaluation.resize_mode": "pad"}}),
    }
    drawn = {key: special[key] if key in special else field_strategy(key) for key in FIELDS}
    sections: dict[str, dict[str, st.SearchStrategy[Any]]] = {}
    for key, values in drawn.items():
        section, leaf = key.split(".")
        sections.setdefault(section, {})[leaf] = values
    branches = {
        name: st.fixed_dictionaries({}, optional=leaves) for name, leaves in sections.items()
    }
    return st.fixed_dictionaries({}, optional=branches)


@given(tree_strategy())
def test_a_dumped_config_parses_to_the_same(tree: dict[str, Any]) -> None:
    config = parse_config(tree)
    dumped = config.model_dump(mode="json")
    assert parse_config(dumped) == config
    assert parse_config(json.loads(json.dumps(dumped))) == config
    assert parse_config(yaml.safe_load(yaml.safe_dump(dumped))) == config
    for section, branch in tree.items():
        for key, given_value in branch.items():
            assert get_value(config, f"{section}.{key}") == given_value


@given(tree_strategy())
def test_overrides_give_the_same_as_a_tree(tree: dict[str, Any]) -> None:
    values = {f"{s}.{key}": value for s, branch in tree.items() for key, value in branch.items()}
    overrides = [f"{key}={format_value(value)}" for key, value in values.items()]
    expected = parse_config(tree)
    assert load_config(None, overrides) == expected
    assert Config().with_overrides(values) == expected
