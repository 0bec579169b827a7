"""Tiling: any region of tensor nodes becomes a short program of tile statements.

One algorithm serves every kernel. The kept axis gives the rows, the loop axis is walked tile by
tile; which axes a node has decides where it is computed (before, in, or after a loop) and in what
shape. A reduction along the loop becomes an accumulator; results that need a finished reduction
and still carry the loop axis get a second loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..errors import VerifyError
from .accumulate import accumulate
from .bounds import EXTENTS, add_bounds, extent, hidden_is_neutral
from .evaluated import expressions, gathered, places
from .graph import Graph, Region
from .idle import drop_full_range
from .loops import REDUCTIONS, Loops
from .merge import merge_maps
from .node import AXES, Node, cast, interning, is_cheap, make, rebuild, substitute, value, walk
from .ops import EIGHT_BIT, OPS
from .ranges import share, solve_masks, tile_range
from .split_kv import AXIS, part_of, without_parts
from .stmt import (
    Copy,
    Fill,
    Grid,
    Kernel,
    Load,
    Loop,
    Map,
    Mma,
    Reduce,
    Schedule,
    Stmt,
    Store,
    Value,
    tile_axes,
)
from .summary import summarised, summary_of
from .tensor import Param, Tensor
from .visits import visits

_LARGE = 12  # an expression of more terms than this, used twice, is computed once


def tile(graph: Graph, schedule: Schedule | Callable[[Region], Schedule], keep: str = "i",
         loop: str = "j") -> Graph:
    """Lower every region of a fused graph, with one schedule or one chosen per region.

        o[i,e] = Σ_j p[i,j]·v[j,e]   →   Fill acc 0; Loop j: Load v; Mma acc += p·v; Store o

    Raises VerifyError for what tiles cannot express, naming the node.
    """
    kernels = []
    for region in graph.regions:
        plan = schedule if isinstance(schedule, Schedule) else schedule(region)
        with interning(*region.roots):
            kernel = Lowering(region, graph, plan, keep, region.loop or loop).kernel()
        kernels.append(drop_full_range(kernel))
    summaries = dict.fromkeys(t for k in kernels for t in k.tables if t.of)
    return replace(graph, stage="tiled", kernels=tuple(kernels),
                   tables=(*graph.tables, *summaries))


class Lowering:
    """One region on its way to statements."""

    def __init__(self, region: Region, graph: Graph, schedule: Schedule, keep: str,
                 loop: str) -> None:
        self.region, self.graph, self.schedule = region, graph, schedule
        self.reserved = {*(t.name for t in graph.tensors), *(t.name for t in graph.tables), *AXES,
                         *EXTENTS.values(), *(n.attr("name") for n in walk(*region.roots)
                                              if n.op == "param")}
        self.keep, self.loop = keep, loop
        self.serial = loop == AXIS  # no tiles along it: one part at a time
        self.splits = not self.serial and any(AXIS in t.axes for t, _ in region.outputs)
        self.values: dict[str, Value] = {}
        self.outer: dict[int, list[Stmt]] = {0: []}  # statements before loop n
        self.bodies: dict[int, list[Stmt]] = {}
        self.kept: dict[str, str] = {}  # node -> value, outside loops
        self.local: dict[str, str] = {}  # node -> value, in the current loop
        self.current = -1
        self.loops = Loops(loop)
        self.roots = self._run_streams(self._solve_masks(without_parts(region.roots)))
        self.uses: dict[str, int] = {}
        self.terms: dict[str, int] = {}  # operations of a node written out as one expression
        ranges = (self.range.begin, self.range.end, self.range.full_begin, self.range.full_end)
        for node in walk(*self.roots, *ranges):
            self.terms[node.key] = min(1 + sum(self.terms[a.key] for a in node.args), 1 << 20)
            for arg in node.args:
                self.uses[arg.key] = self.uses.get(arg.key, 0) + 1
        self.multiplied = {a.key for n in walk(*self.roots) for a in n.args[:2]
                           if n.op in ("contract", "stream_contract")}

    # -- preparation ---------------------------------------------------------------------

    def _solve_masks(self, roots: tuple[Node, ...]) -> tuple[Node, ...]:
        """visible(mask) → visible(lower ≤ j < upper ∧ rest), and the tile ranges."""
        if not self.serial:
            roots = add_bounds(roots, self.loop)
        self.masks = solve_masks(roots, self.loop)
        every = any(self.loop in r.axes for r in roots) or not hidden_is_neutral(roots, self.loop)
        self.visits = visits(self.masks.bounds, self.loop, self.keep, every)
        self.range = tile_range(self.masks.bounds, self.loop, self.keep, extent(self.loop),
                                1 if self.serial else self.schedule.block_n, every,
                                self.visits.settled)
        if self.splits:
            self.range = share(self.range, *part_of(self.region.roots))
        return tuple(substitute(r, self.masks.table) for r in roots)

    def _run_streams(self, roots: tuple[Node, ...]) -> tuple[Node, ...]:
        """Operands of streaming sums read the maximum so far instead of the final one."""
        self.running: dict[str, str] = {}
        done: dict[str, Node] = {}
        for node in walk(*roots):
            args = tuple(done[a.key] for a in node.args)
            if node.op.startswith("stream_"):
                top = args[-1]
                name = self.running.get(top.key) or self.new("m", top)
                self.running[top.key] = name
                leaf = value(name, top.axes, top.dtype)
                args = (*(substitute(a, {top: leaf}) for a in args[:-1]), top)
            attrs = dict(node.attrs)
            done[node.key] = node if args == node.args else make(
                node.op, *args, axes=node.axes, dtype=node.dtype, origin=node.origin, **attrs)
        return tuple(done[r.key] for r in roots)

    # -- where a node lives ----------------------------------------------------------------

    def tile_axes(self, n: Node) -> tuple[str, ...]:
        return tile_axes(n.axes, self.keep, self.loop)

    def _out(self, n: Node) -> list[Stmt]:
        if self.loops.moves(n):
            return self.bodies[self.current]
        return self.outer.setdefault(self.loops.level(n), [])

    def _extent(self, axis: str) -> int:
        if axis in (self.keep, self.loop):
            return self.schedule.block_m if axis == self.keep else self.schedule.block_n
        return dict(self.graph.sizes)[{"d": "head_dim", "e": "head_dim_v"}[axis]]

    def new(self, hint: str, n: Node, dtype: str | None = None) -> str:
        base = "".join(c if c.isalnum() or c == "_" else "_" for c in hint) or "x"
        name, count = base, 2
        while name in self.values or name in self.reserved:
            name, count = f"{base}_{count}", count + 1
        axes = self.tile_axes(n)
        self.values[name] = Value(name, axes, dtype or n.dtype,
                                  tuple(self._extent(a) for a in axes), origin=n.origin)
        return name

    # -- emission ------------------------------------------------------------------------

    def kernel(self) -> Kernel:
        """The whole kernel: loops in order of the results they finish, then the stores."""
        loops = self._loop_count()
        if loops:
            self._emit_ranges()
        for number in range(loops):
            self._emit_loop(number)
        self.current = -1
        for (t, _), root in zip(self.region.outputs, self.roots, strict=True):
            if self.loop not in root.axes:
                self._store(t, root)
        body: list[Stmt] = []
        for number in sorted({*self.outer, *self.bodies}):
            body += merge_maps(self.outer.get(number, []))
            if number in self.bodies:
                body.append(Loop(self.loop, "n_begin", "n_end", "n_full_begin", "n_full_end",
                                 tuple(merge_maps(self.bodies[number])), self.visits.visible,
                                 self.visits.full, origin=self.loop))
        names = dict.fromkeys((*self.region.inputs, *(t.name for t, _ in self.region.outputs)))
        tensors = tuple(self.graph.tensor(n) for n in names)
        exprs = (*expressions(tuple(body)), *places(tensors), extent(self.keep), extent(self.loop))
        names_read, asked = gathered(*exprs), summarised(*exprs)
        tables = [t for t in self.graph.tables if t.name in names_read]
        tables += [summary_of(t) for t in tables if t.name in asked]
        params = {Param(n.attr("name"), "b" in n.axes, n.dtype)
                  for n in walk(*exprs) if n.op == "param"}
        return Kernel(
            self.region.name, self._grid(), self.keep, self.loop,
            tensors,
            tuple(sorted(params, key=lambda p: (p.per_batch, p.name))),
            tuple(self.values.values()), tuple(body), self.schedule, self.graph.sizes,
            tables=tuple(tables))

    def _grid(self) -> tuple[Grid, ...]:
        names = (*self.region.inputs, *(t.name for t, _ in self.region.outputs))
        by_head = any("h" in self.graph.tensor(n).seen for n in names)
        grid = (Grid(self.keep, self.schedule.block_m), Grid("h" if by_head else "g", 1),
                Grid("b", 1))
        return (*grid, Grid(AXIS, 1)) if self.splits else grid

    def _loop_count(self) -> int:
        finished = [self.loops.level(n) for n in walk(*self.roots) if self.loops.over(n)]
        stores = [self.loops.level(r) + 1 for r in self.roots if self.loop in r.axes]
        return max([0, *finished, *stores])

    def _emit_ranges(self) -> None:
        names, exprs = [], []
        for name, node in (("n_begin", self.range.begin), ("n_end", self.range.end),
                           ("n_full_begin", self.range.full_begin),
                           ("n_full_end", self.range.full_end)):
            names.append(self.new(name, node, "int32"))  # a captured tensor's may be wider
            exprs.append(self._expr(cast(node, "int32"), (), top=True))
        self.outer[0].append(Map(tuple(names), tuple(exprs), (), origin="tiles"))

    def _emit_loop(self, number: int) -> None:
        self.current, self.local = number, {}
        self.bodies[number] = []
        reductions = [n for n in walk(*self.roots)
                      if self.loops.over(n) and self.loops.level(n) == number + 1]
        for n in sorted(reductions, key=lambda n: REDUCTIONS[n.op]):
            accumulate(self, n)
        for (t, _), root in zip(self.region.outputs, self.roots, strict=True):
            if self.loop in root.axes and self.loops.level(root) == number:
                self._store(t, root)

    def operands(self, a: Node, b: Node) -> tuple[str, str]:
        """The operand that keeps the kept axis first: its rows are the result's rows."""
        if self.keep not in a.axes:
            a, b = b, a
        if self.keep not in a.axes or self.keep in b.axes:
            raise VerifyError(f"a product of {a!r} and {b!r}: exactly one operand must carry "
                              f"the kept axis {self.keep}")
        if _leaf(b) is None:
            raise VerifyError(f"the column operand of a product must be a tensor, got {b.op} "
                              f"({b.origin}); write it to a tensor first")
        return self.emit(a), self.emit(b)

    def _store(self, t: Tensor, root: Node) -> None:
        if root.op == "cast" and root.dtype == t.dtype:
            root = root.args[0]  # a store converts to the tensor's type
        name = self.emit(root, t.name.removeprefix("w_") + "_out")
        target = (self.bodies[self.current] if self.current >= 0
                  else self.outer.setdefault(self.loops.level(root), []))
        target.append(Store(t.name, name, origin=t.name))

    # -- values ----------------------------------------------------------------------------

    def emit(self, n: Node, hint: str = "") -> str:
        """Make ``n`` a value, once per place, and return its name."""
        if n.op == "value":
            return str(n.attr("name"))
        memo = self.local if self.loops.moves(n) else self.kept
        if n.key in memo:
            return memo[n.key]
        name = self._compute(n, hint)
        memo[n.key] = name
        return name

    def _compute(self, n: Node, hint: str) -> str:
        out = self._out(n)
        if (leaf := _leaf(n)) is not None:
            name = self.new(f"{leaf.attr('name')}_tile", n)
            out.append(Load(name, leaf.attr("name"), origin=n.origin))
            return name
        if n.op == "reduce" and n.attr("kind") in ("sum", "max"):  # past the end of a row: zeros
            source, name = self.emit(n.args[0]), self.new(hint or n.origin or n.attr("kind"), n)
            out.append(Fill(name, 0.0, origin=n.origin))
            out.append(Reduce(name, n.attr("kind"), source, n.attr("over"), True, origin=n.origin))
            return name
        if n.op == "contract":
            a, b = self.operands(*n.args)
            name = self.new(hint or n.origin or "product", n)
            out.append(Mma(name, a, b, n.attr("over"), False, origin=n.origin))
            return name
        if n.op == "cast" and n.dtype in ("float16", "bfloat16"):
            source = self.emit(n.args[0])
            name = self.new(f"{source}_op", n)
            out.append(Copy(name, source, origin=n.origin))
            return name
        if n.op == "where" and n.args[0].op == "visible":
            return self._mask(n, out, hint)
        if OPS[n.op].group != "scalar" and n.op != "visible":
            raise VerifyError(f"{n.op} ({n.origin}) cannot be computed tile by tile here")
        axes = self.tile_axes(n)
        expr = self._expr(n, axes, top=True)
        name = self.new(hint or self._hint(n), n)
        out.append(Map((name,), (expr,), axes, origin=self.masks.origins.get(n.key, n.origin)))
        return name

    def _hint(self, n: Node) -> str:
        """A readable name for a computed value."""
        if n.key in self.masks.names:
            return self.masks.names[n.key]
        base = n.origin or "limit" if n.dtype == "int32" else n.origin or "x"
        return {"recip0": f"inv_{base}", "mul": f"{base}_scaled"}.get(n.op, base)

    def _mask(self, n: Node, out: list[Stmt], hint: str) -> str:
        """where(visible, x, c): x everywhere, then c in place, on partial tiles only."""
        test, x, other = n.args
        name = self.emit(x, hint)
        axes = self.tile_axes(n)
        multiplied = n.key in self.multiplied and x.op in ("input", "by_head")
        if self.uses.get(x.key, 0) > 1 or self.tile_axes(x) != axes or multiplied:
            source, name = value(name, x.axes, x.dtype), self.new(hint or n.origin or "masked", n)
            out.append(Map((name,), (source,), axes, origin=n.origin))
        seen = self._expr(test.args[0], axes, top=True)
        expr = make("where", seen, value(name, n.axes, n.dtype), other)
        out.append(Map((name,), (expr,), axes, when="partial",
                       origin=self.masks.origins.get(test.key, n.origin)))
        return name

    def _expr(self, n: Node, axes: tuple[str, ...], top: bool = False) -> Node:
        """``n`` as an expression over values: what varies along fewer axes is computed apart."""
        if (not n.args and n.op != "gather") or n.op == "value":
            return n if n.op != "input" else self._ref(n)
        if OPS[n.op].group != "scalar" or (n.op == "where" and n.args[0].op == "visible"):
            return self._ref(n)
        own = self.tile_axes(n)
        if not top:
            if n.key in self.local or n.key in self.kept:
                return self._ref(n)
            fewer = len(own) < len(axes)
            column = fewer and own and own[0] != self.keep
            shared = self.uses.get(n.key, 0) > 1 and (
                not OPS[n.op].cheap or self.terms.get(n.key, 0) > _LARGE)
            if (fewer and not (column and is_cheap(n))) or shared:
                return self._ref(n)
        return rebuild(n, tuple(self._expr(a, axes) for a in n.args))

    def _ref(self, n: Node) -> Node:
        return value(self.emit(n), n.axes, n.dtype)


def _leaf(n: Node) -> Node | None:
    """The tensor that ``n`` is, of any head, or of eight bits widened as it is loaded; None where
    it is computed."""
    if n.op == "cast" and n.args[0].dtype in EIGHT_BIT:
        n = n.args[0]
    leaf = n.args[0] if n.op == "by_head" else n
    return leaf if leaf.op == "input" else None
