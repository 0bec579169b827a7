"""Covering arrays: few rows in which every pair of values of any two axes still meets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product
from typing import Any

Row = dict[str, Any]
Pair = frozenset[tuple[str, Any]]


def pairs(row: Row) -> set[Pair]:
    """The pairs of (axis, value) a row covers."""
    return {frozenset(two) for two in combinations(row.items(), 2)}


def full(axes: Mapping[str, Sequence[Any]],
         allowed: Callable[[Row], bool] = lambda row: True) -> list[Row]:
    """Every allowed combination, in order."""
    rows = (dict(zip(axes, values, strict=True)) for values in product(*axes.values()))
    return [row for row in rows if allowed(row)]


def pairwise(axes: Mapping[str, Sequence[Any]],
             allowed: Callable[[Row], bool] = lambda row: True) -> list[Row]:
    """A small list of allowed rows that covers every pair some allowed row has.

    Greedy: always the row that covers the most pairs still missing, the first of equals; so the
    list is the same in every process.
    """
    rows = full(axes, allowed)
    covers = [pairs(row) for row in rows]
    missing = set().union(*covers)
    chosen = []
    while missing:
        best = max(range(len(rows)), key=lambda n: len(covers[n] & missing))
        chosen.append(rows[best])
        missing -= covers[best]
    return chosen
