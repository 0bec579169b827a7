"""The copy ring: Issue, Commit, Wait and Barrier."""

from __future__ import annotations

from ..ir import stmt as ir
from ..ir.ops import EIGHT_BIT
from . import statements as out
from .code import Code
from .context import Context, Scope
from .geometry import TILE
from .names import c_name
from .storage import offset


def issue(context: Context, stmt: ir.Issue, scope: Scope) -> out.IssueView:
    """Start a copy of the tile ``ahead`` iterations on, if the loop has it."""
    tile, tensor = context.tiles[stmt.dst], context.kernel.tensor(stmt.tensor)
    value = context.kernel.value(stmt.dst)
    if context.copies.setdefault(stmt.dst, stmt.tensor) != stmt.tensor:
        raise context.fail(f"{stmt.dst} is filled from {context.copies[stmt.dst]} and from "
                           f"{stmt.tensor}: a shared tile holds one tensor")
    ahead = stmt.ahead or 0
    loop = scope.inside or scope.upcoming
    guard: Code | None = None
    local: tuple[Code, ...] = ()
    position = {a: f"{a}_first" for a in value.axes if a not in "de"}
    if loop is not None:
        number = tile_number(loop, scope.inside is not None, ahead)
        elsewhere = scope.inside is None or ahead > 0
        if elsewhere:
            guard = Code(f"{number} < {c_name(loop.end)}")
        if elsewhere and stmt.ahead is not None:
            position[loop.axis] = name = f"{tile.name}_first"
            bracketed = f"({number})" if " " in number else number
            local = (Code(f"const int {name} = {bracketed} * {TILE[loop.axis]};"),)
    rows, cols = value.axes
    at = offset(tensor, {} if tensor.place else position)
    row_at = None
    if tensor.place:
        place = offset(tensor, context.position(tensor, (rows,)))
        row_at = Code(f"{c_name(tensor.name)} + {place}")
    way = "widen" if tensor.dtype in EIGHT_BIT else "issue"
    context.used.add(f"{way}_{'rows' if row_at else 'tile'}")
    return out.IssueView(
        (), guard=guard, locals=local, tile=tile.type, to=context.base(stmt.dst, scope, ahead),
        source=Code(f"{tile.name}_from" + (f" + {at}" if at else "")),
        stride=Code(f"params.{c_name(tensor.name)}_stride_{rows}"),
        rows=_left(context, rows, position), cols=_left(context, cols, position), row_at=row_at,
        way=Code(way), row=Code(rows), first=Code(position.get(rows, "0")))


def tile_number(loop: ir.Loop, inside: bool, ahead: int) -> Code:
    """The number of the tile ``ahead`` visited ones on."""
    if loop.asks:
        return Code(f"{loop.axis}_tile{ahead or ''}" if inside else f"{loop.axis}_visit{ahead}")
    start = f"{loop.axis}_tile" if inside else c_name(loop.begin)
    return Code(f"{start} + {ahead}" if ahead else start)


def _left(context: Context, axis: str, position: dict[str, str]) -> Code:
    """Elements of the tensor from the tile's start on."""
    start = position.get(axis)
    return Code(f"{context.size(axis)} - {start}" if start else context.size(axis))


def commit(context: Context, stmt: ir.Commit, scope: Scope) -> out.Sync:
    """Close a group of copies."""
    return out.Sync((), Code("cp_async_commit();"))


def wait(context: Context, stmt: ir.Wait, scope: Scope) -> out.Sync:
    """Wait for all but the newest groups."""
    return out.Sync((), Code(f"cp_async_wait<{stmt.pending}>();"))


def barrier(context: Context, stmt: ir.Barrier, scope: Scope) -> out.Sync:
    """All threads of the block, or of the warp, meet."""
    return out.Sync((), Code("sync_warp();" if stmt.scope == "warp" else "sync_block();"))
