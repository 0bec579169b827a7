"""Neighbouring statements that become one.

    map[i] a = …   map[i] b = f(a)   →   map[i] a = …; b = f(a)
"""

from __future__ import annotations

from .stmt import Map, Stmt


def merge_maps(body: list[Stmt]) -> list[Stmt]:
    """Neighbouring Maps over the same axes become one statement."""
    out: list[Stmt] = []
    for stmt in body:
        last = out[-1] if out else None
        if isinstance(stmt, Map) and isinstance(last, Map) and last.axes == stmt.axes \
                and last.when == stmt.when and last.origin != "tiles":
            origins = dict.fromkeys(o for o in (*last.origin.split(", "), stmt.origin) if o)
            out[-1] = Map(last.dsts + stmt.dsts, last.exprs + stmt.exprs, stmt.axes, stmt.when,
                          origin=", ".join(origins))
        else:
            out.append(stmt)
    return out
