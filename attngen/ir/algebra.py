"""Algebraic rules: folding and identities that hold for floats as written, and the change to
base 2 with the scale moved where it costs one fused multiply-add per score."""

from __future__ import annotations

import math

import numpy as np

from .node import Node, const, idx, is_number, make, reduce, walk
from .ops import FLOATS, SCALAR_OPS
from .rewrite import Rule

LOG2E = math.log2(math.e)
LN2 = math.log(2.0)
_NEG_INF = float("-inf")


def fold(n: Node) -> Node | None:
    """op(c₁, c₂, …) → its value (integers and conditions exactly, floats in float64)"""
    info = SCALAR_OPS.get(n.op)
    if info is None or n.op == "gather" or not n.args or not all(a.is_const for a in n.args):
        return None
    if n.op == "cast":
        return const(n.args[0].attr("value"), n.dtype)
    assert info.evaluate is not None
    with np.errstate(all="ignore"):
        result = info.evaluate(*(np.asarray(a.attr("value")) for a in n.args))
    number = np.asarray(result).item()
    return None if isinstance(number, float) and math.isnan(number) else const(number, n.dtype)


def identity(n: Node) -> Node | None:
    """x+0 → x; x·1 → x; x/1 → x; −−x → x; ¬¬x → x; true∧x → x; min(x, x) → x;
    where(true, x, y) → x"""
    a = n.args
    if n.op in ("add", "sub") and is_number(a[1], 0):
        return a[0]
    if n.op in ("mul", "div") and is_number(a[1], 1) and a[0].dtype == n.dtype:
        return a[0]
    if n.op == "floordiv" and is_number(a[1], 1) and n.dtype not in FLOATS:
        return a[0]
    if n.op in ("neg", "not") and a[0].op == n.op:
        return a[0].args[0]
    if n.op in ("min", "max", "and", "or") and a[0] is a[1]:
        return a[0]
    if n.op in ("and", "or") and a[1].is_const:
        absorbing = n.op == "or"
        return a[1] if bool(a[1].attr("value")) == absorbing else a[0]
    if n.op == "where" and a[0].is_const:
        return a[1] if a[0].attr("value") else a[2]
    if n.op == "where" and a[1] is a[2]:
        return a[1]
    if n.op == "cast" and a[0].dtype == n.dtype:
        return a[0]
    if n.op == "visible" and is_number(a[0], True):
        return a[0]
    return None


def nothing_visible(n: Node) -> Node | None:
    """visible(false) → visible(j < 0): a mask that contradicts itself still belongs to its keys,
    and ranges are solved to nothing"""
    if n.op != "visible" or not is_number(n.args[0], False):
        return None
    return make("visible", make("lt", idx("j"), const(0)), axes=("j",), origin=n.origin)


def repeated(n: Node) -> Node | None:
    """min(min(a, b), b) → min(a, b), at any depth; max, and, or likewise"""
    if n.op not in ("min", "max", "and", "or"):
        return None
    for inner, other in (n.args, n.args[::-1]):
        if inner.op == n.op and other in _chain(inner, n.op):
            return inner
    return None


def _chain(root: Node, op: str) -> set[Node]:
    """What nested operations of one kind are made of."""
    found, waiting = {root}, [root]
    while waiting:
        n = waiting.pop()
        if n.op == op:
            new = set(n.args) - found
            found |= new
            waiting += new
    return found


def nonempty_tile(n: Node) -> Node | None:
    """first(i) ≤ min(a, last(i)) → first(i) ≤ a; max(a, first(i)) ≤ last(i) → a ≤ last(i); and
    for their opposites: a tile begins no later than it ends"""
    if n.op not in ("le", "lt"):
        return None
    low, high = n.args if n.op == "le" else n.args[::-1]
    for side, joined, end in ((low, high, "last"), (high, low, "first")):
        if side.op != ("first" if end == "last" else "last") \
                or joined.op != ("min" if end == "last" else "max"):
            continue
        for a, other in (joined.args, joined.args[::-1]):
            if other.op == end and other.attr("axis") == side.attr("axis"):
                pair = (side, a) if end == "last" else (a, side)
                return make(n.op, *(pair if n.op == "le" else pair[::-1]), origin=n.origin)
    return None


def negation(n: Node) -> Node | None:
    """¬(a < b) → b ≤ a; ¬(a ≤ b) → b < a, for integers (floats have NaN); ¬(a = b) → a ≠ b"""
    if n.op != "not" or n.args[0].op not in ("lt", "le", "eq", "ne"):
        return None
    inner = n.args[0]
    x, y = inner.args
    if inner.op in ("eq", "ne"):
        return make("ne" if inner.op == "eq" else "eq", x, y, origin=inner.origin)
    if x.dtype in FLOATS or y.dtype in FLOATS:
        return None
    return make("lt" if inner.op == "le" else "le", y, x, origin=inner.origin)


def merge_constants(n: Node) -> Node | None:
    """(x·c)·d → x·(c·d); (x+c)+d → x+(c+d) for integers; x/c → x·(1/c)

    Positions stay as written, unless c is a power of two: 49/49 is 1, 49·(1/49) is not.
    """
    if n.op not in ("mul", "add", "div") or not n.args[1].is_const:
        return None
    inner, c = n.args[0], n.args[1].attr("value")
    if n.dtype not in FLOATS:
        if inner.op != n.op or not inner.args[1].is_const:
            return None
        d = inner.args[1].attr("value")
        return make(n.op, inner.args[0], const(c * d if n.op == "mul" else c + d, n.dtype))
    if n.op == "div" and c and (math.frexp(c)[0] in (0.5, -0.5) or _is_data(inner)):
        return make("mul", inner, const(1.0 / c, n.dtype))
    if n.op == "mul" and inner.op == "mul" and inner.args[1].is_const and _is_data(inner):
        product = c * inner.args[1].attr("value")
        if math.isfinite(product) and product:
            return make("mul", inner.args[0], const(product, n.dtype))
    return None


def _is_data(n: Node) -> bool:
    """True for what comes from tensors, where the last bit means nothing; positions are exact."""
    return any(m.op in ("input", "value", "contract") for m in walk(n))


def _positive_factor(n: Node) -> tuple[Node, Node] | None:
    """(x, c) for x·c with a constant c > 0."""
    if n.op == "mul" and n.args[1].is_const and n.dtype in FLOATS \
            and 0 < n.args[1].attr("value") < math.inf:
        return n.args[0], n.args[1]
    return None


def scale_out_of_mask(n: Node) -> Node | None:
    """where(m, x·c, −inf) → where(m, x, −inf)·c, c > 0"""
    if n.op != "where" or not is_number(n.args[2], _NEG_INF):
        return None
    factor = _positive_factor(n.args[1])
    if factor is None:
        return None
    return make("mul", make("where", n.args[0], factor[0], n.args[2], origin=n.origin), factor[1])


def scale_out_of_max(n: Node) -> Node | None:
    """max_j(x·c) → max_j(x)·c, c > 0"""
    if n.op != "reduce" or n.attr("kind") != "max":
        return None
    factor = _positive_factor(n.args[0])
    if factor is None:
        return None
    return make("mul", reduce("max", factor[0], n.attr("over"), origin=n.origin), factor[1])


def scale_out_of_finite(n: Node) -> Node | None:
    """finite_or_zero(x·c) → finite_or_zero(x)·c, c > 0"""
    if n.op != "finite_or_zero":
        return None
    factor = _positive_factor(n.args[0])
    if factor is None:
        return None
    return make("mul", make("finite_or_zero", factor[0], origin=n.origin), factor[1])


def relative_to_unscaled(n: Node) -> Node | None:
    """Σ relative to m·c → Σ relative to m, c > 0: the mark says when to rescale, not by how much"""
    if not n.op.startswith("stream_"):
        return None
    factor = _positive_factor(n.args[-1])
    if factor is None:
        return None
    return make(n.op, *n.args[:-1], factor[0], axes=n.axes, dtype=n.dtype, origin=n.origin,
                **dict(n.attrs))


def base_two(n: Node) -> Node | None:
    """exp(x) → exp2(x·log₂e); log(x) → log2(x)·ln 2"""
    if n.op == "exp":
        return make("exp2", make("mul", n.args[0], const(LOG2E, n.dtype)), origin=n.origin)
    if n.op == "log":
        return make("mul", make("log2", n.args[0], origin=n.origin), const(LN2, n.dtype))
    return None


def distribute_in_exponent(n: Node) -> Node | None:
    """exp2((x − y)·c) → exp2(x·c − y·c): y·c is one number a row, the rest one multiply-add"""
    if n.op != "exp2" or n.args[0].op != "mul" or not n.args[0].args[1].is_const:
        return None
    difference, c = n.args[0].args
    if difference.op != "sub":
        return None
    x, y = difference.args
    return make("exp2", make("sub", make("mul", x, c), make("mul", y, c)), origin=n.origin)


FOLD: tuple[Rule, ...] = (fold, identity, nothing_visible, repeated, negation, merge_constants,
                          nonempty_tile)
REBASE: tuple[Rule, ...] = (*FOLD, base_two, scale_out_of_mask, scale_out_of_max,
                            scale_out_of_finite, relative_to_unscaled, distribute_in_exponent)


def simplify(n: Node) -> Node:
    """A scalar expression with folding and identities applied."""
    from .rewrite import rewrite
    return rewrite((n,), FOLD)[0]
