"""Finding the tiles of a kind: blocks of tiles are decided as a whole or looked into."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from .points import FULL, PARTIAL, Blocks, Points
from .runs import (
    Lines,
    joined,
    kinds_of,
    lines_of_kinds,
    lines_of_rectangles,
    runs_of_kinds,
)
from .sheet import Sheet
from .tables import GridRange

Array = np.ndarray[Any, Any]
_SIDE = 4  # a block holds so many tiles, or smaller blocks, along each side
_FEW = 1 << 13  # tiles that are looked at one by one at once
_CHUNK = 1 << 15  # tiles evaluated at a time: operands stay in the cache
_MOST_BLOCKS = 1 << 12  # blocks to begin with
_THREADS = 4  # stripes that are looked at together: NumPy lets other threads run
_STRIPE = 1 << 21  # tiles whose runs are collected before they are joined


def refine(sheet: Sheet) -> Lines:
    """A line for each row of tiles."""
    height, width = sheet.shape
    unsure = any(isinstance(s.table, GridRange) for s in sheet.steps)  # its blocks tell nothing
    if height * width <= (_STRIPE if unsure else _FEW):
        return lines_of_kinds(Points(sheet).grid(np.arange(height), np.arange(width)))
    size = _SIDE
    while -(-height // size) * -(-width // size) > _MOST_BLOCKS:
        size *= _SIDE
    points = Points(sheet)
    levels = {}
    while size >= _SIDE:
        levels[size], size = Blocks(sheet, size), size // _SIDE
    largest = max(levels)
    high = max(1, _STRIPE // (largest * width))  # each is joined to few runs when it is known

    def stripe(top: int) -> Lines:
        rows, columns = (x.ravel() for x in np.mgrid[
            top:min(top + high, -(-height // largest)), :-(-width // largest)])
        found = np.concatenate([np.zeros((0, 5), np.int32),
                                *_look(points, levels, largest, rows, columns)])
        found[:, :2] -= top * largest
        return lines_of_rectangles(found, min(high * largest, height - top * largest))

    tops = range(0, -(-height // largest), high)
    if len(tops) == 1:
        return stripe(0)
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        return joined(pool.map(stripe, tops))


def corner(sheet: Sheet, height: int, width: int) -> Array:
    """int8 [height, width], the kinds of a sheet's first tiles."""
    if height * width <= _FEW:
        return Points(sheet).grid(np.arange(height), np.arange(width))
    largest = _SIDE * _SIDE
    levels = {size: Blocks(sheet, size) for size in (largest, _SIDE)}
    high, wide = -(-height // largest), -(-width // largest)
    rows, columns = (x.ravel() for x in np.mgrid[:high, :wide])
    found = np.concatenate([np.zeros((0, 5), np.int32),
                            *_look(Points(sheet), levels, largest, rows, columns)])
    lines = lines_of_rectangles(found, high * largest)
    return kinds_of(lines, wide * largest)[:height, :width]


def _look(points: Points, levels: dict[int, Blocks], size: int, rows: Array, columns: Array
          ) -> Iterator[Array]:
    """Rectangles int32 [count, 5] of blocks of ``size`` tiles a side, by block numbers."""
    height, width = points.sheet.shape
    full, partial, empty = levels[size].decide(rows, columns)
    for chosen, kind in ((full, FULL), (partial, PARTIAL)):
        if chosen.any():
            i, j = rows[chosen] * size, columns[chosen] * size
            yield np.column_stack((i, np.minimum(i + size, height), j, np.minimum(j + size, width),
                                   np.full(len(i), kind))).astype(np.int32)
    unsure = ~(full | partial | empty)
    rows, columns = rows[unsure] * _SIDE, columns[unsure] * _SIDE
    steps = np.arange(_SIDE)
    if size == _SIDE:
        for at in range(0, len(rows), _CHUNK // _SIDE**2):
            part = slice(at, at + _CHUNK // _SIDE**2)
            yield _tiles(points, rows[part, None] + steps, columns[part, None] + steps)
        return
    smaller = size // _SIDE
    rows = np.repeat(rows, _SIDE**2) + np.tile(np.repeat(steps, _SIDE), len(rows))
    columns = np.repeat(columns, _SIDE**2) + np.tile(steps, len(columns) * _SIDE)
    inside = (rows * smaller < height) & (columns * smaller < width)
    if inside.any():
        yield from _look(points, levels, smaller, rows[inside], columns[inside])


def _tiles(points: Points, rows: Array, columns: Array) -> Array:
    """Runs within blocks, whose rows and columns [blocks, _SIDE] are given, as rectangles."""
    height, width = points.sheet.shape
    # Blocks are the last axis meanwhile, which is long.
    kinds = points.kinds(np.ascontiguousarray(np.minimum(rows, height - 1).T)[:, None, :],
                         np.ascontiguousarray(np.minimum(columns, width - 1).T)[None, :, :])
    kinds = np.ascontiguousarray(kinds.transpose(2, 0, 1))
    kinds *= (rows < height)[:, :, None] & (columns < width)[:, None, :]
    line, begin, end, kind = runs_of_kinds(kinds.reshape(-1, _SIDE))
    row, left = rows.ravel()[line], columns[line // _SIDE, 0]
    return np.column_stack((row, row + 1, left + begin, left + end, kind)).astype(np.int32)
