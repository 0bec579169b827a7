"""Which tiles of queries × keys a mask leaves empty, partial or full, for given lengths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .node import Node, idx, walk
from .refine import FULL, Context, proof_of, refine
from .tables import TableRange

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class TileMap:
    """The tiles of a mask that are not empty, as runs of equal kind along each row of tiles.

    Row r of ``rows`` = batch·heads·q_tiles, counted in that order, holds the runs row_ptr[r] …
    row_ptr[r+1]−1: key tiles begin ≤ t < end of one ``kind``, 1 partial or 2 full, in ascending
    order. ``batch`` and ``heads`` are 1 where the mask does not depend on them.
    """

    seqlen_q: int
    seqlen_k: int
    block: tuple[int, int]
    batch: int
    heads: int
    row_ptr: Array  # int64 [rows + 1]
    begin: Array  # int32 [runs]
    end: Array  # int32 [runs]
    kind: Array  # int8 [runs]
    _rectangles: Array = field(repr=False)  # int32 [count, 6]: plane, i0, i1, j0, j1, kind

    @property
    def q_tiles(self) -> int:
        return -(-self.seqlen_q // self.block[0])

    @property
    def k_tiles(self) -> int:
        return -(-self.seqlen_k // self.block[1])

    @property
    def visited(self) -> int:
        """Tiles that are not empty, over all rows."""
        return int((self.end.astype(np.int64) - self.begin).sum())

    @property
    def full(self) -> int:
        """Tiles on which every pair is visible, over all rows."""
        size = self.end.astype(np.int64) - self.begin
        return int(size[self.kind == FULL].sum())

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
        runs = slice(self.row_ptr[r], self.row_ptr[r + 1])
        return [(int(x), int(y), int(k)) for x, y, k in zip(
            self.begin[runs], self.end[runs], self.kind[runs], strict=True)]

    def dense(self) -> Array:
        """int8 [batch|1, heads|1, q_tiles, k_tiles]: 0 empty, 1 partial, 2 full."""
        rows = self.batch * self.heads * self.q_tiles
        steps = np.zeros((rows, self.k_tiles + 1), np.int8)
        row = np.repeat(np.arange(rows), np.diff(self.row_ptr))
        np.add.at(steps, (row, self.begin), self.kind)
        np.subtract.at(steps, (row, self.end), self.kind)
        kinds = np.cumsum(steps[:, :-1], axis=1, dtype=np.int8)
        return kinds.reshape(self.batch, self.heads, self.q_tiles, self.k_tiles)

    def transposed(self) -> TileMap:
        """The same tiles with keys for rows: runs of query tiles along each row of key tiles."""
        swapped = self._rectangles[:, [0, 3, 4, 1, 2, 5]]
        return _from_rectangles(swapped, self.seqlen_k, self.seqlen_q, self.block[::-1],
                                self.batch, self.heads)

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
    ranges = {k: TableRange(np.asarray(t)) for k, t in (tables or {}).items()}
    rows, ragged = divmod(seqlen_q, block[0])
    columns = -(-seqlen_k // block[1])
    found = []
    for begin, end, height in ((0, rows, block[0]), (rows, rows + 1, ragged)):
        if begin < end and height and columns:
            proof = proof_of(mask, (block[0], height), block[1])
            context = Context(known, tables or {}, ranges, heads)
            start = np.array([(p, begin, end, 0, columns) for p in range(batch * heads)], np.int32)
            found += list(refine(proof, context, start))
    everything = np.concatenate([np.zeros((0, 6), np.int32), *found])
    return _from_rectangles(everything, seqlen_q, seqlen_k, block, batch, heads)


def _from_rectangles(rectangles: Array, seqlen_q: int, seqlen_k: int, block: tuple[int, int],
                     batch: int, heads: int) -> TileMap:
    """Runs by row: rectangles cut into rows, sorted, neighbours of one kind joined."""
    q_tiles = -(-seqlen_q // block[0])
    rows = batch * heads * q_tiles
    plane, i0, i1, j0, j1, kinds = rectangles.T
    height = i1 - i0
    which = np.repeat(np.arange(len(height), dtype=np.int32), height)
    ends = np.cumsum(height, dtype=np.int64)
    row = (plane.astype(np.int64) * q_tiles + i0 - (ends - height))[which]
    row += np.arange(len(which))
    order = np.argsort((row << 31) | j0[which])
    row, which = row[order], which[order]
    begin, end, kind = j0[which], j1[which], kinds[which].astype(np.int8)
    new = np.ones(len(row), bool)
    new[1:] = (row[1:] != row[:-1]) | (begin[1:] != end[:-1]) | (kind[1:] != kind[:-1])
    starts = np.flatnonzero(new)
    stops = np.append(starts[1:], len(row))[:len(starts)] - 1
    row_ptr = np.searchsorted(row[starts], np.arange(rows + 1)).astype(np.int64)
    return TileMap(seqlen_q, seqlen_k, (block[0], block[1]), batch, heads, row_ptr,
                   begin[starts], end[stops], kind[starts], rectangles)
