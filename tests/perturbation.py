"""Every way to change one attribute of a frozen object, for tests that ask whether it matters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

from attngen.ir.node import Node, const, first, last, make, substitute, walk

EXEMPT = ("origin", "note")

# Words of a small vocabulary are exchanged for each other; other strings are names.
VOCABULARIES = (
    ("bool", "int32", "int64", "float16", "bfloat16", "float32", "float64"),
    ("", "scalar", "row", "column", "fragment", "operand", "shared", "array", "rows", "view"),
    ("input", "output", "workspace"),
    ("mma", "simt", "cpu"),
    ("sum", "max"),
    ("now", "later"),
    ("always", "partial"),
    ("block", "warp"),
    ("math", "fused", "tiled", "placed"),
    tuple("bhgijde"),
)

_CONDITION = make("lt", last("i"), first("j"))  # where an expression may stand and none does


def changed(item: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """(where, the item with one attribute changed), for every attribute at every depth.

    ``names`` are further strings to put in a string's place.
    """
    if isinstance(item, Node):
        yield from _expressions(item)
    elif is_dataclass(item) and not isinstance(item, type):
        for f in fields(item):
            if f.name in EXEMPT:
                continue
            old = getattr(item, f.name)
            if "None" in str(f.type) and old is not None:
                yield f".{f.name} = None", replace(item, **{f.name: None})
            if "Node" in str(f.type) and old is None:
                yield f".{f.name} = {_CONDITION}", replace(item, **{f.name: _CONDITION})
                continue
            for where, new in changed(old, names):
                yield f".{f.name}{where}", replace(item, **{f.name: new})
    elif isinstance(item, tuple):
        yield from _tuples(item, names)
    elif isinstance(item, str):
        words = next((v for v in VOCABULARIES if item in v), (f"{item}_x", *names))
        yield from ((f" = {w!r}", w) for w in words if w != item)
    else:
        yield from ((f" = {n!r}", n) for n in _numbers(item))


def _numbers(item: Any) -> list[Any]:
    if item is None:
        return [0, 1]
    if isinstance(item, bool):
        return [not item]
    near = [item + 1, item - 1, item * 2] if abs(item) != float("inf") else [0.0, -item]
    return [n for n in dict.fromkeys(near) if n != item]


def _tuples(item: tuple[Any, ...], names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    reshaped = {"reversed": item[::-1], "shortened": item[:-1], "beheaded": item[1:],
                "doubled": (*item, *item[-1:])}
    for how, new in reshaped.items():
        if new != item:
            yield f" {how}", new
    for n, element in enumerate(item):
        for where, new in changed(element, names):
            yield f"[{n}]{where}", (*item[:n], new, *item[n + 1:])


def _expressions(item: Node) -> Iterator[tuple[str, Any]]:
    """Another number in a constant's place, an operand in an operation's, each of its kind."""
    for leaf in walk(item):
        if leaf.is_const and leaf.dtype != "bool":
            for n in _numbers(leaf.attr("value")):
                if n is not None:
                    new = substitute(item, {leaf: const(n, leaf.dtype)})
                    if new is not item:
                        yield f" with {n} for {leaf.attr('value')}", new
    for n, arg in enumerate(item.args):
        if arg.dtype == item.dtype and arg.axes == item.axes:
            yield f" without {item.op}", item.args[n]
