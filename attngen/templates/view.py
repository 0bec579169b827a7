"""The one object a CUDA template sees: a placed kernel as names, types and ready expressions."""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.stmt import Kernel, Value
from .abi import params_fields
from .block_order import block_order
from .body import Body
from .code import Code, comment
from .context import Context
from .expressions import c_type
from .geometry import AXIS_NOTES, SIZE, TILE, Columns, Geometry, geometry
from .lifetimes import stored_last
from .names import c_name, entry_name
from .statements import Line, StatementView
from .storage import (
    ELEMENT,
    LaneOffset,
    SharedTile,
    TensorView,
    begins,
    by_head_divisor,
    copy_source,
    table_field,
    tensor_view,
)


@dataclass(frozen=True)
class Constant:
    """``constexpr int name = value;  // note``"""

    name: Code
    value: Code | int
    note: Code


@dataclass(frozen=True)
class HeadTable:
    """Position along ``g`` of each query head, for a map that is no plain division."""

    name: Code
    heads: tuple[int, ...]

    @property
    def runs(self) -> tuple[HeadRun, ...]:
        """Neighbouring query heads with one position."""
        ends = [n + 1 for n, g in enumerate(self.heads) if self.heads[n + 1:n + 2] != (g,)]
        return tuple(HeadRun(end, self.heads[end - 1]) for end in ends)


@dataclass(frozen=True)
class HeadRun:
    """Query heads before ``end``, from where the last run ended, and their position."""

    end: int
    head: int


@dataclass(frozen=True)
class KernelView:
    """Everything the skeleton and its macros print; ``body`` in program order."""

    entry: Code
    summary: tuple[Code, ...]
    notation: tuple[Line, ...]
    constants: tuple[Constant, ...]
    fields: tuple[Line, ...]
    engine: str
    plain_columns: bool
    quad_columns: Columns | None
    row_step: Code
    first_row: Code
    lanes_per_row: tuple[int, ...]
    uses: frozenset[str]
    tiles: tuple[SharedTile, ...]
    offsets: tuple[LaneOffset, ...]
    tensors: tuple[Line, ...]
    sources: tuple[Line, ...]
    params: tuple[Line, ...]
    tables: tuple[HeadTable, ...]
    heads: tuple[Line, ...]
    keep: Code
    keep_tile: Code
    keep_size: Code
    keep_last: bool
    block_b: Code
    head: Code
    block_head: Code
    block_split: Code | None
    block_keep: Code
    reversed_blocks: bool
    idle: Code | None
    rings: tuple[int, ...]
    copies: str
    declared: tuple[Code, ...]
    body: tuple[StatementView, ...]


def view_cuda(kernel: Kernel, target: str) -> KernelView:
    """The view of a placed kernel. Raises VerifyError for what no CUDA kernel can hold."""
    shape = geometry(kernel)
    heads, tables, tensors = _tensors(kernel)
    context = Context(kernel, shape, tensors)
    body = Body(context)
    keep_size = context.size(shape.keep)
    order = block_order(kernel)
    columns = tuple(shape.columns(a) for a in _column_axes(kernel, shape))
    return KernelView(
        entry=entry_name(kernel),
        summary=_summary(kernel, target),
        notation=_notation(kernel),
        constants=_constants(kernel, shape, columns),
        fields=_fields(kernel),
        engine=kernel.schedule.engine,
        plain_columns=any(c.function == "col_of" for c in columns),
        quad_columns=next((c for c in columns if c.quads), None),
        row_step=_row_step(shape),
        first_row=_first_row(shape),
        lanes_per_row=(1, 2) if shape.engine == "mma" else (1, 2, 4, 8),
        uses=frozenset(context.used | ({"warp"} if "row0" in context.used else set())),
        tiles=tuple(context.tiles.values()),
        offsets=tuple(context.offsets.values()),
        tensors=tuple(t.declaration for name, t in tensors.items()
                      if name not in context.late),
        sources=tuple(copy_source(context.tiles[dst], kernel.tensor(name),
                                  kernel.value(dst).axes[0])
                      for dst, name in context.copies.items()
                      if not kernel.tensor(name).place),
        params=_params(kernel, context.used),
        tables=tables,
        heads=heads,
        keep=Code(shape.keep),
        keep_tile=TILE[shape.keep],
        keep_size=keep_size,
        keep_last=f"{shape.keep}_last" in context.used,
        block_b=order.number("b"),
        head=Code(kernel.head),
        block_head=order.number(kernel.head),
        block_split=order.number("split") if kernel.split else None,
        block_keep=order.number(shape.keep),
        reversed_blocks=order.reversed,
        idle=_idle(kernel, keep_size, order.reversed),
        rings=context.rings,
        copies="async" if kernel.schedule.vector_bytes == 16 else "scalar",
        declared=body.declarations(()),
        body=body.statements,
    )


def _column_axes(kernel: Kernel, shape: Geometry) -> tuple[str, ...]:
    spread = [v for v in kernel.values if v.space in ("fragment", "column")]
    return tuple(sorted({a for v in spread for a in v.axes if a != shape.keep}, reverse=True))


def _idle(kernel: Kernel, keep_size: Code, reverse: bool) -> Code | None:
    """When a block of the grid, which is that of the longest sequence, is past the end of its own
    sequence. Blocks counted from the end on are before its beginning."""
    if not kernel.packed:
        return None
    first = f"{kernel.keep}_first"
    return Code(f"{first} < 0" if reverse else f"{first} >= {keep_size}")


def _row_step(shape: Geometry) -> Code:
    if shape.engine == "mma":
        return Code("8 * r")
    return Code("r / 4 * 8 + r % 4" if shape.row_group == 4 else "2 * r")


def _first_row(shape: Geometry) -> Code:
    within = "lane / 4" if shape.engine == "mma" else (
        "lane / 16 * 4" if shape.row_group == 4 else "lane / 16")
    return Code(f"warp * WARP_ROWS + {within}")


def _tensors(kernel: Kernel) -> tuple[tuple[Line, ...], tuple[HeadTable, ...],
                                      dict[str, TensorView]]:
    """Head positions along ``g``, one per distinct map, and the tensors moved to them."""
    names: dict[tuple[int, ...] | None, str] = {}
    late = stored_last(kernel)
    lines, tables, views = [], [], {}
    for tensor in kernel.tensors:
        if tensor.by_head and tensor.by_head not in names:
            name = "g" if not names else f"g{len(names)}"
            names[tensor.by_head] = name
            divisor = by_head_divisor(tensor.by_head) if tensor.by_head else 1
            if divisor is None:
                assert tensor.by_head is not None
                tables.append(HeadTable(Code(f"{name}_of"), tensor.by_head))
                text = f"const int {name} = {name}_of(h);"
            else:
                text = f"const int {name} = h / {divisor};" if divisor > 1 else (
                    f"const int {name} = h;")
            lines.append(Line(Code(text), comment("key/value head of query head h")))
        views[tensor.name] = tensor_view(tensor, names.get(tensor.by_head, kernel.head),
                                         tensor.name in late, kernel.serial)
    return tuple(lines), tuple(tables), views


def _fields(kernel: Kernel) -> tuple[Line, ...]:
    elements = {c_name(t.name): t for t in kernel.tensors}
    tables = {c_name(t.name): t for t in kernel.tables}
    lines = []
    for name, kind in params_fields(kernel):
        if table := tables.get(Code(name)):
            lines.append(table_field(table))
        elif kind == "pointer":
            tensor = elements.get(Code(name))
            const = "const " if tensor is None or tensor.role == "input" else ""
            element = ELEMENT[tensor.dtype] if tensor else "int"
            note = f"[{' '.join(tensor.axes)}]" if tensor else "one per batch entry, or null"
            lines.append(Line(Code(f"{const}{element}* {name};"), comment(note)))
        else:
            text = {"int64": "i64", "float64": "double", "int32": "int", "float32": "float"}[kind]
            lines.append(Line(Code(f"{text} {name};"), Code("")))
    return tuple(lines)


def _params(kernel: Kernel, used: set[str]) -> tuple[Line, ...]:
    lines = []
    for p in kernel.params:
        if p.name not in used | begins(kernel):
            continue
        name = c_name(p.name)
        value = f"params.{name}"
        if p.per_batch:
            value = f"params.{name}_ptr ? load_global(params.{name}_ptr + b) : {value}"
        lines.append(Line(Code(f"const {c_type(p.dtype)} {name} = {value};"), Code("")))
    return tuple(lines)


def _constants(kernel: Kernel, shape: Geometry,
               columns: tuple[Columns, ...]) -> tuple[Constant, ...]:
    rows = shape.keep
    made = []
    for axis, extent in shape.extents:
        size = SIZE[axis]
        if size.isupper():
            made.append(Constant(Code(size), kernel.size(size.lower()),
                                 comment(f"columns along {axis}")))
            unit = 16 if shape.engine == "mma" else 8
            made.append(Constant(TILE[axis], extent,
                                 comment(f"the same, rounded up to a multiple of {unit}")))
        else:
            what = "rows of a block" if axis == rows else "columns of one step of the loop"
            made.append(Constant(TILE[axis], extent, comment(f"{what}, axis {axis}")))
    schedule = kernel.schedule
    made += [
        Constant(Code("NUM_WARPS"), schedule.warps, comment("they share the rows")),
        Constant(Code("NUM_THREADS"), Code("32 * NUM_WARPS"), Code("")),
        Constant(Code("MIN_BLOCKS"), schedule.min_blocks,
                 comment("blocks a multiprocessor should hold at once")),
        Constant(Code("WARP_ROWS"), Code(f"{TILE[rows]} / NUM_WARPS"), Code("")),
        Constant(Code("ROWS"), Code(f"WARP_ROWS / {8 if shape.engine == 'mma' else 2}"),
                 comment("rows of a fragment in one thread")),
    ]
    lanes = 4 if shape.engine == "mma" else 16
    for c in columns:
        tile = TILE[c.axis]
        exact = shape.extent(c.axis) == shape.reach(c.axis)
        made.append(Constant(c.name, Code(f"{tile} / {lanes}") if exact else c.count,
                             comment(f"columns along {c.axis} in one thread")))
    return tuple(made)


def _summary(kernel: Kernel, target: str) -> tuple[Code, ...]:
    schedule = kernel.schedule
    outputs = [t.name for t in kernel.tensors if t.role != "input"]
    inputs = [t.name for t in kernel.tensors if t.role == "input"]
    grid = ", ".join(f"{g.axis} by {g.tile}" if g.tile > 1 else g.axis for g in kernel.grid)
    stages = ", ".join(f"{v.name} x{v.stages}" for v in kernel.values if v.space == "shared")
    lines = [
        f"{kernel.name} for {target}: {', '.join(outputs)} from {', '.join(inputs)}.",
        f"A block computes one tile of {kernel.keep} and walks the tiles of {kernel.loop}. "
        f"Grid: {grid}.",
        f"Schedule: {schedule.block_m} x {schedule.block_n} tiles, {schedule.warps} warps, "
        f"{schedule.engine}" + (f"; shared {stages}: {kernel.shared_bytes} bytes." if stages
                                else "."),
    ]
    return tuple(comment(line) for line in lines)


_SPACES = {"scalar": "one per block", "row": "one per row", "column": "one per column",
           "fragment": "in registers", "operand": "in registers, ready to multiply",
           "shared": "in shared memory"}


def _notation(kernel: Kernel) -> tuple[Line, ...]:
    axes = dict.fromkeys(a for t in kernel.tensors for a in t.axes)
    axes.update(dict.fromkeys(a for v in kernel.values for a in v.axes))
    lines = [Line(Code(a), comment(AXIS_NOTES[a])) for a in AXIS_NOTES if a in axes]
    lines += [Line(c_name(v.name), _value_note(v)) for v in kernel.values]
    return tuple(lines)


def _value_note(value: Value) -> Code:
    shape = f"[{' x '.join(TILE[a] for a in value.axes)}] " if value.axes else ""
    what = _SPACES.get(value.space, value.space)
    ring = f", a ring of {value.stages}" if value.stages > 1 else ""
    return comment(f"{shape}{value.dtype} {what}{ring}"
                   + (f": {value.origin}" if value.origin else ""))
