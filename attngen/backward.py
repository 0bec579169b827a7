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
    from .runtime.plan import Plan
    from .spec import AttentionSpec


def backward_plans(spec: AttentionSpec, options: Options,
                   wanted: frozenset[str] = frozenset()) -> BackwardPlans:
    """The plans of the backward pass. ``wanted`` are the kernels' names of the captured tensors
    that require gradients; explicit schedules are for forward kernels.

    Raises what ``compiler.lower`` raises, and NotDeliveredError for a captured tensor that is read
    by both positions, or at a computed index, where sequences are packed.
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

    tables = tuple(_gradient(read, str(c_name(read.table)), options.packed)
                   for read in built.tables)

    def plan(graph: Graph, keep: str, loop: str) -> Plan:
        lowered = lower_graph(graph, options, keep=keep, loop=loop)
        return make_plan(None, options, lowered, graph.regions[0].name)

    return BackwardPlans(
        plan(built.delta, "i", "j"), plan(built.rows, "i", "j"),
        tuple(plan(graph, "j", "i") for graph in built.columns),
        plan(built.pairs, "i", "j") if built.pairs else None, tables,
        tuple(spec.kv_head(h) for h in range(spec.heads)))


def _gradient(read: Read, table: str, packed: bool) -> TableGradient:
    """``read`` in the runtime's terms. Raises NotDeliveredError."""
    if packed and ({"i", "j"} <= set(read.moves) or read.at is None):
        raise NotDeliveredError(
            f"the gradient of {read.table} under packed sequences",
            numbers="what it is read at is computed or depends on q_idx and kv_idx both",
            remedy="Pad the sequences to a batch, or index the tensor by b, h and one position.")
    axes = tuple(a for a in read.axes if a != "b" or not packed)
    return TableGradient(read.name, table, axes, read.at, read.moves)
