"""Invariants of placed kernels: spaces, shared memory, the ring, lanes, synchronisation."""

from __future__ import annotations

from ..errors import VerifyError
from .lanes import only_rescales
from .ops import EIGHT_BIT
from .registers import registers
from .ring import ring_operands
from .stmt import (
    Copy,
    Issue,
    Kernel,
    LaneReduce,
    Load,
    Loop,
    Map,
    Mma,
    Reduce,
    Store,
    Value,
    Wait,
    reads,
    statements,
)
from .sync import sync_problem

BYTES = {"int8": 1, "float8_e4m3": 1, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8,
         "int32": 4, "int64": 8, "bool": 1}

# What a space holds: nothing but a number, one number a row or a column, a tile of the kernel's
# rows, or any tile.
_HOLDS = {"scalar": "number", "row": "rows", "column": "columns", "fragment": "row tile",
          "operand": "row tile", "array": "row tile", "lines": "row tile", "shared": "tile",
          "rows": "tile",
          "view": "tile"}
_SPACES = {
    "mma": ("scalar", "row", "column", "fragment", "operand", "shared"),
    "simt": ("scalar", "row", "column", "fragment", "shared"),
    "cpu": ("scalar", "row", "column", "array", "lines", "rows", "view"),
}
_FOR_PRODUCTS = ("shared", "operand", "rows", "view")
_STORED = {"mma": ("float16", "bfloat16", "float32", *EIGHT_BIT), "simt": ("float32", *EIGHT_BIT),
           "cpu": ("float16", "bfloat16", "float32", "float64", *EIGHT_BIT)}


def check_placement(kernel: Kernel) -> None:
    """Everything that must hold of a placed kernel beside what holds of a tiled one."""
    engine = kernel.schedule.engine
    multiplies = any(isinstance(s, Mma) for s in statements(kernel.body))
    stored = _STORED["mma" if engine == "simt" and not multiplies else engine]
    for t in kernel.tensors:
        if t.dtype not in stored:
            raise VerifyError(f"tensor {t.name} is {t.dtype}: {engine} takes {', '.join(stored)}")
    for v in kernel.values:
        check_space(kernel, v)
    check_shared(kernel)
    check_lanes(kernel)
    for stmt in statements(kernel.body):
        if isinstance(stmt, Map | Reduce | Store | Copy):
            packed = [n for n in reads(stmt) if kernel.value(n).space in _FOR_PRODUCTS]
            if packed:
                raise VerifyError(f"{type(stmt).__name__} reads {packed[0]}, which only products "
                                  "do where it lies")
    if engine == "cpu":
        if kernel.registers:
            raise VerifyError(f"{kernel.name}: registers are not counted on a CPU")
        return
    check_ring(kernel)
    for stmt in statements(kernel.body):
        if isinstance(stmt, Mma):
            check_matrices(kernel, stmt)
    if kernel.registers != registers(kernel):
        raise VerifyError(f"{kernel.name}: {kernel.registers} registers stated, "
                          f"{registers(kernel)} derived")
    problem = sync_problem(kernel)
    if problem:
        raise VerifyError(f"{kernel.name}: {problem}")


def check_space(kernel: Kernel, v: Value) -> None:
    """The space exists on the engine and holds values of these axes."""
    engine = kernel.schedule.engine
    if kernel.schedule.lanes == "columns" and v.space in ("array", "rows"):
        raise VerifyError(f"value {v.name}: {v.space} has rows as lanes, the kernel columns")
    if v.space not in _SPACES[engine]:
        raise VerifyError(f"value {v.name}: no {v.space or 'missing'!r} space on {engine}; it has "
                          f"{', '.join(_SPACES[engine])}")
    by_row = kernel.keep in v.axes
    found = {0: ("number",), 1: ("rows",) if by_row else ("columns",),
             2: ("tile", "row tile") if by_row else ("tile",)}.get(len(v.axes), ())
    if _HOLDS[v.space] not in found:
        raise VerifyError(f"value {v.name}: a {v.space} value has no axes {list(v.axes)}")
    stored = v.space in ("shared", "operand")
    if v.dtype in ("float16", "bfloat16") and not stored:
        raise VerifyError(f"value {v.name}: arithmetic on {v.dtype} in {v.space}")


def check_shared(kernel: Kernel) -> None:
    """Tiles lie one after the other, in the widest panels, and add up to what is stated."""
    end = 0
    for v in kernel.values:
        if v.space != "shared":
            if (v.stages, v.offset, v.panel) != (1, 0, 0):
                raise VerifyError(f"value {v.name} in {v.space}: stages, offset and panel belong "
                                  "to shared memory")
            continue
        width = BYTES[v.dtype] * v.shape[1]
        row = next((n for n in (128, 64, 32) if width % n == 0), 0)
        if v.offset != end or not row or v.panel * BYTES[v.dtype] != row:
            raise VerifyError(f"shared value {v.name}: offset {v.offset} (tiles before end at "
                              f"{end}), panel {v.panel} of {v.shape[1]} columns")
        end += v.stages * v.shape[0] * width
    if end != kernel.shared_bytes:
        raise VerifyError(f"{kernel.name}: {kernel.shared_bytes} B shared memory stated, tiles "
                          f"take {end} B")


def check_ring(kernel: Kernel) -> None:
    """Depths are the schedule's, copies are whole tiles, and each moves with the loop or not."""
    operands = ring_operands(kernel)
    depths = tuple(kernel.value(name).stages for name in operands)
    if depths != kernel.schedule.stages:
        raise VerifyError(f"{kernel.name}: ring operands {', '.join(operands) or 'none'} have "
                          f"{depths} stages, the schedule has {kernel.schedule.stages}")
    for v in kernel.values:
        if v.stages != 1 and v.name not in operands:
            raise VerifyError(f"shared value {v.name}: {v.stages} stages, but no ring")
    for stmt in statements(kernel.body):
        match stmt:
            case Load(dst=d) if kernel.value(d).space == "shared":
                raise VerifyError(f"load {d}: shared memory is filled by Issue or Copy")
            case Issue(dst=d, tensor=t, ahead=ahead):
                v = kernel.value(d)
                stored = kernel.tensor(t).dtype
                widened = stored in EIGHT_BIT and kernel.schedule.vector_bytes != 16
                if v.space != "shared" or v.dtype != stored and not widened:
                    raise VerifyError(f"issue {d}: copies {t} as it is into shared memory, not "
                                      f"into {v.dtype} {v.space}")
                if (ahead is None) == (kernel.loop in v.axes) or (ahead or 0) < 0:
                    raise VerifyError(f"issue {d} ahead {ahead}: a tile moves with the loop or "
                                      "has no ahead")
            case Wait(pending=n) if n < 0:
                raise VerifyError(f"wait pending {n}: at least 0")


def check_lanes(kernel: Kernel) -> None:
    """A reduction put off across lanes is finished once, after its loop, and only rescaled before;
    one that is not put off is not finished again. On a CPU a lane has all of its row."""
    late: dict[str, str] = {}
    for stmt in statements(kernel.body):
        if isinstance(stmt, Reduce) and stmt.lanes == "later":
            if kernel.schedule.engine == "cpu":
                raise VerifyError(f"reduce {stmt.dst}: nothing to put off on a CPU")
            late[stmt.dst] = stmt.kind
    finished = [s.dst for s in kernel.body if isinstance(s, LaneReduce)]
    if sorted(finished) != sorted(late):
        raise VerifyError(f"{kernel.name}: reductions {sorted(late)} are put off across lanes, "
                          f"{sorted(finished)} are finished")
    for stmt in kernel.body:
        if isinstance(stmt, LaneReduce):
            if late.pop(stmt.dst) != stmt.kind:
                raise VerifyError(f"{stmt.dst}: lanes are joined with {stmt.kind}, rows were not")
            continue
        for inner in stmt.body if isinstance(stmt, Loop) else (stmt,):
            for name in reads(inner):
                if name in late and not only_rescales(inner, name):
                    raise VerifyError(f"{name} is read before its lanes are joined, when each "
                                      "has only a part of it")


def check_matrices(kernel: Kernel, stmt: Mma) -> None:
    """Operands of a product on a GPU are where matrix instructions read them."""
    x, y, out = kernel.value(stmt.a), kernel.value(stmt.b), kernel.value(stmt.dst)
    what = f"product {stmt.a}·{stmt.b}"
    if x.space not in ("shared", "operand") or y.space != "shared":
        raise VerifyError(f"{what}: operands in {x.space} and {y.space}")
    if x.dtype != y.dtype or out.space != "fragment" or out.dtype != "float32":
        raise VerifyError(f"{what}: {x.dtype}·{y.dtype} into {out.dtype} {out.space}")
    wanted = {"mma": ("float16", "bfloat16"), "simt": ("float32",)}[kernel.schedule.engine]
    if x.dtype not in wanted:
        raise VerifyError(f"{what}: {kernel.schedule.engine} does not take {x.dtype}")
