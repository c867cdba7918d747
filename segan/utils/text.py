"""Numbers in sentences."""

from __future__ import annotations


def count_noun(count: float, noun: str) -> str:
    """The number with its noun, in the plural unless it is 1: "1 CPU", "0.5 CPUs", "3 GPUs"."""
    return f"{count:g} {noun}{'' if count == 1 else 's'}"
