"""The steps of a sheet carried out: for single tiles, or bounded over blocks of them."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from .ops import SCALAR_OPS
from .sheet import LOGIC, Sheet, Step, Sum
from .spans import Span, span_of

Array = np.ndarray[Any, Any]
PARTIAL, FULL = 1, 2
_CHUNK = 1 << 15  # tiles evaluated at a time: operands stay in the cache


class Points:
    """Tiles of a sheet by row and column number."""

    def __init__(self, sheet: Sheet) -> None:
        self.sheet = sheet
        self._unused = _last_uses(sheet)

    def kinds(self, rows: Array, columns: Array) -> Array:
        """int8 0 empty, 1 partial, 2 full, where row and column numbers broadcast."""
        shape = np.broadcast_shapes(rows.shape, columns.shape)
        done: dict[int, Any] = {}
        for k, step in enumerate(self.sheet.steps):
            done[k] = self._step(step, rows, columns, done)
            for unused in self._unused[k]:
                del done[unused]
        out = np.zeros(shape, np.int8)
        out += self._condition(self.sheet.some, rows, columns, done)
        out[np.broadcast_to(self._condition(self.sheet.full, rows, columns, done), shape)] = FULL
        return out

    def grid(self, rows: Array, columns: Array) -> Array:
        """``kinds`` [rows, columns] where each of some rows meets each of some columns."""
        height = max(1, _CHUNK // max(1, len(columns)))
        return np.concatenate([self.kinds(rows[at:at + height, None], columns)
                               for at in range(0, len(rows), height)])

    def _step(self, step: Step, rows: Array, columns: Array, done: dict[int, Any]) -> Any:
        op, args = step.op, step.args
        if op in ("le", "eq"):  # of the sum with zero: its sides are compared, not added
            of = args[0]
            left = self._sum(of._replace(number=0, col=None), rows, columns, done)
            right = -of.number if of.col is None else -(of.col + of.number)[columns]
            return left <= right if op == "le" else left == right
        pick = self._condition if op in LOGIC else self._sum
        values = [pick(a, rows, columns, done) for a in args]
        if step.table is not None:
            *leading, low, high = (np.asarray(v) for v in values)
            return step.table.bound(op, leading, low, high)
        if op == "where":
            return np.where(self._condition(args[0], rows, columns, done), *values[1:])
        if op == "mul":
            return np.multiply(*values, dtype=np.int64)
        evaluate = SCALAR_OPS[op].evaluate
        assert evaluate is not None
        if step.number:
            return evaluate(values[0], step.number)
        with np.errstate(divide="ignore"):
            return evaluate(*values)

    @staticmethod
    def _sum(of: Sum, rows: Array, columns: Array, done: dict[int, Any]) -> Any:
        out: Any = of.number
        if of.row is None and of.col is None:
            out = np.int64(out)  # parts of 32 bits have room for the whole sum, steps need not
        elif of.row is not None:
            out = (of.row + out if out else of.row)[rows]
        elif of.col is not None:
            out = (of.col + out if out else of.col)[columns]
        if of.row is not None and of.col is not None:
            out = out + of.col[columns]
        for step, factor in of.rest:
            out = out + (done[step] if factor == 1 else
                         np.multiply(done[step], factor, dtype=np.int64))
        return out

    @staticmethod
    def _condition(of: Sum, rows: Array, columns: Array, done: dict[int, Any]) -> Any:
        if of.rest:
            return done[of.rest[0][0]]
        return (of.row[rows] if of.row is not None else
                of.col[columns] if of.col is not None else of.number)


class Blocks:
    """Blocks of ``size`` × ``size`` tiles of a sheet, by block row and column."""

    def __init__(self, sheet: Sheet, size: int) -> None:
        self.sheet, self.size = sheet, size
        self._unused = _last_uses(sheet)

    @cached_property
    def _ends(self) -> dict[int, tuple[Array, Array]]:
        """Least and greatest of each row and column part in every block, by its identity."""
        out: dict[int, tuple[Array, Array]] = {}
        for part in (*self.sheet.parts_along("row"), *self.sheet.parts_along("col")):
            starts = np.arange(0, len(part), self.size)
            low, high = (np.logical_and, np.logical_or) if part.dtype == bool else (
                np.minimum, np.maximum)
            out[id(part)] = low.reduceat(part, starts), high.reduceat(part, starts)
        return out

    def decide(self, rows: Array, columns: Array) -> tuple[Array, Array, Array]:
        """Where all tiles of a block are (full, partial, empty), for 1-dimensional block
        numbers."""
        done: dict[int, Span] = {}
        for k, step in enumerate(self.sheet.steps):
            spans = [self._span(a, rows, columns, done) for a in step.args]
            done[k] = (self.sheet.table_span(step.op, spans, step.table) if step.table
                       else span_of(step.op, spans, step.number))
            for unused in self._unused[k]:
                del done[unused]
        certain = []
        for root in (self.sheet.full, self.sheet.some):
            span = self._span(root, rows, columns, done) or (False, True)
            certain.append([np.broadcast_to(x, rows.shape) for x in span])
        (all_full, any_full), (all_some, any_some) = certain
        return all_full, all_some & ~any_full, ~any_some

    def _span(self, of: Sum, rows: Array, columns: Array, done: dict[int, Span]) -> Span:
        if isinstance(of.number, bool) and of.known:
            return of.number, of.number
        low: Any = np.int64(of.number)
        high: Any = low
        for part, where in ((of.row, rows), (of.col, columns)):
            if part is not None:
                least, greatest = self._ends[id(part)]
                if part.dtype == bool:
                    return least[where], greatest[where]
                low, high = low + least[where], high + greatest[where]
        for step, factor in of.rest:
            span = done[step]
            if span is None:
                return None
            if factor == 1 and of.row is None and of.col is None and len(of.rest) == 1 \
                    and not of.number:
                return span
            a, b = span if factor > 0 else span[::-1]
            low, high = (x + np.multiply(y, factor, dtype=np.int64)
                         for x, y in ((low, a), (high, b)))
        return low, high


def _last_uses(sheet: Sheet) -> list[list[int]]:
    """After each step, the steps nothing needs any more."""
    out: list[list[int]] = [[] for _ in sheet.steps]
    later = {s for root in (sheet.full, sheet.some) for s, _ in root.rest}
    for k in range(len(sheet.steps) - 1, -1, -1):
        used = {s for a in sheet.steps[k].args for s, _ in a.rest}
        out[k] = list(used - later)
        later |= used
    return out
