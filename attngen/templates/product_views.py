"""Statements that combine elements: Mma, Reduce, LaneReduce, and the Copy that feeds a product."""

from __future__ import annotations

from ..ir import stmt as ir
from . import statements as out
from .code import Code
from .context import Context, Scope
from .geometry import TILE
from .names import c_name
from .storage import ELEMENT

# Products on CUDA cores: terms summed one after the other. The rounding of one chain grows with its
# length, so longer sums are sums of such sums.
CHAIN = 64

# Where a pair takes two products over more than this, they are not unrolled to the end: compilers
# would fetch operands of later steps into registers that are not there.
LONG = 128


def mma(context: Context, stmt: ir.Mma, scope: Scope) -> out.Product:
    """dst (+)= a · b, rows of the product from a, its columns from b."""
    dst, a, b = (context.kernel.value(n) for n in (stmt.dst, stmt.a, stmt.b))
    rows, cols = context.shape.ordered(dst)
    if set(a.axes) != {rows, stmt.over} or set(b.axes) != {cols, stmt.over}:
        raise context.fail(f"{dst.name} = {a.name} · {b.name} over {stmt.over}: the rows of the "
                           f"product must come from {a.name}, its columns from {b.name}")
    if b.space != "shared" or (a.space == "shared" and a.axes[1] != stmt.over):
        raise context.fail(f"{a.name} · {b.name}: the second operand lies in shared memory, and "
                           "the rows of the first are rows of the product")
    tensor_cores = context.shape.engine == "mma"
    transposed = b.axes[0] == stmt.over
    columns = context.shape.columns(cols)
    nothing = Code("0")
    b_at = one_at = nothing
    if tensor_cores or not transposed:
        b_at = context.lane_offset(b, "bt" if transposed else "b")
    else:
        b_at = context.lane_offset(b, "quad") if columns.quads else nothing
        if columns.singles:
            one_at = context.lane_offset(b, "one", first=64 * columns.quads)
    shared = a.space == "shared"
    of_pairs = sum(isinstance(s, ir.Mma) and s.over in "de" for s in ir.statements(
        context.kernel.body))
    return out.Product(
        (), dst=c_name(dst.name), a=c_name(a.name), b=c_name(b.name),
        a_tile=context.tiles[a.name].type if shared else None,
        a_base=context.base(a.name, scope) if shared else nothing,
        a_at=context.lane_offset(a, "a") if shared else nothing,
        b_tile=context.tiles[b.name].type, b_base=context.base(b.name, scope), b_at=b_at,
        one_at=one_at, transposed=transposed, depth=TILE[stmt.over], width=TILE[cols],
        element=Code(ELEMENT[b.dtype]), columns=columns,
        zero=None if stmt.accumulate else context.nest(dst.axes),
        cleared=(Code(f"{context.element(dst.name)} = 0.0f;"),),
        long=of_pairs > 1 and stmt.over in "de" and context.shape.extent(stmt.over) > LONG,
        chained=not tensor_cores and not transposed and context.shape.extent(stmt.over) > CHAIN)


def reduce(context: Context, stmt: ir.Reduce, scope: Scope) -> out.ReduceView:
    """A row's sum or maximum over its columns."""
    src, dst = context.kernel.value(stmt.src), context.kernel.value(stmt.dst)
    rows, cols = context.shape.ordered(src)
    if stmt.over != cols or dst.axes != (rows,):
        raise context.fail(f"{dst.name}: only columns are reduced, and those of {src.name} are "
                           f"along {cols}, not {stmt.over}")
    # The maximum may meet its old value in every lane; a sum must meet it once.
    now = stmt.lanes == "now"
    joins_last = stmt.accumulate and stmt.kind == "sum" and now
    element = context.element(src.name)
    start = "NEG_INF" if stmt.kind == "max" else "0.0f"
    return out.ReduceView(
        (), dst=context.element(dst.name), bound=context.shape.columns(cols).name,
        first=context.element(dst.name) if stmt.accumulate and not joins_last else Code(start),
        step=Code(f"max_f32(x, {element})" if stmt.kind == "max" else f"x + {element}"),
        lanes=_over_lanes(context, stmt.kind) if now else None, add=joins_last)


def lane_reduce(context: Context, stmt: ir.LaneReduce, scope: Scope) -> out.LaneReduceView:
    """The step across lanes that a Reduce left for later."""
    return out.LaneReduceView((), dst=context.element(stmt.dst),
                              lanes=_over_lanes(context, stmt.kind))


def _over_lanes(context: Context, kind: str) -> Code:
    context.used.add(f"lanes_{kind}")
    return Code(f"{kind}_over_lanes")


def copy(context: Context, stmt: ir.Copy, scope: Scope) -> out.Pack | out.Put:
    """A fragment made the first operand of a product."""
    src, dst = context.kernel.value(stmt.src), context.kernel.value(stmt.dst)
    if (src.space, dst.space) == ("fragment", "operand"):
        return out.Pack((), dst=c_name(dst.name), src=c_name(src.name),
                        width=TILE[dst.axes[1]], element=Code(ELEMENT[dst.dtype]))
    if (src.space, dst.space, dst.dtype) == ("fragment", "shared", "float32"):
        return out.Put((), src=c_name(src.name), tile=context.tiles[dst.name].type,
                       base=context.base(dst.name, scope), at=context.lane_offset(dst, "put"),
                       bound=context.shape.columns(dst.axes[1]).name)
    raise context.fail(f"{dst.name}: no copy from {src.space} to {dst.dtype} {dst.space}")
