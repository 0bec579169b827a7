"""Least and greatest entries of captured tensors over ranges, from blocks computed once.

Entries are grouped in blocks of 64 along the last dimension, and blocks in runs of 1, 2, 4, …;
any range is covered by two overlapping runs, so that a query costs the same whatever its length.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
BLOCK = 64


class TableRange:
    """Bounds on ``table[…, low … high]``: at most over the blocks the range touches, and never
    tighter than the truth. Entries outside of the table are 0, as they are read."""

    def __init__(self, table: Array) -> None:
        values = table.astype(np.int64)
        self.length = values.shape[-1]
        starts = np.arange(0, max(self.length, 1), BLOCK)
        if self.length == 0:
            values = np.zeros((*values.shape[:-1], 1), np.int64)
        self._runs = {
            "table_min": _runs(np.minimum, np.minimum.reduceat(values, starts, axis=-1)),
            "table_max": _runs(np.maximum, np.maximum.reduceat(values, starts, axis=-1))}
        self._shape = values.shape[:-1]

    def bound(self, op: str, leading: list[Array], low: Array, high: Array) -> Array:
        """``op`` is table_min or table_max; integer arrays that broadcast. Where high < low the
        result means nothing."""
        pick = np.minimum if op == "table_min" else np.maximum
        last = max(self.length - 1, 0)
        begin, end = np.clip(low, 0, last) // BLOCK, np.clip(high, 0, last) // BLOCK
        end = np.maximum(begin, end)
        level = np.frexp((end - begin + 1).astype(np.float64))[1] - 1
        runs = self._runs[op]
        where = tuple(np.clip(x, 0, n - 1) for x, n in zip(leading, self._shape, strict=True))
        found = pick(runs[(level, *where, begin)],
                     runs[(level, *where, end + 1 - (1 << level))])
        outside = (low < 0) | (high >= self.length)
        for x, n in zip(leading, self._shape, strict=True):
            outside = outside | (x < 0) | (x >= n)
        return np.asarray(np.where(outside, pick(found, 0), found))


def _runs(pick: Any, blocks: Array) -> Array:
    """[level, …, block]: over 2^level blocks from each on."""
    levels, width = [blocks], 1
    while 2 * width <= blocks.shape[-1]:
        before, after = levels[-1], levels[-1].copy()
        after[..., :-width] = pick(before[..., :-width], before[..., width:])
        levels.append(after)
        width *= 2
    return np.stack(levels)
