"""Symbolic interval arithmetic: the least and greatest value of an index expression over a tile,
and whether a condition holds on all of it, or on any.

Over a tile the index of an axis runs from ``first(axis)`` to ``last(axis)``; what an expression can
be at most and at least is again an expression, evaluated once per block. Sound, not always tight:
None means "unbounded as far as we can tell".
"""

from __future__ import annotations

from .algebra import simplify
from .node import Node, first, last, make, walk
from .ops import FLOATS

Bound = Node | None


def interval(node: Node, *axes: str) -> tuple[Bound, Bound]:
    """(least, greatest) value of ``node`` while the indices of ``axes`` run over the tile."""
    known: dict[str, tuple[Bound, Bound]] = {}
    for n in walk(node):
        known[n.key] = _interval(n, [known[a.key] for a in n.args], axes)
    low, high = known[node.key]
    return (None if low is None else simplify(low)), (None if high is None else simplify(high))


def _interval(n: Node, args: list[tuple[Bound, Bound]],
              axes: tuple[str, ...]) -> tuple[Bound, Bound]:
    if not set(axes) & set(n.axes):
        return n, n
    if n.op == "idx":
        return first(n.attr("axis")), last(n.attr("axis"))
    match n.op:
        case "add":
            return _both("add", args[0][0], args[1][0]), _both("add", args[0][1], args[1][1])
        case "sub":
            return _both("sub", args[0][0], args[1][1]), _both("sub", args[0][1], args[1][0])
        case "neg":
            return _one("neg", args[0][1]), _one("neg", args[0][0])
        case "min" | "max":
            return _extremum(n.op, args)
        case "mul" | "floordiv" if n.args[1].is_const:
            low, high = args[0]
            if n.args[1].attr("value") < 0:
                low, high = high, low
            return _both(n.op, low, n.args[1]), _both(n.op, high, n.args[1])
        case "where":
            (low1, high1), (low2, high2) = args[1], args[2]
            return _both("min", low1, low2), _both("max", high1, high2)
    return None, None


def _extremum(op: str, args: list[tuple[Bound, Bound]]) -> tuple[Bound, Bound]:
    """min is below each operand and max above, even where the other operand is unbounded."""
    (low1, high1), (low2, high2) = args
    if op == "min":
        return _both("min", low1, low2), _known("min", high1, high2)
    return _known("max", low1, low2), _both("max", high1, high2)


def _one(op: str, a: Bound) -> Bound:
    return None if a is None else make(op, a)


def _both(op: str, a: Bound, b: Bound) -> Bound:
    return None if a is None or b is None else make(op, a, b)


def certainty(node: Node, *axes: str) -> tuple[Bound, Bound]:
    """Conditions that do not vary along ``axes``: (``node`` holds on all of the tile, it may hold
    somewhere). The first is never true by mistake, the second never false."""
    always, sometimes = _certainty(node, axes)
    return (None if always is None else simplify(always),
            None if sometimes is None else simplify(sometimes))


def _certainty(n: Node, axes: tuple[str, ...]) -> tuple[Bound, Bound]:
    if not set(axes) & set(n.axes):
        return n, n
    if n.op in ("lt", "le", "eq") and not any(a.dtype in FLOATS for a in n.args):
        (low1, high1), (low2, high2) = (interval(a, *axes) for a in n.args)
        if n.op != "eq":
            return _both(n.op, high1, low2), _both(n.op, low1, high2)
        return (_both("and", _both("le", high1, low2), _both("le", high2, low1)),
                _both("and", _both("le", low1, high2), _both("le", low2, high1)))
    if n.op == "not":
        always, sometimes = _certainty(n.args[0], axes)
        return _one("not", sometimes), _one("not", always)
    if n.op in ("and", "or"):
        (always1, sometimes1), (always2, sometimes2) = (_certainty(a, axes) for a in n.args)
        if n.op == "and":
            return _both("and", always1, always2), _known("and", sometimes1, sometimes2)
        return _known("or", always1, always2), _both("or", sometimes1, sometimes2)
    return None, None


def _known(op: str, a: Bound, b: Bound) -> Bound:
    return make(op, a, b) if a is not None and b is not None else a if b is None else b
