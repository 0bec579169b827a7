"""The conditions of one plane of tiles, with all that depends on its rows or its columns alone
computed.

    128·r − 3969 ≤ 128·c   →   row[r] + col[c] ≤ 0,   row = (−3969, −3841, …), col = (0, −128, …)

What is left are *steps* on numbers that depend on both. Numbers are sums, so that what cancels
between rows and columns is gone, and a step whose outcome is the same on the whole sheet is folded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from .ops import SCALAR_OPS
from .spans import Span, span_of
from .tables import GridRange, TableRange, distinct

Array = np.ndarray[Any, Any]
LOGIC = ("and", "or", "not")


class Sum(NamedTuple):
    """number + row[r] + col[c] + Σ factor·step. Conditions are sums of one part, of type bool."""

    number: Any = 0
    row: Array | None = None
    col: Array | None = None
    rest: tuple[tuple[int, int], ...] = ()  # (step, factor)

    @property
    def known(self) -> bool:
        return self.row is None and self.col is None and not self.rest


class Step(NamedTuple):
    """One operation on sums; ``number`` is a divisor, ``table`` what a table's bound is read
    from."""

    op: str
    args: tuple[Sum, ...]
    number: int = 0
    table: TableRange | GridRange | None = None


@dataclass
class Sheet:
    """``shape`` (rows, columns) of tiles, and the two conditions on them: all pairs visible, some
    pair visible."""

    shape: tuple[int, int]
    steps: list[Step] = field(default_factory=list)
    full: Sum = Sum(False)
    some: Sum = Sum(True)
    _spans: list[Span] = field(default_factory=list, repr=False)  # of the steps, on all of it

    def apply(self, op: str, args: Sequence[Sum], number: int = 0,
              table: TableRange | GridRange | None = None) -> Sum:
        """An operation of ``SCALAR_OPS``, or a bound on a table, as a sum; a step is made where
        its operands depend on rows and columns both."""
        if op == "add":
            return _plus(args[0], args[1], 1)
        if op == "sub":
            return _plus(args[0], args[1], -1)
        if isinstance(table, TableRange) and len(args) > table.table.ndim + 1:
            return self._matrix(op, args, table.table)
        if op == "cast":  # of a condition, as a number
            return _plus(Sum(0), args[0], 1)
        rows = any(a.row is not None for a in args)
        columns = any(a.col is not None for a in args)
        if not any(a.rest for a in args) and not (rows and columns):
            if number:
                args = [*args, Sum(number)]
            return _along(op, args, "row" if rows else "col", table)
        if op == "neg":
            return _scaled(args[0], -1)
        if op == "mul" and (args[0].known or args[1].known):
            factor, of = args if args[0].known else args[::-1]
            return _scaled(of, int(factor.number))
        if op in ("lt", "le", "eq", "ne"):
            difference = _plus(args[0], args[1], -1)
            if op == "lt":
                difference = difference._replace(number=difference.number + 1)
            if op == "ne":
                return self.apply("not", (self._step("eq", (difference,)),))
            return self._step("eq" if op == "eq" else "le", (difference,))
        if op in LOGIC or op == "where":
            folded = _folded(op, args)
            if folded is not None:
                return folded
        if op in ("floordiv", "mod") and number == 0:
            if args[1].known and args[1].number:
                return self._step(op, args[:1], int(args[1].number))
            return self._step(op, args)
        return self._step(op, args, number, table)

    def _matrix(self, op: str, args: Sequence[Sum], table: Array) -> Sum:
        """A bound on a table over ranges of its last two dimensions."""
        *leading, low1, high1, low2, high2 = args
        sides = [("row", "col", "both")[(a.col is not None or b.col is not None)
                 * (1 + (a.row is not None or b.row is not None))]
                 for a, b in ((low1, high1), (low2, high2))]
        if any(a.rest for a in args[-4:]) or "both" in sides or not all(a.known for a in leading):
            values = table.min(initial=0), table.max(initial=0)
            return Sum(int(values[op == "table_max"]))
        for a, size in zip(leading, table.shape, strict=False):
            inside = 0 <= a.number < size
            table = table[a.number] if inside else np.zeros(table.shape[1:], table.dtype)
        ranges, numbers = [], []
        for axis, ends in zip(sides, ((low1, high1), (low2, high2)), strict=True):
            low, high = np.broadcast_arrays(*(np.atleast_1d(_value(e, axis)) for e in ends))
            where, which = distinct([low, high])
            ranges.append((low[where], high[where]))
            numbers.append(vector(which, axis))
        return self.apply(op, numbers, table=GridRange(op, table, *ranges))

    def _step(self, op: str, args: Sequence[Sum], number: int = 0,
              table: TableRange | GridRange | None = None) -> Sum:
        spans = [self.span(a) for a in args]
        span = self.table_span(op, spans, table) if table else span_of(op, spans, number)
        if span is not None:
            low, high = span
            if low == high:
                return Sum(bool(low) if op in (*LOGIC, "le", "eq") else int(low))
            if op in ("min", "max"):
                apart = self.span(_plus(args[0], args[1], -1))
                if apart is not None and (apart[1] <= 0 or apart[0] >= 0):
                    return args[int((apart[1] <= 0) != (op == "min"))]
            whole = spans[0]
            if op == "mod" and number and whole and whole[0] // number == whole[1] // number:
                return args[0]._replace(number=args[0].number - number * (whole[0] // number))
        self.steps.append(Step(op, tuple(args), number, table))
        self._spans.append(span)
        return Sum(rest=((len(self.steps) - 1, 1),))

    @staticmethod
    def table_span(op: str, spans: Sequence[Span], table: TableRange | GridRange) -> Span:
        """Of a bound on a table's entries, its operands being anywhere in theirs."""
        if isinstance(table, GridRange):
            return table.least, table.greatest
        if op == "table_bits":
            return None
        *leading, first, last = spans
        if first is None or last is None or any(
                s is None or np.any(s[0] != s[1]) for s in leading):
            return None
        fixed = [np.asarray(s[0]) for s in leading if s is not None]
        ends = np.asarray(first[0]), np.asarray(last[1])
        return table.bound("table_min", fixed, *ends), table.bound("table_max", fixed, *ends)

    def span(self, of: Sum) -> Span:
        """Least and greatest on the whole sheet."""
        low = high = of.number
        for part in (of.row, of.col):
            if part is not None:
                low, high = low + part.min(), high + part.max()
        for step, factor in of.rest:
            known = self._spans[step]
            if known is None:
                return None
            a, b = (int(x) * factor for x in known)
            low, high = low + min(a, b), high + max(a, b)
        return low, high

    def parts_along(self, axis: str) -> list[Array]:
        """All that depends on its rows ("row") or its columns ("col") alone, each once."""
        sums = [a for s in self.steps for a in s.args] + [self.full, self.some]
        return list({id(x): x for of in sums if (x := getattr(of, axis)) is not None}.values())

    def finish(self, full: Sum, some: Sum) -> Sheet:
        """With the two conditions; steps they do not need are dropped."""
        needed: set[int] = {s for root in (full, some) for s, _ in root.rest}
        for k in range(len(self.steps) - 1, -1, -1):
            if k in needed:
                needed |= {s for a in self.steps[k].args for s, _ in a.rest}
        place = {k: n for n, k in enumerate(sorted(needed))}

        def moved(of: Sum) -> Sum:
            return of._replace(rest=tuple((place[s], f) for s, f in of.rest)) if of.rest else of

        short: dict[int, Array] = {}
        steps = []
        for k in place:
            step = self.steps[k]
            if step.op != "mul" and abs(step.number) < 2**31 and self._spans[k] is not None:
                step = step._replace(args=tuple(self._shortened(a, short) for a in step.args))
            steps.append(step._replace(args=tuple(moved(a) for a in step.args)))
        return replace(self, steps=steps, full=moved(full), some=moved(some),
                       _spans=[self._spans[k] for k in place])

    def _shortened(self, of: Sum, short: dict[int, Array]) -> Sum:
        """In 32 bits, which are computed with faster, where no part of the sum can leave them."""
        parts = [p for p in (of.row, of.col) if p is not None and p.dtype == np.int64]
        if not parts:
            return of
        spans = [(of.number, of.number), *((p.min(), p.max()) for p in parts),
                 *((f * x[0], f * x[1]) if (x := self._spans[s]) else (2**31,) * 2
                   for s, f in of.rest)]
        if sum(max(abs(int(a)), abs(int(b))) for a, b in spans) >= 2**31:
            return of
        for p in parts:
            if id(p) not in short:
                short[id(p)] = p.astype(np.int32)
        return of._replace(row=None if of.row is None else short.get(id(of.row), of.row),
                           col=None if of.col is None else short.get(id(of.col), of.col))

    def part(self, rows: slice, columns: slice, cuts: dict[Any, Any]) -> Sheet:
        """A rectangle of it, folded again. ``cuts`` keeps what other parts can use of it."""
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        out, new = Sheet(shape), list[Sum]()

        def side(part: Array | None, places: slice) -> tuple[Any, Array | None]:
            if part is None:
                return 0, None
            key = id(part), places.start, places.stop
            if key not in cuts:
                cuts[key] = _uniform(Sum(0, part[places]))[:2]
            return cuts[key]

        def cut(of: Sum) -> Sum:
            if of.known:
                return of
            (a, row), (b, col) = side(of.row, rows), side(of.col, columns)
            number = of.number
            for same in (a, b):
                number = same if isinstance(same, bool) else number + same
            total = Sum(number, row, col)
            for step, factor in of.rest:
                alone = factor == 1 and total.known and not total.number
                total = new[step] if alone else _plus(total, new[step], factor)
            return total

        for s in self.steps:
            args = [cut(a) for a in s.args]
            new.append(out.apply(s.op, args + [Sum(0)] if s.op in ("le", "eq") else args,
                                 s.number, s.table))
        return out.finish(cut(self.full), cut(self.some))

    def turned(self) -> Sheet:
        """Rows and columns exchanged."""
        def swap(of: Sum) -> Sum:
            return of._replace(row=of.col, col=of.row)

        steps = [s._replace(args=tuple(swap(a) for a in s.args)) for s in self.steps]
        return replace(self, shape=self.shape[::-1], steps=steps, full=swap(self.full),
                       some=swap(self.some))


def vector(values: Array, axis: str) -> Sum:
    """Values by row ("row") or by column ("col")."""
    return _uniform(Sum(0, values, None) if axis == "row" else Sum(0, None, values))


def _uniform(of: Sum) -> Sum:
    """Parts that are the same everywhere become part of the number."""
    number = of.number
    kept: list[Array | None] = []
    for part in (of.row, of.col):
        if part is not None and (part[0] == part).all():
            number = bool(part[0]) if part.dtype == bool else number + int(part[0])
            part = None
        kept.append(part)
    return Sum(number, kept[0], kept[1], of.rest)


def _whole(part: Array) -> Array:
    """In 64 bits."""
    return part if part.dtype == np.int64 else part.astype(np.int64)


def _plus(a: Sum, b: Sum, factor: int) -> Sum:
    """a + factor·b"""
    parts = []
    for x, y in ((a.row, b.row), (a.col, b.col)):
        x = None if x is None else _whole(x)
        if y is not None:
            y = _whole(y) * factor if factor != 1 else _whole(y)
            x = y if x is None else x + y
        parts.append(x)
    rest = a.rest
    if b.rest:
        total = dict(a.rest)
        for step, times in b.rest:
            total[step] = total.get(step, 0) + times * factor
        rest = tuple((s, f) for s, f in total.items() if f)
    return _uniform(Sum(a.number + factor * b.number, parts[0], parts[1], rest))


def _scaled(of: Sum, factor: int) -> Sum:
    return _plus(Sum(0), of, factor) if factor else Sum(0)


def _value(of: Sum, axis: str) -> Any:
    """Of what depends on one side at most."""
    part = of.row if axis == "row" else of.col
    return of.number if part is None else part + of.number if of.number else part


def _along(op: str, args: Sequence[Sum], axis: str, table: TableRange | GridRange | None) -> Sum:
    """An operation on what depends on one side at most."""
    values = [_value(a, axis) for a in args]
    if table is not None:
        *leading, low, high = (np.asarray(v) for v in values)
        result = table.bound(op, leading, low, high)
    else:
        evaluate = SCALAR_OPS[op].evaluate
        assert evaluate is not None
        with np.errstate(divide="ignore"):
            result = evaluate(*values)
    return vector(result, axis) if np.ndim(result) else Sum(np.asarray(result).item())


def _folded(op: str, args: Sequence[Sum]) -> Sum | None:
    """Conditions with an operand that is known."""
    if op == "not":
        return Sum(not args[0].number) if args[0].known else None
    if op == "where":
        if args[0].known:
            return args[1] if args[0].number else args[2]
        return None
    for x, y in (args, args[::-1]):
        if x.known:
            return Sum(op == "or") if bool(x.number) == (op == "or") else y
    return None
