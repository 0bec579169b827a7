"""Lengths that are no multiple of the tile: what a reduction sees past the end of the loop axis.

Loads give zero there. A reduction needs its neutral element instead, so its operand is followed
symbolically past the end; where it is not neutral by itself the bound joins the mask:

    max_j s  →  max_j where(j < seqlen_k, s, −inf)
    where(visible(mask), s, −inf)  →  where(visible(mask ∧ j < seqlen_k), s, −inf)
"""

from __future__ import annotations

import numpy as np

from ..errors import VerifyError
from .node import Node, const, idx, make, param, substitute, walk
from .ops import SCALAR_OPS

# The run-time length of each sequence axis, and of those made from them.
SEQUENCES = {"i": "seqlen_q", "j": "seqlen_k"}
EXTENTS = {**SEQUENCES, "row": "rows", "split": "num_splits"}
_NEUTRAL = {"sum": 0.0, "max": float("-inf")}
Known = float | bool | None  # a value that is the same everywhere, or None


def extent(axis: str) -> Node:
    """The length of an axis of ``EXTENTS`` as an expression."""
    return param(EXTENTS[axis])


def add_bounds(roots: tuple[Node, ...], loop: str) -> tuple[Node, ...]:
    """Make every reduction along ``loop`` right for lengths that end inside a tile.

    Raises VerifyError when a product along the loop has no operand that vanishes past the end.
    """
    inside = make("lt", idx(loop), extent(loop), origin="length")
    masks = {n: make("visible", make("and", n.args[0], inside), axes=n.axes, dtype="bool")
             for n in walk(*roots)
             if n.op == "visible" and loop in n.axes and inside not in walk(n)}
    roots = tuple(substitute(r, masks) for r in roots)
    past = past_end(roots, loop)
    for node in walk(*roots):
        if node.op == "reduce" and node.attr("over") == loop:
            x, neutral = node.args[0], _NEUTRAL[node.attr("kind")]
            if past[x.key] != neutral:
                visible = make("visible", inside)
                wrapped = make("where", visible, x, const(neutral, x.dtype), origin=x.origin)
                return add_bounds(tuple(substitute(r, {x: wrapped}) for r in roots), loop)
    past = past_end(roots, loop)
    for node in walk(*roots):
        if _is_sum(node, loop) and not _vanishes(node, past):
            raise VerifyError(f"{node.op} over {loop}: no operand is known to vanish past the "
                              "end; mask one with where(visible(...), x, 0)")
    return roots


def hidden_is_neutral(roots: tuple[Node, ...], loop: str) -> bool:
    """True when keys that any of the masks hides add nothing to any reduction along ``loop``, so
    that tiles where all are hidden need no visit."""
    masks = [n for n in walk(*roots) if n.op == "visible"]
    for mask in masks:
        known = _propagate(roots, loop, {mask.key: False})
        for node in walk(*roots):
            if _is_sum(node, loop) and not _vanishes(node, known):
                return False
            if node.op == "reduce" and node.attr("over") == loop \
                    and known[node.args[0].key] != _NEUTRAL[node.attr("kind")]:
                return False
    return True


def _is_sum(n: Node, loop: str) -> bool:
    return n.op in ("contract", "stream_contract", "stream_sum") and n.attr("over") == loop


def _vanishes(n: Node, known: dict[str, Known]) -> bool:
    return any(known[a.key] == 0 for a in (n.args[:1] if n.op == "stream_sum" else n.args[:2]))


def past_end(roots: tuple[Node, ...], loop: str) -> dict[str, Known]:
    """For every node key, its value where the loop index is past the end, when it is the same
    everywhere: what is loaded is zero there, and the index is not below the length."""
    assumed: dict[str, Known] = {make("lt", idx(loop), extent(loop)).key: False}
    assumed.update((n.key, 0.0) for n in walk(*roots)
                   if n.op in ("input", "by_head") and loop in n.axes)
    return _propagate(roots, loop, assumed)


def _propagate(roots: tuple[Node, ...], loop: str,
               assumed: dict[str, Known]) -> dict[str, Known]:
    """What follows for every node from the values assumed for some.

    Numbers it cannot know are taken to be finite, as everything loaded or computed from finite
    inputs is.
    """
    known: dict[str, Known] = {}
    for n in walk(*roots):
        known[n.key] = assumed[n.key] if n.key in assumed else _value(
            n, [known[a.key] for a in n.args], loop)
    return known


def _value(n: Node, args: list[Known], loop: str) -> Known:
    if n.is_const:
        return n.attr("value")
    if loop not in n.axes or not n.args:
        return None
    if n.op == "contract" and n.attr("over") != loop:
        return 0.0 if 0.0 in args else None
    if n.op in ("visible", "cast"):
        return args[0]
    if n.op == "and" and False in args:
        return False
    if n.op == "where" and args[0] is False:
        return args[2]
    if n.op == "mul" and 0.0 in args:
        return 0.0
    if n.op in ("add", "sub") and args[0] == float("-inf") and args[1] is None:
        return float("-inf")
    info = SCALAR_OPS.get(n.op)
    if info is None or info.evaluate is None or n.op == "gather" or any(a is None for a in args):
        return None
    with np.errstate(all="ignore"):
        result = float(np.asarray(info.evaluate(*(np.asarray(a) for a in args))).item())
    return None if np.isnan(result) else result
