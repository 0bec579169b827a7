"""Rematerialisation: numbers only partial tiles need are computed there, not kept in registers.

    Map j_end = min(limit, i + 1);  Loop: …; Map partial s = where(j < j_end, s, −inf)
  →
    Loop: …; Map partial j_end = min(limit, i + 1); Map partial s = where(j < j_end, s, −inf)

Most tiles are full and the main loop has no register to spare, while a few integer operations per
row of a boundary tile cost nothing. What a loop computes for partial tiles only is skipped on full
ones:

    Map ids_j = gather(ids, j);  Map partial s = where(ids_i == ids_j, s, −inf)
  →
    Map partial ids_j = gather(ids, j);  Map partial s = where(ids_i == ids_j, s, −inf)
"""

from __future__ import annotations

from dataclasses import replace

from .node import is_cheap
from .stmt import Kernel, Loop, Map, Stmt, reads, statements


def sink_partial(kernel: Kernel) -> Kernel:
    """Move cheap per-row maps that only partial maps read to where they are read."""
    moved = [s for s in kernel.body if isinstance(s, Map) and s.axes == (kernel.keep,)
             and all(is_cheap(e) for e in s.exprs) and _only_for_partial(kernel, s)]
    body: list[Stmt] = []
    for stmt in kernel.body:
        if isinstance(stmt, Loop):
            body.append(replace(stmt, body=_with(stmt.body, moved)))
        elif stmt not in moved:
            body.append(stmt)
    return replace(kernel, body=tuple(body))


def skip_on_full(kernel: Kernel) -> Kernel:
    """Mark the maps inside of loops that only partial maps read as partial."""
    while True:
        body = tuple(replace(s, body=tuple(_marked(kernel, t) for t in s.body))
                     if isinstance(s, Loop) else s for s in kernel.body)
        if body == kernel.body:
            return kernel
        kernel = replace(kernel, body=body)  # what those read may be for partial tiles only, too


def _marked(kernel: Kernel, stmt: Stmt) -> Stmt:
    if isinstance(stmt, Map) and stmt.when == "always" and _only_for_partial(kernel, stmt):
        return replace(stmt, when="partial")
    return stmt


def _only_for_partial(kernel: Kernel, stmt: Map) -> bool:
    readers = [s for s in statements(kernel.body) if set(reads(s)) & set(stmt.dsts)]
    return (bool(readers) and not set(reads(stmt)) & set(stmt.dsts)
            and all(isinstance(s, Map) and s.when == "partial" for s in readers))


def _with(body: tuple[Stmt, ...], moved: list[Map]) -> tuple[Stmt, ...]:
    out: list[Stmt] = []
    for stmt in body:
        out += [replace(m, when="partial") for m in moved if set(reads(stmt)) & set(m.dsts)]
        out.append(stmt)
    return tuple(out)
