"""Invariants of tiled and placed kernels: values, shapes, spaces, shared memory, order."""

from __future__ import annotations

from ..errors import VerifyError
from .bounds import EXTENTS
from .evaluated import evaluated, gathered
from .graph import Graph
from .node import Node, walk
from .ops import EIGHT_BIT, OPS, PROOF_OPS
from .show import formula
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
    Wait,
    reads,
    statements,
    tile_axes,
    writes,
)
from .summary import summarised, summary_of
from .tensor import Table
from .verify_placed import BYTES, check_placement

_PLACED_ONLY = (Issue, Commit, Wait, Barrier, LaneReduce)
_PAD = {"mma": 16, "simt": 8, "cpu": 1}
# What a captured tensor may be stored as, and read as.
STORED = {"bool": ("bool",), "uint8": ("int32",), "int8": ("int32",), "int16": ("int32",),
          "int32": ("int32",), "int64": ("int64",), "float16": ("float32", "float64"),
          "bfloat16": ("float32", "float64"), "float32": ("float32", "float64"),
          "float64": ("float32", "float64")}


def check_kernel(graph: Graph, kernel: Kernel) -> None:
    """Everything that must hold of one kernel. Raises VerifyError."""
    if kernel.stage != graph.stage:
        raise VerifyError(f"kernel {kernel.name} is {kernel.stage} in a {graph.stage} graph")
    if not kernel.name.isidentifier() or kernel.sizes != graph.sizes:
        raise VerifyError(f"kernel {kernel.name}: name or sizes differ from the graph's")
    check_tensor_uses(graph, kernel)
    check_schedule(kernel)
    check_grid(kernel)
    check_params(kernel)
    check_tables(graph, kernel)
    check_values(kernel)
    check_flow(kernel)
    for stmt in statements(kernel.body):
        check_statement(kernel, stmt)
    if kernel.stage == "placed":
        check_placement(kernel)


def check_schedule(kernel: Kernel) -> None:
    """Numbers a target could run at all."""
    s = kernel.schedule
    if s.engine not in _PAD:
        raise VerifyError(f"unknown engine {s.engine!r}")
    if s.block_m < 1 or s.block_n < 1 or s.warps < 1 or s.min_blocks < 1:
        raise VerifyError(f"schedule {s} has a number below one")
    if s.engine != "cpu" and (s.block_m % (16 * s.warps if s.engine == "mma" else 2 * s.warps)
                              or s.block_n % 16 or s.warps > 32):
        raise VerifyError(f"schedule {s}: warps split block_m in rows of 16 (mma) or 2 (simt), "
                          "block_n is a multiple of 16")
    if s.lanes not in (("rows", "columns") if s.engine == "cpu" else ("rows",)):
        raise VerifyError(f"schedule {s}: vectors run along rows, on a CPU also along columns")
    if any(not 1 <= n <= 4 for n in s.stages) or kernel.stage == "tiled" and not s.stages:
        raise VerifyError(f"stages {s.stages}: one to four")
    if s.engine == "cpu" and (s.warps, s.stages, s.min_blocks, s.vector_bytes) != (1, (1,), 1, 16):
        raise VerifyError(f"schedule {s}: a CPU kernel has no warps, stages or vectors to choose")
    size = max(BYTES[t.dtype] for t in kernel.tensors) if s.engine == "simt" else 2
    if s.engine != "cpu" and s.vector_bytes == 16 and any(
            isinstance(x, Issue) and kernel.tensor(x.tensor).dtype in EIGHT_BIT
            for x in statements(kernel.body)):
        raise VerifyError(f"schedule {s}: what is widened on its way passes through registers")
    if s.vector_bytes not in (16, size):
        raise VerifyError(f"vector_bytes {s.vector_bytes}: 16 or the element size")


def check_grid(kernel: Kernel) -> None:
    """One tile of the kept axis, one head, one batch entry per block; of keys all or one part."""
    found = [(g.axis, g.tile) for g in kernel.grid]
    head = "h" if any("h" in t.seen for t in kernel.tensors) else "g"
    expected = [(kernel.keep, kernel.schedule.block_m), (head, 1), ("b", 1)]
    axes = (kernel.keep, kernel.loop)
    if found not in (expected, [*expected, ("split", 1)]) or kernel.serial and kernel.split \
            or axes not in (("i", "j"), ("j", "i"), ("row", "j"), ("i", "split"), ("row", "split")):
        raise VerifyError(f"kernel {kernel.name}: grid {found}, keep {kernel.keep}, "
                          f"loop {kernel.loop}, block_m {kernel.schedule.block_m}")


def check_tensor_uses(graph: Graph, kernel: Kernel) -> None:
    """The kernel's tensors are the graph's and those its statements name; no input is written."""
    for t in kernel.tensors:
        if graph.tensor(t.name) != t:
            raise VerifyError(f"kernel {kernel.name} sees another tensor {t.name} than the graph")
    uses = [s for s in statements(kernel.body) if isinstance(s, Load | Issue | Store)]
    used, have = {s.tensor for s in uses}, [t.name for t in kernel.tensors]
    if used != set(have) or len(used) != len(have):
        raise VerifyError(f"kernel {kernel.name} uses tensors {sorted(used)}, declares {have}")
    for s in uses:
        role = kernel.tensor(s.tensor).role
        if isinstance(s, Store) != (role != "input") and role != "workspace":
            raise VerifyError(f"{type(s).__name__} of the {role} {s.tensor}")


def check_tables(graph: Graph, kernel: Kernel) -> None:
    """The kernel's captured tensors are those its expressions read, each read as it may be, and
    the summaries of those they ask about."""
    exprs = evaluated(kernel)
    for n in walk(*exprs):
        if n.op == "gather":
            check_gather(kernel.tables, n)
        elif n.op in PROOF_OPS:
            check_range(kernel.tables, n)
    own = {t.name: t for t in kernel.tables if not t.of}
    expected = [*own.values(), *(summary_of(own[n]) for n in summarised(*exprs) if n in own)]
    if set(own) != set(gathered(*exprs)) or sorted(kernel.tables, key=str) != sorted(
            expected, key=str) or not set(kernel.tables) <= set(graph.tables):
        raise VerifyError(f"kernel {kernel.name} reads tables {sorted(gathered(*exprs))}, declares "
                          f"{[t.name for t in kernel.tables]}")


def check_range(tables: tuple[Table, ...], n: Node) -> None:
    """A question about a range of a table of whole numbers: an index for each dimension, two for
    the last."""
    found = [t for t in tables if t.name == n.attr("name") and not t.of]
    if not found or len(n.args) != found[0].ndim + 1 or n.dtype != "int64" \
            or STORED[found[0].dtype][0].startswith("float") \
            or any(a.dtype not in ("int32", "int64") for a in n.args):
        raise VerifyError(f"{n.op} of {n.attr('name')!r} at {[a.dtype for a in n.args]}")


def check_gather(tables: tuple[Table, ...], n: Node) -> None:
    """A gather names a table, has an index for each of its dimensions and a type it is read as."""
    found = [t for t in tables if t.name == n.attr("name") and not t.of]
    if not found:
        raise VerifyError(f"gather of {n.attr('name')!r}, which is no captured tensor")
    t = found[0]
    if len(n.args) != t.ndim or any(a.dtype not in ("int32", "int64") for a in n.args):
        raise VerifyError(f"gather of {t.name}, which has {t.ndim} dimensions, at "
                          f"{[a.dtype for a in n.args]}")
    if n.dtype not in STORED[t.dtype]:
        raise VerifyError(f"gather of {t.name}: {t.dtype} is not read as {n.dtype}")


def check_params(kernel: Kernel) -> None:
    """Exactly the run-time numbers the expressions use, the two lengths, and where packed tensors
    begin."""
    named = [n for n in walk(*evaluated(kernel)) if n.op == "param"]
    used = {n.attr("name"): "b" in n.axes for n in named}
    lengths = [EXTENTS[axis] for axis in (kernel.keep, kernel.loop)]
    if stray := [n for n in lengths if used.get(n, kernel.packed) != kernel.packed]:
        raise VerifyError(f"kernel {kernel.name}: {stray[0]} differs per batch entry where tensors "
                          "are packed, and there only")
    used.update(dict.fromkeys(lengths, kernel.packed))
    used.update((t.begin, True) for t in kernel.tensors if t.begin)
    have = {p.name: p.per_batch for p in kernel.params}
    if used != have or len(have) != len(kernel.params):
        raise VerifyError(f"kernel {kernel.name} uses parameters {used}, declares {have}")
    if any(p.dtype not in (("int32",) if p.per_batch else ("int32", "float32", "float64"))
           or not p.name.isidentifier() for p in kernel.params):
        raise VerifyError(f"kernel {kernel.name}: parameters are int32 identifiers, or floats that "
                          "are one for the whole batch")
    typed = {(n.attr("name"), n.dtype) for n in named}
    if typed - {(p.name, p.dtype) for p in kernel.params}:
        raise VerifyError(f"kernel {kernel.name} uses parameters {sorted(typed)} of other types")


def _expected(kernel: Kernel, axis: str) -> int:
    if axis in (kernel.keep, kernel.loop):
        return kernel.schedule.block_m if axis == kernel.keep else kernel.schedule.block_n
    pad = _PAD[kernel.schedule.engine] if kernel.stage == "placed" else 1
    return -(-kernel.size({"d": "head_dim", "e": "head_dim_v"}[axis]) // pad) * pad


def check_values(kernel: Kernel) -> None:
    """Names are unique, shapes are the schedule's tiles, spaces fit the engine."""
    names = [v.name for v in kernel.values]
    if len(set(names)) != len(names):
        raise VerifyError(f"kernel {kernel.name}: two values share a name")
    for v in kernel.values:
        if not v.name.isidentifier() or not v.name.isascii():
            raise VerifyError(f"value name {v.name!r} is no identifier")
        if v.axes != tile_axes(v.axes, kernel.keep, kernel.loop):
            raise VerifyError(f"value {v.name} has axes {list(v.axes)}: tiles have "
                              f"{kernel.keep}, {kernel.loop}, d or e, in this order")
        if v.shape != tuple(_expected(kernel, a) for a in v.axes) or v.dtype not in BYTES:
            raise VerifyError(f"value {v.name}: shape {v.shape} for axes {v.axes}, {v.dtype}")
        if kernel.stage == "tiled" and v.space:
            raise VerifyError(f"value {v.name} has a space before placement")


def check_flow(kernel: Kernel) -> None:
    """Every value is written before it is read, and every value is used.

    A loop may have no tiles and a tile may be full: what is first written in a loop, or on partial
    tiles only, is read there only.
    """
    used: set[str] = set()

    def visit(body: tuple[Stmt, ...], known: set[str], on_partial: set[str]) -> None:
        for stmt in body:
            partial = isinstance(stmt, Map) and stmt.when == "partial"
            missing = [n for n in reads(stmt)
                       if n not in known and not (partial and n in on_partial)]
            if missing:
                raise VerifyError(f"{kernel.name}: {type(stmt).__name__} reads {missing[0]} "
                                  "before it is written")
            used.update(reads(stmt))
            if isinstance(stmt, Map):  # values assigned and read within one statement
                used.update(n.attr("name") for n in walk(*stmt.exprs) if n.op == "value")
            if isinstance(stmt, Loop):
                visit(stmt.body, set(known), set(on_partial))
            (on_partial if partial else known).update(writes(stmt))

    visit(kernel.body, set(), set())
    have = {v.name for v in kernel.values}
    written = {n for s in statements(kernel.body) for n in writes(s)}
    if written != have or have - used:
        raise VerifyError(f"{kernel.name}: written {sorted(written - have)} without declaring, "
                          f"declared without writing {sorted(have - written)}, never read "
                          f"{sorted(have - used)}")


def check_statement(kernel: Kernel, stmt: Stmt) -> None:
    """Axes and kinds of one statement."""
    if kernel.stage == "tiled" and isinstance(stmt, _PLACED_ONLY):
        raise VerifyError(f"{type(stmt).__name__} before placement")
    match stmt:
        case Load(dst=d, tensor=t) | Issue(dst=d, tensor=t) | Store(tensor=t, src=d):
            axes = [a for a in kernel.tensor(t).seen if a not in ("b", "h", "g", "split")]
            if sorted(axes) != sorted(kernel.value(d).axes):
                raise VerifyError(f"{type(stmt).__name__} {d}: tile axes "
                                  f"{kernel.value(d).axes}, tensor axes {kernel.tensor(t).axes}")
        case Fill(dst=d, number=x):
            if x not in (0.0, float("-inf")):
                raise VerifyError(f"fill {d} with {x}: accumulators start at 0 or -inf")
        case Mma(dst=d, a=a, b=b, over=o):
            _check_product(kernel, d, a, b, o)
        case Map():
            _check_map(kernel, stmt)
        case Reduce(dst=d, kind=kind, src=s, over=o, lanes=lanes):
            left = tuple(x for x in kernel.value(s).axes if x != o)
            if kind not in ("sum", "max") or left != kernel.value(d).axes or o not in \
                    kernel.value(s).axes or lanes not in ("now", "later"):
                raise VerifyError(f"reduce {kind} {s} over {o} into {d}, lanes {lanes}")
        case Copy(dst=d, src=s):
            if kernel.value(d).axes != kernel.value(s).axes:
                raise VerifyError(f"copy {s} to {d}: different axes")
        case Loop(axis=axis, begin=b, end=e, full_begin=fb, full_end=fe):
            if axis != kernel.loop or any(
                    kernel.value(n).axes or kernel.value(n).dtype != "int32"
                    for n in (b, e, fb, fe)):
                raise VerifyError(f"loop over {axis} with bounds {b}, {e}, {fb}, {fe}")
            asks = any(isinstance(s, Map) and s.when == "partial"
                       for s in statements(kernel.body))
            full = ("n_full_begin", "n_full_end") if asks else ("n_begin", "n_end")
            if (b, e) != ("n_begin", "n_end") or (fb, fe) != full:
                raise VerifyError(f"loop bounds {b}, {e}, {fb}, {fe} are not the tile range")
            _check_visits(kernel, stmt, asks)


def _check_visits(kernel: Kernel, loop: Loop, asks: bool) -> None:
    """Conditions on tiles, the same for every loop of the kernel, as they share its range."""
    others = [s for s in kernel.body if isinstance(s, Loop)]
    if any((s.visible, s.full) != (loop.visible, loop.full) for s in others):
        raise VerifyError(f"{kernel.name}: loops over {loop.axis} that visit different tiles")
    if loop.full is not None and not asks:
        raise VerifyError(f"{kernel.name}: a loop asks which tiles are full, no statement does")
    for n in (loop.visible, loop.full):
        if n is None:
            continue
        if n.dtype != "bool" or {kernel.keep, kernel.loop} & set(n.axes):
            raise VerifyError(f"{kernel.name}: {formula(n)} is no condition on a tile")
        stray = [m.op for m in walk(n) if OPS[m.op].group not in ("scalar", "leaf", "proof")
                 or m.op in ("input", "value")]
        if stray:
            raise VerifyError(f"{kernel.name}: {stray[0]} in a condition on a tile")


def _check_product(kernel: Kernel, d: str, a: str, b: str, over: str) -> None:
    x, y, out = kernel.value(a), kernel.value(b), kernel.value(d)
    if over not in x.axes or over not in y.axes or kernel.keep not in x.axes:
        raise VerifyError(f"product {a}·{b} over {over}: operands {x.axes}, {y.axes}")
    if set(out.axes) != (set(x.axes) | set(y.axes)) - {over}:
        raise VerifyError(f"product {a}·{b} over {over} into {out.axes}")


def _check_map(kernel: Kernel, stmt: Map) -> None:
    if stmt.when not in ("always", "partial") or len(stmt.dsts) != len(stmt.exprs):
        raise VerifyError(f"map {stmt.dsts}: when {stmt.when!r}")
    for dst, expr in zip(stmt.dsts, stmt.exprs, strict=True):
        v = kernel.value(dst)
        if v.axes != stmt.axes:
            raise VerifyError(f"map over {stmt.axes} writes {dst} with axes {v.axes}")
        if expr.dtype != v.dtype:
            raise VerifyError(f"map {dst}: a {expr.dtype} expression for a {v.dtype} value")
        for n in walk(expr):
            if OPS[n.op].group not in ("scalar", "leaf") or n.op == "input":
                raise VerifyError(f"map {dst}: {n.op} is no scalar operation")
            if n.op == "value":
                source = kernel.value(n.attr("name"))
                if set(source.axes) - set(stmt.axes) or source.dtype != n.dtype:
                    raise VerifyError(f"map {dst} over {stmt.axes} reads {source.name} "
                                      f"{source.dtype}{source.axes} as {n.dtype}")
        if stmt.when == "partial" and dst not in reads(stmt) and not all(
                isinstance(s, Map) and s.when == "partial"
                for s in statements(kernel.body) if dst in reads(s)):
            raise VerifyError(f"map {dst} on partial tiles only must update it in place, or be "
                              "read on partial tiles only")
