"""Least and greatest entries of captured tensors over ranges of their last dimensions, and which
entries there are at all, for tile maps. What kernels look up themselves is in ``summary.py``."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from .summary import BLOCK, FAR, UNKNOWN

Array = np.ndarray[Any, Any]
_PICK: dict[str, np.ufunc] = {"table_min": np.minimum, "table_max": np.maximum,
                              "table_bits": np.bitwise_or}
_FEW = 16  # entries of a range that are better met one by one


class TableRange:
    """Bounds on ``table[…, low … high]``, never tighter than the truth. Entries outside of the
    table are 0, as they are read.

    Exact for ranges that do not overlap much, of one line. Else over the blocks of 64 entries that
    a range touches: blocks are grouped in runs of 1, 2, 4, … once, and any range is covered by two
    overlapping runs, so that a query costs the same whatever its length.
    """

    def __init__(self, table: Array) -> None:
        self.table = table
        self.length = table.shape[-1]
        self._shape = table.shape[:-1]

    @cached_property
    def _runs(self) -> dict[str, Array]:
        starts = np.arange(0, max(self.length, 1), BLOCK)
        table = self.table if self.length else np.zeros((*self._shape, 1), np.int64)
        return {op: _runs(pick, pick.reduceat(_entries(op, table), starts, axis=-1))
                for op, pick in _PICK.items()}

    def bound(self, op: str, leading: list[Array], low: Array, high: Array) -> Array:
        """``op`` is table_min, table_max or table_bits, the union of ``hashed`` entries; integer
        arrays that broadcast. Where high < low the result means nothing."""
        pick, bits = _PICK[op], op == "table_bits"
        none = 1 if bits else 0  # what an entry outside counts as
        inside: Any = True
        for x, n in zip(leading, self._shape, strict=True):
            inside = inside & (x >= 0) & (x < n)
        where = tuple(np.clip(x, 0, n - 1) for x, n in zip(leading, self._shape, strict=True))
        if low.ndim == high.ndim == 1 and not any(x.ndim for x in leading) and not _overlap(
                low, high, self.length):
            line = _entries(op, self.table[where] if inside else np.zeros(0, np.int64))
            return _over(pick, line, low, high, 0, none).astype(np.int64)
        last = max(self.length - 1, 0)
        begin, end = np.clip(low, 0, last) // BLOCK, np.clip(high, 0, last) // BLOCK
        end = np.maximum(begin, end)
        level = np.frexp((end - begin + 1).astype(np.float64))[1] - 1
        runs = self._runs[op]
        found = pick(runs[(level, *where, begin)],
                     runs[(level, *where, end + 1 - (1 << level))])
        met = inside & (high >= 0) & (low < self.length)
        found = np.where(met, found, none)
        outside = ~np.asarray(inside) | (low < 0) | (high >= self.length)
        return np.asarray(np.where(outside, pick(found, none), found))


def _runs(pick: Any, blocks: Array) -> Array:
    """[level, …, block]: over 2^level blocks from each on."""
    levels, width = [blocks], 1
    while 2 * width <= blocks.shape[-1]:
        before, after = levels[-1], levels[-1].copy()
        after[..., :-width] = pick(before[..., :-width], before[..., width:])
        levels.append(after)
        width *= 2
    return np.stack(levels)


class GridRange:
    """Bounds on ``table[rows, columns]`` for some ranges of rows, each with some of columns; a
    query is the numbers of a range of either kind."""

    def __init__(self, op: str, table: Array, rows: tuple[Array, Array],
                 columns: tuple[Array, Array]) -> None:
        pick = _PICK[op]
        found = table if table.dtype == bool else _entries(op, table)
        for axis, (low, high) in enumerate((rows, columns)):
            found = _over(pick, found, low, high, axis)
        self.values = found
        self.least, self.greatest = found.min(), found.max()

    def bound(self, op: str, leading: list[Array], row: Array, column: Array) -> Array:
        """As of a ``TableRange``; ``op`` is the one it was made with."""
        return np.asarray(self.values[row, column])


def _entries(op: str, table: Array) -> Array:
    """What ranges of a table are made of. An entry beyond FAR may be anything between ±UNKNOWN, as
    kernels take it: sums of bounds do not overflow."""
    values = table.astype(np.int64)
    if op == "table_bits":
        return hashed(values)
    if table.dtype == np.int64:
        far = (values < -FAR) | (values > FAR)
        if far.any():
            values[far] = -UNKNOWN if op == "table_min" else UNKNOWN
    return values


def hashed(values: Array) -> Array:
    """One of 64 bits for each; for 64 numbers in succession, 64 different ones."""
    return np.left_shift(np.int64(1), (values ^ (values >> 6) ^ (values >> 12)) & 63)


def _over(pick: Any, table: Array, low: Array, high: Array, axis: int, none: int = 0) -> Array:
    """Along an axis of an array, ``pick`` of the entries of each range, ``none`` for those
    outside."""
    size = table.shape[axis]
    zero = table.dtype.type(none)
    if size == 0 or _overlap(low, high, size):
        found = np.expand_dims(pick.reduce(table, axis=axis, initial=zero), axis)
        return np.asarray(found.repeat(len(low), axis=axis))
    begin, end = np.clip(low, 0, size - 1), np.clip(high, 0, size - 1)
    end = np.maximum(begin, end)
    width = int((end - begin).max()) + 1
    if width <= _FEW:
        found = table.take(begin, axis=axis)
        for k in range(1, width):
            found = pick(found, table.take(np.minimum(begin + k, end), axis=axis))
    else:
        pairs = np.stack([begin, np.minimum(end + 1, size - 1)], axis=1).ravel()
        found = pick.reduceat(table, pairs, axis=axis)[(slice(None),) * axis
                                                       + (slice(0, None, 2),)]
        found = pick(found, table.take(end, axis=axis))
    outside = (low < 0) | (high >= size)
    if outside.any():
        across = (slice(None),) + (None,) * (table.ndim - 1 - axis)
        found = np.where(((high < 0) | (low >= size))[across], zero, found)
        found = np.where(outside[across], pick(found, zero), found)
    return np.asarray(found)


def _overlap(low: Array, high: Array, size: int) -> bool:
    """Whether ranges have so much in common that to meet all their entries costs too much."""
    entries = (np.minimum(high, size) - np.maximum(low, 0)).clip(0).sum()
    return bool(entries > 8 * (size + len(low)))


def distinct(parts: list[Array]) -> tuple[Array, Array]:
    """Of tuples (parts[0][n], parts[1][n], …): where each different one is, and for each n which
    of them it is."""
    order = np.lexsort(parts)
    new = np.ones(len(order), bool)
    new[1:] = np.any([p[order][1:] != p[order][:-1] for p in parts], axis=0)
    which = np.empty(len(order), np.int64)
    which[order] = np.cumsum(new) - 1
    return order[new], which
