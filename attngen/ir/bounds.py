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

# The run-time length of each sequence axis.
EXTENTS = {"i": "seqlen_q", "j": "seqlen_k"}
_NEUTRAL = {"sum": 0.0, "max": float("-inf")}


def extent(axis: str) -> Node:
    """The length of a sequence axis as an expression."""
    return param(EXTENTS[axis])


def add_bounds(roots: tuple[Node, ...], loop: str) -> tuple[Node, ...]:
    """Make every reduction along ``loop`` right for lengths that end inside a tile.

    Raises VerifyError when a product along the loop has no operand that vanishes past the end.
    """
    inside = make("lt", idx(loop), extent(loop), origin="length")
    masks = {n: make("visible", make("and", n.args[0], inside), axes=n.axes, dtype="bool")
             for n in walk(*roots) if n.op == "visible" and loop in n.axes}
    roots = tuple(substitute(r, masks) for r in roots)
    for node in walk(*roots):
        if node.op == "reduce" and node.attr("over") == loop:
            x, neutral = node.args[0], _NEUTRAL[node.attr("kind")]
            if past_end(x, loop) != neutral:
                visible = make("visible", inside)
                wrapped = make("where", visible, x, const(neutral, x.dtype), origin=x.origin)
                return add_bounds(tuple(substitute(r, {x: wrapped}) for r in roots), loop)
    for node in walk(*roots):
        if node.op in ("contract", "stream_contract", "stream_sum") and node.attr("over") == loop:
            operands = node.args[:1] if node.op == "stream_sum" else node.args[:2]
            if not any(past_end(a, loop) == 0 for a in operands):
                raise VerifyError(f"{node.op} over {loop}: no operand is known to vanish past the "
                                  "end; mask one with where(visible(...), x, 0)")
    return roots


def past_end(n: Node, loop: str) -> float | bool | None:
    """The value of ``n`` where the loop index is past the end, when it is the same everywhere.

    Numbers it cannot know are taken to be finite, as everything loaded or computed from finite
    inputs is.
    """
    if n.is_const:
        return n.attr("value")
    if loop not in n.axes:
        return None
    if n.op in ("input", "by_head"):
        return 0.0
    if n.op == "contract" and n.attr("over") != loop:
        return 0.0 if any(past_end(a, loop) == 0 for a in n.args) else None
    args = [past_end(a, loop) for a in n.args]
    if n.op == "visible":
        return args[0]
    if n.op == "lt" and n.args[0] is idx(loop) and n.args[1] is extent(loop):
        return False
    if n.op == "and" and False in args:
        return False
    if n.op == "where" and args[0] is False:
        return args[2]
    if n.op == "cast":
        return args[0]
    if n.op == "mul" and 0.0 in args:
        return 0.0
    if n.op in ("add", "sub") and args[0] == float("-inf") and args[1] is None:
        return float("-inf")
    info = SCALAR_OPS.get(n.op)
    if info is None or info.evaluate is None or any(a is None for a in args):
        return None
    with np.errstate(all="ignore"):
        result = float(np.asarray(info.evaluate(*(np.asarray(a) for a in args))).item())
    return None if np.isnan(result) else result
