"""Nodes: typed, immutable, hash-consed expressions over named axes.

One class serves tensors ("contract q and k over d") and the scalar expressions inside tile
statements. Within a graph equal nodes are the same object, so common subexpressions are shared by
construction and a rule may ask ``is``; between graphs they are equal.

Axes: ``b`` batch, ``h`` query heads, ``g`` key/value heads, ``i`` queries, ``j`` keys, ``d``
head_dim, ``e`` head_dim_v; ``row`` queries of all heads of a group (``group_rows``), ``split``
parts of the keys (``split_kv``).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

from ..errors import VerifyError
from .ops import FLOATS, OPS

AXES = ("b", "h", "g", "split", "i", "row", "j", "d", "e")
_RANK = {"bool": 0, "int8": 0, "float8_e4m3": 0, "int32": 1, "int64": 2, "float16": 3,
         "bfloat16": 3, "float32": 4, "float64": 5}


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Node:
    """An operation applied to operands; ``origin`` says which source construct it came from."""

    op: str
    args: tuple[Node, ...]
    attrs: tuple[tuple[str, Hashable], ...]
    axes: tuple[str, ...]
    dtype: str
    key: str = field(repr=False)
    origin: str = ""

    def attr(self, name: str) -> Any:
        """Value of a named attribute. Raises KeyError when the op has no such attribute."""
        for key, value in self.attrs:
            if key == name:
                return value
        raise KeyError(f"{self.op} has no attribute {name!r}")

    def __eq__(self, other: object) -> bool:
        return self is other or isinstance(other, Node) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def is_const(self) -> bool:
        return self.op == "const"

    def __repr__(self) -> str:
        inside = ", ".join([*(repr(a) for a in self.args), *(f"{k}={v}" for k, v in self.attrs)])
        return f"{self.op}({inside})"


# Every node made so far, by key. Nodes made outside of ``interning`` live as long as they are used.
_interned: ContextVar[MutableMapping[str, Node]] = ContextVar(
    "attngen_nodes", default=WeakValueDictionary())  # noqa: B039


@contextmanager
def interning(*roots: Node) -> Iterator[None]:
    """Inside, new nodes are shared with each other and with the roots' nodes alone.

    A node keeps the origin it was first made with. So what a pass returns, names and comments
    included, follows from its own graph and not from what else the process has compiled.
    """
    token = _interned.set({n.key: n for n in walk(*roots)})
    try:
        yield
    finally:
        _interned.reset(token)


def _encode(value: Hashable) -> str:
    return value.hex() if isinstance(value, float) else repr(value)


def _intern(op: str, args: tuple[Node, ...], attrs: dict[str, Hashable], axes: Iterable[str],
            dtype: str, origin: str) -> Node:
    items = tuple(sorted(attrs.items()))
    ordered = tuple(a for a in AXES if a in set(axes))
    text = "|".join([op, dtype, "".join(ordered), *(a.key for a in args),
                     *(f"{k}={_encode(v)}" for k, v in items)])
    key = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    known = _interned.get()
    node = known.get(key)
    if node is None:
        node = known[key] = Node(op, args, items, ordered, dtype, key, origin)
    return node


# -- leaves -----------------------------------------------------------------------------------


def const(value: float | int | bool, dtype: str | None = None) -> Node:
    """A number. Without ``dtype``: bool, int32 or float32 after the Python type."""
    if dtype is None:
        dtype = "bool" if isinstance(value, bool) else (
            "int32" if isinstance(value, int) else "float32")
    number: float | int | bool = (
        bool(value) if dtype == "bool" else float(value) if dtype in FLOATS else int(value))
    return _intern("const", (), {"value": number}, (), dtype, "")


def idx(axis: str) -> Node:
    """The index along ``axis``, int32."""
    return _intern("idx", (), {"axis": axis}, (axis,), "int32", "")


def param(name: str, axes: Iterable[str] = (), dtype: str = "int32") -> Node:
    """A run-time number; with axes ``b`` it may differ per batch entry."""
    return _intern("param", (), {"name": name}, axes, dtype, "")


def tensor(name: str, axes: Iterable[str], dtype: str) -> Node:
    """A tensor in device memory."""
    return _intern("input", (), {"name": name}, axes, dtype, name)


def value(name: str, axes: Iterable[str], dtype: str) -> Node:
    """A reference to a tile value inside a statement."""
    return _intern("value", (), {"name": name}, axes, dtype, "")


def first(axis: str) -> Node:
    """First index of the current tile along ``axis``."""
    return _intern("first", (), {"axis": axis}, (), "int32", "")


def last(axis: str) -> Node:
    """Last index of the current tile along ``axis`` that lies inside the tensor."""
    return _intern("last", (), {"axis": axis}, (), "int32", "")


# -- operations -------------------------------------------------------------------------------


def _common(args: tuple[Node, ...]) -> str:
    return max((a.dtype for a in args), key=lambda t: _RANK[t])


def _retype_constants(op: str, args: tuple[Node, ...]) -> tuple[Node, ...]:
    """A number takes the type of what it meets, so 0.5 stays exact in a float64 graph."""
    start = 1 if op == "where" else 0
    others = [a.dtype for a in args[start:] if not a.is_const]
    if not others or OPS[op].group != "scalar" or op == "cast" \
            or OPS[op].arity == -1:
        return args
    dtype = max(others, key=lambda t: _RANK[t])
    return tuple(
        const(a.attr("value"), dtype)
        if n >= start and a.is_const and a.dtype != dtype and a.dtype != "bool"
        and (dtype in FLOATS or a.dtype not in FLOATS) else a
        for n, a in enumerate(args))


def make(op: str, *args: Node, origin: str = "", axes: Iterable[str] | None = None,
         dtype: str | None = None, **attrs: Hashable) -> Node:
    """Build (or find) the node ``op(args)``; axes and dtype follow the op's row unless given.

    Raises VerifyError for an unknown op or a wrong number of operands.
    """
    info = OPS.get(op)
    if info is None or info.arity not in (-1, len(args)):
        raise VerifyError(f"{op} takes {info.arity if info else 'no known number of'} operands, "
                          f"got {len(args)}")
    args = _retype_constants(info.name, args)
    if info.commutative and args[0].key > args[1].key and not args[1].is_const:
        args = (args[1], args[0])
    if info.commutative and args[0].is_const and not args[1].is_const:
        args = (args[1], args[0])  # constants stand on the right
    if axes is None:
        axes = {a for arg in args for a in arg.axes}
    if dtype is None:
        typed = args[1:] if op == "where" else args
        dtype = "bool" if info.result == "bool" else _common(typed) if typed else "float32"
        if info.result == "float" and dtype not in FLOATS:
            dtype = "float32"
    origin = origin or next((a.origin for a in args if a.origin), "")
    return _intern(op, args, attrs, axes, dtype, origin)


def cast(x: Node, dtype: str) -> Node:
    """``x`` as ``dtype``; nothing when it has it already."""
    return x if x.dtype == dtype else make("cast", x, dtype=dtype)


def gather(name: str, indices: Iterable[Node], dtype: str) -> Node:
    """The element of the captured tensor ``name`` at ``indices``, one per dimension, as a scalar
    of ``dtype`` (bool, int32, int64, float32 or float64); 0 where an index is outside."""
    return make("gather", *indices, name=name, dtype=dtype)


def contract(a: Node, b: Node, over: str, dtype: str = "float32", origin: str = "") -> Node:
    """Σ over the axis ``over`` of a·b, accumulated in ``dtype``."""
    axes = (set(a.axes) | set(b.axes)) - {over}
    return make("contract", a, b, axes=axes, dtype=dtype, over=over, origin=origin)


def reduce(kind: str, x: Node, over: str, origin: str = "") -> Node:
    """Sum, max or log-sum-exp (``lse``) of ``x`` along ``over``; of nothing: 0, −inf, −inf."""
    return make("reduce", x, axes=set(x.axes) - {over}, kind=kind, over=over, origin=origin)


def by_head(x: Node, heads: tuple[int, ...], origin: str = "") -> Node:
    """Repeat the key/value axis ``g`` along query heads: result[h] = x[heads[h]]."""
    axes = (set(x.axes) - {"g"}) | {"h"}
    return make("by_head", x, axes=axes, map=heads, origin=origin or x.origin)


# -- walking ----------------------------------------------------------------------------------


def walk(*roots: Node) -> Iterator[Node]:
    """Every node reachable from the roots, operands before users, each once."""
    seen: set[str] = set()
    stack: list[Node | None] = list(reversed(roots))
    while stack:
        node = stack.pop()
        if node is None:  # all operands of the node below have been yielded
            done = stack.pop()
            assert done is not None
            yield done
        elif node.key not in seen:
            seen.add(node.key)
            if not node.args:
                yield node
                continue
            stack += (node, None)
            stack.extend(reversed(node.args))


def rebuild(node: Node, args: tuple[Node, ...]) -> Node:
    """``node`` with other operands; axes and dtype as before unless the operands changed them."""
    if all(x is y for x, y in zip(args, node.args, strict=True)):
        return node
    attrs: dict[str, Any] = dict(node.attrs)
    if OPS[node.op].group == "tensor":
        return make(node.op, *args, axes=node.axes, dtype=node.dtype, origin=node.origin, **attrs)
    dtype = node.dtype if OPS[node.op].result == "attr" else None
    return make(node.op, *args, dtype=dtype, origin=node.origin, **attrs)


def substitute(root: Node, table: dict[Node, Node]) -> Node:
    """``root`` with every node of ``table`` replaced."""
    done: dict[str, Node] = {}
    for node in walk(root):
        if node in table:
            done[node.key] = table[node]
        else:
            done[node.key] = rebuild(node, tuple(done[a.key] for a in node.args))
    return done[root.key]


def is_number(node: Node, number: float) -> bool:
    """True for the constant ``number``."""
    return node.op == "const" and not math.isnan(number) and node.attr("value") == number


def is_cheap(node: Node) -> bool:
    """True when every operation of the expression may be repeated rather than kept."""
    return all(OPS[m.op].cheap for m in walk(node))
