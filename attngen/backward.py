"""The backward plans of a variant: the pipeline of ``compiler``, once for each kept axis."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .compiler import Options, lower_graph, make_plan
from .errors import NotDeliveredError
from .runtime.backward import BackwardPlans
from .runtime.table_gradient import TableGradient

if TYPE_CHECKING:
    from .ir.backward import TableGradient as Read
    from .ir.graph import Graph
    from .ir.node import Node
    from .runtime.plan import Plan
    from .spec import AttentionSpec


def backward_plans(spec: AttentionSpec, options: Options,
                   wanted: frozenset[str] = frozenset()) -> BackwardPlans:
    """The plans of the backward pass. ``wanted`` are the kernels' names of the captured tensors
    that require gradients; explicit schedules are for forward kernels.

    Raises what ``compiler.lower`` raises, and NotDeliveredError for a captured tensor that is read
    at an index whose gradient cannot be summed yet.
    """
    from .ir.backward import build_backward
    from .ir.capture import Captures
    from .ir.schedule import engine_for, one_accumulator
    from .templates.names import c_name

    options = replace(options, fuse=True, schedule=())
    assert spec.head_dim_v is not None
    engine = engine_for(options.dtype, options.target == "cpu")
    built = build_backward(spec, options.dtype, Captures(),
                           lambda name: str(c_name(name)) in wanted,
                           one_accumulator(engine, spec.head_dim, spec.head_dim_v),
                           options.dropout)

    tables = tuple(_plain(read, str(c_name(read.table)), options.packed) for read in built.tables)

    def plan(graph: Graph, keep: str, loop: str) -> Plan:
        lowered = lower_graph(graph, options, keep=keep, loop=loop)
        return make_plan(None, options, lowered, graph.regions[0].name)

    return BackwardPlans(
        plan(built.delta, "i", "j"), plan(built.rows, "i", "j"),
        tuple(plan(graph, "j", "i") for graph in built.columns), tables,
        tuple(spec.kv_head(h) for h in range(spec.heads)))


def _plain(read: Read, table: str, packed: bool) -> TableGradient:
    """Raises NotDeliveredError for an index whose gradient cannot be summed yet."""
    at = tuple(_place(x, read.table) for x in read.indices)
    if packed and {"b", "i", "j"} & set(at):
        raise NotDeliveredError(
            f"the gradient of {read.table} under packed sequences", numbers="it is read at "
            f"{', '.join(map(str, at))}", remedy="Pad the sequences to a batch, or index the "
            "tensor by the head alone.")
    return TableGradient(read.name, table, tuple(
        a for a in read.axes if a != "b" or not packed), at)


def _place(index: Node, table: str) -> str | int:
    """What one dimension of a table is read at. Raises NotDeliveredError."""
    if index.is_const:
        return int(index.attr("value"))
    if index.op == "idx":
        axis: str = index.attr("axis")
        if axis in "bh":
            return axis
    if index.op == "add" and {a.op for a in index.args} == {"idx", "param"}:
        at, offset = sorted(index.args, key=lambda a: a.op)
        axis = at.attr("axis")
        if offset.attr("name") == {"i": "q_offset", "j": "kv_offset"}.get(axis):
            return axis
    raise NotDeliveredError(
        f"the gradient of {table}, which is read at {index!r}",
        remedy="Indices b, h, q_idx, kv_idx and numbers have gradients in this version; give the "
               "score a tensor indexed by these, or detach() this one.")
