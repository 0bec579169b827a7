"""Index expressions as sums, and what such sums can be at least and at most inside a box.

    q_idx − kv_idx + 3   →   1·i − 1·j + (q_offset − kv_offset + 3)

A box says between which two expressions the index of each axis runs. Terms common to both sides of
a comparison cancel here, which plain interval arithmetic cannot do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

from .node import Node, const, make, walk
from .ops import FLOATS, PROOF_OPS
from .summary import FAR

Bound = Node | None
# How entries of captured tensors are bounded: not; by what a kernel looks up for a tile; by what a
# tile map can look up for all tiles at once (ranges of two dimensions, hashes of entries).
Tables = Literal["", "kernel", "map"]
Box = dict[str, tuple[Node, Node]]  # axis -> least and greatest index
_SMALL = 1024  # factors of a table's bounds that cannot overflow, as UNKNOWN is the greatest


# Sums met in the proof under way, and what they are as expressions: most are met many times.
_sums_met: ContextVar[dict[Node, Linear] | None] = ContextVar("attngen_sums", default=None)
_nodes_made: ContextVar[dict[Linear, Node] | None] = ContextVar("attngen_sum_nodes", default=None)


@contextmanager
def remembering() -> Iterator[None]:
    """Inside, no sum is taken apart or put together twice."""
    tokens = _sums_met.set({}), _nodes_made.set({})
    try:
        yield
    finally:
        _sums_met.reset(tokens[0])
        _nodes_made.reset(tokens[1])


def varies(n: Node, box: Box) -> bool:
    """True when ``n`` depends on an axis of the box."""
    return any(a in box for a in n.axes)


@dataclass(frozen=True)
class Linear:
    """Σ factor·term + constant. Terms are nodes that are no sums themselves, ordered: indices
    first, then by key, so that equal sums are equal objects."""

    terms: tuple[tuple[Node, int], ...]
    constant: int = 0

    def split(self, box: Box) -> tuple[Linear, Linear]:
        """(what varies inside the box, what does not)"""
        moving = tuple(t for t in self.terms if varies(t[0], box))
        still = tuple(t for t in self.terms if not varies(t[0], box))
        return Linear(moving), Linear(still, self.constant)

    def scaled(self, factor: int) -> Linear:
        return Linear(tuple((n, c * factor) for n, c in self.terms), self.constant * factor)

    def replaced(self, term: Node, by: Linear) -> Linear:
        """The sum with ``by`` in the place of ``term``."""
        factor = dict(self.terms)[term]
        rest = Linear(tuple(t for t in self.terms if t[0] is not term), self.constant)
        return plus(rest, by.scaled(factor))

    def node(self) -> Node:
        """The sum as an expression."""
        if len(self.terms) == 1 and self.terms[0][1] == 1 and not self.constant:
            return self.terms[0][0]
        made = _nodes_made.get()
        if made is None:
            return self._node()
        if self not in made:
            made[self] = self._node()
        return made[self]

    def _node(self) -> Node:
        out: Node | None = None
        for n, c in sorted(self.terms, key=lambda t: t[1] < 0):  # positive terms first
            out = _accumulate(out, n, c)
        if out is None:
            return const(self.constant)
        return out if self.constant == 0 else make("add", out, const(self.constant))


def _accumulate(total: Node | None, n: Node, factor: int) -> Node:
    term = n if abs(factor) == 1 else make("mul", n, const(abs(factor)))
    if total is None:
        return term if factor > 0 else make("neg", term)
    return make("add" if factor > 0 else "sub", total, term)


def _order(n: Node) -> tuple[bool, str]:
    return n.op != "idx", n.attr("axis") if n.op == "idx" else n.key


def plus(a: Linear, b: Linear) -> Linear:
    """a + b"""
    total = dict(a.terms)
    for n, c in b.terms:
        total[n] = total.get(n, 0) + c
    return Linear(tuple(sorted(((n, c) for n, c in total.items() if c),
                               key=lambda t: _order(t[0]))), a.constant + b.constant)


def linear(root: Node) -> Linear:
    """A whole-number expression as a sum."""
    met = _sums_met.get()
    if met is None:
        return _linear(root)
    if root not in met:
        met[root] = _linear(root)
    return met[root]


def _linear(root: Node) -> Linear:
    if (inside := _addends(root)) is None:
        return Linear(((root, 1),))
    if not inside:
        return Linear((), int(root.attr("value")))
    waiting = {root: 1}
    terms: dict[Node, int] = {}
    constant = 0
    for n in reversed(_sums(root)):  # users before operands: shared parts are met once
        factor = waiting.pop(n)
        inside = _addends(n)
        if inside is None:
            terms[n] = factor
        elif n.is_const:
            constant += factor * int(n.attr("value"))
        for operand, times in inside or ():
            waiting[operand] = waiting.get(operand, 0) + factor * times
    return plus(Linear(tuple(terms.items()), constant), Linear(()))


def _sums(root: Node) -> list[Node]:
    """The sums ``root`` is made of and their terms, operands before users."""
    order: dict[Node, None] = {}
    stack = [(root, False)]
    while stack:
        n, met = stack.pop()
        if met:
            order[n] = None
        elif n not in order:
            stack.append((n, True))
            stack += [(operand, False) for operand, _ in _addends(n) or () if operand not in order]
    return list(order)


def _addends(n: Node) -> list[tuple[Node, int]] | None:
    """Operands and their factors where ``n`` is a sum of them; None where it is no sum."""
    match n.op:
        case "const":
            return []
        case "add":
            return [(n.args[0], 1), (n.args[1], 1)]
        case "sub":
            return [(n.args[0], 1), (n.args[1], -1)]
        case "neg":
            return [(n.args[0], -1)]
        case "mul" if n.args[1].is_const:
            return [(n.args[0], int(n.args[1].attr("value")))]
        case "cast" if _whole(n) and _whole(n.args[0]):
            return [(n.args[0], 1)]
    return None


def _whole(n: Node) -> bool:
    return n.dtype not in FLOATS and n.dtype != "bool"


class Extent:
    """Least and greatest values inside a box; None is "unbounded as far as we can tell".

    With ``tables`` elements of captured tensors are bounded by ``table_min`` and ``table_max``, in
    the box of ``wide`` where that is given; how far depends on who will look them up.
    """

    def __init__(self, box: Box, tables: Tables = "", wide: Extent | None = None) -> None:
        self.box, self.tables, self.wide = box, tables, wide
        self._known: dict[str, tuple[Bound, Bound]] = {}

    def of(self, n: Node) -> tuple[Bound, Bound]:
        if not varies(n, self.box):
            return n, n
        known = self._known.get(n.key)
        if known is None:
            sums = linear(n)
            known = self._term(n) if sums.terms == ((n, 1),) else self.sum(sums)
            self._known[n.key] = known
        return known

    def sum(self, total: Linear) -> tuple[Bound, Bound]:
        """Of a sum: each term at its least or greatest."""
        moving, still = total.split(self.box)
        low: Linear | None = still
        high: Linear | None = still
        for n, c in moving.terms:
            least, greatest = self.of(n) if c > 0 else self.of(n)[::-1]
            if ((abs(c) > _SMALL or abs(total.constant) > FAR)
                    and _reads_tables(least, greatest)):
                return None, None
            low = None if low is None or least is None else plus(low, linear(least).scaled(c))
            high = (None if high is None or greatest is None
                    else plus(high, linear(greatest).scaled(c)))
        return None if low is None else low.node(), None if high is None else high.node()

    def _term(self, n: Node) -> tuple[Bound, Bound]:
        if n.op == "idx":
            return self.box[n.attr("axis")]
        if n.dtype in FLOATS or n.dtype == "bool":
            return None, None
        match n.op:
            case "min" | "max":
                return _extremum(n.op, *(self.of(a) for a in n.args))
            case "where":
                (low1, high1), (low2, high2) = self.of(n.args[1]), self.of(n.args[2])
                return _both("min", low1, low2), _both("max", high1, high2)
            case "abs":
                return _absolute(*self.of(n.args[0]))
            case "mul":
                return self._product(n)
            case "floordiv" if n.args[1].is_const and n.args[1].attr("value"):
                low, high = self.of(n.args[0])
                if n.args[1].attr("value") < 0:
                    low, high = high, low
                return _both(n.op, low, n.args[1]), _both(n.op, high, n.args[1])
            case "mod" if n.args[1].is_const and n.args[1].attr("value"):
                return _remainder(*self.of(n.args[0]), n.args[1].attr("value"))
            case "floordiv" | "mod" if self.tables == "map" and not varies(n.args[1], self.box):
                return self._by_number(n)
            case "bitand" if n.args[1].is_const and n.args[1].attr("value") >= 0:
                return const(0), n.args[1]
            case "cast" if n.args[0].dtype == "bool":
                return const(0), const(1)
            case "gather" if self.tables:
                return self._element(n)
        return None, None

    def _by_number(self, n: Node) -> tuple[Bound, Bound]:
        """A quotient or remainder by a number known at run time, of either sign. Not in kernels,
        which must not divide by what may be 0 where the mask does not."""
        low, high = self.of(n.args[0])
        if low is None or high is None:
            return None, None
        m = n.args[1]
        ends = make("floordiv", low, m), make("floordiv", high, m)
        if n.op == "floordiv":
            return make("min", *ends), make("max", *ends)
        least = make("min", make("add", m, const(1)), const(0))
        greatest = make("max", make("sub", m, const(1)), const(0))
        same = make("eq", *ends)
        return (make("where", same, make("mod", low, m), least),
                make("where", same, make("mod", high, m), greatest))

    def _product(self, n: Node) -> tuple[Bound, Bound]:
        """Least and greatest of the four corners."""
        a, b = self.of(n.args[0]), self.of(n.args[1])
        if None in a or None in b or _reads_tables(*a, *b):
            return None, None
        same = n.args[0] is n.args[1]
        pairs = [(0, 0), (1, 1)] if same else [(0, 0), (0, 1), (1, 0), (1, 1)]
        corners = [_both("mul", a[x], b[y]) for x, y in pairs]
        low = high = corners[0]
        for c in corners[1:]:
            low, high = _both("min", low, c), _both("max", high, c)
        return (const(0) if same else low), high

    def _element(self, n: Node) -> tuple[Bound, Bound]:
        """gather(t, …, x) → table_min(t, …, low(x), high(x)), table_max(…); with the last two
        indices likewise where both vary."""
        if self.wide is not None:
            return self.wide.of(n)
        first = next(k for k, a in enumerate(n.args) if varies(a, self.box))
        if len(n.args) - first > (2 if self.tables == "map" else 1):
            return None, None
        ends: list[Node] = []
        for low, high in map(self.of, n.args[first:]):
            if low is None or high is None:
                return None, None
            ends += [low, high]
        low, high = (make(op, *n.args[:first], *ends, name=n.attr("name"), dtype="int64")
                     for op in ("table_min", "table_max"))
        return low, high

    def bits(self, n: Node) -> Bound:
        """gather(t, …, x) → table_bits(t, …, low(x), high(x)): a bit for each entry's hash."""
        extent = self.wide or self
        low, high = extent.of(n.args[-1])
        if low is None or high is None or any(varies(a, self.box) for a in n.args[:-1]):
            return None
        return make("table_bits", *n.args[:-1], low, high, name=n.attr("name"), dtype="int64")


def _reads_tables(*bounds: Bound) -> bool:
    return any(m.op in PROOF_OPS for n in bounds if n is not None for m in walk(n))


def _extremum(op: str, a: tuple[Bound, Bound], b: tuple[Bound, Bound]) -> tuple[Bound, Bound]:
    """min is below each operand and max above, even where the other operand is unbounded."""
    if op == "min":
        return _both("min", a[0], b[0]), _known("min", a[1], b[1])
    return _known("max", a[0], b[0]), _both("max", a[1], b[1])


def _absolute(low: Bound, high: Bound) -> tuple[Bound, Bound]:
    zero = const(0)
    above = None if low is None else make("max", low, zero)
    below = None if high is None else make("max", make("neg", high), zero)
    least = _known("max", above, below) or zero
    return least, None if low is None else _both("max", make("neg", low), high)


def _remainder(low: Bound, high: Bound, m: int) -> tuple[Bound, Bound]:
    """x mod m: exact within one period, else every remainder."""
    least, greatest = (const(0), const(m - 1)) if m > 0 else (const(m + 1), const(0))
    if low is None or high is None:
        return least, greatest
    number = const(m)
    same = make("eq", make("floordiv", low, number), make("floordiv", high, number))
    return (make("where", same, make("mod", low, number), least),
            make("where", same, make("mod", high, number), greatest))


def _both(op: str, a: Bound, b: Bound) -> Bound:
    return None if a is None or b is None else make(op, a, b)


def _known(op: str, a: Bound, b: Bound) -> Bound:
    return make(op, a, b) if a is not None and b is not None else a if b is None else b
