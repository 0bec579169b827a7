"""Kernels that treat every tile alike need no range of full tiles.

    n_full_begin = 0; n_full_end = seqlen_k // 64; Loop in [n_begin, n_end) full [n_full_begin, …)
  →   Loop in [n_begin, n_end) full [n_begin, n_end)        when nothing is for partial tiles only
"""

from __future__ import annotations

from dataclasses import replace

from .stmt import Kernel, Loop, Map, Stmt, rewrite_body, statements


def drop_full_range(kernel: Kernel) -> Kernel:
    """Let the loops' full tiles be all their tiles where no statement asks."""
    if any(isinstance(s, Map) and s.when == "partial" for s in statements(kernel.body)):
        return kernel
    idle = {n for s in statements(kernel.body) if isinstance(s, Loop)
            for n in (s.full_begin, s.full_end)} - {
                n for s in statements(kernel.body) if isinstance(s, Loop)
                for n in (s.begin, s.end)}

    def change(stmt: Stmt) -> tuple[Stmt, ...]:
        match stmt:
            case Loop(begin=begin, end=end):
                return (replace(stmt, full_begin=begin, full_end=end, full=None),)
            case Map(dsts=dsts, exprs=exprs) if idle & set(dsts):
                kept = [(d, e) for d, e in zip(dsts, exprs, strict=True) if d not in idle]
                return (replace(stmt, dsts=tuple(d for d, _ in kept),
                                exprs=tuple(e for _, e in kept)),) if kept else ()
        return (stmt,)

    return replace(kernel, body=rewrite_body(kernel.body, change),
                   values=tuple(v for v in kernel.values if v.name not in idle))
