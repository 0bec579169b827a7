"""Registers a thread needs, estimated from when each value is live.

A value lives from its first write to its last read; one carried from iteration to iteration lives
through the whole loop. An element-wise statement may reuse its operands' registers.
"""

from __future__ import annotations

from .stmt import Kernel, Loop, Stmt, Value, reads, writes

_FIXED = 36  # addresses, indices, loop state and operand fragments in passing


def registers(kernel: Kernel) -> int:
    """Estimated registers per thread at the fullest point of the kernel."""
    spans: dict[str, list[int]] = {}
    loops: list[tuple[int, int]] = []
    order: list[Stmt] = []

    def visit(body: tuple[Stmt, ...]) -> None:
        for stmt in body:
            order.append(stmt)
            if isinstance(stmt, Loop):
                start = len(order)
                visit(stmt.body)
                loops.append((start, len(order)))

    visit(kernel.body)
    reads_at: dict[str, list[int]] = {}
    for position, stmt in enumerate(order):
        for name in (*reads(stmt), *writes(stmt)):
            spans.setdefault(name, [position, position])[1] = position
        for name in reads(stmt):
            reads_at.setdefault(name, []).append(position)
    for begin, end in loops:
        for name, span in spans.items():
            inside = any(begin <= p < end for p in reads_at.get(name, ()))
            if inside and span[0] < begin:
                span[1] = max(span[1], end)
    sizes = {v.name: _size(kernel, v) for v in kernel.values}
    return _FIXED + max((sum(sizes[n] for n, (a, b) in spans.items() if a <= p < max(b, a + 1))
                         for p in range(len(order))), default=0)


def _size(kernel: Kernel, v: Value) -> int:
    threads = kernel.schedule.warps * 32
    lanes = 4 if kernel.schedule.engine == "mma" else 16  # threads sharing a row
    match v.space:
        case "fragment":
            return v.shape[0] * v.shape[1] // threads
        case "operand":
            return v.shape[0] * v.shape[1] // (2 * threads)
        case "row":
            return max(1, v.shape[0] * lanes // threads)
        case "column":
            return max(1, v.shape[0] // 4)
    return 0
