"""Folds: a partition into whole groups of even sizes, independent of the order."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segan.data.archive.folds import k_fold_split
from segan.data.archive.pairs import Archive, Pair
from segan.errors import SeganError, UsageError


def make_archive(*sizes: int, split: str = "train", alone: int = 0) -> Archive:
    """An archive with groups of these sizes, and `alone` pairs without a group."""
    groups = [f"g{number}" for number, size in enumerate(sizes) for _ in range(size)]
    pairs = [
        Pair(f"i{number}", split, f"/{number}.jpg", f"/{number}.png", group)
        for number, group in enumerate([*groups, *[""] * alone])
    ]
    return Archive("/a", pairs)


def validation_folds(archive: Archive, folds: int, seed: int = 0) -> list[list[Pair]]:
    return [k_fold_split(archive, folds, i, seed).split("validation") for i in range(folds)]


archives = st.builds(
    lambda sizes, alone: make_archive(*sizes, alone=alone),
    st.lists(st.integers(1, 6), max_size=8),
    st.integers(2, 12),
)


@given(archives, st.integers(2, 5), st.integers(0, 99))
def test_folds_partition_the_groups(archive: Archive, folds: int, seed: int) -> None:
    groups = Counter(pair.group or pair.id for pair in archive.pairs)
    if len(groups) < folds:
        return
    parts = validation_folds(archive, folds, seed)
    assert sorted(p.id for part in parts for p in part) == sorted(p.id for p in archive.pairs)
    for name in groups:
        assert sum(any(name == (p.group or p.id) for p in part) for part in parts) == 1
    sizes = [len(part) for part in parts]
    # A group goes to the smallest fold, which then exceeds the others by at most the group's size.
    assert max(sizes) - min(sizes) <= max(groups.values())
    assert min(sizes) > 0


@given(archives, st.integers(0, 99), st.randoms())
def test_the_order_of_the_listing_does_not_matter(
    archive: Archive, seed: int, shuffled: random.Random
) -> None:
    pairs = [*archive.pairs]
    shuffled.shuffle(pairs)
    assert k_fold_split(Archive("/a", pairs), 2, 1, seed) == k_fold_split(archive, 2, 1, seed)


@given(st.integers(2, 6), st.integers(0, 40), st.integers(0, 99))
def test_without_groups_sizes_differ_by_one_at_most(folds: int, more: int, seed: int) -> None:
    sizes = [len(part) for part in validation_folds(make_archive(alone=folds + more), folds, seed)]
    assert max(sizes) - min(sizes) <= 1


def test_groups_are_balanced_largest_first() -> None:
    # 5 | 4 | 3, then the 2 to the 3 and a 1 each to 4 and 5: 6, 5 and 5 whatever the seed.
    for seed in range(5):
        parts = validation_folds(make_archive(1, 2, 3, 4, 5, 1), 3, seed)
        assert sorted(len(part) for part in parts) == [5, 5, 6]


def test_another_seed_gives_other_folds() -> None:
    archive = make_archive(alone=20)
    first = {frozenset(pair.id for pair in part) for part in validation_folds(archive, 4, 0)}
    other = {frozenset(pair.id for pair in part) for part in validation_folds(archive, 4, 1)}
    assert first != other


def test_train_and_validation_are_pooled_and_test_stays() -> None:
    pairs = [Pair(f"i{n}", "train", f"/{n}.jpg") for n in range(4)]
    pairs += [Pair(f"i{n}", "validation", f"/{n}.jpg") for n in range(4, 6)]
    pairs += [Pair(f"i{n}", "test", f"/{n}.jpg") for n in (0, 9)]
    archive = Archive("/a", pairs, [{"name": "x", "split": "train", "reason": "r"}])
    divided = k_fold_split(archive, 3, 0, 0)
    assert [pair.id for pair in divided.split("test")] == ["i0", "i9"]
    assert len(divided.split("validation")) == 2
    assert len(divided.split("train")) == 4
    assert divided.rejects == archive.rejects
    assert divided.num_inputs == archive.num_inputs == 9
    assert len(archive.split("train")) == 4  # unchanged


def test_an_archive_of_only_test_pairs_is_divided() -> None:
    divided = k_fold_split(make_archive(alone=5, split="test"), 5, 4, 0)
    assert Counter(pair.split for pair in divided.pairs) == {"train": 4, "validation": 1}


@pytest.mark.parametrize(
    ("archive", "folds", "fold", "said"),
    [
        (make_archive(alone=3), 1, 0, "1 folds: expected at least 2"),
        (make_archive(alone=3), 2, 2, "fold 2: expected 0 to 1"),
        (make_archive(alone=3), 2, -1, "fold -1: expected 0 to 1"),
        (make_archive(2, 7), 3, 0, "/a: 3 folds of 2 groups of pairs"),
        (Archive("/a"), 2, 0, "/a: 2 folds of 0 groups of pairs"),
    ],
)
def test_an_impossible_division_says_why(
    archive: Archive, folds: int, fold: int, said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        k_fold_split(archive, folds, fold, 0)
    assert str(caught.value).startswith(said)


def test_an_id_in_both_splits_cannot_be_pooled() -> None:
    pairs = [Pair("a", "train", "/1.jpg"), Pair("a", "validation", "/2.jpg")]
    with pytest.raises(SeganError, match="/a: id a is in two splits"):
        k_fold_split(Archive("/a", pairs), 2, 0, 0)
