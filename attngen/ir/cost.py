"""The cost model: what a placed graph will move and compute, from its statements and lengths.

Bytes are those the kernels ask of device memory: every tile of every load, whatever a cache may
save. Tile ranges are evaluated for every block at once, so a prediction costs O(blocks); what a
loop asks of each tile is evaluated for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .bounds import EXTENTS
from .eval_tile import BYTES
from .graph import Graph
from .node import Node, walk
from .ops import PROOF_OPS, SCALAR_OPS
from .stmt import Issue, Kernel, Load, Loop, Map, Mma, Stmt, Store, statements
from .summary import bound, summary
from .tensor import Tensor

Array = np.ndarray[Any, Any]
_AT_ONCE = 1 << 20  # tiles looked at together


@dataclass
class KernelCost:
    """One kernel's launch: blocks, loop tiles visited, matrix instructions, FLOPs, bytes."""

    name: str
    blocks: int = 0
    tiles: int = 0
    full_tiles: int = 0
    matrix_instructions: int = 0  # m16n8k16, over all warps
    flops: int = 0
    read: dict[str, int] = field(default_factory=dict)
    written: dict[str, int] = field(default_factory=dict)
    shared_bytes: int = 0
    registers: int = 0
    threads: int = 0

    @property
    def bytes(self) -> int:
        return sum(self.read.values()) + sum(self.written.values())

    @property
    def intensity(self) -> float:
        """FLOPs per byte of device memory."""
        return self.flops / max(self.bytes, 1)

    def bound(self, flops_per_s: float, bytes_per_s: float) -> tuple[str, float]:
        """Which roof is lower, and the time in seconds under it."""
        compute, memory = self.flops / flops_per_s, self.bytes / bytes_per_s
        return ("compute", compute) if compute >= memory else ("memory", memory)


def predict(graph: Graph, extents: Mapping[str, int], params: Mapping[str, Any],
            ) -> tuple[KernelCost, ...]:
    """Cost of every kernel of a placed graph for given lengths.

    ``extents`` is the length of every axis letter; ``params`` are the run-time numbers, each a
    number or an array over batch, and the captured tensors.
    """
    return tuple(_total([_Counter(k, extents, params, part).cost()
                         for part in range(extents["split"] if k.split else 1)])
                 for k in graph.tiles)


def _total(parts: list[KernelCost]) -> KernelCost:
    """Of all parts of the keys together."""
    first, *rest = parts
    for other in rest:
        first.blocks += other.blocks
        first.tiles += other.tiles
        first.full_tiles += other.full_tiles
        first.matrix_instructions += other.matrix_instructions
        first.flops += other.flops
        for book, more in ((first.read, other.read), (first.written, other.written)):
            book.update({name: book.get(name, 0) + n for name, n in more.items()})
    return first


class _Counter:
    def __init__(self, kernel: Kernel, extents: Mapping[str, int],
                 params: Mapping[str, Any], part: int) -> None:
        self.kernel, self.extents, self.part = kernel, extents, part
        lengths = {n: extents[a] for a, n in EXTENTS.items() if a in extents}
        self.params = {**dict(params), **lengths}
        for table in kernel.tables:
            if table.of:
                self.params[table.of] = np.asarray(self.params[table.of])
                self.params[table.name] = summary(self.params[table.of])
        self.block = {kernel.keep: kernel.schedule.block_m, kernel.loop: kernel.loop_tile}
        tiles = -(-extents[kernel.keep] // kernel.schedule.block_m)
        self.first = np.arange(tiles) * kernel.schedule.block_m
        bounds = [s for s in kernel.body if isinstance(s, Map) and not s.axes]
        asked = [e for s in bounds for e in s.exprs]
        asked += [e for s in kernel.body if isinstance(s, Loop) for e in (s.visible, s.full) if e]
        by_head = any(kernel.head in expr.axes for expr in asked)
        # Blocks as [batch, heads, row tiles]; heads are alike unless a bound asks which one it is.
        self.shape = (extents["b"], extents[kernel.head] if by_head else 1, tiles)
        self.alike = 1 if by_head else extents[kernel.head]
        self.scalars: dict[str, Array] = {}
        self.visited: dict[int, tuple[Array, Array, Array]] = {}
        for stmt in bounds:
            for name, expr in zip(stmt.dsts, stmt.exprs, strict=True):
                self.scalars[name] = np.broadcast_to(self._evaluate(expr), self.shape)

    def cost(self) -> KernelCost:
        k = self.kernel
        self.out = KernelCost(k.name, int(np.prod(self.shape)) * self.alike,
                              shared_bytes=k.shared_bytes, registers=k.registers,
                              threads=32 * k.schedule.warps)
        loops = [s for s in k.body if isinstance(s, Loop)]
        for stmt in k.body:
            if isinstance(stmt, Loop):
                self._loop(stmt)
            elif isinstance(stmt, Issue) and (stmt.ahead is not None or loops):
                if stmt.ahead is None:  # skipped where the loop is empty
                    visits = self._visit(loops[0])[0] > 0
                    self._move(stmt.tensor, self._rows() * visits, self.out.read)
            elif isinstance(stmt, (Load, Store)):
                book = self.out.read if isinstance(stmt, Load) else self.out.written
                self._move(stmt.tensor, np.broadcast_to(self._rows(), self.shape), book)
        return self.out

    def _evaluate(self, root: Node, tiles: Array | None = None) -> Array:
        """An expression for every block; with ``tiles`` of the loop axis for each of those too,
        along one more axis."""
        done: dict[str, Array] = {}
        for n in walk(root):
            done[n.key] = self._operate(n, [done[a.key] for a in n.args], tiles)
        return done[root.key]

    def _operate(self, n: Node, args: list[Array], tiles: Array | None) -> Array:
        if n.op == "const":
            return np.asarray(n.attr("value"))
        if n.op in ("first", "last") and n.attr("axis") == self.kernel.loop:
            assert tiles is not None
            first = tiles * self.block[self.kernel.loop]
            return first if n.op == "first" else first + self._width(tiles) - 1
        if not args and n.op != "gather":
            leaf = self._leaf(n)
            return leaf[..., None] if leaf.ndim and tiles is not None else leaf
        if n.op in PROOF_OPS:
            *leading, low, high = args
            name = n.attr("name")
            return bound(n.op, self.params[f"{name}_per_64"], self.params[name].shape[-1], leading,
                         low, high)
        if n.op == "gather":
            args = [np.asarray(self.params[n.attr("name")]), *args]
        if n.op == "cast":
            return args[0]
        evaluate = SCALAR_OPS[n.op].evaluate
        assert evaluate is not None
        return np.asarray(evaluate(*args))

    def _leaf(self, n: Node) -> Array:
        if n.op == "param":
            array = np.asarray(self.params[n.attr("name")])
            return array[:, None, None] if array.ndim else array
        if n.op == "first":
            return self.first
        if n.op == "last":
            return self.first + self._rows() - 1
        if n.op == "value":
            return self.scalars[n.attr("name")]
        if n.attr("axis") == "split":
            return np.asarray(self.part)
        array = np.arange(self.extents[n.attr("axis")])
        return array[:, None, None] if n.attr("axis") == "b" else array[:, None]

    def _rows(self) -> Array:
        return np.minimum(self.kernel.schedule.block_m, self.extents[self.kernel.keep] - self.first)

    def _width(self, tiles: Array) -> Array:
        """Indices of the loop axis inside the tensor, by tile."""
        width = self.block[self.kernel.loop]
        return np.clip(self.extents[self.kernel.loop] - tiles * width, 0, width)

    def _visit(self, loop: Loop) -> tuple[Array, Array, Array]:
        """For every block: how many tiles it visits, how many of them are full, and how many
        indices of the loop axis they have inside the tensor."""
        key = id(loop)
        if key not in self.visited:
            self.visited[key] = self._count_visits(loop)
        return self.visited[key]

    def _count_visits(self, loop: Loop) -> tuple[Array, Array, Array]:
        begin, end = self.scalars[loop.begin], self.scalars[loop.end]
        full_begin = np.maximum(self.scalars[loop.full_begin], begin)
        full_end = np.minimum(self.scalars[loop.full_end], end)
        if loop.visible is None and loop.full is None or not begin.size:
            tiles = np.maximum(end - begin, 0)
            width = self.block[self.kernel.loop]
            last = -(-self.extents[self.kernel.loop] // width) - 1
            short = width - int(self._width(np.asarray(last)))
            columns = tiles * width - short * ((begin <= last) & (last < end))
            return tiles, np.maximum(full_end - full_begin, 0), columns
        count, full, columns = (np.zeros(self.shape, np.int64) for _ in range(3))
        at_once = max(1, _AT_ONCE // int(np.prod(self.shape)))
        for start in range(int(begin.min()), int(end.max()), at_once):
            tiles = np.arange(start, min(start + at_once, int(end.max())))
            seen = (begin[..., None] <= tiles) & (tiles < end[..., None])
            if loop.visible is not None:
                seen = seen & self._evaluate(loop.visible, tiles)
            whole = seen & (full_begin[..., None] <= tiles) & (tiles < full_end[..., None])
            if loop.full is not None:
                whole = whole & self._evaluate(loop.full, tiles)
            count += seen.sum(-1)
            full += whole.sum(-1)
            columns += (seen * self._width(tiles)).sum(-1)
        return count, full, columns

    def _loop(self, loop: Loop) -> None:
        out = self.out
        visits, full, _ = self._visit(loop)
        out.tiles += int(visits.sum()) * self.alike
        out.full_tiles += int(full.sum()) * self.alike
        moved: set[str] = set()
        for stmt in statements(loop.body):
            if isinstance(stmt, Mma):
                self._product(stmt, int(visits.sum()) * self.alike)
            elif isinstance(stmt, (Issue, Load)) and stmt.dst not in moved:
                moved.add(stmt.dst)
                self._move(stmt.tensor, self._area(stmt, loop), out.read)
            elif isinstance(stmt, Store):
                self._move(stmt.tensor, self._area(stmt, loop), out.written)

    def _area(self, stmt: Stmt, loop: Loop) -> Array:
        """Elements along the two sequence axes, summed over the visited tiles."""
        axes = self.kernel.tensor(stmt.tensor).seen  # type: ignore[attr-defined]
        visits, _, columns = self._visit(loop)
        area = columns if self.kernel.loop in axes else visits
        return area * self._rows() if self.kernel.keep in axes else area

    def _move(self, name: str, elements: Array, book: dict[str, int]) -> None:
        tensor: Tensor = self.kernel.tensor(name)
        inner = int(np.prod([self.extents[a] for a in tensor.axes if a in "de"], dtype=np.int64))
        total = int(np.broadcast_to(elements, self.shape).sum()) * inner * self.alike
        book[name] = book.get(name, 0) + total * BYTES[tensor.dtype]

    def _product(self, stmt: Mma, visits: int) -> None:
        a, b = self.kernel.value(stmt.a), self.kernel.value(stmt.b)
        depth = a.shape[a.axes.index(stmt.over)]
        rows = a.shape[1 - a.axes.index(stmt.over)]
        columns = b.shape[1 - b.axes.index(stmt.over)]
        self.out.flops += 2 * rows * columns * depth * visits
        if self.kernel.schedule.engine == "mma":
            self.out.matrix_instructions += (rows // 16) * (columns // 8) * (depth // 16) * visits
