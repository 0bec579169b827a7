"""Least and greatest values of one operation from those of its operands, over many blocks at once.

A span is a pair of numbers or of arrays (least, greatest); of a condition: (certain, possible).
None is a number nothing is known of.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Span = tuple[Any, Any] | None
UNSURE = (False, True)


def span_of(op: str, args: list[Span], number: int = 0) -> Span:
    """Of the operations a ``Sheet`` has steps for; ``number`` is the divisor of a quotient or
    remainder."""
    if op in ("le", "eq"):
        return _comparison(op, args[0])
    if op in ("and", "or", "not"):
        return _logic(op, [UNSURE if a is None else a for a in args])
    if op == "where":
        if args[1] is None or args[2] is None:
            return None
        (sure, may), (low1, high1), (low2, high2) = args[0] or UNSURE, args[1], args[2]
        return (np.where(sure, low1, np.where(may, np.minimum(low1, low2), low2)),
                np.where(sure, high1, np.where(may, np.maximum(high1, high2), high2)))
    if op in ("min", "max"):
        pick = np.minimum if op == "min" else np.maximum
        (a, b) = args
        return None if a is None or b is None else (pick(a[0], b[0]), pick(a[1], b[1]))
    if any(a is None for a in args):
        return (0, number - 1) if op == "mod" and number > 0 else None
    low, high = args[0]  # type: ignore[misc]
    if op == "abs":
        crossing = (low <= 0) & (high >= 0)
        low, high = np.abs(low), np.abs(high)
        return np.where(crossing, 0, np.minimum(low, high)), np.maximum(low, high)
    if op == "floordiv":
        return _sorted(np.floor_divide(low, number), np.floor_divide(high, number))
    if op == "mod":
        least, greatest = (0, number - 1) if number > 0 else (number + 1, 0)
        same = np.floor_divide(low, number) == np.floor_divide(high, number)
        return (np.where(same, np.mod(low, number), least),
                np.where(same, np.mod(high, number), greatest))
    if op == "mul":
        low2, high2 = args[1]  # type: ignore[misc]
        corners = [np.multiply(x, y, dtype=np.int64) for x in (low, high) for y in (low2, high2)]
        return (np.minimum(np.minimum(*corners[:2]), np.minimum(*corners[2:])),
                np.maximum(np.maximum(*corners[:2]), np.maximum(*corners[2:])))
    return None


def _comparison(op: str, of: Span) -> Span:
    """A sum against zero."""
    if of is None:
        return UNSURE
    low, high = of
    if op == "le":
        return high <= 0, low <= 0
    return (low == 0) & (high == 0), (low <= 0) & (high >= 0)


def _logic(op: str, args: list[tuple[Any, Any]]) -> Span:
    if op == "not":
        return np.logical_not(args[0][1]), np.logical_not(args[0][0])
    connect = np.logical_and if op == "and" else np.logical_or
    return connect(args[0][0], args[1][0]), connect(args[0][1], args[1][1])


def _sorted(a: Any, b: Any) -> Span:
    return np.minimum(a, b), np.maximum(a, b)
