"""The description of an archive's classes: what it says, and each mistake in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from segan.data.archive.label_classes import (
    LabelClasses,
    parse_classes,
    read_classes,
    shipped_classes,
)
from segan.errors import UsageError


def test_a_mask_file_for_each_class() -> None:
    found = parse_classes(b'classes:\n  b: "{id}_b.png"\n  a: "masks/a/{id}.png"\nmissing: empty\n')
    assert found == LabelClasses(("b", "a"), ("{id}_b.png", "masks/a/{id}.png"), (), True)
    assert len(found) == 2


def test_a_label_value_for_each_class() -> None:
    found = parse_classes(b'mask: "{id}_labels.png"\nclasses: {lesion: 1, hair: 7}\n')
    assert found == LabelClasses(("lesion", "hair"), ("{id}_labels.png",), (1, 7))


def test_the_attributes_of_isic_2018_come_with_the_package() -> None:
    found = read_classes("isic2018_attributes")
    assert set(found.names) == {
        "globules",
        "milia_like_cyst",
        "negative_network",
        "pigment_network",
        "streaks",
    }
    assert found.patterns == tuple(f"{{id}}_attribute_{name}.png" for name in found.names)
    assert [*shipped_classes()] == ["isic2018_attributes"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("classes: [a, b]", 'expected "classes:" with a name and a file pattern or a label value'),
        ("a: 1", 'expected "classes:"'),
        ("classes: {a: [", "not YAML"),
        ("classes: {}", "expected 1 to 255 classes, found 0"),
        ("classes: {a: 1}\nsplit: train", "unknown key 'split'; expected classes, mask, missing"),
        ("classes: {a: 1, a: 2}", "the key a stands twice"),
        ('classes: {a: "{id}_a.png", A: "{id}_b.png"}', "class A: the name stands twice"),
        ("classes: {../a: 1}", "class '../a': expected a name of at most 64 letters"),
        ("classes: {1: 1}", "class '1': expected a name"),
        ("classes: {mean: 1}", "class mean: the name is reserved"),
        ("classes: {a: 0}", "class a: label value 0: 0 is the background"),
        ("classes: {a: 70000}", "class a: label value 70000: expected 1 to 65535"),
        ("classes: {a: 3, b: 3}", "class b: has the label value 3 of a"),
        ("classes: {a: true}", "class a: expected a label value, or a file pattern for every"),
        ('classes: {a: 1, b: "{id}.png"}', "class b: expected a label value, or a file pattern"),
        ('classes: {a: "a.png"}', "a: expected a file pattern with {id} once"),
        ('classes: {a: "{id}/{id}.png"}', "a: expected a file pattern with {id} once"),
        ('classes: {a: "../{id}.png"}', "a: expected the end of a path"),
        ('classes: {a: "/{id}.png"}', "a: expected the end of a path"),
        ('classes: {a: "{id}_{split}.png"}', "no braces but {id}"),
        ('classes: {a: "{id}/a.png"}', "a: expected {id} in the file's name"),
        ('classes: {a: "{id}.png", b: "{ID}.png"}', "b: expected a file pattern with {id} once"),
        ('classes: {a: "{id}.png", b: "{id}.PNG"}', "two classes have the same file pattern"),
        ('classes: {a: "{id}.png"}\nmask: "{id}.png"', "mask: is the pattern of label images"),
        ('classes: {a: "{id}.png"}\nmissing: zero', "missing: expected reject or empty"),
        ("classes: {a: 1}\nmissing: empty", "missing: belongs to classes with mask files"),
        ("x: &x [1]\nclasses: {a: *x}", "expected YAML without aliases"),
        (f"classes: {'[' * 200_000}", "expected YAML of at most 10 levels, found more"),
        (f"classes: {{a: {'9' * 900}}}", "class a: label value 999"),
        (f"classes: {{a: 1}}\n{'b' * 900}: 1", "unknown key 'bbb"),
        ("classes: {a: 1}\nmask: labels.png", "mask: expected a file pattern with {id} once"),
    ],
)
def test_each_mistake_is_one_line(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "classes.yaml").write_text(content)
    with pytest.raises(UsageError) as caught:
        read_classes(f"{tmp_path}/classes.yaml")
    assert str(caught.value).startswith(f"classes {tmp_path}/classes.yaml: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"not found; expected a YAML file or one of isic2018"):
        read_classes(f"{tmp_path}/classes.yml")


def test_bytes_that_are_no_text() -> None:
    with pytest.raises(UsageError, match="not YAML"):
        parse_classes(b"\xff\xfe\x00")
