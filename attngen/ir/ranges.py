"""Which tiles of the loop axis a predicate leaves visible, in closed form.

A predicate is split into what bounds the loop index and the rest:

    (kv_offset + j ≤ q_offset + i) ∧ (j < kv_len) ∧ rest
  →   lower(i) ≤ j < upper(i) ∧ rest,   upper = min(kv_len, q_offset − kv_offset + i + 1)

Interval arithmetic over the row tile turns the bounds into tile ranges: outside [begin, end) no
key is visible to any row, inside [full_begin, full_end) every key is visible to every row. A rest
that concerns the rows alone settles all tiles of theirs; any other is asked of each tile
(``visits.py``). With the axes swapped the same function serves the transposed loop.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .algebra import simplify
from .interval import certainty, interval
from .node import Node, cast, const, idx, make, walk
from .ops import FLOATS


@dataclass(frozen=True)
class Bounds:
    """``lower`` ≤ index < ``upper`` ∧ ``rest``; absent parts are None. ``origin`` names what the
    conditions came from."""

    lower: Node | None
    upper: Node | None
    rest: Node | None
    origin: str = ""

    def predicate(self, axis: str) -> Node:
        """The same condition as one expression."""
        parts = []
        if self.upper is not None:
            parts.append(make("lt", idx(axis), self.upper, origin=self.upper.origin))
        if self.lower is not None:
            parts.append(make("le", self.lower, idx(axis), origin=self.lower.origin))
        if self.rest is not None:
            parts.append(self.rest)
        out = const(True)
        for part in parts:
            out = make("and", out, part)
        return simplify(out)


@dataclass(frozen=True)
class TileRange:
    """Tile numbers as scalar expressions."""

    begin: Node
    end: Node
    full_begin: Node
    full_end: Node


def solve(predicate: Node, axis: str) -> Bounds:
    """Split a predicate into bounds on the index of ``axis`` and the rest."""
    lower: list[Node] = []
    upper: list[Node] = []
    rest: list[Node] = []
    for part in _conjuncts(predicate):
        if part.is_const and part.attr("value"):
            continue
        found = _comparison(part, axis)
        if found is None:
            rest.append(part)
            continue
        for kind, bound in found:
            (lower if kind == "lower" else upper).append(bound)
    origins = dict.fromkeys(p.origin for p in _conjuncts(predicate) if p.origin)
    return Bounds(_join("max", lower), _join("min", upper), _join("and", rest),
                  ", ".join(origins))


@dataclass(frozen=True)
class Masks:
    """The masks of a region: ``bounds`` of all of them together, ``table`` from each visible node
    to the same written as bounds, and by node key the ``names`` bounds get as values and the
    ``origins`` of what is computed from them."""

    bounds: Bounds
    table: dict[Node, Node]
    names: dict[str, str]
    origins: dict[str, str]


def solve_masks(roots: tuple[Node, ...], axis: str) -> Masks:
    """Solve every mask the roots put on the index of ``axis``.

        visible(mask)   →   visible(lower ≤ j < upper ∧ rest)
    """
    masks = [n for n in walk(*roots) if n.op == "visible"]
    together = const(True)
    table: dict[Node, Node] = {}
    names: dict[str, str] = {}
    origins: dict[str, str] = {}
    for mask in masks:
        together = make("and", together, mask.args[0])
        b = solve(mask.args[0], axis)
        table[mask] = make("visible", b.predicate(axis), axes=mask.axes, dtype="bool")
        for side, node in (("begin", b.lower), ("end", b.upper)):
            if node is not None:
                names[node.key] = f"{axis}_{side}"
        for node in (table[mask], b.lower, b.upper):
            if node is not None:
                origins[node.key] = b.origin
    return Masks(solve(together, axis), table, names, origins)


def tile_range(bounds: Bounds, axis: str, keep: str, extent: Node, block: int,
               all_tiles: bool = False, settled: bool = False) -> TileRange:
    """Ranges of ``block``-wide tiles of ``axis`` for one tile of ``keep``.

    ``extent`` is the length of the axis. ``all_tiles`` visits every tile, as a kernel must that
    writes them or to whose results hidden keys matter. ``settled``: whether tiles in the full range
    are full is asked of each as far as it concerns the rest; otherwise such a rest empties it.
    """
    zero, width = const(0), const(block)
    low_any = low_all = zero
    high_any = high_all = extent
    if bounds.lower is not None:
        least, greatest = interval(_narrow(bounds.lower), keep)
        low_any = make("max", least, zero) if least is not None else zero
        low_all = make("max", greatest, zero) if greatest is not None else extent
    if bounds.upper is not None:
        least, greatest = interval(_narrow(bounds.upper), keep)
        high_any = make("min", greatest, extent) if greatest is not None else extent
        high_all = make("min", least, extent) if least is not None else zero
    rest = [] if bounds.rest is None else _conjuncts(bounds.rest)
    if settled:
        rest = [part for part in rest if axis not in part.axes]
    low_all, high_all, possible = _with_rest(rest, axis, keep, low_all, high_all)
    if all_tiles:
        low_any, high_any = zero, extent
    up = const(block - 1)
    end = make("floordiv", make("add", high_any, up), width)
    if not all_tiles:
        if low_any is not zero:  # bounds that cross inside a tile leave nothing in it
            possible = make("and", make("lt", low_any, high_any), possible)
        end = make("where", possible, end, zero)
    return TileRange(
        begin=simplify(make("floordiv", low_any, width)),
        end=simplify(end),
        full_begin=simplify(make("floordiv", make("add", low_all, up), width)),
        full_end=simplify(make("floordiv", high_all, width)),
    )


def share(tiles: TileRange, part: Node, parts: Node) -> TileRange:
    """The tiles of one of ``parts`` parts: as many as any other has, or one more."""
    count = make("max", make("sub", tiles.end, tiles.begin), const(0))

    def edge(n: Node) -> Node:
        return simplify(make("add", tiles.begin, make("floordiv", make("mul", count, n), parts)))

    return replace(tiles, begin=edge(part), end=edge(make("add", part, const(1))))


def _narrow(bound: Node) -> Node:
    """As the int32 that loops count in: a bound read from an int64 tensor may be past what that
    holds, and stays past every position."""
    if bound.dtype != "int64":
        return bound
    low, high = const(-2**30), const(2**30)
    inside = make("where", make("lt", high, bound), high, cast(bound, "int32"))
    return make("where", make("lt", bound, low), low, inside)


def _with_rest(rest: list[Node], axis: str, keep: str, low: Node,
               high: Node) -> tuple[Node, Node, Node]:
    """The full range [low, high) where no bound expresses ``rest``, and whether any key of the row
    tile can be visible: conditions on the rows alone decide for all tiles at once."""
    zero, possible = const(0), const(True)
    for part in rest:
        always, sometimes = (None, None) if axis in part.axes else certainty(part, keep)
        if always is None:
            low = high = zero
        else:
            high = make("where", always, high, zero)
        if sometimes is not None:
            possible = make("and", possible, sometimes)
    return low, high, possible


def _conjuncts(n: Node) -> list[Node]:
    return _conjuncts(n.args[0]) + _conjuncts(n.args[1]) if n.op == "and" else [n]


def _join(op: str, parts: list[Node]) -> Node | None:
    if not parts:
        return None
    # In an order of their own, not of the mask's spelling; what varies least is joined first.
    parts = sorted(dict.fromkeys(parts), key=lambda n: (len(n.axes), n.key))
    out = parts[0]
    for part in parts[1:]:
        out = make(op, out, part, origin=out.origin)
    return simplify(out)


def _comparison(n: Node, axis: str) -> list[tuple[str, Node]] | None:
    """a < b, a ≤ b or a = b as bounds on the index, when it enters with coefficient ±1."""
    if n.op not in ("lt", "le", "eq") or any(a.dtype in FLOATS for a in n.args):
        return None
    terms = _Linear()
    if not terms.add(n.args[0], 1, axis) or not terms.add(n.args[1], -1, axis):
        return None
    # terms + coefficient·index  (< | ≤ | =)  0
    if terms.coefficient == 1:
        edge = terms.total(-1)
        if n.op == "lt":
            return [("upper", edge)]
        above = simplify(make("add", edge, const(1)))
        return [("upper", above)] if n.op == "le" else [("upper", above), ("lower", edge)]
    if terms.coefficient == -1:
        edge = terms.total(1)
        if n.op == "le":
            return [("lower", edge)]
        above = simplify(make("add", edge, const(1)))
        return [("lower", above)] if n.op == "lt" else [("lower", edge), ("upper", above)]
    return None


class _Linear:
    """Σ coefficient·term + constant, with the loop index kept apart."""

    def __init__(self) -> None:
        self.coefficient = 0
        self.constant = 0
        self.terms: dict[Node, int] = {}

    def add(self, root: Node, factor: int, axis: str) -> bool:
        """Add factor·root; False when the index enters in a way that is not linear."""
        factors = {root.key: factor}
        for n in reversed(list(walk(root))):  # users before their operands
            c = factors.pop(n.key, 0)
            parts = _linear_parts(n)
            if c == 0:
                continue
            if n.is_const:
                self.constant += c * int(n.attr("value"))
            elif n.op == "idx" and n.attr("axis") == axis:
                self.coefficient += c
            elif parts:
                for arg, times in parts:
                    factors[arg.key] = factors.get(arg.key, 0) + c * times
            elif axis in n.axes:
                return False
            else:
                self.terms[n] = self.terms.get(n, 0) + c
        return True

    def total(self, sign: int) -> Node:
        """sign·(terms + constant) as an expression, positive terms first."""
        scaled = [(n, c * sign) for n, c in self.terms.items() if c]
        scaled.sort(key=lambda item: (item[1] < 0, item[0].op == "idx", item[0].key))
        out: Node | None = None
        for n, c in scaled:
            term = n if abs(c) == 1 else make("mul", n, const(abs(c)))
            if out is None:
                out = term if c > 0 else make("neg", term)
            else:
                out = make("add" if c > 0 else "sub", out, term)
        shift = const(self.constant * sign)
        return simplify(shift if out is None else make("add", out, shift))


def _linear_parts(n: Node) -> list[tuple[Node, int]]:
    """Operands and their factors, for sums and multiples by a constant; else nothing."""
    match n.op:
        case "add":
            return [(n.args[0], 1), (n.args[1], 1)]
        case "sub":
            return [(n.args[0], 1), (n.args[1], -1)]
        case "neg":
            return [(n.args[0], -1)]
        case "mul" if n.args[1].is_const:
            return [(n.args[0], int(n.args[1].attr("value")))]
    return []
