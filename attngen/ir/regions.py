"""A sheet cut into what is of one kind, what repeats and what has to be looked into."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .periodic import Band, Period, bands, lines, periods, repeats
from .points import FULL, PARTIAL, Points
from .refine import refine
from .runs import Lines, lines_of_kinds
from .sheet import Sheet
from .tables import GridRange, distinct

Array = np.ndarray[Any, Any]

# Rows, columns, and either the line that serves all rows, or lines and which of them each row has:
# the first ones with a period, or by their numbers.
Part = tuple[slice, slice, Lines | int, Period | Array]
_FEW = 1 << 15  # tiles that are sooner decided one by one than their sheet is folded
_GAIN = 4  # at least so many times fewer tiles
ONE_LINE = {PARTIAL: 0, FULL: 1}  # of tiles of one kind
_ALL_ROWS = Period(1, 0)


class Region(NamedTuple):
    """Where a sheet lies: its planes, and its first row and column of tiles. What depends on a
    row or column repeats, if at all, with ``moduli``."""

    sheet: Sheet
    planes: tuple[int, ...]
    row: int
    column: int
    moduli: frozenset[int]


def parts(region: Region, block: tuple[int, int]) -> Iterator[Part]:
    """The rectangles of a region that are not empty."""
    sheet = region.sheet
    everything = slice(0, sheet.shape[0]), slice(0, sheet.shape[1])
    kind = _uniform(sheet)
    if kind is None:
        alike = _alike(sheet)
        if alike is not None:
            yield *everything, *alike
            return
        for period in periods(sheet, block, region.moduli):
            cut = bands(sheet, period)
            found = None if cut is None else _cut(sheet, period, *cut)
            if found is not None:
                yield from found
                return
        yield *everything, refine(sheet), Period(sheet.shape[0], 0)
    elif kind:
        yield *everything, ONE_LINE[kind], _ALL_ROWS


def _alike(sheet: Sheet) -> tuple[Lines, Array] | None:
    """The lines of the different rows and which each row has, where many rows and columns are told
    apart by nothing."""
    different, sides = 1, []
    for axis, length in zip(("row", "col"), sheet.shape, strict=True):
        vectors = sheet.parts_along(axis)
        growth = (np.diff(v.astype(np.int64)) for v in vectors)
        if any((g > 0).all() or (g < 0).all() for g in growth):
            sides.append((np.arange(length),) * 2)
        else:
            sides.append(distinct(vectors) if vectors else (
                np.zeros(1, np.int64), np.zeros(length, np.int64)))
        different *= len(sides[-1][0])
    few = 16 * sum(sheet.shape)
    if any(isinstance(s.table, GridRange) for s in sheet.steps):
        few = sheet.shape[0] * sheet.shape[1] // _GAIN  # nothing else serves
    if different > min(few, sheet.shape[0] * sheet.shape[1] // _GAIN):
        return None
    (rows, row), (columns, column) = sides
    return lines_of_kinds(Points(sheet).grid(rows, columns)[:, column]), row


def _cut(sheet: Sheet, period: Period, rows: list[Band], columns: list[Band]
         ) -> list[Part] | None:
    """The parts of a sheet with bands of rows and columns; None where less than half repeats."""
    out: list[Part] = []
    shared: dict[Any, Any] = {}
    height, width = (sum(b.places.stop - b.places.start for b in side if b.even)
                     for side in (rows, columns))
    missed = sheet.shape[0] * sheet.shape[1] - height * width
    if 2 * missed > sheet.shape[0] * sheet.shape[1]:
        return None
    for i, even in rows:
        for j, also in columns:
            if not even or not also:
                continue
            part = sheet.part(i, j, shared)
            kind = _uniform(part)
            if kind is None and repeats(part, period):
                out.append((i, j, lines(part, period), period))
            elif kind is None:
                missed += part.shape[0] * part.shape[1]
                if 2 * missed > sheet.shape[0] * sheet.shape[1]:
                    return None
                out.append((i, j, refine(part), Period(part.shape[0], 0)))
            elif kind:
                out.append((i, j, ONE_LINE[kind], _ALL_ROWS))
    return out + _between(sheet, rows, columns, shared)


def _between(sheet: Sheet, rows: list[Band], columns: list[Band], shared: dict[Any, Any]
             ) -> list[Part]:
    """The rows and columns that are in no even band."""
    points = Points(sheet)
    everything = slice(0, sheet.shape[1])
    rest = [(i, everything) for i, even in rows if not even]
    rest += [(i, j) for j, even in columns if not even for i, also in rows if also]
    out: list[Part] = []
    for i, j in rest:
        height, width = i.stop - i.start, j.stop - j.start
        if height * width <= _FEW:
            found = lines_of_kinds(points.grid(np.arange(i.start, i.stop),
                                               np.arange(j.start, j.stop)))
        else:
            found = refine(sheet.part(i, j, shared))
        out.append((i, j, found, Period(height, 0)))
    return out


def _uniform(part: Sheet) -> int | None:
    """The kind of all tiles, where it is the same."""
    if part.full.known and part.full.number:
        return FULL
    if part.some.known and not part.some.number:
        return 0
    return PARTIAL if part.full.known and part.some.known else None
