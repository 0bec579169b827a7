"""Deciding conditions over a box of indices: may it hold somewhere?

"Holds everywhere" is the same question about the opposite, so this is the only one. Each
conjunction of the normal form (``cases.py``) is asked for itself. All that it says of the same sum
is intersected first; bounds on single indices, and on the difference of two, shrink the box for
the others; what is left must be an interval that is not empty and holds the remainders wanted:

    i − j ≤ 8  ∧  0 ≤ i − j  ∧  (i − j) mod 4 = 3   →   some 4k + 3 in [max(0, low), min(8, high)]
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import gcd

from .cases import Atom, Formula, Normal, cases, count
from .linear import Box, Extent, Linear, Tables, linear, plus, remembering
from .node import Node, const, make, walk

_FAR = 2**30  # positions are smaller; bounds beyond are not computed with
TRUE, FALSE = const(True), const(False)


@dataclass
class Facts:
    """What a conjunction says of one sum: bounds, values excluded, and remainders allowed:
    (factor, shift, m, least, greatest) for (factor·sum + shift) mod m."""

    lows: list[Node] = field(default_factory=list)
    highs: list[Node] = field(default_factory=list)
    excluded: list[Node] = field(default_factory=list)
    remainders: list[tuple[int, Linear, int, Node, Node]] = field(default_factory=list)


class Prover:
    """Asks over one box. ``tables`` and ``coarse`` as for ``interval.certainty``."""

    def __init__(self, box: Box, tables: Tables, coarse: bool) -> None:
        self.box, self.tables, self.coarse = box, tables, coarse
        self._extents: dict[object, Extent] = {}
        self._answers: dict[object, list[Node]] = {}

    def sometimes(self, n: Node, positive: bool) -> Node:
        """A condition that is true where ``n`` (its opposite unless ``positive``) may hold
        somewhere in the box."""
        with remembering():
            return self._possible(Normal(self.box).formula(n, positive))

    def _possible(self, f: Formula | Atom) -> Node:
        known = cases(f)
        if known is not None:
            return _join("or", (self._jointly(c) for c in known))
        assert isinstance(f, Formula)
        if f.op == "or":
            return _join("or", (self._possible(p) for p in f.parts))
        # Too many combinations: what fits is asked together, each other part by itself.
        together: list[Formula | Atom] = []
        alone: list[Node] = []
        for part in sorted(f.parts, key=count):
            if cases(Formula("and", (*together, part))) is not None:
                together.append(part)
            else:
                alone.append(self._possible(part))
        if together:
            alone.append(self._possible(Formula("and", tuple(together))))
        return _join("and", alone)

    def _jointly(self, atoms: Iterable[Atom]) -> Node:
        conditions: list[Node] = []
        still: list[Node] = []
        facts: dict[Linear, Facts] = {}
        for atom in atoms:
            if atom.kind == "if":
                still.append(atom.condition)
            else:
                conditions += self._note(atom, facts)
        box = dict(self.box)
        for total, known in facts.items():
            if _is_index(total):
                _shrink(box, total, known)
        # Ranges of tables depend on one index each, so that they are looked up once for each.
        wide = self._extent(box)
        for total, known in facts.items():
            if _is_difference(total) and len(facts) > 1:
                _shrink(box, total, known)
        extent = self._extent(box, wide)
        conditions += [make("le", *box[a]) for a in box if box[a] != self.box[a]]
        for total, known in facts.items():
            asked = (extent, total, *(tuple(x) for x in vars(known).values()))
            if asked not in self._answers:  # alternatives have most of their sums in common
                self._answers[asked] = self._left(extent, total, known)
            conditions += self._answers[asked]
        # What does not vary comes last, so that it settles the whole conjunction.
        return _join("and", [*conditions, *still])

    def _extent(self, box: Box, wide: Extent | None = None) -> Extent:
        bounds = tuple(box.values())
        if wide is not None and bounds == tuple(wide.box.values()):
            return wide
        key = bounds, wide and tuple(wide.box.values())
        if key not in self._extents:
            self._extents[key] = Extent(dict(box), self.tables, wide)
        return self._extents[key]

    def _note(self, atom: Atom, facts: dict[Linear, Facts]) -> list[Node]:
        """Enter a comparison under the sum it bounds; conditions that do not vary come back."""
        moving, still = atom.sum.split(self.box)
        if not moving.terms:
            return [make(atom.kind, still.node(), const(0))]
        if _gathers(moving) and _gathers(still, "int64"):
            return []  # of entries of any size, bounds are not known well enough to compare
        divisor = 0
        for _, c in moving.terms:
            divisor = gcd(divisor, c)
        sign = -1 if moving.terms[0][1] < 0 else 1
        total = Linear(tuple((n, c // (sign * divisor)) for n, c in moving.terms))
        # sign·divisor·total + still (≤ | = | ≠) 0
        edge = still.scaled(-sign)
        if atom.kind != "le":
            multiple = make("eq", make("mod", edge.node(), const(divisor)), const(0))
            if divisor != 1 and atom.kind == "ne" and (edge.terms or edge.constant % divisor):
                return []  # true where the edge is no multiple
            entered = self._enter(total, atom.kind, _divided(edge, divisor), facts)
            return [multiple, *entered] if divisor != 1 else entered
        if sign > 0:
            return self._enter(total, "high", _divided(edge, divisor), facts)
        return self._enter(total, "low", _divided(edge.scaled(-1), divisor).scaled(-1), facts)

    def _enter(self, total: Linear, kind: str, edge: Linear, facts: dict[Linear, Facts]
               ) -> list[Node]:
        """total ≤, ≥, = or ≠ edge; a remainder or quotient alone becomes a fact of its dividend."""
        (n, c), *more = total.terms
        if not more and c == 1 and n.op in ("mod", "floordiv") and n.args[1].is_const \
                and n.args[1].attr("value") > 0:
            m, inner = int(n.args[1].attr("value")), linear(n.args[0])
            if n.op == "mod":
                return self._remainder(inner, m, kind, edge, facts)
            if not edge.terms and abs(edge.constant) < _FAR // m and kind != "ne":
                above = Atom("le", plus(inner, Linear((), -(m * edge.constant + m - 1))))
                below = Atom("le", plus(Linear((), m * edge.constant), inner.scaled(-1)))
                chosen = {"high": [above], "low": [below], "eq": [above, below]}[kind]
                return [x for a in chosen for x in self._note(a, facts)]
        known, bound = facts.setdefault(total, Facts()), edge.node()
        if not edge.terms and abs(edge.constant) >= 2**31:
            if _gathers(total):
                return []  # tables may hold anything; numbers this large are not computed with
            # Outside of what indices can be.
            hopeless = kind == "eq" or (kind == "high") == (edge.constant < 0) and kind != "ne"
            return [FALSE] if hopeless else []
        if kind in ("high", "eq"):
            known.highs.append(bound)
        if kind in ("low", "eq"):
            known.lows.append(bound)
        if kind == "ne":
            known.excluded.append(bound)
        return []

    def _remainder(self, inner: Linear, m: int, kind: str, edge: Linear,
                   facts: dict[Linear, Facts]) -> list[Node]:
        """inner mod m ≤, ≥, = or ≠ edge, as a fact of what varies in ``inner``."""
        moving, still = inner.split(self.box)
        if not moving.terms:  # what varied has cancelled
            value, bound = make("mod", still.node(), const(m)), edge.node()
            return [make("le", value, bound) if kind == "high" else
                    make("le", bound, value) if kind == "low" else make(kind, value, bound)]
        sign = -1 if moving.terms[0][1] < 0 else 1
        bound = edge.node()
        least, greatest = const(0), const(m - 1)
        if kind in ("low", "eq"):
            least = make("max", bound, least)
        if kind in ("high", "eq"):
            greatest = make("min", bound, greatest)
        if kind == "ne":  # the m − 1 others: from edge + 1 on, shifted to begin at 0
            inside = make("and", make("le", const(0), bound), make("lt", bound, const(m)))
            if edge.terms:  # which of them it excludes is only known at run time
                greatest = make("where", inside, const(m - 2), greatest)
                still = plus(still, edge.scaled(-1))
                still = plus(still, Linear((), -1))
            elif 0 <= edge.constant < m:
                greatest = const(m - 2)
                still = plus(still, Linear((), -1 - edge.constant))
        known = facts.setdefault(moving.scaled(sign), Facts())
        known.remainders.append((sign, still, m, least, greatest))
        return []

    def _left(self, extent: Extent, total: Linear, known: Facts) -> list[Node]:
        """Conditions for something to be left of a sum's values."""
        low, high = extent.sum(total)
        for bound in known.lows:
            low = bound if low is None else make("max", low, bound)
        for bound in known.highs:
            high = bound if high is None else make("min", high, bound)
        if low is None or high is None:
            return []
        out = [make("le", low, high)] if known.lows or known.highs else []
        if self.tables == "map" and _is_same_entry(total) and const(0) in known.lows \
                and const(0) in known.highs:
            bits = [extent.bits(n) for n, _ in total.terms]
            if bits[0] is not None and bits[1] is not None:
                out.append(make("ne", make("bitand", bits[0], bits[1]), const(0)))
        for value in known.excluded:
            out.append(make("or", make("ne", low, value), make("ne", high, value)))
        for sign, shift, m, least, greatest in known.remainders:
            ends = (linear(low), linear(high)) if sign > 0 else (
                linear(high).scaled(-1), linear(low).scaled(-1))
            begin, end = (plus(e, shift) for e in ends)
            out += [make("le", least, greatest),
                    self._hits(begin, end, m, linear(least), linear(greatest))]
        return out

    def _hits(self, begin: Linear, end: Linear, m: int, least: Linear, greatest: Linear) -> Node:
        """Whether [begin, end] holds a y with y mod m in [least, greatest]: some k with
        m·k + greatest ≥ begin and m·k + least ≤ end."""
        up = make("floordiv", plus(end, least.scaled(-1)).node(), const(m))
        down = make("floordiv", plus(greatest, begin.scaled(-1)).node(), const(m))
        exact = make("le", const(0), make("add", up, down))
        if not self.coarse:
            return exact
        room = plus(plus(end, begin.scaled(-1)), plus(greatest, least.scaled(-1)))
        return make("or", make("le", const(m - 1), room.node()), exact)


def _join(op: str, parts: Iterable[Node]) -> Node:
    neutral, absorbing = (TRUE, FALSE) if op == "and" else (FALSE, TRUE)
    out: Node | None = None
    for part in dict.fromkeys(parts):
        if part == absorbing:
            return absorbing
        if part != neutral:
            out = part if out is None else make(op, out, part)
    return out or neutral


def _gathers(total: Linear, *dtypes: str) -> bool:
    """True when a captured tensor (of the types given) is read in a sum."""
    return any(m.op == "gather" and (not dtypes or m.dtype in dtypes)
               for n, _ in total.terms for m in walk(n))


def _divided(edge: Linear, divisor: int) -> Linear:
    """⌊edge / divisor⌋"""
    if divisor == 1:
        return edge
    if not edge.terms:
        return Linear((), edge.constant // divisor)
    return linear(make("floordiv", edge.node(), const(divisor)))


def _is_index(total: Linear) -> bool:
    return len(total.terms) == 1 and total.terms[0][0].op == "idx"


def _is_difference(total: Linear) -> bool:
    return len(total.terms) == 2 and all(n.op == "idx" and abs(c) == 1 for n, c in total.terms)


def _is_same_entry(total: Linear) -> bool:
    """t[x] − u[y], of tables of whole numbers"""
    return [c for _, c in total.terms] in ([1, -1], [-1, 1]) and all(
        n.op == "gather" and n.dtype in ("int32", "int64") for n, _ in total.terms)


def _shrink(box: Box, total: Linear, known: Facts) -> None:
    """Move the bounds of a sum onto the indices in it, each against the other's extent."""
    lows, highs = ([b for b in side if not b.is_const or abs(b.attr("value")) < _FAR]
                   for side in (known.lows, known.highs))
    before = dict(box)
    for n, c in total.terms:
        axis = n.attr("axis")
        rest = Linear(tuple(t for t in total.terms if t[0] is not n))
        least, greatest = Extent(before).sum(rest)
        assert least is not None and greatest is not None
        low, high = box[axis]
        for bound in lows:  # c·index ≥ bound − greatest(rest)
            edge = plus(linear(bound), linear(greatest).scaled(-1)).scaled(c).node()
            low, high = (make("max", low, edge), high) if c > 0 else (low, make("min", high, edge))
        for bound in highs:
            edge = plus(linear(bound), linear(least).scaled(-1)).scaled(c).node()
            low, high = (low, make("min", high, edge)) if c > 0 else (make("max", low, edge), high)
        box[axis] = low, high
