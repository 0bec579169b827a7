"""Rows of tiles that repeat, moved along the keys: proved and found once.

Where both conditions are the same p rows further down and as many keys further on, one row in p
says it all. So a band of rows × columns costs p·(rows + columns) tiles, not rows × columns.
"""

from __future__ import annotations

from itertools import pairwise
from math import lcm
from typing import Any, NamedTuple

import numpy as np

from .refine import corner
from .runs import Lines, lines_of_kinds
from .sheet import Sheet, Sum

Array = np.ndarray[Any, Any]
_MOST_BANDS = 5  # along each side
_GAIN = 4  # at least so many times fewer tiles


class Period(NamedTuple):
    """In tiles."""

    rows: int
    columns: int


def periods(sheet: Sheet, block: tuple[int, int], moduli: frozenset[int]) -> list[Period]:
    """What may be worth trying: the least shift tiles allow, and the least that leaves every
    remainder and quotient as it is."""
    least = lcm(*block)
    out = []
    for shift in dict.fromkeys((least, lcm(least, *moduli))):
        p = Period(shift // block[0], shift // block[1])
        height, width = sheet.shape
        if _GAIN * (p.rows * width + p.columns * height) <= height * width:
            out.append(p)
    return out


class Band(NamedTuple):
    """Rows, or columns, and whether what depends on them alone grows evenly on them."""

    places: slice
    even: bool


def bands(sheet: Sheet, period: Period) -> tuple[list[Band], list[Band]] | None:
    """Rows and columns cut in bands; None where they are too many."""
    sides = []
    for axis, p in (("row", period.rows), ("col", period.columns)):
        found = _cuts(sheet.parts_along(axis), sheet.shape[axis == "col"], p)
        if found is None:
            return None
        sides.append(found)
    return sides[0], sides[1]


def _cuts(parts: list[Array], length: int, period: int) -> list[Band] | None:
    if length <= period:
        return [Band(slice(0, length), False)]
    uneven = np.zeros(length - period, bool)
    for part in parts:
        whole = part.astype(np.int64)
        growth = whole[period:] - whole[:-period]
        uneven[1:] |= growth[1:] != growth[:-1]
    starts = np.flatnonzero(uneven)
    if len(starts) > 2 * period * _MOST_BANDS:
        return None
    out, done = [], 0
    for begin, end in pairwise([0, *starts.tolist(), length - period]):
        if end - begin > period:  # what is at begin … end + period − 1 grows evenly
            if begin > done:
                out.append(Band(slice(done, begin), False))
            out.append(Band(slice(max(done, begin), end + period), True))
            done = end + period
    if done < length:
        out.append(Band(slice(done, length), False))
    return out if len(out) <= 2 * _MOST_BANDS else None


def repeats(sheet: Sheet, period: Period) -> bool:
    """Whether both conditions are the same ``period`` further on, everywhere."""
    growth: list[int | None] = []  # of each step, from one period to the next

    def of(total: Sum) -> int | None:
        out = 0
        for part, p in ((total.row, period.rows), (total.col, period.columns)):
            if part is not None and len(part) > p:
                whole = part.astype(np.int64)
                steps = whole[p:] - whole[:-p]
                if (steps != steps[0]).any():
                    return None
                out += int(steps[0])
            elif part is not None:
                return None
        for step, factor in total.rest:
            by = growth[step]
            if by is None:
                return None
            out += by * factor
        return out

    for step in sheet.steps:
        by = [of(a) for a in step.args]
        result = None
        if None not in by:
            same = all(x == by[-1] for x in by[-2:])
            if step.op in ("le", "eq", "and", "or", "not", "abs", "mul") or step.table:
                result = 0 if not any(by) else None
            elif step.op in ("min", "max") or step.op == "where" and by[0] == 0:
                result = by[-1] if same else None
            elif step.op in ("floordiv", "mod") and step.number:
                number, rest = divmod(by[0], step.number)  # type: ignore[operator]
                result = None if rest else number if step.op == "floordiv" else 0
        growth.append(result)
    return of(sheet.full) == 0 and of(sheet.some) == 0


def lines(sheet: Sheet, period: Period) -> Lines:
    """A line for each of the first ``period`` rows; row r is line r mod p, moved by ⌊r / p⌋
    periods."""
    height, width = sheet.shape
    p, shift = min(period.rows, height), period.columns
    right = corner(sheet, p, width)
    times = (height - 1) // period.rows
    if not times:
        return lines_of_kinds(right)
    # Keys before the first, as later rows see them: row q + t·p has t·shift of them.
    left = np.zeros((times * period.rows, shift), np.int8)
    left[:height - period.rows] = corner(sheet, height, shift)[period.rows:]
    left = left.reshape(times, period.rows, shift)[::-1, :p].transpose(1, 0, 2).reshape(p, -1)
    return lines_of_kinds(np.concatenate([left, right], axis=1), -times * shift)
