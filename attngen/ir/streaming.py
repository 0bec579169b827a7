"""Positions inside a ring, where tokens that have left it do not count (StreamingLLM, Xiao et al.
2023).

The query at position i sees S first tokens and the W newest up to itself. Among those its place is
min(i, S + W − 1), a first token's is its own position, any other's is as far before the query's as
the token is before the query. Scores see places.

Rotary embeddings turn products by differences of places alone, and differences within the ring do
not change as it moves. So a key is turned once, when it is appended, by its slot; what a query is
turned by to give the right differences depends on the zone that a key is in (``rolling``):

    this lap, turned by slot + slack          slot of the newest − (newest − i) + slack
    the lap before, turned by slot + slack    the same + ring size
    the first tokens, turned by their slots   the query's place

with slack = ring size − W, so that no angle is negative, and none grows with the stream.
"""

from __future__ import annotations

from . import rolling
from .node import Node, const, idx, make, param


def places(q_idx: Node, kv_idx: Node) -> tuple[Node, Node]:
    """Of a query and of key j, which have these positions."""
    place = _place(q_idx)
    back = make("sub", kv_idx, make("sub", q_idx, place))
    first = make("eq", rolling.zone(), const(rolling.FIRST))
    return place, make("where", first, idx("j"), back, origin="place")


def key_angle(position: Node) -> Node:
    """What a new key is turned by."""
    first = make("lt", position, param("ring_sinks"))
    at = rolling.slot(position)
    return make("where", first, at, make("add", at, _slack()), origin="place")


def query_angles(q_idx: Node) -> tuple[Node, ...]:
    """What a query is turned by for the keys of each zone."""
    back = make("sub", rolling.newest(), q_idx)
    this = make("add", make("sub", rolling.slot(rolling.newest()), back), _slack(), origin="place")
    return this, make("add", this, rolling.size(), origin="place"), _place(q_idx)


def _place(q_idx: Node) -> Node:
    most = make("sub", make("add", param("ring_sinks"), param("ring_reach")), const(1))
    return make("min", q_idx, most, origin="place")


def _slack() -> Node:
    return make("sub", rolling.size(), param("ring_reach"))
