"""Which tiles of queries × keys a mask leaves empty, partial or full, for given lengths.

The conditions that ``interval.certainty`` gives for one tile are evaluated with NumPy. They are
conditions on tile numbers in turn, so the same proof bounds *them* over rectangles of tiles: one
that is empty, full or partial throughout is never looked into.

    rectangle  →  decided as a whole  |  split
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from ..errors import VerifyError
from .interval import certainty
from .node import Node, const, first, idx, last, make, substitute, walk
from .ops import SCALAR_OPS
from .tables import TableRange

Array = np.ndarray[Any, Any]
EMPTY, PARTIAL, FULL = 0, 1, 2
_CHUNK = 1 << 13  # rectangles evaluated at a time: operands stay in the cache
_SPLIT = 4  # parts a rectangle is split into along each side


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
            proof = _proof(mask, (block[0], height), block[1])
            context = _Context(known, tables or {}, ranges, heads)
            start = np.array([(p, begin, end, 0, columns) for p in range(batch * heads)], np.int32)
            found += list(_refine(proof, context, start))
    everything = np.concatenate([np.zeros((0, 6), np.int32), *found])
    return _from_rectangles(everything, seqlen_q, seqlen_k, block, batch, heads)


class _Proof:
    """The conditions for single tiles and for rectangles of them, by tile numbers. The last row of
    tiles may be less high than ``step``, the distance from row to row."""

    def __init__(self, mask: Node, rows: tuple[int, int], width: int) -> None:
        step, height = rows
        always, sometimes = certainty(mask, "i", "j", tables=True, coarse=True)
        number: dict[Node, Node] = {}
        for axis, pitch, size in (("i", step, height), ("j", width, width)):
            start = make("mul", idx(axis), const(pitch))
            number[first(axis)] = start
            number[last(axis)] = make("add", start, const(size - 1))
        full = const(False) if always is None else substitute(always, number)
        some = const(True) if sometimes is None else substitute(sometimes, number)
        all_full, some_full = certainty(full, "i", "j", tables=True)
        all_some, some_some = certainty(some, "i", "j", tables=True)
        self.tile = _Program((full, some))
        self.rectangle = _Program((all_full or const(False), some_full or const(True),
                                   all_some or const(False), some_some or const(True)))


@dataclass(frozen=True)
class _Context:
    params: Mapping[str, Array]
    tables: Mapping[str, Array]
    ranges: Mapping[str, TableRange]
    heads: int


@lru_cache(maxsize=64)
def _proof(mask: Node, rows: tuple[int, int], width: int) -> _Proof:
    """Kept for other lengths and values of the same mask: none of them is in a proof."""
    return _Proof(mask, rows, width)


class _Program:
    """Expressions evaluated over many rectangles of tiles at a time."""

    def __init__(self, roots: tuple[Node, ...]) -> None:
        self.roots = roots
        self.nodes = list(walk(*roots))
        self._unused: list[list[str]] = [[] for _ in self.nodes]  # after each node
        later = {r.key for r in roots}
        for n, unused in zip(reversed(self.nodes), reversed(self._unused), strict=True):
            unused += {a.key for a in n.args} - later
            later |= {a.key for a in n.args}

    def run(self, rectangles: Array, context: _Context) -> list[Array]:
        """One boolean array per root; ``rectangles`` int64 [5, count]."""
        plane, i0, i1, j0, j1 = rectangles
        leaves = {idx("b"): plane // context.heads, idx("h"): plane % context.heads,
                  idx("i"): i0, idx("j"): j0, first("i"): i0, last("i"): i1 - 1,
                  first("j"): j0, last("j"): j1 - 1}
        done: dict[str, Any] = {}
        for n, unused in zip(self.nodes, self._unused, strict=True):
            if n.is_const:
                done[n.key] = n.attr("value")
            elif n in leaves:
                done[n.key] = leaves[n]
            elif n.op == "param":
                value = context.params[n.attr("name")]
                done[n.key] = value.reshape(-1)[leaves[idx("b")]] if value.size > 1 \
                    else value.reshape(-1)[0]
            else:
                done[n.key] = _operate(n, [done[a.key] for a in n.args], context)
            for key in unused:
                del done[key]
        return [np.broadcast_to(done[r.key], plane.shape) for r in self.roots]


def _operate(n: Node, args: list[Any], context: _Context) -> Any:
    if n.op in ("table_min", "table_max"):
        *leading, low, high = (np.asarray(a) for a in args)
        return context.ranges[n.attr("name")].bound(n.op, leading, low, high)
    if n.op == "gather":
        return _element(context.tables[n.attr("name")], [np.asarray(a) for a in args])
    if n.op == "cast":
        return args[0]
    evaluate = SCALAR_OPS[n.op].evaluate if n.op in SCALAR_OPS else None
    if evaluate is None:
        raise VerifyError(f"{n.op} has no meaning in a proof about tiles")
    return evaluate(*args)


def _element(table: Array, indices: list[Array]) -> Any:
    """The element of a table, 0 outside of it."""
    inside: Any = True
    for x, size in zip(indices, table.shape, strict=True):
        inside = inside & (x >= 0) & (x < size)
    if table.size == 0:
        return np.zeros(np.shape(inside), table.dtype)
    found = table[tuple(np.clip(x, 0, size - 1)
                        for x, size in zip(indices, table.shape, strict=True))]
    return np.where(inside, found, np.zeros((), table.dtype))


# -- refinement -----------------------------------------------------------------------------------


def _refine(proof: _Proof, context: _Context, start: Array) -> Iterator[Array]:
    """Rectangles int32 [count, 6] of one kind each, empty ones left out; depth first, so that
    few wait at any time."""
    waiting = [start]
    while waiting:
        chunk = waiting.pop()
        if len(chunk) > _CHUNK:
            waiting += [chunk[_CHUNK:], chunk[:_CHUNK]]
            continue
        single = (chunk[:, 2] - chunk[:, 1] == 1) & (chunk[:, 4] - chunk[:, 3] == 1)
        tiles, larger = chunk[single], chunk[~single]
        if len(tiles):
            full, some = proof.tile.run(tiles.T.astype(np.int64), context)
            yield from _decided(tiles, full, some & ~full)
        if len(larger):
            all_full, some_full, all_some, some_some = proof.rectangle.run(
                larger.T.astype(np.int64), context)
            partial = all_some & ~some_full
            yield from _decided(larger, all_full, partial & ~all_full)
            open_ = larger[some_some & ~all_full & ~partial]
            if len(open_):
                waiting.append(_split(open_))


def _decided(rectangles: Array, full: Array, partial: Array) -> Iterator[Array]:
    for chosen, kind in ((full, FULL), (partial, PARTIAL)):
        if chosen.any():
            some = rectangles[chosen]
            yield np.column_stack((some, np.full(len(some), kind, np.int32)))


def _split(rectangles: Array) -> Array:
    """Each rectangle in _SPLIT × _SPLIT parts, as far as it has that many tiles."""
    parts = []
    quarters = np.arange(_SPLIT + 1)
    i = rectangles[:, 1, None] + (rectangles[:, 2] - rectangles[:, 1])[:, None] * quarters // _SPLIT
    j = rectangles[:, 3, None] + (rectangles[:, 4] - rectangles[:, 3])[:, None] * quarters // _SPLIT
    for a in range(_SPLIT):
        for b in range(_SPLIT):
            parts.append(np.column_stack((rectangles[:, 0], i[:, a], i[:, a + 1],
                                          j[:, b], j[:, b + 1])))
    out = np.concatenate(parts)
    return out[(out[:, 1] < out[:, 2]) & (out[:, 3] < out[:, 4])].astype(np.int32)


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
