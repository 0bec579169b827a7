"""Reverse-mode differentiation of scalar expressions: one rule per operation, and nothing else.

    tanh(s/c)·c, cotangent g   →   d/ds:  g·c·(1 − tanh²(s/c))·(1/c)

A rule takes a node and the cotangent of its result, and gives the cotangents of its operands, None
where nothing flows (Griewank & Walther 2008, ch. 3). Sums over axes that an operand lacks are left
to whoever asks: everything here is linear in the cotangent, so they can wait for the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from ..errors import VerifyError
from .node import Node, cast, const, make, walk
from .ops import FLOATS

Cotangents = tuple[Node | None, ...]
Rule = Callable[[Node, Node], Cotangents]


def derivatives(root: Node, cotangent: Node, leaves: Iterable[Node]) -> dict[Node, Node]:
    """The cotangents of ``leaves``, given that of ``root``; those that ``root`` does not depend on
    are absent.

    Raises VerifyError for an operation without a rule.
    """
    wanted = {n.key for n in leaves}
    flows = _between(root, wanted)
    found: dict[str, Node] = {root.key: cotangent}
    result: dict[Node, Node] = {}
    for n in reversed(list(walk(root))):
        if n.key not in flows or n.key not in found:
            continue
        if n.key in wanted:
            result[n] = found[n.key]
            continue
        if n.op not in RULES:
            raise VerifyError(f"{n.op} has no derivative rule", where=n.origin)
        for operand, g in zip(n.args, RULES[n.op](n, found[n.key]), strict=True):
            if g is not None and operand.key in flows:
                before = found.get(operand.key)
                found[operand.key] = g if before is None else make("add", before, g)
    return result


def _between(root: Node, leaves: set[str]) -> set[str]:
    """The nodes through which ``root`` depends on any of the leaves."""
    flows: set[str] = set()
    for n in walk(root):
        if n.key in leaves or any(a.key in flows for a in n.args):
            flows.add(n.key)
    return flows


def _number(x: float, like: Node) -> Node:
    return const(x, like.dtype)


def _where(condition: Node, g: Node, other: Node | float = 0.0) -> Node:
    return make("where", condition, g, other if isinstance(other, Node) else _number(other, g))


def _times(g: Node, *factors: Node | float) -> Node:
    for f in factors:
        g = make("mul", g, f if isinstance(f, Node) else _number(f, g))
    return g


def _abs(n: Node, g: Node) -> Cotangents:
    (x,) = n.args
    zero = _number(0.0, x)
    return (_where(make("lt", zero, x), g, _where(make("lt", x, zero), make("neg", g))),)


def _extreme(n: Node, g: Node) -> Cotangents:
    """min and max: equal operands get half each, as torch has it. A number does not compete."""
    a, b = n.args
    first = make("lt", a, b) if n.op == "min" else make("lt", b, a)
    if b.is_const:
        return _where(make("or", first, make("eq", a, b)), g), None
    tie = make("eq", a, b)
    half = _where(tie, _times(g, 0.5))
    other = make("not", make("or", first, tie))
    return _where(first, g, half), _where(other, g, half)


def _cast(n: Node, g: Node) -> Cotangents:
    (x,) = n.args
    return (cast(g, x.dtype) if x.dtype in FLOATS else None,)


def _pick(n: Node, g: Node) -> Cotangents:
    return None, _where(n.args[0], g), _where(n.args[0], _number(0.0, g), g)


def _erf(n: Node, g: Node) -> Cotangents:
    (x,) = n.args
    return (_times(g, make("exp", make("neg", make("mul", x, x))), 2.0 / math.sqrt(math.pi)),)


# After the op table's rows that floats flow through; comparisons and whole numbers have no rule.
RULES: dict[str, Rule] = {
    "add": lambda n, g: (g, g),
    "sub": lambda n, g: (g, make("neg", g)),
    "mul": lambda n, g: (_times(g, n.args[1]), _times(g, n.args[0])),
    "div": lambda n, g: (make("div", g, n.args[1]),
                         make("neg", make("div", _times(g, n), n.args[1]))),
    "neg": lambda n, g: (make("neg", g),),
    "abs": _abs,
    "min": _extreme,
    "max": _extreme,
    "floordiv": lambda n, g: (None, None),
    "mod": lambda n, g: (g, make("neg", _times(g, make("floordiv", *n.args)))),
    "exp": lambda n, g: (_times(g, n),),
    "exp2": lambda n, g: (_times(g, n, math.log(2.0)),),
    "log": lambda n, g: (make("div", g, n.args[0]),),
    "log2": lambda n, g: (make("div", _times(g, 1.0 / math.log(2.0)), n.args[0]),),
    "tanh": lambda n, g: (_times(g, make("sub", _number(1.0, n), make("mul", n, n))),),
    "sqrt": lambda n, g: (make("div", _times(g, 0.5), n),),
    "sigmoid": lambda n, g: (_times(g, n, make("sub", _number(1.0, n), n)),),
    "erf": _erf,
    "recip0": lambda n, g: (make("neg", _times(g, n, n)),),
    "finite_or_zero": lambda n, g: (g,),
    "where": _pick,
    "cast": _cast,
}
