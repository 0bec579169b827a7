"""Packing: sequences of different lengths lie end to end in one tensor, without padding.

    q[b h i d], k[b g j d]; params seqlen_q, seqlen_k
  →   q[h i d] from q_begin[b], k[g j d] from k_begin[b];
      params q_begin, k_begin, seqlen_q, seqlen_k per batch entry

A batch entry is a sequence. Indices along i and j stay its own, so masks, scores and loop bounds do
not change; the grid is that of the longest sequence, and a block past the end of a shorter one has
nothing to do. Workspaces keep their axis b.
"""

from __future__ import annotations

from dataclasses import replace

from ..errors import VerifyError
from .bounds import SEQUENCES, extent
from .graph import Graph
from .node import Node, param, substitute
from .stmt import Kernel, Loop, Map, Stmt, rewrite_body
from .tensor import Param, Tensor

# The parameter that says where a sequence begins along each sequence axis.
BEGINS = {"i": "q_begin", "j": "k_begin"}


def pack(graph: Graph) -> Graph:
    """Pack every input and output of a placed graph.

    Raises VerifyError for a tensor that has both sequence axes, or neither.
    """
    tensors = {t.name: _packed(t) for t in graph.tensors}
    return replace(graph, tensors=tuple(tensors.values()),
                   kernels=tuple(_kernel(k, tensors) for k in graph.tiles))


def begin_of(t: Tensor) -> str:
    """The parameter a tensor begins at once it is packed; workspaces are not. Raises VerifyError
    unless it has one sequence axis."""
    if t.role == "workspace":
        return ""
    rows = [a for a in t.axes if a in BEGINS]
    if len(rows) != 1:
        raise VerifyError(f"{t.name} has axes {' '.join(t.axes)}: packed tensors have one of "
                          f"{' and '.join(BEGINS)}")
    return BEGINS[rows[0]]


def _packed(t: Tensor) -> Tensor:
    begin = begin_of(t)
    return replace(t, axes=tuple(a for a in t.axes if a != "b"), begin=begin) if begin else t


def _kernel(kernel: Kernel, tensors: dict[str, Tensor]) -> Kernel:
    lengths = {extent(a): param(name, "b") for a, name in SEQUENCES.items()}

    def change(stmt: Stmt) -> tuple[Stmt, ...]:
        match stmt:
            case Map(exprs=exprs):
                return (replace(stmt, exprs=tuple(substitute(e, lengths) for e in exprs)),)
            case Loop(visible=visible, full=full):
                return (replace(stmt, visible=_or_none(visible, lengths),
                                full=_or_none(full, lengths)),)
        return (stmt,)

    mine = tuple(tensors[t.name] for t in kernel.tensors)
    names = {*SEQUENCES.values(), *(t.begin for t in mine if t.begin)}
    params = {*(p for p in kernel.params if p.name not in names),
              *(Param(name, True) for name in names)}
    return replace(kernel, tensors=mine, body=rewrite_body(kernel.body, change),
                   params=tuple(sorted(params, key=lambda p: (p.per_batch, p.name))))


def _or_none(condition: Node | None, table: dict[Node, Node]) -> Node | None:
    return None if condition is None else substitute(condition, table)
