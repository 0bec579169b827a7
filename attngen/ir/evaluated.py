"""Which expressions a kernel evaluates, and what they read."""

from __future__ import annotations

from collections.abc import Iterator

from .node import Node, walk
from .ops import PROOF_OPS
from .stmt import Kernel, Loop, Map, Stmt, statements
from .tensor import Tensor


def expressions(body: tuple[Stmt, ...]) -> Iterator[Node]:
    """Every expression in the statements, in program order."""
    for stmt in statements(body):
        if isinstance(stmt, Map):
            yield from stmt.exprs
        elif isinstance(stmt, Loop):
            yield from (n for n in (stmt.visible, stmt.full) if n is not None)


def places(tensors: tuple[Tensor, ...]) -> tuple[Node, ...]:
    """The expressions that say where tensors are stored, and whether."""
    return (*(n for t in tensors for _, n in t.place), *(t.only for t in tensors if t.only))


def evaluated(kernel: Kernel) -> tuple[Node, ...]:
    """Every expression the kernel evaluates: those of its statements, and where tensors lie."""
    return (*expressions(kernel.body), *places(kernel.tensors))


def calls(kernel: Kernel, op: str) -> bool:
    """True when an expression of the kernel has the operation."""
    return any(n.op == op for n in walk(*evaluated(kernel)))


def gathered(*roots: Node) -> tuple[str, ...]:
    """Names of the captured tensors that expressions read, in order of first use."""
    return tuple(dict.fromkeys(n.attr("name") for n in walk(*roots)
                               if n.op == "gather" or n.op in PROOF_OPS))
