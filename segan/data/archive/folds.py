"""Folds: an archive divided anew for cross-validation, groups kept together."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from segan.data.archive.pairs import Archive, Pair
from segan.errors import SeganError, UsageError

POOLED_SPLITS = ("train", "validation")


def k_fold_split(archive: Archive, folds: int, fold: int, seed: int) -> Archive:
    """The archive with one fold as `validation` and the others as `train`.

    Pairs of train and validation are pooled and divided; `test` stays as it is. An archive with
    neither of the two is divided whole. Which pairs share a fold follows from the seed and the
    ids alone, neither from the order of the listing nor from `fold`.

    Args:
        folds: how many, 2 or more; as even as the groups allow.
        fold: the one to validate on, from 0.
        seed: another one divides otherwise.

    Raises:
        UsageError: fewer than 2 folds, no such fold, or fewer groups than folds.
        SeganError: an id is in both splits, so that it would not be one any more.
    """
    if folds < 2:
        raise UsageError(f"{folds} folds: expected at least 2")
    if not 0 <= fold < folds:
        raise UsageError(f"fold {fold}: expected 0 to {folds - 1}")
    pool = [pair for pair in archive.pairs if pair.split in POOLED_SPLITS] or archive.pairs
    if twice := [i for i, times in Counter(pair.id for pair in pool).items() if times > 1]:
        raise SeganError(
            f"{archive.uri}: {min(twice)} is in two splits; folds pool the splits, and need ids "
            "that are in one alone"
        )
    groups = _group_pairs(pool)
    if len(groups) < folds:
        raise UsageError(
            f"{archive.uri}: {folds} folds of {len(groups)} groups of pairs; expected at most as "
            "many folds as groups"
        )
    held_out = {pair.id for pair in _assign_folds(groups, folds, seed)[fold]}
    kept = (
        [] if pool is archive.pairs else [p for p in archive.pairs if p.split not in POOLED_SPLITS]
    )
    moved = [replace(p, split="validation" if p.id in held_out else "train") for p in pool]
    pairs = sorted([*kept, *moved], key=lambda pair: (pair.split, pair.id))
    return replace(archive, pairs=pairs)


def _group_pairs(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    groups: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        groups[f"group {pair.group}" if pair.group else f"pair {pair.id}"].append(pair)
    return groups


def _assign_folds(groups: dict[str, list[Pair]], folds: int, seed: int) -> list[list[Pair]]:
    """Groups in a seeded order, the largest first, each into the smallest fold so far."""

    def order(name: str) -> tuple[int, bytes]:
        return -len(groups[name]), hashlib.sha256(f"{seed} {name}".encode()).digest()

    divided: list[list[Pair]] = [[] for _ in range(folds)]
    for name in sorted(groups, key=order):
        min(divided, key=len).extend(groups[name])
    return divided
