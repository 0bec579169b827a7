"""The copy ring: loads of a loop become asynchronous copies issued ahead of their use.

    Loop j: Load k; s = q·k; …; Load v; acc += p·v            (stages: k 2, v 1)
  →
    Issue q; Issue k 0; Commit; Issue k 1; Commit
    Loop j: Wait; Barrier; Issue v 0; Commit; s = q·k; …; Wait; Barrier; Issue k 2; acc += p·v

A tile with one stage is waited for where it is first used, one with more at the top of the loop.
Its slot is free at the first barrier after its last use; the next tile for that slot is issued
right there. What the result does not need is dropped again (``sync.minimise``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .stmt import Barrier, Commit, Issue, Kernel, Load, Loop, Mma, Stmt, Wait, reads, statements
from .sync import minimise


@dataclass(frozen=True)
class _Copy:
    """A ring operand: where it is waited for, freed, and how far ahead it is issued."""

    load: Load
    stages: int
    wait: int  # position in the body, loads removed
    issue: int  # position of the barrier after which it is issued
    ahead: int


def ring_operands(kernel: Kernel) -> tuple[str, ...]:
    """Loaded tiles that move with the loop and enter a product, in order of first use."""
    loaded = {s.dst for s in statements(kernel.body) if isinstance(s, Load | Issue)}
    moving = {v.name for v in kernel.values if v.name in loaded and kernel.loop in v.axes}
    return tuple(dict.fromkeys(name for s in statements(kernel.body) if isinstance(s, Mma)
                               for name in (s.a, s.b) if name in moving))


def ring(kernel: Kernel) -> Kernel:
    """Replace loads into shared memory by issues, waits and barriers."""
    shared = {v.name for v in kernel.values if v.space == "shared"}
    body: list[Stmt] = []
    waiting: list[Load] = []  # loads before a loop travel with its first copies
    looped = False
    for stmt in kernel.body:
        if isinstance(stmt, Load) and stmt.dst in shared:
            waiting.append(stmt)
        elif isinstance(stmt, Loop):
            before, loop = _ring_loop(kernel, stmt, shared, waiting)
            body += ([Barrier()] if looped and before else []) + before + [loop]
            waiting, looped = [], True
        else:
            body.append(stmt)
    out = replace(kernel, body=tuple(body))
    return minimise(out) if shared else out


def _ring_loop(kernel: Kernel, loop: Loop, shared: set[str],
               waiting: list[Load]) -> tuple[list[Stmt], Loop]:
    loads = [s for s in loop.body if isinstance(s, Load) and s.dst in shared]
    rest = [s for s in loop.body if s not in loads]
    copies = _plan(kernel, loads, rest)
    barriers = sorted({c.wait for c in copies} | {c.issue for c in copies})
    commit: list[Stmt] = [Commit()] if kernel.schedule.vector_bytes == 16 else []
    before: list[Stmt] = [Issue(w.dst, w.tensor, None, origin=w.origin) for w in waiting]
    if before and not any(c.ahead for c in copies):
        before += commit
    for tile in range(max((c.ahead for c in copies), default=0)):
        for c in copies:
            if tile < c.ahead:
                before += [Issue(c.load.dst, c.load.tensor, tile, origin=c.load.origin), *commit]
    body: list[Stmt] = []
    for position, stmt in enumerate([*rest, None]):
        if position in barriers:
            if commit and any(c.wait == position for c in copies):
                body.append(Wait(_pending(copies, barriers, position)))
            body.append(Barrier())
            for c in sorted((c for c in copies if c.issue == position), key=lambda c: c.ahead):
                body += [Issue(c.load.dst, c.load.tensor, c.ahead, origin=c.load.origin), *commit]
        if stmt is not None:
            body.append(stmt)
    return before, replace(loop, body=tuple(body))


def _plan(kernel: Kernel, loads: list[Load], rest: list[Stmt]) -> list[_Copy]:
    uses = {ld.dst: [n for n, s in enumerate(rest) if ld.dst in reads(s)] for ld in loads}
    ordered = sorted(loads, key=lambda ld: uses[ld.dst][0])
    stages = [kernel.value(ld.dst).stages for ld in ordered]
    waits = [0 if depth > 1 else uses[ld.dst][0]
             for ld, depth in zip(ordered, stages, strict=True)]
    barriers = set(waits)
    for ld, depth, wait in zip(ordered, stages, waits, strict=True):
        last = uses[ld.dst][-1]
        if depth == 1 and wait == min(barriers) and not any(p > last for p in barriers):
            barriers.add(last + 1)  # nothing else would free its only slot in time
    copies = []
    for ld, depth, wait in zip(ordered, stages, waits, strict=True):
        freed = sorted(p for p in barriers if p > uses[ld.dst][-1])
        # In this iteration: the slot's next tile is `depth` on; else at the top of the next one.
        issue, ahead = (freed[0], depth) if freed else (min(barriers), depth - 1)
        copies.append(_Copy(ld, depth, wait, issue, ahead))
    return copies


def _pending(copies: list[_Copy], barriers: list[int], position: int) -> int:
    """Groups that may stay in flight: those committed after the last one this wait is for."""
    needed = [c for c in copies if c.wait == position]
    least: int | None = None
    for iteration in range(6):
        order = [(c, tile) for tile in range(max(c.ahead for c in copies) or 0)
                 for c in copies if tile < c.ahead]
        for n in range(iteration + 1):
            for p in barriers:
                if n == iteration and p >= position:
                    break
                order += [(c, n + c.ahead) for c in sorted(
                    (c for c in copies if c.issue == p), key=lambda c: c.ahead)]
        index = [order.index((c, iteration)) for c in needed]
        behind = len(order) - 1 - max(index, default=len(order) - 1)
        least = behind if least is None else min(least, behind)
    return least or 0
