"""Statements that work element by element: Fill, Map, Load and Store."""

from __future__ import annotations

from ..ir import stmt as ir
from ..ir.tensor import Tensor
from . import statements as out
from .code import Code
from .context import Context, Scope
from .expressions import c_number
from .names import c_name
from .storage import ELEMENT, ITEM_BYTES, offset


def fill(context: Context, stmt: ir.Fill, scope: Scope) -> out.Elements:
    """dst ← a constant."""
    value = context.kernel.value(stmt.dst)
    line = Code(f"{context.element(stmt.dst)} = {c_number(stmt.number, value.dtype)};")
    return out.Elements((), context.nest(value.axes), (line,))


def map_elements(context: Context, stmt: ir.Map, scope: Scope) -> out.Elements:
    """Each dst ← an expression, in order. A scalar's declaration is added where it is known."""
    indices: set[str] = set()
    lines = tuple(
        Code(f"{context.element(dst)} = {context.expression(expr, indices)};")
        for dst, expr in zip(stmt.dsts, stmt.exprs, strict=True))
    guard = Code("partial") if stmt.when == "partial" else None
    by_column = any(a in indices for a in stmt.axes if a != context.shape.keep)
    return out.Elements((), context.nest(stmt.axes, indices, by_column, guard is not None), lines,
                        guard)


def load(context: Context, stmt: ir.Load, scope: Scope) -> out.Elements:
    """Fragment, row or column ← tensor, zero outside it."""
    value, tensor = context.kernel.value(stmt.dst), context.kernel.tensor(stmt.tensor)
    if value.space not in ("fragment", "row", "column"):
        raise context.fail(f"{value.name}: Load fills registers; a tile in {value.space} "
                           "memory is issued")
    at = offset(tensor, context.position(tensor, value.axes))
    text = f"to_float(load_global({c_name(tensor.name)} + {at}))"
    if checks := context.outside(value.axes):
        text = f"{' && '.join(checks)} ? {text} : 0.0f"
    line = Code(f"{context.element(stmt.dst)} = {text};")
    return out.Elements((), context.nest(value.axes, set(value.axes)), (line,))


def store(context: Context, stmt: ir.Store, scope: Scope) -> out.Elements | out.StoreRows:
    """Tensor ← fragment or row, inside the tensor only."""
    value, tensor = context.kernel.value(stmt.src), context.kernel.tensor(stmt.tensor)
    if value.space == "fragment" and _whole_chunks(context, value, tensor):
        return _store_rows(context, value, tensor)
    at = offset(tensor, context.position(tensor, value.axes))
    checks = [f"{a} < {context.stored_size(a, stmt.tensor)}" for a in value.axes
              if context.padded(a)]
    if value.space == "row":  # lanes that share a row agree on its value: one of them stores
        checks.insert(0, f"lane % {4 if context.shape.engine == 'mma' else 16} == 0")
        context.used.add("lane")
    text = f"from_float<{ELEMENT[tensor.dtype]}>({context.element(stmt.src)})"
    if tensor.only is not None:
        checks.append(f"({context.expression(tensor.only, set())})")
    lines = (Code(f"if ({' && '.join(checks)}) {{"),
             Code(f"    store_global({c_name(tensor.name)} + {at}, {text});"), Code("}"))
    return out.Elements((), context.nest(value.axes, set(value.axes)), lines,
                        late=context.late_lines(tensor.name, value.axes))


def _whole_chunks(context: Context, value: ir.Value, tensor: Tensor) -> bool:
    """Can a thread store 16 bytes at once? Rows must be aligned and end on a whole chunk, and its
    columns must lie (or be brought) side by side."""
    rows, cols = context.shape.ordered(value)
    if context.kernel.schedule.vector_bytes != 16 or cols == context.shape.loop:
        return False
    if tensor.seen[-2:] != (rows, cols) or tensor.only is not None:
        return False
    half = ITEM_BYTES[tensor.dtype] == 2
    return half if context.shape.engine == "mma" else (
        not half and context.shape.columns(cols).quads > 0)


def _store_rows(context: Context, value: ir.Value, tensor: Tensor) -> out.StoreRows:
    rows, cols = context.shape.ordered(value)
    context.used |= {"lane", "row0"}
    if context.shape.engine == "mma":
        context.used.add("exchange_quad")
    # Four lanes store 32 columns at a time: a tile of 16 ends in the middle of that.
    beyond = context.shape.engine == "mma" and value.shape[-1] % 32 != 0
    return out.StoreRows(
        (), src=c_name(value.name), pointer=c_name(tensor.name),
        row_offset=offset(tensor, context.position(tensor, (rows,))), row=Code(rows),
        row_bound=context.stored_size(rows, tensor.name),
        bound=context.size(cols) if context.padded(cols) or beyond else None,
        element=Code(ELEMENT[tensor.dtype]), columns=context.shape.columns(cols),
        late=context.late_lines(tensor.name, value.axes))
