"""Reductions along a row whose last step, across the lanes that share it, can wait for the end.

    Loop: l = l·α; l += Σ p     →     Loop: the same in each lane;  l = sum of l across lanes
"""

from __future__ import annotations

from dataclasses import replace

from .node import Node, walk
from .stmt import Kernel, LaneReduce, Loop, Map, Reduce, Stmt, reads


def finish_lanes(kernel: Kernel) -> Kernel:
    """Put off every sum that its loop only adds to and rescales."""
    body: list[Stmt] = []
    for stmt in kernel.body:
        if not isinstance(stmt, Loop):
            body.append(stmt)
            continue
        late = [s for s in stmt.body if isinstance(s, Reduce) and s.kind == "sum"
                and all(only_rescales(t, s.dst) for t in stmt.body if s.dst in reads(t))]
        new = tuple(replace(s, lanes="later") if s in late else s for s in stmt.body)
        body += [replace(stmt, body=new),
                 *(LaneReduce(s.dst, s.kind, origin=s.origin) for s in late)]
    return replace(kernel, body=tuple(body))


def only_rescales(stmt: Stmt, name: str) -> bool:
    """True for the accumulation itself and for name = name · (something without name)."""
    if isinstance(stmt, Reduce):
        return stmt.dst == name and stmt.src != name
    if not isinstance(stmt, Map):
        return False
    for dst, expr in zip(stmt.dsts, stmt.exprs, strict=True):
        if _uses(expr, name):
            if dst != name or expr.op != "mul":
                return False
            a, b = expr.args
            if a.op != "value" or a.attr("name") != name:
                a, b = b, a
            if a.op != "value" or a.attr("name") != name or _uses(b, name):
                return False
    return True


def _uses(expr: Node, name: str) -> bool:
    return any(n.op == "value" and n.attr("name") == name for n in walk(expr))
