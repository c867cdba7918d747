"""Cross-validation: splits an archive into folds, with the pairs of a group in one fold."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from segan.data.archive.pairs import Archive, Pair
from segan.errors import SeganError, UsageError

POOLED_SPLITS = {"train", "validation"}


def k_fold_split(archive: Archive, folds: int, fold: int, seed: int) -> Archive:
    """Returns the archive with one fold as `validation` and the other folds as `train`.

    Pairs of train and validation are pooled; `test` is left as it is. An archive with neither split
    is divided as a whole. The assignment depends on the seed and the ids alone, not on the order of
    the listing or on `fold`.

    Args:
        folds: number of folds, at least 2; their sizes are as even as the groups allow.
        fold: index of the validation fold, from 0.
        seed: of the assignment.

    Raises:
        UsageError: fewer than 2 folds, no such fold, or fewer groups than folds.
        SeganError: an id occurs in both splits, so it would no longer be unique.
    """
    if folds < 2:
        raise UsageError(f"{folds} folds: expected at least 2")
    if not 0 <= fold < folds:
        raise UsageError(f"fold {fold}: expected 0 to {folds - 1}")
    splits = {pair.split for pair in archive.pairs}
    pooled = splits & POOLED_SPLITS or splits
    pool = [pair for pair in archive.pairs if pair.split in pooled]
    if duplicates := [i for i, times in Counter(pair.id for pair in pool).items() if times > 1]:
        raise SeganError(
            f"{archive.uri}: id {min(duplicates)} is in two splits; folds pool the splits and need "
            "unique ids"
        )
    groups = _group_pairs(pool)
    if len(groups) < folds:
        raise UsageError(
            f"{archive.uri}: {folds} folds of {len(groups)} groups of pairs; expected at most as "
            "many folds as groups"
        )
    validation = {pair.id for pair in _assign_folds(groups, folds, seed)[fold]}
    others = [pair for pair in archive.pairs if pair.split not in pooled]
    moved = [replace(p, split="validation" if p.id in validation else "train") for p in pool]
    pairs = sorted([*others, *moved], key=lambda pair: (pair.split, pair.id))
    return replace(archive, pairs=pairs)


def _group_pairs(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    groups: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        groups[f"group {pair.group}" if pair.group else f"pair {pair.id}"].append(pair)
    return groups


def _assign_folds(groups: dict[str, list[Pair]], folds: int, seed: int) -> list[list[Pair]]:
    """Assigns each group to the smallest fold so far: largest first, ties in seeded order."""

    def order(name: str) -> tuple[int, bytes]:
        return -len(groups[name]), hashlib.sha256(f"{seed} {name}".encode()).digest()

    assigned: list[list[Pair]] = [[] for _ in range(folds)]
    for name in sorted(groups, key=order):
        min(assigned, key=len).extend(groups[name])
    return assigned
