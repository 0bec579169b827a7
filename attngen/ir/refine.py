"""Finding the tiles of a kind: rectangles of tiles are decided as a whole or split.

The conditions that ``interval.certainty`` gives for one tile are evaluated with NumPy over many.
They are conditions on tile numbers in turn, so the same proof bounds *them* over rectangles of
tiles: one that is empty, full or partial throughout is never looked into.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from ..errors import VerifyError
from .interval import certainty
from .node import Node, const, first, idx, last, make, substitute, walk
from .ops import SCALAR_OPS
from .tables import TableRange

Array = np.ndarray[Any, Any]
PARTIAL, FULL = 1, 2
_CHUNK = 1 << 13  # rectangles evaluated at a time: operands stay in the cache
_FEW = 1024  # tiles that are looked at one by one at once
_SPLIT = 4  # parts a rectangle is split into along each side


class Proof:
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
        self._full = const(False) if always is None else substitute(always, number)
        self._some = const(True) if sometimes is None else substitute(sometimes, number)
        self.tile = _Program((self._full, self._some))

    @cached_property
    def rectangle(self) -> _Program:
        """Whether all tiles of a rectangle are full, whether any may be, whether all hold a
        visible pair, whether any may."""
        roots = []
        for condition in (self._full, self._some):
            always, sometimes = certainty(condition, "i", "j", tables=True)
            roots += [always or const(False), sometimes or const(True)]
        return _Program(tuple(roots))


@dataclass(frozen=True)
class Context:
    """What a call brings: numbers (or arrays [batch]) and captured tensors by name, and how many
    heads a plane number counts through."""

    params: Mapping[str, Array]
    tables: Mapping[str, Array]
    ranges: Mapping[str, TableRange]
    heads: int


@lru_cache(maxsize=64)
def proof_of(mask: Node, rows: tuple[int, int], width: int) -> Proof:
    """Kept for other lengths and values of the same mask: none of them is in a proof."""
    return Proof(mask, rows, width)


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

    def run(self, rectangles: Array, context: Context) -> list[Array]:
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


def _operate(n: Node, args: list[Any], context: Context) -> Any:
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


def refine(proof: Proof, context: Context, start: Array) -> Iterator[Array]:
    """Rectangles int32 [count, 6] of one kind each, empty ones left out; depth first, so that
    few wait at any time."""
    waiting = [start]
    while waiting:
        chunk = waiting.pop()
        if len(chunk) > _CHUNK:
            waiting += [chunk[_CHUNK:], chunk[:_CHUNK]]
            continue
        if _FEW >= (area := int(((chunk[:, 2] - chunk[:, 1]).astype(np.int64)
                                 * (chunk[:, 4] - chunk[:, 3])).sum())) > len(chunk):
            chunk = _tiles(chunk, area)
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


def _tiles(rectangles: Array, area: int) -> Array:
    """The single tiles of rectangles, ``area`` in all."""
    out = [rectangles[:0]]
    for p, i0, i1, j0, j1 in rectangles.tolist():
        i, j = (x.ravel() for x in np.mgrid[i0:i1, j0:j1])
        out.append(np.column_stack((np.full(len(i), p), i, i + 1, j, j + 1)))
    tiles = np.concatenate(out).astype(np.int32)
    assert len(tiles) == area
    return tiles


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
