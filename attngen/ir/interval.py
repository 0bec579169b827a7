"""Symbolic interval arithmetic: the least and greatest value of an index expression over a tile,
and whether a condition holds on all of it, or on any.

Over a tile the index of an axis runs from ``first(axis)`` to ``last(axis)``; what an expression can
be at most and at least is again an expression, evaluated once per block. Sound, not always tight:
None means "unbounded as far as we can tell". How sums are bounded is in ``linear.py``, how
conditions are decided in ``proof.py``.
"""

from __future__ import annotations

from .algebra import simplify
from .linear import Bound, Box, Extent, Tables
from .node import Node, first, last, make
from .proof import Prover


def _tile(axes: tuple[str, ...]) -> Box:
    return {a: (first(a), last(a)) for a in axes}


def interval(node: Node, *axes: str, tables: Tables = "") -> tuple[Bound, Bound]:
    """(least, greatest) value of ``node`` while the indices of ``axes`` run over the tile. With
    ``tables`` the bounds may hold ``table_min`` and ``table_max`` of captured tensors."""
    low, high = Extent(_tile(axes), tables).of(node)
    return (None if low is None else simplify(low)), (None if high is None else simplify(high))


def conditions(node: Node, *axes: str, tables: Tables = "", coarse: bool = False
               ) -> tuple[Node, Node]:
    """``certainty`` as it comes out of the proof, not simplified; of what does not vary along
    ``axes``, too."""
    prover = Prover(_tile(axes), tables, coarse)
    return make("not", prover.sometimes(node, False)), prover.sometimes(node, True)


def certainty(node: Node, *axes: str, tables: Tables = "",
              coarse: bool = False) -> tuple[Bound, Bound]:
    """Conditions that do not vary along ``axes``: (``node`` holds on all of the tile, it may hold
    somewhere). The first is never true by mistake, the second never false; None where nothing is
    known.

    ``tables`` as for ``interval``. ``coarse`` writes the conditions so that they can be bounded
    over many tiles in turn, at the price of some that say nothing new about one.
    """
    if not set(axes) & set(node.axes):
        return node, node
    always, sometimes = (simplify(n) for n in conditions(node, *axes, tables=tables, coarse=coarse))
    return (None if always.is_const and not always.attr("value") else always,
            None if sometimes.is_const and sometimes.attr("value") else sometimes)
