"""Positions inside a ring, where tokens that have left it do not count (StreamingLLM, Xiao et al.
2023).

The query at position i sees S first tokens and the W newest up to itself. Among those its place is
min(i, S + W − 1), a first token's is its own position, any other's is as far before the query's as
the token is before the query. Scores see places.

Rotary embeddings turn products by differences of places alone, and differences within the ring do
not change as it moves. So a key is turned once, when it is appended, by its slot; what a query is
turned by to give the right differences depends on the zone that a key is in:

    0  this lap of the ring, turned by slot + slack   slot of the newest − (newest − i) + slack
    1  the lap before, turned by slot + slack         the same + ring size
    2  the first tokens, turned by their slots        the query's place

with slack = ring size − W, so that no angle is negative, and none grows with the stream. The graph
is that of one zone, the run-time number ``zone``; ``split_kv`` makes it parts of the keys.
"""

from __future__ import annotations

from .node import Node, const, idx, make, param

ZONES = 3


def is_first() -> Node:
    """Whether slot j keeps a first token."""
    return make("lt", idx("j"), param("ring_sinks"))


def ring_size() -> Node:
    """How many slots turn."""
    return make("sub", param("seqlen_k"), param("ring_sinks"), origin="turn")


def slot(position: Node) -> Node:
    """Where a token lies."""
    turned = make("add", param("ring_sinks"), make("mod", make(
        "sub", position, param("ring_sinks")), ring_size()))
    return make("where", make("lt", position, param("ring_sinks")), position, turned)


def places(q_idx: Node, kv_idx: Node) -> tuple[Node, Node]:
    """Of a query and of key j, which have these positions."""
    place = _place(q_idx)
    back = make("sub", q_idx, place)
    return place, make("where", is_first(), idx("j"), make("sub", kv_idx, back), origin="place")


def key_angle(position: Node) -> Node:
    """What a new key is turned by."""
    first = make("lt", position, param("ring_sinks"))
    at = slot(position)
    return make("where", first, at, make("add", at, _slack()), origin="place")


def query_angles(q_idx: Node) -> tuple[Node, ...]:
    """What a query is turned by for the keys of each zone."""
    back = make("sub", _newest(), q_idx)
    this = make("add", make("sub", slot(_newest()), back), _slack(), origin="place")
    return this, make("add", this, ring_size(), origin="place"), _place(q_idx)


def zone() -> Node:
    """The zone that a kernel, or a part of one, is about."""
    return param("zone")


def in_zone() -> Node:
    """Whether key j is in that zone, as bounds of j."""
    after = make("add", slot(_newest()), const(1))

    def by_zone(this: Node, before: Node, first: Node) -> Node:
        return make("where", make("eq", zone(), const(0)), this, make(
            "where", make("eq", zone(), const(1)), before, first))

    lower = by_zone(param("ring_sinks"), after, const(0))
    upper = by_zone(after, param("seqlen_k"), param("ring_sinks"))
    return make("and", make("le", lower, idx("j")), make("lt", idx("j"), upper), origin="zone")


def _place(q_idx: Node) -> Node:
    most = make("sub", make("add", param("ring_sinks"), param("ring_reach")), const(1))
    return make("min", q_idx, most, origin="place")


def _newest() -> Node:
    return make("sub", param("kv_len", "b"), const(1))


def _slack() -> Node:
    return make("sub", ring_size(), param("ring_reach"))
