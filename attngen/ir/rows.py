"""Captured tensors while a callable is traced: indexed to the end they are numbers, one index short
a row whose elements are unrolled; and torch's functions applied to either.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import TraceError
from .composed import COMPOSED, composed
from .node import Node, const
from .ops import OPS
from .proxy import BINARY, TURNED, UNARY, Scalar, Traced, apply, logic, node_of, session

_MOST_UNROLLED = 1024


class Vector(Traced):
    """The elements of a captured row, one expression each: what is done to it is unrolled."""

    __slots__ = ("items",)

    def __init__(self, items: Sequence[Scalar]) -> None:
        self.items = tuple(items)

    def _joined(self, op: Callable[[Any, Any], Any], dim: Any, nothing: Any) -> Scalar:
        if dim not in (None, -1, 0):
            raise TraceError(f"a captured row has one dimension, not {dim}")
        parts = list(self.items)
        while len(parts) > 1:  # a balanced tree is not deep
            parts = [functools.reduce(op, parts[n:n + 2]) for n in range(0, len(parts), 2)]
        if not parts and nothing is None:
            raise TraceError("a captured row of no elements has no least and no greatest one")
        return parts[0] if parts else Scalar(const(nothing))

    def any(self, dim: Any = None) -> Scalar:
        return self._joined(operator.or_, dim, False)

    def all(self, dim: Any = None) -> Scalar:
        return self._joined(operator.and_, dim, True)

    def sum(self, dim: Any = None) -> Scalar:
        """Conditions count as 1."""
        if any(x.node.dtype == "bool" for x in self.items):
            return self.to("int32").sum(dim)
        return self._joined(operator.add, dim, 0)

    def amax(self, dim: Any = None) -> Scalar:
        return self._joined(functools.partial(apply, "max"), dim, None)

    def amin(self, dim: Any = None) -> Scalar:
        return self._joined(functools.partial(apply, "min"), dim, None)

    def mean(self, dim: Any = None) -> Scalar:
        found: Scalar = self.sum(dim) / float(len(self.items))
        return found

    def dot(self, other: Any) -> Scalar:
        found: Scalar = (self * other).sum()
        return found

    def to(self, dtype: Any) -> Vector:
        return Vector([x.to(dtype) for x in self.items])


def elementwise(function: Callable[..., Any], args: Sequence[Any]) -> Vector:
    """The function of each element of the rows among ``args``. Raises TraceError where they differ
    in length."""
    lengths = {len(a.items) for a in args if isinstance(a, Vector)}
    if len(lengths) > 1:
        raise TraceError(f"rows of {' and '.join(map(str, sorted(lengths)))} elements do not "
                         "combine")
    return Vector([function(*(a.items[n] if isinstance(a, Vector) else a for a in args))
                   for n in range(lengths.pop())])


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
_METHODS = ("any", "all", "sum", "dot", "to", "amax", "amin", "mean")
# Operators of torch itself; a name in another namespace may mean anything.
_NAMESPACES = {"aten", "prims", "approx"}


def call(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """A torch function applied to proxies. Raises TraceError for those that cannot be traced."""
    qualified = getattr(func, "_qualified_op_name", "")
    if qualified and qualified.partition("::")[0] not in _NAMESPACES:
        raise TraceError(f"the operator {qualified} cannot be traced: nothing tells what it does",
                         remedy="Write it with Python operators and torch's functions.")
    return named(getattr(func, "__name__", str(func)).strip("_"), args, kwargs)


def named(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The function or method of that name."""
    if name == "getitem":
        return args[0][args[1]] if isinstance(args[0], Row) else indexed(args[0], args[1])
    swap = name.startswith("r") and name[1:] in BINARY and name not in (*BINARY, *COMPOSED)
    if swap:
        name, args = name[1:], args[::-1]
    if name == "isin":
        row = args[1] if isinstance(args[1], Vector) else indexed(args[1], ())
        return (row == args[0]).any()
    if name in ("max", "min"):
        return apply(name, *args) if len(args) == 2 else named(f"a{name}", args, kwargs)
    if name in _METHODS and args and isinstance(args[0], Traced):
        method = getattr(args[0], name, None)
        if method is not None:
            return method(*args[1:], **kwargs)
    if name in COMPOSED:
        return composed(name, *args, **kwargs)
    if name in ("and", "or", "xor", "bitwise_and", "bitwise_or", "bitwise_xor", "logical_xor"):
        return logic(name.rpartition("_")[2], *args)
    if kwargs == {"rounding_mode": "floor"} and name in ("div", "divide"):
        return apply("floordiv", *args)
    if kwargs:
        raise TraceError(f"torch.{name} with {', '.join(f'{k}=' for k in kwargs)} cannot be "
                         "traced: write what it does with operators")
    if name in TURNED and len(args) == 2:
        name, args = TURNED[name], args[::-1]
    op = UNARY.get(name) or BINARY.get(name) or {"where": "where"}.get(name)
    if op is None or len(args) != OPS[op].arity:
        known = sorted({"where", "isin", "max", "min", *_METHODS, *UNARY, *BINARY, *TURNED,
                        *COMPOSED})
        raise TraceError(f"torch.{name} cannot be traced. Available: "
                         f"{', '.join(f'torch.{k}' for k in known)} and Python operators")
    return apply(op, *args)


# Every function is a method too, where the stand-ins have none of that name.
for _name in (*UNARY, *BINARY, *TURNED, "logical_xor", "bitwise_and", "bitwise_or", "bitwise_xor"):
    if not hasattr(Traced, _name):
        setattr(Traced, _name, functools.partialmethod(
            lambda self, name, *args, **kwargs: named(name, (self, *args), kwargs), _name))
