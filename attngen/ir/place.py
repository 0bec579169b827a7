"""Placement: every value gets a space, every copy a path, shared memory its offsets.

    Load q; Loop: Load k; s = q·k; p = …; p_op = copy p; acc += p_op·v        (mma)
  →   q, k, v in swizzled shared memory behind a ring of asynchronous copies;
      s, p, acc in fragments; p_op packed in registers as the next product's A operand

On CUDA cores (simt) p goes through shared memory instead; on a CPU values are arrays over lanes and
the column operand is read in place.
"""

from __future__ import annotations

from dataclasses import replace

from ..errors import ScheduleError, VerifyError
from .graph import Graph
from .lanes import finish_lanes
from .node import substitute, value, walk
from .registers import registers
from .ring import ring, ring_operands
from .schedule import Limits
from .sink import sink_partial, skip_on_full
from .stmt import (
    Barrier,
    Copy,
    Kernel,
    Load,
    Map,
    Mma,
    Reduce,
    Stmt,
    Store,
    Value,
    reads,
    rewrite_body,
    statements,
    writes,
)

BYTES = {"int8": 1, "float8_e4m3": 1, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8,
         "int32": 4, "int64": 8}
_PAD = {"mma": 16, "simt": 8, "cpu": 1}


def place(graph: Graph, limits: Limits) -> Graph:
    """Place every kernel of a tiled graph for its schedule's engine.

    Raises ScheduleError, with the arithmetic, when a tile does not fit the target.
    """
    return replace(graph, stage="placed",
                   kernels=tuple(_place(k, limits) for k in graph.tiles))


def _place(kernel: Kernel, limits: Limits) -> Kernel:
    engine = kernel.schedule.engine
    kernel = skip_on_full(kernel)
    if engine == "cpu":
        return replace(_cpu(kernel), stage="placed")
    kernel = _separate_uses(sink_partial(kernel))
    kernel = _widen(kernel, _loaded(kernel) - _multiplied(kernel))
    if engine == "simt":
        kernel = _through_shared(kernel)
    # The ring depths wanted, one per operand the loop loads; the last serves all that follow.
    wanted, operands = kernel.schedule.stages, ring_operands(kernel)
    depths = {name: wanted[min(n, len(wanted) - 1)] for n, name in enumerate(operands)}
    kernel = replace(kernel, values=tuple(_gpu_value(kernel, v, depths) for v in kernel.values),
                     schedule=replace(kernel.schedule, stages=tuple(depths.values())))
    kernel = ring(finish_lanes(kernel))
    kernel = _offsets(_drop_unused(kernel), limits)
    return replace(kernel, registers=registers(kernel), stage="placed")


# -- uses ---------------------------------------------------------------------------------------


def _loaded(kernel: Kernel) -> set[str]:
    return {s.dst for s in statements(kernel.body) if isinstance(s, Load)}


def _operands(kernel: Kernel, slot: str) -> set[str]:
    return {getattr(s, slot) for s in statements(kernel.body) if isinstance(s, Mma)}


def _multiplied(kernel: Kernel) -> set[str]:
    return _operands(kernel, "a") | _operands(kernel, "b")


def _drop_unused(kernel: Kernel) -> Kernel:
    used = {n for s in statements(kernel.body) for n in (*reads(s), *writes(s))}
    return replace(kernel, values=tuple(v for v in kernel.values if v.name in used))


# -- CPU ----------------------------------------------------------------------------------------


def _cpu(kernel: Kernel) -> Kernel:
    """Arithmetic is in float32 or float64 throughout, so copies to storage types fall away."""
    renamed = {s.dst: s.src for s in statements(kernel.body) if isinstance(s, Copy)}

    def change(stmt: Stmt) -> tuple[Stmt, ...]:
        if isinstance(stmt, Copy):
            return ()
        if isinstance(stmt, Mma):
            return (replace(stmt, a=renamed.get(stmt.a, stmt.a)),)
        return (stmt,)

    kernel = _drop_unused(replace(kernel, body=rewrite_body(kernel.body, change)))
    exact = {s.dst for s in statements(kernel.body) if isinstance(s, Load)
             and kernel.tensor(s.tensor).dtype == kernel.value(s.dst).dtype
             and kernel.value(s.dst).dtype in ("float32", "float64")}
    kernel = _widen(kernel, {v.name for v in kernel.values})
    loaded, columns = _loaded(kernel), _operands(kernel, "b")
    by_column = kernel.schedule.lanes == "columns"
    placed = {s.dst for s in statements(kernel.body)
              if isinstance(s, Load) and kernel.tensor(s.tensor).place}
    # Copies have padded rows. Rows that are not evenly spaced are copied, and those that are summed
    # over: they are walked down, where the tensor's own stride would often fall on the same few
    # cache lines.
    walked = {s.b for s in statements(kernel.body) if isinstance(s, Mma) and s.over == kernel.loop}
    values = []
    for v in kernel.values:
        if not v.axes:
            space = "scalar"
        elif v.name in loaded and v.name in columns:
            space = "view" if by_column or v.name in exact - walked - placed else "rows"
        elif len(v.axes) == 1:
            space = "row" if v.axes[0] == kernel.keep else "column"
        else:
            space = "lines" if by_column else "array"
        values.append(replace(v, space=space))
    return replace(kernel, values=tuple(values))


# -- GPU ----------------------------------------------------------------------------------------


def _gpu_value(kernel: Kernel, v: Value, depths: dict[str, int]) -> Value:
    pad = _PAD[kernel.schedule.engine]
    shape = tuple(-(-n // pad) * pad if a in ("d", "e") else n
                  for a, n in zip(v.axes, v.shape, strict=True))
    v = replace(v, shape=shape)
    if v.space:
        return v
    if not v.axes:
        return replace(v, space="scalar")
    if len(v.axes) == 1:
        return replace(v, space="row" if v.axes[0] == kernel.keep else "column")
    if v.name in _loaded(kernel) and v.name in _multiplied(kernel):
        return replace(v, space="shared", panel=_panel(v),
                       stages=depths.get(v.name, 1))
    copied = any(isinstance(s, Copy) and s.dst == v.name for s in statements(kernel.body))
    return replace(v, space="operand" if copied else "fragment")


def _panel(v: Value) -> int:
    """Columns of a swizzled panel: 128, 64 or 32 bytes, the widest that divides the row."""
    for row_bytes in (128, 64, 32):
        columns = row_bytes // BYTES[v.dtype]
        if v.shape[-1] % columns == 0:
            return columns
    raise VerifyError(f"{v.name}: {v.shape[-1]} columns of {v.dtype} are no multiple of 32 bytes")


def _separate_uses(kernel: Kernel) -> Kernel:
    """A loaded tile that is multiplied and also read element by element is loaded twice.

        x = load w; acc += x·v; r += Σ x   →   x = load w; x_r = load w; acc += x·v; r += Σ x_r
    """
    elsewhere = {n for s in statements(kernel.body) if not isinstance(s, Mma) for n in reads(s)}
    both = _loaded(kernel) & _multiplied(kernel) & elsewhere
    twins = {n: replace(kernel.value(n), name=f"{n}_r") for n in sorted(both)}

    def change(stmt: Stmt) -> tuple[Stmt, ...]:
        match stmt:
            case Load(dst=d) if d in twins:
                return stmt, replace(stmt, dst=twins[d].name)
            case (Reduce(src=s) | Copy(src=s) | Store(src=s)) if s in twins:
                return (replace(stmt, src=twins[s].name),)
        return (stmt,)

    kernel = replace(kernel, body=rewrite_body(kernel.body, change),
                     values=kernel.values + tuple(twins.values()))
    return _reading(kernel, twins)


def _widen(kernel: Kernel, names: set[str]) -> Kernel:
    """Values of storage types that are read element by element are float32: loads convert."""
    wide = {v.name: replace(v, dtype="float32") for v in kernel.values
            if v.name in names and v.dtype in ("float16", "bfloat16")}
    kernel = replace(kernel, values=tuple(wide.get(v.name, v) for v in kernel.values))
    return _reading(kernel, wide)


def _reading(kernel: Kernel, table: dict[str, Value]) -> Kernel:
    """The kernel with expressions that read other values in place of the named ones."""
    if not table:
        return kernel

    def change(stmt: Stmt) -> tuple[Stmt, ...]:
        if not isinstance(stmt, Map):
            return (stmt,)
        leaves = {n: table[n.attr("name")] for n in walk(*stmt.exprs)
                  if n.op == "value" and n.attr("name") in table}
        nodes = {n: value(v.name, n.axes, v.dtype) for n, v in leaves.items()}
        return (replace(stmt, exprs=tuple(substitute(e, nodes) for e in stmt.exprs)),)

    return replace(kernel, body=rewrite_body(kernel.body, change))


def _through_shared(kernel: Kernel) -> Kernel:
    """acc += p·v  →  p_s = copy p; barrier warp; acc += p_s·v, for a computed row operand."""
    loaded = _loaded(kernel)
    added: dict[str, Value] = {}

    def change(stmt: Stmt) -> tuple[Stmt, ...]:
        if not isinstance(stmt, Mma) or stmt.a in loaded:
            return (stmt,)
        source = kernel.value(stmt.a)
        if source.dtype != "float32":
            raise VerifyError(f"{source.name} is {source.dtype}: CUDA cores take float32 tensors")
        v = replace(source, name=f"{source.name}_s", space="shared", stages=1)
        added[v.name] = replace(v, panel=_panel(v))
        return (Copy(v.name, source.name, origin=stmt.origin), Barrier("warp"),
                replace(stmt, a=v.name))

    body = rewrite_body(kernel.body, change)
    return replace(kernel, body=body, values=kernel.values + tuple(added.values()))


def tile_bytes(v: Value) -> int:
    """Shared memory of all stages of a value."""
    return v.stages * v.shape[0] * v.shape[1] * BYTES[v.dtype]


def _offsets(kernel: Kernel, limits: Limits) -> Kernel:
    total = 0
    values = []
    for v in kernel.values:
        if v.space == "shared":
            v = replace(v, offset=total)
            total += tile_bytes(v)
        values.append(v)
    if total > limits.shared_bytes:
        raise ScheduleError(
            f"tile {kernel.schedule.block_m} x {kernel.schedule.block_n} needs {total} B of "
            f"shared memory, the target allows {limits.shared_bytes} B", where=kernel.name,
            numbers=" + ".join(f"{v.name} {tile_bytes(v)} ({v.stages} x {v.shape[0]} x "
                               f"{v.shape[1]} {v.dtype})" for v in values if v.space == "shared"),
            remedy=f"Try block_n={kernel.schedule.block_n // 2} or fewer stages, or leave the "
                   "schedule out to let the heuristic pick a legal one.")
    return replace(kernel, values=tuple(values), shared_bytes=total)
