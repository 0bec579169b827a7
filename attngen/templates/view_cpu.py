"""The one object a CPU template sees: a placed kernel as names, types and ready expressions."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from ..errors import ScheduleError, VerifyError
from ..ir.node import walk
from ..ir.stmt import Kernel, Map, Value
from ..ir.tensor import Tensor
from .abi import Pairs, params_fields
from .body_cpu import ELEMENT, EXTENT, Body, local_name
from .body_cpu_columns import ColumnBody
from .code import Code, comment
from .expressions import c_type
from .geometry import AXIS_NOTES, SIZE
from .names import c_name, entry_name
from .statements import StatementView
from .storage import begins, block_start, by_head_divisor, table_field
from .view import Constant, HeadTable, Line

BYTES = {"float64": 8, "float32": 4, "int32": 4, "int64": 8, "bool": 1}
# Local arrays live on the stack of the thread: a thread has 8 MiB by default, and the calling
# thread's own frames need some of it.
STACK_BYTES = 2 * 1024 * 1024


@dataclass(frozen=True)
class KernelView:
    """Everything the skeleton and its macros print; ``body`` in program order."""

    entry: Code
    summary: tuple[Code, ...]
    notation: tuple[Line, ...]
    constants: tuple[Constant, ...]
    fields: tuple[Line, ...]
    real: Code  # the type arithmetic happens in
    params: tuple[Line, ...]
    tables: tuple[HeadTable, ...]
    heads: tuple[Line, ...]
    tensors: tuple[Line, ...]
    declared: tuple[Line, ...]
    keep: Code
    keep_tile: Code
    keep_size: Code
    keep_field: Code
    keep_what: Code
    keep_last: bool
    longest_first: bool
    head: Code
    head_count: Code
    by_row: bool
    split: bool
    packed: bool
    work: Code
    body: tuple[StatementView, ...]


def cpu_fields(kernel: Kernel) -> Pairs:
    """The members of ``Params``: those of every target, and the number of batch entries, which a
    GPU has from its grid."""
    return (*params_fields(kernel), ("batch", "int32"))


def view_cpu(kernel: Kernel) -> KernelView:
    """The view of a placed kernel. Raises VerifyError for what no CPU kernel can hold and
    ScheduleError for tiles the lanes or the stack do not take."""
    _check(kernel)
    body = ColumnBody(kernel) if kernel.schedule.lanes == "columns" else Body(kernel)
    statement_views = body.build(kernel.body)
    keep_size = body.size(kernel.keep)
    heads, tables, tensors = _tensors(kernel)
    double = any(v.dtype == "float64" for v in kernel.values)
    return KernelView(
        entry=entry_name(kernel),
        summary=_summary(kernel),
        notation=_notation(kernel),
        constants=_constants(kernel),
        fields=_fields(kernel),
        real=Code("double" if double else "float"),
        params=_params(kernel, body.used),
        tables=tables,
        heads=heads,
        tensors=tensors,
        declared=_declared(kernel, body),
        keep=Code(kernel.keep),
        keep_tile=EXTENT[kernel.keep],
        keep_size=keep_size,
        keep_field=c_name(SIZE[kernel.keep]),
        keep_what=_PLURAL[kernel.keep],
        keep_last=f"{kernel.keep}_last" in body.used,
        longest_first=_bounds_move(kernel) and not kernel.split,
        head=Code(kernel.head),
        head_count=_HEADS[kernel.head],
        by_row=not body.by_column,
        split=kernel.split,
        packed=kernel.packed,
        work=_work(kernel),
        body=statement_views,
    )


def _check(kernel: Kernel) -> None:
    extents = {kernel.loop: kernel.loop_tile, kernel.keep: kernel.schedule.block_m,
               "d": kernel.size("head_dim"), "e": kernel.size("head_dim_v")}
    for v in kernel.values:
        for axis, extent in zip(v.axes, v.shape, strict=True):
            if extent != extents[axis]:
                raise VerifyError(f"{v.name} has {extent} elements along {axis}, the kernel has "
                                  f"{extents[axis]}", where=kernel.name)
    lanes = extents[kernel.keep]
    if lanes < 8 or lanes % 8:
        raise ScheduleError(f"{lanes} rows a tile do not fill vectors", where=kernel.name,
                            remedy="Rows are the lanes of vectors: take a multiple of 8.")
    sizes = {v.name: prod(v.shape) * BYTES[v.dtype] for v in kernel.values
             if v.space in ("array", "lines", "rows", "row", "column")}
    if sum(sizes.values()) > STACK_BYTES:
        big = sorted(sizes, key=lambda name: -sizes[name])[:4]
        raise ScheduleError(
            f"tile {kernel.schedule.block_m} x {kernel.schedule.block_n} needs "
            f"{sum(sizes.values())} B of local arrays, a thread's stack allows {STACK_BYTES} B",
            where=kernel.name, numbers=" + ".join(f"{n} {sizes[n]}" for n in big) + " + ...",
            remedy="Try a smaller block_m or block_n.")


def _bounds_move(kernel: Kernel) -> bool:
    """Do the loop bounds depend on the row tile? Then later tiles have more to do, or as much."""
    bounds = [m for m in kernel.body if isinstance(m, Map) and not m.axes]
    return any(n.op in ("first", "last") and n.attr("axis") == kernel.keep
               for m in bounds for n in walk(*m.exprs))


def _work(kernel: Kernel) -> Code:
    """About how many multiply-adds the whole call does."""
    lengths = [f"params->{c_name(SIZE[a])}" for a in (kernel.keep, kernel.loop)]
    heads = _HEADS[kernel.head]
    return Code(f"(double)params->batch * {heads} * {' * '.join(lengths)} * (HEAD_DIM "
                "+ HEAD_DIM_V)")


def _tensors(kernel: Kernel) -> tuple[tuple[Line, ...], tuple[HeadTable, ...], tuple[Line, ...]]:
    """Head positions along ``g``, one per distinct map, and the tensors moved to them."""
    names: dict[tuple[int, ...] | None, str] = {}
    heads, tables, tensors = [], [], []
    for tensor in kernel.tensors:
        if tensor.by_head and tensor.by_head not in names:
            name = "g" if not names else f"g{len(names)}"
            names[tensor.by_head] = name
            divisor = by_head_divisor(tensor.by_head) if tensor.by_head else 1
            if divisor is None:
                tables.append(HeadTable(Code(f"{name}_of"), tensor.by_head or ()))
                text = f"const int {name} = {name}_of[h];"
            else:
                text = f"const int {name} = h / {divisor};" if divisor > 1 else (
                    f"const int {name} = h;")
            heads.append(Line(Code(text), comment("key/value head of query head h")))
        tensors.append(_tensor(tensor, names.get(tensor.by_head, kernel.head), kernel.serial))
    return tuple(heads), tuple(tables), tuple(tensors)


def _tensor(tensor: Tensor, head: str, serial: bool) -> Line:
    pointer = f"const {ELEMENT[tensor.dtype]}*" if tensor.role == "input" else (
        f"{ELEMENT[tensor.dtype]}*")
    start = block_start(tensor, head, serial=serial)
    shape = " ".join(f"{a}:{SIZE[a]}" for a in tensor.axes
                     if a in SIZE and (a != "split" or serial))
    return Line(Code(f"{pointer} {local_name(tensor.name)} = {start};"),
                comment(f"[{shape}]"))


def _fields(kernel: Kernel) -> tuple[Line, ...]:
    tensors = {c_name(t.name): t for t in kernel.tensors}
    tables = {c_name(t.name): t for t in kernel.tables}
    lines = []
    for name, kind in cpu_fields(kernel):
        if table := tables.get(Code(name)):
            lines.append(table_field(table))
            continue
        if kind != "pointer":
            text = {"int64": "int64_t", "float64": "double", "int32": "int",
                    "float32": "float"}[kind]
            lines.append(Line(Code(f"{text} {name};"), Code("")))
            continue
        tensor = tensors.get(Code(name))
        const = "const " if tensor is None or tensor.role == "input" else ""
        element = ELEMENT[tensor.dtype] if tensor else "int"
        note = (f"[{' '.join(tensor.axes)}] {tensor.role}" if tensor
                else "one per batch entry, or null")
        lines.append(Line(Code(f"{const}{element}* {name};"), comment(note)))
    return tuple(lines)


def _params(kernel: Kernel, used: set[str]) -> tuple[Line, ...]:
    lines = []
    for p in kernel.params:
        if p.name not in used | begins(kernel):
            continue
        field = f"params.{c_name(p.name)}"
        value = f"{field}_ptr ? {field}_ptr[b] : {field}" if p.per_batch else field
        lines.append(Line(Code(f"const {c_type(p.dtype)} {local_name(p.name)} = {value};"),
                          Code("")))
    return tuple(lines)


def _declared(kernel: Kernel, body: Body) -> tuple[Line, ...]:
    lines = []
    for v in kernel.values:
        if v.space == "view" or body.declared_at_use(v):
            continue
        lanes_last = v.space == "array"
        axes = sorted(v.axes, key=lambda a: a == kernel.keep) if lanes_last else v.axes
        rows = EXTENT[kernel.keep] if body.by_column else "LANES"
        dims = "".join(f"[{rows if a == kernel.keep else EXTENT[a]}]" for a in axes)
        if v.space == "rows":
            dims = f"[{EXTENT[axes[0]]}][{body.pitch(v)}]"
        aligned = "alignas(64) " if dims else ""
        lines.append(Line(Code(f"{aligned}{c_type(v.dtype)} {local_name(v.name)}{dims};"),
                          comment(f"({', '.join(axes)}) {v.origin}" if axes else v.origin)))
    return tuple(lines)


def _constants(kernel: Kernel) -> tuple[Constant, ...]:
    schedule, keep = kernel.schedule, kernel.keep
    by_row = schedule.lanes == "rows"
    what = {keep: "rows of a tile" + ", which are the lanes of its vectors" * by_row,
            kernel.loop: "columns of one step of the loop"}
    extents = {kernel.loop: schedule.block_n, keep: schedule.block_m}
    tiles = [Constant(EXTENT[a], extents[a], comment(f"{_PLURAL[a]}: {what[a]}"))
             for a in ("i", "row", "j") if a in extents]
    return (
        *tiles,
        Constant(EXTENT["d"], kernel.size("head_dim"), comment("columns of q and k")),
        Constant(EXTENT["e"], kernel.size("head_dim_v"), comment("columns of v and o")),
        Constant(_HEADS[kernel.head], kernel.size("groups" if kernel.head == "g" else "heads"),
                 comment("key/value heads" if kernel.head == "g" else "query heads")),
        *([] if schedule.lanes == "columns" else [Constant(Code("LANES"), EXTENT[keep], Code(""))]),
    )


def _summary(kernel: Kernel) -> tuple[Code, ...]:
    outputs = [t.name for t in kernel.tensors if t.role != "input"]
    inputs = [t.name for t in kernel.tensors if t.role == "input"]
    schedule = kernel.schedule
    return tuple(comment(line) for line in (
        f"{kernel.name} for cpu: {', '.join(outputs)}"
        + (f" from {', '.join(inputs)}." if inputs else "."),
        f"A thread takes one tile of {kernel.keep} at a time, of one batch entry and head, and "
        f"walks the tiles of {kernel.loop}.",
        f"Schedule: {schedule.block_m} x {schedule.block_n} tiles.",
        *_ORIENTATION[schedule.lanes]))


_ORIENTATION = {
    "rows": ("Rows are lanes of vectors throughout: sums over columns stay within a lane, and "
             "products",
             "multiply lanes by single numbers of k and v, which are read in order."),
    "columns": ("Rows are few, so columns are lanes of vectors: k and v are read once, as they "
                "lie, for all rows.",)}


_PLURAL = {"i": Code("queries"), "row": Code("rows"), "j": Code("keys")}
_HEADS = {"h": Code("HEADS"), "g": Code("GROUPS")}
_SPACES = {"scalar": "a number", "row": "one per row", "column": "one per column",
           "array": "columns of lanes", "lines": "rows", "rows": "rows, copied",
           "view": "rows, read in place"}


def _notation(kernel: Kernel) -> tuple[Line, ...]:
    axes = dict.fromkeys(a for t in kernel.tensors for a in t.axes)
    axes.update(dict.fromkeys(a for v in kernel.values for a in v.axes))
    lines = [Line(Code(a), comment(AXIS_NOTES[a])) for a in AXIS_NOTES if a in axes]
    return tuple(lines + [Line(local_name(v.name), _value_note(v)) for v in kernel.values])


def _value_note(v: Value) -> Code:
    shape = f"[{' x '.join(EXTENT[a] for a in v.axes)}] " if v.axes else ""
    return comment(f"{shape}{v.dtype}, {_SPACES.get(v.space, v.space)}"
                   + (f": {v.origin}" if v.origin else ""))
