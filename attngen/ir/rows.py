"""Captured tensors while a callable is traced: indexed to the end they are numbers, one index short
a row whose elements are unrolled; and torch's functions applied to either.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import TraceError
from .node import Node, const
from .ops import OPS
from .proxy import BINARY, UNARY, Scalar, apply, logic, node_of, session

_MOST_UNROLLED = 1024


class Vector:
    """The elements of a captured row, one expression each: what is done to it is unrolled."""

    __slots__ = ("items",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, items: Sequence[Scalar]) -> None:
        self.items = tuple(items)

    def _with(self, op: Callable[[Any, Any], Any], other: Any) -> Vector:
        if not isinstance(other, Vector):
            return Vector([op(x, other) for x in self.items])
        if len(other.items) != len(self.items):
            raise TraceError(f"rows of {len(self.items)} and {len(other.items)} elements do not "
                             "combine")
        return Vector([op(x, y) for x, y in zip(self.items, other.items, strict=True)])

    def __add__(self, other: Any) -> Vector:
        return self._with(lambda x, y: x + y, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Vector:
        return self._with(lambda x, y: x - y, other)

    def __rsub__(self, other: Any) -> Vector:
        return self._with(lambda x, y: y - x, other)

    def __mul__(self, other: Any) -> Vector:
        return self._with(lambda x, y: x * y, other)

    __rmul__ = __mul__

    def __eq__(self, other: object) -> Vector:  # type: ignore[override]
        return self._with(lambda x, y: x == y, other)

    def __ne__(self, other: object) -> Vector:  # type: ignore[override]
        return self._with(lambda x, y: x != y, other)

    def __lt__(self, other: Any) -> Vector:
        return self._with(lambda x, y: x < y, other)

    def __le__(self, other: Any) -> Vector:
        return self._with(lambda x, y: x <= y, other)

    def __gt__(self, other: Any) -> Vector:
        return self._with(lambda x, y: x > y, other)

    def __ge__(self, other: Any) -> Vector:
        return self._with(lambda x, y: x >= y, other)

    def __and__(self, other: Any) -> Vector:
        return self._with(lambda x, y: x & y, other)

    def __or__(self, other: Any) -> Vector:
        return self._with(lambda x, y: x | y, other)

    def _joined(self, op: Callable[[Any, Any], Any], dim: Any, nothing: Any) -> Scalar:
        if dim not in (None, -1, 0):
            raise TraceError(f"a captured row has one dimension, not {dim}")
        parts = list(self.items)
        while len(parts) > 1:  # a balanced tree is not deep
            parts = [functools.reduce(op, parts[n:n + 2]) for n in range(0, len(parts), 2)]
        return parts[0] if parts else Scalar(const(nothing))

    def any(self, dim: Any = None) -> Scalar:
        return self._joined(lambda x, y: x | y, dim, False)

    def all(self, dim: Any = None) -> Scalar:
        return self._joined(lambda x, y: x & y, dim, True)

    def sum(self, dim: Any = None) -> Scalar:
        return self._joined(lambda x, y: x + y, dim, 0)

    def dot(self, other: Any) -> Scalar:
        return (self * other).sum()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return call(func, args, kwargs or {})


class Row(Vector):
    """A captured tensor with fewer indices than dimensions; further ones complete it."""

    __slots__ = ("indices", "source")

    def __init__(self, source: Any, indices: tuple[Node, ...]) -> None:
        self.source, self.indices = source, indices

    def __getitem__(self, index: Any) -> Scalar | Row:
        return indexed(self.source, index, self.indices)

    @property
    def items(self) -> tuple[Scalar, ...]:  # type: ignore[override]
        left = self.source.shape[len(self.indices):]
        if len(left) != 1 or left[0] > _MOST_UNROLLED:
            raise TraceError(f"a captured tensor of shape {tuple(self.source.shape)} is used with "
                             f"{len(self.indices)} indices", remedy="Index all of its dimensions, "
                             f"or all but one of at most {_MOST_UNROLLED} elements.")
        return tuple(_read(self.source, (*self.indices, const(n))) for n in range(left[0]))


def indexed(source: Any, index: Any, before: tuple[Node, ...] = ()) -> Scalar | Row:
    """``source[index]`` of a captured tensor. Raises TraceError for what is no position."""
    items = index if isinstance(index, tuple) else (index,)
    while items and isinstance(items[-1], slice) and items[-1] == slice(None):
        items = items[:-1]
    nodes = list(before)
    for item in items:
        if len(nodes) >= source.ndim:
            raise TraceError(f"{_called(source)} has {source.ndim} dimensions, it was given "
                             f"{len(before) + len(items)} indices")
        nodes.append(_position(source, item, len(nodes)))
    return _read(source, tuple(nodes)) if len(nodes) == source.ndim else Row(source, tuple(nodes))


def _position(source: Any, item: Any, dimension: int) -> Node:
    if isinstance(item, slice) or item is None or item is Ellipsis:
        raise TraceError(f"{_called(source)} is indexed with {item!r}",
                         remedy="Give one position for each dimension, the first ones first.")
    node = node_of(item)
    if node.dtype not in ("int32", "int64"):
        raise TraceError(f"{_called(source)} is indexed with a {node.dtype}",
                         remedy="Positions are integers; .to(torch.int32) makes one.")
    size = source.shape[dimension]
    if node.is_const and not 0 <= node.attr("value") < size:
        raise TraceError(f"{_called(source)} is indexed with {node.attr('value')} in dimension "
                         f"{dimension}, which has {size} elements",
                         remedy="Positions count from 0; negative ones are not wrapped around.")
    return node


def _read(source: Any, nodes: tuple[Node, ...]) -> Scalar:
    captures = session.get().captures
    if captures is None:
        raise TraceError(f"{_called(source)} is a tensor, and tensors cannot be captured here")
    spoken = session.get().spoken.get(id(source), "")
    return Scalar(captures.read(source, nodes, session.get().compute, spoken))


def _called(source: Any) -> str:
    name = session.get().spoken.get(id(source))
    return f"the captured tensor {name}" if name else "a captured tensor"


# torch functions that are methods of the proxies under the same name
_METHODS = ("clamp", "clip", "square", "relu", "floor", "any", "all", "sum", "dot", "to", "pow")


def call(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """A torch function applied to proxies. Raises TraceError for those that cannot be traced."""
    name = getattr(func, "__name__", str(func)).strip("_")
    if name == "getitem":
        return args[0][args[1]] if isinstance(args[0], Row) else indexed(args[0], args[1])
    swap = name.startswith("r") and name[1:] in BINARY and name not in BINARY
    if swap:
        name, args = name[1:], args[::-1]
    if any(isinstance(a, Vector) for a in args[:2]) and name in _VECTOR:
        return _VECTOR[name](args[0] if isinstance(args[0], Vector | Scalar) else
                             Scalar(node_of(args[0])), args[1])
    if name in _METHODS and args and isinstance(args[0], Scalar | Vector):
        method = getattr(args[0], {"pow": "__pow__"}.get(name, name), None)
        if method is not None:
            return method(*args[1:], **kwargs)
    if name == "rsqrt":
        return 1.0 / apply("sqrt", *args)
    if name in ("and", "or", "xor", "bitwise_and", "bitwise_or", "bitwise_xor", "logical_xor"):
        return logic(name.rpartition("_")[2], *args)
    if kwargs:
        raise TraceError(f"torch.{name} with {', '.join(f'{k}=' for k in kwargs)} cannot be "
                         "traced: write what it does with operators")
    op = UNARY.get(name) or BINARY.get(name) or {"where": "where"}.get(name)
    if op is None or len(args) != OPS[op].arity:
        known = sorted({"where", "rsqrt", *_METHODS, *UNARY, *BINARY})
        raise TraceError(f"torch.{name} cannot be traced. Available: "
                         f"{', '.join(f'torch.{k}' for k in known)} and Python operators")
    return apply(op, *args)


_VECTOR: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda x, y: x + y, "sub": lambda x, y: x - y, "mul": lambda x, y: x * y,
    "eq": lambda x, y: x == y, "ne": lambda x, y: x != y, "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y, "gt": lambda x, y: x > y, "ge": lambda x, y: x >= y,
    "and": lambda x, y: x & y, "or": lambda x, y: x | y, "dot": lambda x, y: x.dot(y),
}
