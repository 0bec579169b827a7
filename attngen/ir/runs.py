"""Runs of tiles of one kind along lines: how tile maps are kept."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
FAR = 2**30  # past every tile


class Lines(NamedTuple):
    """Line n holds the runs ptr[n] … ptr[n+1]−1, ascending and apart: places begin ≤ t < end of one
    ``kind``."""

    ptr: Array  # int64 [lines + 1]
    begin: Array  # int32 [runs]
    end: Array  # int32 [runs]
    kind: Array  # int8 [runs]

    @property
    def lines(self) -> int:
        return len(self.ptr) - 1

    def covered(self, line: Array, until: Array) -> tuple[Array, Array]:
        """How many places before ``until`` the runs of lines cover: (in all, of kind 2)."""
        size = self.end.astype(np.int64) - self.begin
        step = np.int64(4 * FAR)
        ends = np.repeat(np.arange(self.lines), np.diff(self.ptr)) * step + self.end
        passed = np.maximum(np.searchsorted(ends, line * step + until, "right"), self.ptr[line])
        inside = passed < self.ptr[line + 1]
        at = np.where(inside, passed, 0)
        begun = np.clip(until - self.begin[at], 0, None) * inside if len(size) else 0 * passed
        out = []
        for chosen in (np.ones(len(size), bool), self.kind == 2):
            total = np.concatenate([[0], np.cumsum(size * chosen)])
            part = begun * chosen[at] if len(size) else begun
            out.append(total[passed] - total[self.ptr[line]] + part)
        return out[0], out[1]


def lines_of(row: Array, begin: Array, end: Array, kind: Array, count: int) -> Lines:
    """``count`` lines from runs sorted by line and place; neighbours of one kind are joined."""
    new = np.ones(len(row), bool)
    new[1:] = (row[1:] != row[:-1]) | (begin[1:] != end[:-1]) | (kind[1:] != kind[:-1])
    starts = np.flatnonzero(new)
    stops = np.append(starts[1:], len(row))[:len(starts)] - 1
    ptr = np.searchsorted(row[starts], np.arange(count + 1)).astype(np.int64)
    return Lines(ptr, begin[starts].astype(np.int32), end[stops].astype(np.int32),
                 kind[starts].astype(np.int8))


def lines_of_kinds(kinds: Array, first: int = 0) -> Lines:
    """A line for each row of int8 [lines, places], whose first place is number ``first``."""
    row, begin, end, kind = runs_of_kinds(kinds)
    ptr = np.searchsorted(row, np.arange(len(kinds) + 1)).astype(np.int64)
    return Lines(ptr, (begin + first).astype(np.int32), (end + first).astype(np.int32), kind)


def kinds_of(lines: Lines, width: int) -> Array:
    """int8 [lines, width], 0 for places in no run."""
    steps = np.zeros((lines.lines, width + 1), np.int8)
    row = np.repeat(np.arange(lines.lines), np.diff(lines.ptr))
    np.add.at(steps, (row, lines.begin), lines.kind)
    np.subtract.at(steps, (row, lines.end), lines.kind)
    return np.cumsum(steps[:, :-1], axis=1, dtype=np.int8)


def runs_of_kinds(kinds: Array) -> tuple[Array, Array, Array, Array]:
    """(row, begin, end, kind) of the runs in int8 [rows, places], 0 for places in none."""
    width = kinds.shape[1]
    other = np.ones((len(kinds), width + 1), bool)
    np.not_equal(kinds[:, 1:], kinds[:, :-1], out=other[:, 1:-1])
    begins = np.flatnonzero(other[:, :-1] & (kinds != 0))
    ends = np.flatnonzero(other[:, 1:] & (kinds != 0))
    row, begin = np.divmod(begins, width)
    return row, begin, ends - row * width + 1, kinds.ravel()[begins]


def lines_of_rectangles(rectangles: Array, count: int) -> Lines:
    """Rectangles int [n, 5] of i0, i1, j0, j1 and kind, which do not overlap, cut into lines."""
    i0, i1, j0, j1, kinds = rectangles.T
    height = i1 - i0
    which = np.repeat(np.arange(len(height), dtype=np.int32), height)
    row = (i0 - (np.cumsum(height, dtype=np.int64) - height))[which] + np.arange(len(which))
    order = np.argsort((row << 31) | j0[which])
    row, which = row[order], which[order]
    return lines_of(row, j0[which], j1[which], kinds[which], count)


def joined(parts: Iterable[Lines]) -> Lines:
    """One after the other."""
    parts = list(parts)
    shifts = np.cumsum([0, *(p.ptr[-1] for p in parts)])
    ptr = np.concatenate([[0], *(p.ptr[1:] + s for p, s in zip(parts, shifts, strict=False))])
    return Lines(ptr.astype(np.int64), *(np.concatenate([p[k] for p in parts])
                                         for k in (1, 2, 3)))
