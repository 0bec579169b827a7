"""A ring of keys: which slot keeps which token, and what of that a query sees.

A ring holds the first ``ring_sinks`` tokens and, in the rest of its slots, the newest others. Of
``kv_len`` tokens the newest is in slot s; the token in slot j depends on the zone that j is in:

    0  this lap of the ring, up to s     p(j) = j + kv_len − 1 − s
    1  the lap before, from s on         p(j) = j + kv_len − 1 − s − ring size
    2  the first tokens                  p(j) = j

Within a zone slots are in the order of positions, so masks are as provable as those of keys side by
side. The graph is that of one zone, the run-time number ``zone``; ``split_kv`` makes it parts of
the keys.
"""

from __future__ import annotations

from .node import Node, const, idx, make, param

ZONES = 3
THIS, BEFORE, FIRST = range(ZONES)


def zone() -> Node:
    """The zone that a kernel, or a part of one, is about."""
    return param("zone")


def size() -> Node:
    """How many slots turn."""
    return make("sub", param("seqlen_k"), param("ring_sinks"), origin="turn")


def newest() -> Node:
    """The position of the newest token."""
    return make("sub", param("kv_len", "b"), const(1))


def slot(position: Node) -> Node:
    """Where a token lies."""
    return make("where", make("lt", position, param("ring_sinks")), position, _turned(position))


def _turned(position: Node) -> Node:
    """Where it would, were it no first one; of the newest, where this lap ends."""
    return make("add", param("ring_sinks"), make("mod", make(
        "sub", position, param("ring_sinks")), size()), origin="turn")


def _by_zone(this: Node, before: Node, first: Node) -> Node:
    return make("where", make("eq", zone(), const(THIS)), this, make(
        "where", make("eq", zone(), const(BEFORE)), before, first), origin="zone")


def position() -> Node:
    """Of key j."""
    lap = make("sub", newest(), _turned(newest()))
    return make("add", idx("j"), _by_zone(lap, make("sub", lap, size()), const(0)),
                origin="kv_idx")


def holds(q_idx: Node, kv_idx: Node) -> Node:
    """Whether key j is of the zone, is there, and is near enough to the query: fewer than
    ``ring_reach`` tokens behind it, but for first ones."""
    sinks, after = param("ring_sinks"), make("add", _turned(newest()), const(1))
    j, first = idx("j"), make("eq", zone(), const(FIRST))
    of_zone = make("and", make("le", _by_zone(sinks, after, const(0)), j),
                   make("lt", j, _by_zone(after, param("seqlen_k"), sinks)), origin="zone")
    written = make("and", make("le", make("where", first, const(0), sinks), kv_idx),
                   make("lt", kv_idx, param("kv_len", "b")), origin="turn")
    reach = make("where", first, param("kv_len", "b"), param("ring_reach"), origin="turn")
    near = make("lt", make("sub", q_idx, kv_idx), reach, origin="turn")
    return make("and", make("and", of_zone, written), near, origin="turn")
