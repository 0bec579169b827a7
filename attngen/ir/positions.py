"""Positions in captured tensors that can be proved to lie outside, whatever the call: those are
mistakes. All others are read with a guard.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..errors import TraceError
from .capture import Captures
from .node import Node, walk
from .ops import SCALAR_OPS

Limits = tuple[float, float]
_ANYTHING = (-math.inf, math.inf)
_STORED = {"bool": (0.0, 1.0), "uint8": (0.0, 255.0), "int8": (-128.0, 127.0)}


def check_positions(root: Node, captures: Captures, heads: int | None, name: str) -> None:
    """Raises TraceError for a position outside its tensor: of any head, where it follows from the
    head alone; else when it is never inside."""
    tables = {t.name: t for t in captures.tables}
    limits = {t.name: _STORED.get(t.dtype, _ANYTHING) for t in captures.tables}
    for n in walk(root):
        if n.op != "gather" or tables[n.attr("name")].source is None:
            continue
        table = tables[n.attr("name")]
        spoken = table.spoken or "a captured tensor"
        for dimension, index in enumerate(n.args):
            size = table.source.shape[dimension]
            values = None if heads is None else by_head(index, heads)
            if values is not None:
                outside = (values < 0) | (values >= size)
                if outside.any():
                    head = int(np.argmax(outside))
                    raise TraceError(
                        f"{name}: head {head} reads position {int(values[head])} of {spoken} in "
                        f"dimension {dimension}, which has {size} elements",
                        remedy=f"The spec has {heads} heads: give the tensor an element for each.")
                continue
            low, high = _limits(index, heads, limits)
            if high < 0 or low >= size:
                raise TraceError(
                    f"{name}: {spoken} is never read inside dimension {dimension}, which has "
                    f"{size} elements: positions are {_spoken(low, high)}",
                    remedy="Positions count from 0; negative ones are not wrapped around.")


def _spoken(low: float, high: float) -> str:
    if low == high:
        return f"{low:.0f}"
    if math.isinf(low):
        return f"at most {high:.0f}"
    return f"at least {low:.0f}" if math.isinf(high) else f"{low:.0f} ... {high:.0f}"


def by_head(index: Node, heads: int) -> Any:
    """Values [heads] of an expression of h and numbers; None for any other."""
    known: dict[str, Any] = {}
    for n in walk(index):
        if n.op == "idx" and n.attr("axis") == "h":
            known[n.key] = np.arange(heads)
        elif n.is_const:
            known[n.key] = np.asarray(n.attr("value"))
        elif n.op in ("gather", "cast") or not n.args or n.op not in SCALAR_OPS:
            return None
        else:
            evaluate = SCALAR_OPS[n.op].evaluate
            assert evaluate is not None
            known[n.key] = evaluate(*(known[a.key] for a in n.args))
    return np.broadcast_to(known[index.key], (heads,))


def _limits(index: Node, heads: int | None, stored: dict[str, Limits]) -> Limits:
    """Between which numbers the expression is in any call."""
    known: dict[str, Limits] = {}
    for n in walk(index):
        if n.op == "idx":
            last = heads - 1 if heads is not None and n.attr("axis") == "h" else math.inf
            known[n.key] = (0, last)
        elif n.op == "gather":
            known[n.key] = stored[n.attr("name")]
        else:
            known[n.key] = _of(n, [known[a.key] for a in n.args])
    return known[index.key]


def _of(n: Node, args: list[Limits]) -> Limits:
    divisor = n.args[1].attr("value") if len(n.args) == 2 and n.args[1].is_const else 0
    match n.op:
        case "const" if n.dtype != "bool":
            return n.attr("value"), n.attr("value")
        case "add":
            return args[0][0] + args[1][0], args[0][1] + args[1][1]
        case "sub":
            return args[0][0] - args[1][1], args[0][1] - args[1][0]
        case "neg":
            return -args[0][1], -args[0][0]
        case "mul":
            corners = [0 if 0 in (x, y) else x * y for x in args[0] for y in args[1]]
            return min(corners), max(corners)
        case "min" | "max":
            choose = min if n.op == "min" else max
            return choose(args[0][0], args[1][0]), choose(args[0][1], args[1][1])
        case "abs":
            low, high = args[0]
            return max(low, -high, 0), max(-low, high)
        case "where":
            return min(args[1][0], args[2][0]), max(args[1][1], args[2][1])
        case "floordiv" if divisor > 0:
            return tuple(x if math.isinf(x) else x // divisor for x in args[0])  # type: ignore[return-value]
        case "mod" if divisor > 0:
            return 0, divisor - 1 if isinstance(divisor, int) else divisor
        case "bitand" if divisor > 0:
            return 0, divisor
    return (0, 1) if n.dtype == "bool" else _ANYTHING
