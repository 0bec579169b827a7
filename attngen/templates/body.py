"""From the statements of a placed kernel to what the CUDA macros print.

Only names and expressions are decided here. Order, waits and barriers are the kernel's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..ir import stmt as ir
from ..ir.node import Node, walk
from . import copy_views, element_views, product_views
from . import statements as out
from .code import Code, comment
from .conditions import Condition, condition
from .context import Context, Scope
from .expressions import c_type
from .geometry import TILE
from .lifetimes import homes
from .names import c_name

_VIEWS: dict[type[ir.Stmt], Callable[[Context, Any, Scope], out.StatementView]] = {
    ir.Fill: element_views.fill, ir.Map: element_views.map_elements, ir.Load: element_views.load,
    ir.Store: element_views.store, ir.Mma: product_views.mma, ir.Reduce: product_views.reduce,
    ir.LaneReduce: product_views.lane_reduce, ir.Copy: product_views.copy,
    ir.Issue: copy_views.issue, ir.Commit: copy_views.commit, ir.Wait: copy_views.wait,
    ir.Barrier: copy_views.barrier,
}


def visited(kernel: ir.Kernel, loop: ir.Loop, what: str) -> tuple[Code, ...]:
    """Names of the current visited tile ("tile") or the first ("visit"), and of those after it as
    far as copies are issued ahead; none where a loop asks nothing of single tiles."""
    if not loop.asks:
        return ()
    ahead = max((s.ahead or 0 for s in ir.statements(kernel.body) if isinstance(s, ir.Issue)),
                default=0)
    return tuple(copy_views.tile_number(loop, what == "tile", n) for n in range(ahead + 1))


class Body:
    """The views of a kernel's ``statements``, and the declarations of its values."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.kernel = context.kernel
        self.homes = homes(context.kernel)
        self.statements = self._build(self.kernel.body, None, ())

    def _build(self, body: tuple[ir.Stmt, ...], inside: ir.Loop | None,
               path: tuple[int, ...]) -> tuple[out.StatementView, ...]:
        views = []
        for n, stmt in enumerate(body):
            upcoming = next((s for s in body[n:] if isinstance(s, ir.Loop)), None)
            scope = Scope(inside, upcoming, (*path, n))
            if isinstance(stmt, ir.Loop):
                view: out.StatementView = self._loop(stmt, scope)
            elif make := _VIEWS.get(type(stmt)):
                view = make(self.context, stmt, scope)
            else:
                raise self.context.fail(f"a CUDA kernel cannot hold a {type(stmt).__name__}")
            if isinstance(stmt, ir.Map) and isinstance(view, out.Elements):
                view = replace(view, lines=self._declared(stmt, view.lines, scope))
            views.append(replace(view, comments=self._comments(stmt)))
            if isinstance(stmt, ir.Map) and upcoming and upcoming.end in stmt.dsts:
                views += self._tiles(upcoming)
        return tuple(views)

    def _tiles(self, loop: ir.Loop) -> list[out.StatementView]:
        """What loops ask of single tiles, after the range of tiles is known."""
        if not loop.asks:
            return []
        visible, full = (self._asked(n, loop.axis) for n in (loop.visible, loop.full))
        return [out.TilesView((), Code(loop.axis), TILE[loop.axis], self.context.size(loop.axis),
                              c_name(loop.begin), c_name(loop.end), c_name(loop.full_begin),
                              c_name(loop.full_end), visible, full,
                              visited(self.kernel, loop, "visit"))]

    def _asked(self, asked: Node | None, axis: str) -> Condition | None:
        return None if asked is None else condition(
            asked, axis, lambda leaf: self.context.expression(leaf, set()), "recompute")

    def _declared(self, stmt: ir.Map, lines: tuple[Code, ...],
                  scope: Scope) -> tuple[Code, ...]:
        """Scalars that are written once are declared where they are written."""
        made = []
        for name, line in zip(stmt.dsts, lines, strict=True):
            value, home = self.kernel.value(name), self.homes[name]
            once = value.space == "scalar" and home.writes == 1
            here = once and home.path == scope.path[:-1]
            made.append(Code(f"const {c_type(value.dtype)} {line}") if here else line)
        return tuple(made)

    def declarations(self, path: tuple[int, ...]) -> tuple[Code, ...]:
        """Declarations of the values whose uses all lie in the body at ``path``."""
        lines = []
        for value in self.kernel.values:
            home = self.homes[value.name]
            once = value.space == "scalar" and home.writes == 1
            if home.path != path or value.space == "shared" or once:
                continue
            kind = "u32" if value.space == "operand" else c_type(value.dtype)
            shape = " x ".join(TILE[a] for a in value.axes)
            note = f"  // [{shape}]" if value.axes else ""
            lines.append(Code(f"{kind} {c_name(value.name)}{self.context.shape.dims(value)};"
                              f"{note}"))
        return tuple(lines)

    def _loop(self, stmt: ir.Loop, scope: Scope) -> out.LoopView:
        body = self._build(stmt.body, stmt, scope.path)
        axis, context = stmt.axis, self.context
        last = None
        if f"{axis}_last" in context.used:
            last = Code(f"min_i32({axis}_first + {TILE[axis]}, {context.size(axis)}) - 1")
        partial = any(isinstance(v, out.Elements) and v.guard for v in body)
        return out.LoopView(
            (), axis=Code(axis), counter=Code(axis if context.kernel.serial else f"{axis}_tile"),
            tile=TILE[axis], begin=c_name(stmt.begin), end=c_name(stmt.end),
            full_begin=c_name(stmt.full_begin), full_end=c_name(stmt.full_end), partial=partial,
            asked=stmt.full is not None,
            upcoming=visited(self.kernel, stmt, "tile"), visits=visited(self.kernel, stmt, "visit"),
            first=re.search(rf"\b{axis}_first\b", f"{last} {body!r}") is not None,
            last=last, rings=tuple(out.Ring(Code(f"slot{n}"), n) for n in context.rings),
            declared=self.declarations(scope.path), body=body)

    # -- comments ------------------------------------------------------------------------------

    def _comments(self, stmt: ir.Stmt) -> tuple[Code, ...]:
        """What a statement computes and, in brackets, what of the source it comes from where its
        names do not say so."""
        nodes = walk(*stmt.exprs) if isinstance(stmt, ir.Map) else ()
        known = {v.name for v in self.kernel.values} | {t.name for t in self.kernel.tensors}
        origins = [part for text in (stmt.origin, *(n.origin for n in nodes))
                   for part in text.split(", ") if part and part not in known]
        where = ", ".join(dict.fromkeys(origins))
        text = f"{stmt.note or self._formula(stmt)}{f'  [{where}]' if where else ''}".strip()
        return (comment(text),) if text else ()

    def _formula(self, stmt: ir.Stmt) -> str:
        match stmt:
            case ir.Mma(dst=d, a=a, b=b, over=over, accumulate=acc):
                return (f"{self._term(d)} {'+=' if acc else '='} sum over {over} of "
                        f"{self._term(a)} {self._term(b)}")
            case ir.Reduce(dst=d, kind=kind, src=s, over=over, lanes=lanes):
                later = "" if lanes == "now" else ", lane by lane"
                return f"{self._term(d)} takes the {kind} over {over} of {self._term(s)}{later}"
            case ir.LaneReduce(dst=d, kind=kind):
                return f"{self._term(d)}: {kind} over the lanes of a row"
            case ir.Copy(dst=d, src=s):
                return f"{self._term(d)} = {self._term(s)}"
            case ir.Load(dst=d, tensor=t):
                return f"{self._term(d)} = {t}"
            case ir.Store(tensor=t, src=s):
                return f"{t} = {self._term(s)}"
            case ir.Map(dsts=dsts, when=when):
                names = ", ".join(self._term(d) for d in dsts if self.kernel.value(d).axes)
                return names + (" on partial tiles" if when == "partial" else "")
        return ""

    def _term(self, name: str) -> str:
        axes = self.kernel.value(name).axes
        return f"{c_name(name)}[{', '.join(axes)}]" if axes else str(c_name(name))
