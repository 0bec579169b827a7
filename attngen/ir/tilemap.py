"""Which tiles of queries × keys a mask leaves empty, partial or full, for given lengths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from .node import Node, idx, walk
from .periodic import Period
from .planes import Context, alike, numbers, proof_of, sheet
from .points import FULL, PARTIAL
from .regions import Region, parts
from .runs import FAR, Lines, joined, kinds_of, lines_of

Array = np.ndarray[Any, Any]


class Pieces(NamedTuple):
    """Row r of a map is made of pieces ptr[r] … ptr[r+1]−1, ascending: on begin ≤ t < end the runs
    of ``line``, moved by ``shift``."""

    ptr: Array
    begin: Array
    end: Array
    line: Array
    shift: Array


@dataclass(frozen=True, eq=False)
class TileMap:
    """The tiles of a mask that are not empty, as runs of equal kind along each row of tiles.

    Row r of ``rows`` = batch·heads·q_tiles, counted in that order, holds the runs row_ptr[r] …
    row_ptr[r+1]−1: key tiles begin ≤ t < end of one ``kind``, 1 partial or 2 full, in ascending
    order. ``batch`` and ``heads`` are 1 where the mask does not depend on them.

    Rows that are others moved along the keys are kept once, so a map is O(rows), unless what the
    mask reads says otherwise; the arrays of all runs are made when asked for.
    """

    seqlen_q: int
    seqlen_k: int
    block: tuple[int, int]
    batch: int
    heads: int
    _lines: Lines = field(repr=False)
    _pieces: Pieces = field(repr=False)
    _regions: tuple[Region, ...] = field(repr=False)

    @property
    def q_tiles(self) -> int:
        return -(-self.seqlen_q // self.block[0])

    @property
    def k_tiles(self) -> int:
        return -(-self.seqlen_k // self.block[1])

    @cached_property
    def _runs(self) -> Lines:
        every = np.arange(self.batch * self.heads * self.q_tiles)
        return _expand(self._lines, self._pieces, every)

    @property
    def row_ptr(self) -> Array:
        """int64 [rows + 1]"""
        return self._runs.ptr

    @property
    def begin(self) -> Array:
        """int32 [runs]"""
        return self._runs.begin

    @property
    def end(self) -> Array:
        """int32 [runs]"""
        return self._runs.end

    @property
    def kind(self) -> Array:
        """int8 [runs]"""
        return self._runs.kind

    @property
    def stored(self) -> int:
        """Runs and pieces of rows that the map is made of."""
        return len(self._lines.begin) + len(self._pieces.begin)

    @cached_property
    def _counts(self) -> tuple[int, int]:
        p = self._pieces
        before, until = (self._lines.covered(p.line, x - p.shift) for x in (p.begin, p.end))
        visited, full = (int((b - a).sum()) for a, b in zip(before, until, strict=True))
        return visited, full

    @property
    def visited(self) -> int:
        """Tiles that are not empty, over all rows."""
        return self._counts[0]

    @property
    def full(self) -> int:
        """Tiles on which every pair is visible, over all rows."""
        return self._counts[1]

    @property
    def partial(self) -> int:
        """Tiles that are neither empty nor full, over all rows."""
        return self.visited - self.full

    @property
    def tiles(self) -> int:
        """All tiles, empty ones too."""
        return self.batch * self.heads * self.q_tiles * self.k_tiles

    def row(self, q_tile: int, batch: int = 0, head: int = 0) -> list[tuple[int, int, int]]:
        """(begin, end, kind) of the runs of one row of tiles."""
        b, h = (0 if n == 1 else x for x, n in ((batch, self.batch), (head, self.heads)))
        r = (b * self.heads + h) * self.q_tiles + q_tile
        runs = _expand(self._lines, self._pieces, np.array([r]))
        return [(int(x), int(y), int(k)) for x, y, k in zip(
            runs.begin, runs.end, runs.kind, strict=True)]

    def dense(self) -> Array:
        """int8 [batch|1, heads|1, q_tiles, k_tiles]: 0 empty, 1 partial, 2 full."""
        kinds = kinds_of(self._runs, self.k_tiles)
        return kinds.reshape(self.batch, self.heads, self.q_tiles, self.k_tiles)

    def transposed(self) -> TileMap:
        """The same tiles with keys for rows: runs of query tiles along each row of key tiles."""
        turned = tuple(r._replace(sheet=r.sheet.turned(), row=r.column, column=r.row)
                       for r in self._regions)
        return _solved(turned, self.seqlen_k, self.seqlen_q, self.block[::-1], self.batch,
                       self.heads)

    def __str__(self) -> str:
        from .draw import draw

        return draw(self)


def prove(mask: Node, seqlen_q: int, seqlen_k: int, block: tuple[int, int],
          params: Mapping[str, Any], tables: Mapping[str, Array] | None = None, *,
          batch: int = 1, heads: int = 1) -> TileMap:
    """The tiles of ``mask``, a condition on the indices i, j, b, h, for these lengths.

    ``params`` are numbers, or arrays [batch], and ``tables`` the captured tensors, by name. A key
    tile that reaches beyond the keys is full only when the mask hides none of its keys, so a mask
    has to say itself where the keys end. Raises VerifyError for an op that has no meaning in
    NumPy.
    """
    known = {k: np.asarray(v) for k, v in params.items()}
    used = [n for n in walk(mask) if n.op in ("idx", "param")]
    per_batch = any(n == idx("b") or n.op == "param" and known[n.attr("name")].size > 1
                    for n in used)
    batch = batch if per_batch else 1
    heads = heads if idx("h") in used else 1
    m, n = block
    rows, ragged = divmod(seqlen_q, m)
    columns = -(-seqlen_k // n)
    regions: list[Region] = []
    if columns and seqlen_q:
        context = Context(known, tables or {}, heads)
        proof = proof_of(mask)
        values = numbers(proof, context, np.arange(batch * heads))
        same = alike(proof, values, batch * heads)
        starts = np.arange(columns, dtype=np.int64) * n
        keys = {("first", "j"): starts, ("last", "j"): starts + (n - 1)}
        for begin, end, height in ((0, rows, m), (rows, rows + 1, ragged)):
            if begin < end and height:
                starts = np.arange(begin, end, dtype=np.int64) * m
                leaves = keys | {("first", "i"): starts, ("last", "i"): starts + (height - 1)}
                for plane in sorted(set(same.tolist())):
                    made = sheet(proof, context, values, plane, leaves, (end - begin, columns))
                    regions.append(Region(made, tuple(np.flatnonzero(same == plane).tolist()),
                                          begin, 0, proof.moduli))
    return _solved(tuple(regions), seqlen_q, seqlen_k, (m, n), batch, heads)


def _solved(regions: tuple[Region, ...], seqlen_q: int, seqlen_k: int, block: tuple[int, int],
            batch: int, heads: int) -> TileMap:
    """The map of all regions; planes that are alike share lines."""
    q_tiles = -(-seqlen_q // block[0])
    found = [Lines(np.array([0, 1, 2]), np.array([-FAR] * 2, np.int32),
                   np.array([FAR] * 2, np.int32), np.array([PARTIAL, FULL], np.int8))]
    pieces: list[tuple[Any, ...]] = []  # arrays: row, begin, end, line, shift
    count = 2
    for region in regions:
        for rows, columns, made, period in parts(region, block):
            here = np.arange(rows.start, rows.stop)
            if isinstance(period, Period):
                turns, place = np.divmod(here - rows.start, period.rows)
                shift = turns * period.columns
            else:
                place, shift = period, np.zeros(len(here), np.int64)
            if isinstance(made, int):
                line = np.full(len(here), made)
            else:
                line, shift = count + place, shift + (columns.start + region.column)
                found.append(made)
                count += made.lines
            for plane in region.planes:
                pieces.append((here + (region.row + plane * q_tiles),
                               np.full(len(here), columns.start + region.column),
                               np.full(len(here), columns.stop + region.column), line, shift))
    total = batch * heads * q_tiles
    none = np.zeros(0, np.int64)
    row, begin, end, line, shift = (np.concatenate([none, *x]) for x in (
        zip(*pieces, strict=True) if pieces else [[none]] * 5))
    order = np.lexsort((begin, row))
    ptr = np.searchsorted(row[order], np.arange(total + 1))
    kept = Pieces(ptr, *(x[order].astype(np.int32) for x in (begin, end, line, shift)))
    return TileMap(seqlen_q, seqlen_k, block, batch, heads, joined(found), kept, regions)


def _expand(found: Lines, pieces: Pieces, rows: Array) -> Lines:
    """The runs of rows of a map, those of neighbouring pieces joined."""
    first, many = pieces.ptr[rows], np.diff(pieces.ptr)[rows]
    piece = np.repeat(first - (np.cumsum(many) - many), many) + np.arange(many.sum())
    row = np.repeat(np.arange(len(rows)), many)
    begin, end, line, shift = (x[piece].astype(np.int64) for x in pieces[1:])
    # Of each line, the runs that reach into the piece.
    places = np.repeat(np.arange(found.lines, dtype=np.int64), np.diff(found.ptr)) * (4 * FAR)
    low = np.searchsorted(places + found.end, line * (4 * FAR) + begin - shift, "right")
    high = np.searchsorted(places + found.begin, line * (4 * FAR) + end - shift, "left")
    many = np.maximum(high - low, 0)
    run = np.repeat(low - (np.cumsum(many) - many), many) + np.arange(many.sum())
    by = np.repeat(np.arange(len(many)), many)
    return lines_of(row[by], np.maximum(found.begin[run] + shift[by], begin[by]),
                    np.minimum(found.end[run] + shift[by], end[by]), found.kind[run], len(rows))
