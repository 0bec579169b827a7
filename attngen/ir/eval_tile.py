"""The definition of tile statements: every block in turn, every statement in NumPy.

Tiles have their padded shapes and unwritten values are NaN, as on a machine. Asynchronous copies
land as late as a Wait allows and a Barrier publishes them, so a placed kernel that reads too early
reads NaN. The interpreter also counts: tiles visited, bytes loaded and stored, products done.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import VerifyError
from .bounds import EXTENTS, SEQUENCES
from .eval_tensor import Places, round_to
from .graph import Graph
from .node import AXES, Node, walk
from .ops import FLOATS, PROOF_OPS, SCALAR_OPS
from .stmt import (
    Barrier,
    Commit,
    Copy,
    Fill,
    Issue,
    Kernel,
    LaneReduce,
    Load,
    Loop,
    Map,
    Mma,
    Reduce,
    Stmt,
    Store,
    Value,
    Wait,
)
from .summary import bound, summary
from .tensor import Tensor

Array = np.ndarray[Any, Any]
BYTES = {"int8": 1, "float8_e4m3": 1, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8,
         "int32": 4, "int64": 8}


class TileInterpreter:
    """Runs one kernel over the tensors in ``memory`` (written in place)."""

    def __init__(self, kernel: Kernel, memory: dict[str, Array], params: Mapping[str, Any],
                 extents: Mapping[str, int], precision: Any = np.float64) -> None:
        self.kernel, self.memory, self.params, self.extents = kernel, memory, params, extents
        self.precision = precision
        self.block = {kernel.keep: kernel.schedule.block_m, kernel.loop: kernel.loop_tile}
        self.values = {v.name: v for v in kernel.values}
        self.counts: Counter[str] = Counter()

    def run(self) -> Counter[str]:
        """Every block of the grid; returns the counts."""
        keep = self.kernel.grid[0]
        with np.errstate(all="ignore"):
            for b in range(self.extents["b"]):
                self._enter(b)
                tiles = -(-self.extents[keep.axis] // keep.tile)
                for h in range(self.extents[self.kernel.head]):
                    for part in range(self.extents["split"] if self.kernel.split else 1):
                        for t in range(tiles):
                            self._block({"b": b, self.kernel.head: h, "split": part}, t)
        return self.counts

    def _enter(self, b: int) -> None:
        """Lengths are those of the batch entry, which where tensors are packed begins somewhere."""
        self.extents = {**self.extents, **{a: self._number(n, b) for a, n in EXTENTS.items()
                                          if n in self.params}}
        self.begin = {t.name: self._number(t.begin, b) for t in self.kernel.tensors if t.begin}

    def _number(self, name: str, b: int) -> int:
        array = np.asarray(self.params[name])
        return int(array[b] if array.ndim else array)

    def _block(self, where: dict[str, int], tile: int) -> None:
        self.where = where
        self.tile = {self.kernel.keep: tile, self.kernel.loop: 0}
        self.state: dict[str, Array] = {}
        self.slots: dict[tuple[str, int], Array] = {}
        self.pending: deque[list[tuple[str, int, Array]]] = deque()
        self.open: list[tuple[str, int, Array]] = []
        self.arrived: list[tuple[str, int, Array]] = []
        self.walked: list[int] | None = None  # the tiles the current loop visits
        self.step = 0  # how many of them came before
        self._run(self.kernel.body)

    def _run(self, body: tuple[Stmt, ...]) -> None:
        for stmt in body:
            self._step(stmt)

    def _step(self, stmt: Stmt) -> None:
        match stmt:
            case Fill(dst=d, number=x):
                self.state[d] = np.full(self._shape(d), x, self.precision)
            case Load(dst=d, tensor=t):
                self.state[d] = self._read(self.values[d], t, self.tile)
            case Map():
                self._map(stmt)
            case Mma(dst=d, a=a, b=b, over=over, accumulate=acc):
                self._mma(d, a, b, over, acc)
            case Reduce(dst=d, kind=kind, src=s, over=over, accumulate=acc):
                self._reduce(d, kind, s, over, acc)
            case LaneReduce() | Barrier(scope="warp"):
                pass
            case Copy(dst=d, src=s):
                self.state[d] = self._pad(round_to(self._get(s), self.values[d].dtype), d)
            case Store(tensor=t, src=s):
                self._write(self.kernel.tensor(t), self._get(s), self.values[s])
            case Loop():
                self._loop(stmt)
            case Issue(dst=d, tensor=t, ahead=ahead):
                self._issue(d, t, ahead)
            case Commit():
                self.pending.append(self.open)
                self.open = []
            case Wait(pending=n):
                while len(self.pending) > n:
                    self.arrived += self.pending.popleft()
            case Barrier():
                for name, slot, array in self.arrived:
                    self.slots[name, slot] = array
                self.arrived = []
            case _:
                raise VerifyError(f"no meaning for statement {stmt!r}")

    # -- control ---------------------------------------------------------------------------

    def _visited(self, stmt: Loop) -> list[int]:
        tiles = range(int(self.state[stmt.begin]), int(self.state[stmt.end]))
        return [n for n in tiles if self._holds(stmt.visible, stmt.axis, n)]

    def _holds(self, condition: Node | None, axis: str, n: int) -> bool:
        """Whether a condition on tiles is true of tile ``n``."""
        if condition is None:
            return True
        current, self.tile[axis] = self.tile[axis], n
        result = bool(self.evaluate(condition, ()))
        self.tile[axis] = current
        return result

    def _loop(self, stmt: Loop) -> None:
        full_begin, full_end = int(self.state[stmt.full_begin]), int(self.state[stmt.full_end])
        self.walked = self._visited(stmt)
        for step, n in enumerate(self.walked):
            self.step, self.tile[stmt.axis] = step, n
            self.full = full_begin <= n < full_end and self._holds(stmt.full, stmt.axis, n)
            self.counts["tiles"] += 1
            self.counts["full_tiles"] += self.full
            self._run(stmt.body)
        self.walked = None

    def _issue(self, dst: str, tensor: str, ahead: int | None) -> None:
        loop = self.kernel.loop
        if self.walked is None:  # before the loop, in which all visit the same tiles
            stmt = next(s for s in self.kernel.body if isinstance(s, Loop))
            tiles, step = self._visited(stmt), ahead or 0
        else:
            tiles, step = self.walked, self.step + (ahead or 0)
        if step >= len(tiles):
            return
        slot = 0 if ahead is None else step % self.values[dst].stages
        self.slots[dst, slot] = np.full(self._shape(dst), np.nan)  # in flight
        tile = {**self.tile, loop: tiles[step]}
        landing = self.open if self.kernel.schedule.vector_bytes == 16 else self.arrived
        landing.append((dst, slot, self._read(self.values[dst], tensor, tile)))

    # -- values ----------------------------------------------------------------------------

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.values[name].shape

    def _pad(self, array: Array, name: str) -> Array:
        out = np.zeros(self._shape(name), array.dtype)
        out[tuple(slice(n) for n in array.shape)] = array
        return out

    def _get(self, name: str) -> Array:
        if name in self.state:
            return self.state[name]
        value = self.values[name]
        slot = 0
        if self.kernel.loop in value.axes:
            slot = self.step % value.stages
        found = self.slots.get((name, slot))
        return np.full(self._shape(name), np.nan) if found is None else found

    def _leaf(self, n: Node, axes: tuple[str, ...]) -> Array:
        if n.op == "const":
            return np.asarray(n.attr("value"))
        if n.op == "value":
            own = self.values[n.attr("name")].axes
            array = self._get(n.attr("name"))
            shape = iter(array.shape)
            return array.reshape([next(shape) if a in own else 1 for a in axes]) if axes else array
        if n.op == "param":
            array = np.asarray(self.params[n.attr("name")])
            return array[self.where["b"]] if array.ndim else array
        axis = n.attr("axis")
        if axis in self.where and axis != self.kernel.loop:
            return np.asarray(self.where[axis])
        start = self.tile.get(axis, 0) * self.block.get(axis, 0)
        if n.op == "first":
            return np.asarray(start)
        if n.op == "last":
            return np.asarray(min(start + self.block[axis], self.extents[axis]) - 1)
        index = np.arange(start, start + self.block.get(axis, self.extents[axis]))
        return index.reshape([-1 if a == axis else 1 for a in axes])

    def evaluate(self, root: Node, axes: tuple[str, ...]) -> Array:
        """An expression over the axes of a statement."""
        done: dict[str, Array] = {}
        for n in walk(root):
            done[n.key] = self._operate(n, [done[a.key] for a in n.args], axes)
        return done[root.key]

    def _operate(self, n: Node, args: list[Array], axes: tuple[str, ...]) -> Array:
        if not args and n.op != "gather":
            return self._leaf(n, axes)
        if n.op in PROOF_OPS:
            *leading, low, high = args
            name = n.attr("name")
            return bound(n.op, self.memory[f"{name}_per_64"], self.memory[name].shape[-1], leading,
                         low, high)
        if n.op == "gather":
            args.insert(0, self.memory[n.attr("name")])
        if n.op == "cast" and n.dtype not in FLOATS:
            return np.trunc(args[0]).astype(np.int64)
        if n.op == "cast":
            return round_to(args[0], n.dtype)
        evaluate = SCALAR_OPS[n.op].evaluate
        assert evaluate is not None
        return np.asarray(evaluate(*args))

    def _map(self, stmt: Map) -> None:
        if stmt.when == "partial" and self.full:
            return
        for name, expr in zip(stmt.dsts, stmt.exprs, strict=True):
            result = self.evaluate(expr, stmt.axes)
            self.state[name] = np.broadcast_to(result, self._shape(name)).copy()

    def _mma(self, dst: str, a: str, b: str, over: str, accumulate: bool) -> None:
        left, right, out = ([AXES.index(x) for x in self.values[n].axes] for n in (a, b, dst))
        x, y = self._get(a), self._get(b)
        product = self._pad(np.einsum(x, left, y, right, out), dst)
        self.state[dst] = self.state[dst] + product if accumulate else product
        self.counts["mma"] += 1
        self.counts["flops"] += 2 * x.size * y.shape[1 - right.index(AXES.index(over))]

    def _reduce(self, dst: str, kind: str, src: str, over: str, accumulate: bool) -> None:
        axis = self.values[src].axes.index(over)
        x = self._get(src)
        result = x.max(axis=axis) if kind == "max" else x.sum(axis=axis)
        if accumulate:
            old = self.state[dst]
            result = np.maximum(old, result) if kind == "max" else old + result
        self.state[dst] = result

    # -- device memory ---------------------------------------------------------------------

    def _index(self, tensor: Tensor, tile: Mapping[str, int]) -> tuple[list[Any], list[int]]:
        """Where a tile lies in its tensor, and how much of it is inside."""
        index: list[Any] = []
        inside: list[int] = []
        for axis in tensor.seen:
            if axis == "g" and tensor.by_head is not None:
                index.append(tensor.by_head[self.where["h"]])
            elif axis == self.kernel.loop and self.kernel.serial:
                index.append(tile[axis])
            elif axis in self.where:
                index.append(self.where[axis])
            else:
                start = tile.get(axis, 0) * self.block.get(axis, 0)
                width = self.block.get(axis, self.extents[axis])
                stop = min(start + width, self.extents[axis])
                origin = self.begin.get(tensor.name, 0) if axis in SEQUENCES else 0
                index.append(slice(origin + start, origin + stop))
                inside.append(max(stop - start, 0))
        return index, inside

    def _read(self, v: Value, name: str, tile: Mapping[str, int]) -> Array:
        tensor = self.kernel.tensor(name)
        index, inside = self._index(tensor, tile)
        data = np.asarray(self.memory[name][tuple(index)], self.precision)
        self.counts[f"read {name}"] += data.size * BYTES[tensor.dtype]
        out = np.zeros(v.shape, self.precision)
        out[tuple(slice(n) for n in inside)] = data
        return out

    def _write(self, tensor: Tensor, array: Array, v: Value) -> None:
        index, inside = self._index(tensor, self.tile)
        data = array[tuple(slice(n) for n in inside)]
        self.counts[f"write {tensor.name}"] += data.size * BYTES[tensor.dtype]
        self.memory[tensor.name][tuple(index)] = round_to(data, tensor.dtype)


def _rows(t: Tensor, axis: str, sizes: Mapping[str, Any]) -> int:
    """Rows of a packed tensor: to the end of the last sequence."""
    return int(np.max(np.add(sizes[t.begin], sizes[EXTENTS[axis]]), initial=0))


def interpret_tiles(graph: Graph, inputs: Mapping[str, Array], params: Mapping[str, Any],
                    extents: Mapping[str, int], precision: Any = np.float64,
                    ) -> tuple[dict[str, Array], Counter[str]]:
    """Every output and workspace of a tiled or placed graph, and the counts of its kernels."""
    tables = {t.name for t in graph.tables}
    memory = {name: np.asarray(a, None if name in tables else precision)
              for name, a in inputs.items()}
    memory.update({t.name: summary(memory[t.of]) for t in graph.tables if t.of})
    places = Places(graph.tensors, memory, params, extents)
    memory.update({t.name: places.seen(t, memory[t.name]) for t in graph.tensors
                   if t.role == "input"})
    sizes = {**{n: extents[a] for a, n in EXTENTS.items() if a in extents}, **dict(params)}
    counts: Counter[str] = Counter()
    for t in graph.tensors:
        if t.role != "input":
            memory[t.name] = np.full([_rows(t, a, sizes) if t.begin and a in SEQUENCES else
                                      extents[a] for a in t.seen], np.nan, precision)
    for kernel in graph.tiles:
        counts += TileInterpreter(kernel, memory, sizes, extents, precision).run()
    return {t.name: places.stored(t, memory[t.name]) for t in graph.tensors
            if t.role != "input"}, counts
