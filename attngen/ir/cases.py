"""Conditions in normal form: alternatives of conjunctions of comparisons of sums with zero.

|x|, min, max and where are split into cases on the way, and "not" is pushed inward until it is
gone:

    |i − j| ≤ 8   →   i − j − 8 ≤ 0  ∧  j − i − 8 ≤ 0
    ¬(i ≤ j)      →   j − i + 1 ≤ 0
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from math import prod

from .linear import Box, Linear, linear, plus, varies
from .node import Node, const, make
from .ops import FLOATS

MOST_CASES = 24  # conjunctions one condition may become
_MOST_SPLITS = 48  # cases made of abs, min, max and where
_MOST_PARTS = 2000  # conditions looked into, shared ones once for each use


@dataclass(frozen=True)
class Atom:
    """``sum`` ≤ 0, = 0 or ≠ 0 (``kind`` le, eq, ne); or, of kind "if", a condition that does not
    vary inside the box."""

    kind: str
    sum: Linear = Linear(())
    condition: Node = const(True)


@dataclass(frozen=True)
class Formula:
    """``op`` "and" or "or" of parts."""

    op: str
    parts: tuple[Formula | Atom, ...]


class Normal:
    """Brings one condition into normal form; what does not vary inside the box stays whole, and
    what cannot be analysed counts as true."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self._splits = self._parts = 0

    def formula(self, n: Node, positive: bool) -> Formula | Atom:
        """``n``, or its opposite unless ``positive``."""
        if not varies(n, self.box):
            return Atom("if", condition=n if positive else make("not", n))
        args = n.args
        self._parts += 1
        if self._parts > _MOST_PARTS:
            return Atom("if")
        match n.op:
            case "not":
                return self.formula(args[0], not positive)
            case "and" | "or":
                op = n.op if positive else "or" if n.op == "and" else "and"
                return joined(op, (self.formula(a, positive) for a in args))
            case "where" if n.dtype == "bool":
                return self._choice(args[0], self.formula(args[1], positive),
                                    self.formula(args[2], positive))
            case "eq" | "ne" if args[0].dtype == "bool" == args[1].dtype:
                same = (n.op == "eq") == positive
                return self._choice(args[0], self.formula(args[1], same),
                                    self.formula(args[1], not same))
            case "lt" | "le" | "eq" | "ne" if not any(
                    a.dtype in FLOATS or a.dtype == "bool" for a in args):
                difference = plus(linear(args[0]), linear(args[1]).scaled(-1))
                if n.op in ("eq", "ne"):
                    return self._compare("eq" if (n.op == "eq") == positive else "ne", difference)
                strict = (n.op == "lt") == positive
                if not positive:
                    difference = difference.scaled(-1)
                return self._compare("le", plus(difference, Linear((), int(strict))))
            case "gather" if n.dtype == "bool":
                element = make("gather", *args, name=n.attr("name"), dtype="int32")
                return self._compare("ne" if positive else "eq", linear(element))
        return Atom("if")

    def _choice(self, condition: Node, yes: Formula | Atom, no: Formula | Atom) -> Formula | Atom:
        return joined("or", (joined("and", (self.formula(condition, True), yes)),
                               joined("and", (self.formula(condition, False), no))))

    def _compare(self, kind: str, total: Linear) -> Formula | Atom:
        """A comparison of a sum with zero, its terms split into cases."""
        for n, c in total.terms:
            if n.op not in ("abs", "min", "max", "where") or not varies(n, self.box):
                continue
            if self._splits >= _MOST_SPLITS:
                break
            self._splits += 1
            branches = [total.replaced(n, linear(a)) for a in n.args[-2:]]
            if n.op == "where":
                yes, no = (self._compare(kind, b) for b in branches)
                return self._choice(n.args[0], yes, no)
            if n.op == "abs":  # the greater of x and −x
                branches = [total.replaced(n, linear(n.args[0]).scaled(s)) for s in (1, -1)]
            if kind == "le":
                both = (c > 0) == (n.op != "min")
                return joined("and" if both else "or", (self._compare(kind, b) for b in branches))
            sides = (self._compare("le", plus(t, Linear((), int(kind == "ne"))))
                     for t in (total, total.scaled(-1)))
            return joined("and" if kind == "eq" else "or", sides)
        if kind != "le":
            total = self._congruence(total)
        return Atom(kind, total)

    def _congruence(self, total: Linear) -> Linear:
        """x mod m − y mod m (= | ≠) 0 → (x − y) mod m (= | ≠) 0"""
        if len(total.terms) != 2 or total.constant:
            return total
        (a, c), (b, d) = total.terms
        if a.op == b.op == "mod" and c == -d and a.args[1] is b.args[1] and a.args[1].is_const:
            return linear(make("mod", plus(linear(a.args[0]), linear(b.args[0]).scaled(-1)).node(),
                               a.args[1]))
        return total


def joined(op: str, parts: Iterable[Formula | Atom]) -> Formula | Atom:
    """``op`` of parts, nested ones of the same op flattened."""
    flat: list[Formula | Atom] = []
    for part in parts:
        if isinstance(part, Formula) and part.op == op:
            flat += part.parts
        else:
            flat.append(part)
    return flat[0] if len(flat) == 1 else Formula(op, tuple(flat))


def cases(f: Formula | Atom) -> list[tuple[Atom, ...]] | None:
    """The conjunctions of which one must hold; None for too many."""
    if isinstance(f, Atom):
        return [(f,)]
    parts = [cases(p) for p in f.parts]
    sizes = [len(p) for p in parts if p is not None]
    many = sum(sizes) if f.op == "or" else prod(sizes)
    if many > MOST_CASES or len(sizes) < len(parts):
        return None
    if f.op == "or":
        return [case for p in parts for case in p or ()]
    return [tuple(dict.fromkeys(a for case in chosen for a in case))
            for chosen in product(*(p or () for p in parts))]


def count(f: Formula | Atom) -> int:
    """Of its conjunctions; more than may be for too many."""
    known = cases(f)
    return MOST_CASES + 1 if known is None else len(known)
