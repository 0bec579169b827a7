"""Stand-ins for what a mask or score is called with: operations on them are recorded, not done.

``Scalar`` stands for one number, ``Vector`` for the elements of a captured row. Neither has a
value, so anything that would ask for one (``if``, ``and``, ``int()``) is refused with the spelling
that works.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from ..errors import TraceError
from ..number import Dynamic
from .capture import Captures
from .node import Node, cast, const, make
from .ops import FLOATS, OPS


@dataclass(frozen=True)
class Session:
    """One run of a callable: the origin nodes get, the type floats are computed in, where captured
    tensors go, and what the user calls them, by identity."""

    origin: str = ""
    compute: str = "float32"
    captures: Captures | None = None
    spoken: Mapping[int, str] = field(default_factory=dict)


session: ContextVar[Session] = ContextVar("attngen_trace", default=Session())  # noqa: B039

UNARY = {"neg": "neg", "abs": "abs", "exp": "exp", "exp2": "exp2", "log": "log", "log2": "log2",
          "tanh": "tanh", "sqrt": "sqrt", "sigmoid": "sigmoid", "logical_not": "not"}
BINARY = {"add": "add", "sub": "sub", "subtract": "sub", "mul": "mul", "multiply": "mul",
           "div": "div", "true_divide": "div", "minimum": "min", "maximum": "max",
           "floordiv": "floordiv", "floor_divide": "floordiv",
           "remainder": "mod", "mod": "mod", "truediv": "div", "logical_and": "and",
           "logical_or": "or", "eq": "eq", "ne": "ne", "lt": "lt", "le": "le"}


class Scalar:
    """A number known only when the kernel runs."""

    __slots__ = ("node",)

    def __init__(self, node: Node) -> None:
        self.node = node

    # arithmetic -------------------------------------------------------------------------
    def __add__(self, other: Any) -> Scalar:
        return apply("add", self, other)

    def __radd__(self, other: Any) -> Scalar:
        return apply("add", other, self)

    def __sub__(self, other: Any) -> Scalar:
        return apply("sub", self, other)

    def __rsub__(self, other: Any) -> Scalar:
        return apply("sub", other, self)

    def __mul__(self, other: Any) -> Scalar:
        return apply("mul", self, other)

    def __rmul__(self, other: Any) -> Scalar:
        return apply("mul", other, self)

    def __truediv__(self, other: Any) -> Scalar:
        return apply("div", self, other)

    def __rtruediv__(self, other: Any) -> Scalar:
        return apply("div", other, self)

    def __floordiv__(self, other: Any) -> Scalar:
        return apply("floordiv", self, other)

    def __rfloordiv__(self, other: Any) -> Scalar:
        return apply("floordiv", other, self)

    def __mod__(self, other: Any) -> Scalar:
        return apply("mod", self, other)

    def __rmod__(self, other: Any) -> Scalar:
        return apply("mod", other, self)

    def __pow__(self, power: Any) -> Scalar:
        if not isinstance(power, int) or isinstance(power, bool) or not 0 <= power <= 8:
            raise TraceError(f"a traced scalar to the power {power!r}: whole powers from 0 to 8 "
                             "are taken", remedy="Use exp2(power * log2(x)) for others.")
        result: Scalar | None = None
        for _ in range(power):
            result = self if result is None else result * self
        return Scalar(const(1)) if result is None else result

    def __lshift__(self, bits: Any) -> Scalar:
        return apply("mul", self, 2 ** _bits(bits))

    def __rshift__(self, bits: Any) -> Scalar:
        return apply("floordiv", self, 2 ** _bits(bits))

    def __neg__(self) -> Scalar:
        return apply("neg", self)

    def __abs__(self) -> Scalar:
        return apply("abs", self)

    # comparison and logic ----------------------------------------------------------------
    def __lt__(self, other: Any) -> Scalar:
        return apply("lt", self, other)

    def __le__(self, other: Any) -> Scalar:
        return apply("le", self, other)

    def __gt__(self, other: Any) -> Scalar:
        return apply("lt", other, self)

    def __ge__(self, other: Any) -> Scalar:
        return apply("le", other, self)

    def __eq__(self, other: object) -> Scalar:  # type: ignore[override]
        return apply("eq", self, other)

    def __ne__(self, other: object) -> Scalar:  # type: ignore[override]
        return apply("ne", self, other)

    def __and__(self, other: Any) -> Scalar:
        return logic("and", self, other)

    def __rand__(self, other: Any) -> Scalar:
        return logic("and", other, self)

    def __or__(self, other: Any) -> Scalar:
        return logic("or", self, other)

    def __ror__(self, other: Any) -> Scalar:
        return logic("or", other, self)

    def __xor__(self, other: Any) -> Scalar:
        return logic("xor", self, other)

    __rxor__ = __xor__

    def __invert__(self) -> Scalar:
        if self.node.dtype != "bool":
            raise TraceError(f"~ needs a condition, got {self.node.dtype}; compare it first")
        return apply("not", self)

    __hash__ = None  # type: ignore[assignment]

    # functions ---------------------------------------------------------------------------
    def tanh(self) -> Scalar:
        return apply("tanh", self)

    def exp(self) -> Scalar:
        return apply("exp", self)

    def exp2(self) -> Scalar:
        return apply("exp2", self)

    def log(self) -> Scalar:
        return apply("log", self)

    def log2(self) -> Scalar:
        return apply("log2", self)

    def abs(self) -> Scalar:
        return apply("abs", self)

    def sigmoid(self) -> Scalar:
        return apply("sigmoid", self)

    def sqrt(self) -> Scalar:
        return apply("sqrt", self)

    def square(self) -> Scalar:
        return self * self

    def relu(self) -> Scalar:
        return apply("max", self, 0)

    def clamp(self, min: Any = None, max: Any = None) -> Scalar:
        """Within min ... max, each if given."""
        low = self if min is None else apply("max", self, min)
        return low if max is None else apply("min", low, max)

    clip = clamp

    def floor(self) -> Scalar:
        if self.node.dtype not in FLOATS:
            return self
        whole = self.to("int32")
        return apply("where", self < whole, whole - 1, whole).to("float32")

    def to(self, dtype: Any) -> Scalar:
        """As another type: integers, floats (all computed in one type) or conditions."""
        name = str(dtype).removeprefix("torch.")
        if name == "bool":
            return self if self.node.dtype == "bool" else self != 0
        if name.startswith(("int", "uint")):
            if self.node.dtype == "bool":
                return apply("where", self, 1, 0)
            return self if self.node.dtype in ("int32", "int64") else Scalar(
                cast(self.node, "int32"))
        if name not in FLOATS:
            raise TraceError(f"a traced scalar cannot become {dtype}")
        if self.node.dtype == "bool":
            return apply("where", self, 1.0, 0.0)
        return Scalar(cast(self.node, session.get().compute))

    def new_ones(self, size: Any = (), dtype: Any = None, device: Any = None) -> Scalar:
        """One, as a number or condition; what torch's own ``and_masks`` begins with."""
        if tuple(size) != ():
            raise TraceError(f"new_ones of shape {tuple(size)}: a traced scalar has no dimensions")
        return Scalar(const(True if str(dtype) == "torch.bool" else 1))

    def new_zeros(self, size: Any = (), dtype: Any = None, device: Any = None) -> Scalar:
        if tuple(size) != ():
            raise TraceError(f"new_zeros of shape {tuple(size)}: a traced scalar has no dimensions")
        return Scalar(const(False if str(dtype) == "torch.bool" else 0))

    @property
    def device(self) -> str:
        return "cpu"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from .rows import call

        return call(func, args, kwargs or {})

    # what a proxy cannot do ----------------------------------------------------------------
    def __bool__(self) -> bool:
        raise TraceError("a condition on an index has no value while tracing: use & | ~ instead "
                         "of and/or/not, torch.where instead of if, and split a < b < c")

    def __index__(self) -> int:
        raise TraceError("an index has no value while tracing: it cannot become a Python int")

    __int__ = __index__

    def __float__(self) -> float:
        raise TraceError("a score has no value while tracing: it cannot become a Python float; "
                         "use torch.tanh instead of math.tanh, and so on")

    def __iter__(self) -> Any:
        raise TraceError("a traced scalar cannot be iterated")



# Methods of tensors whose names are Python's own types.
for _name, _kind in (("int", "int32"), ("long", "int32"), ("float", "float32"),
                     ("double", "float32"), ("bool", "bool")):
    setattr(Scalar, _name, functools.partialmethod(Scalar.to, _kind))


def _is_tensor(x: Any) -> bool:
    return hasattr(x, "data_ptr") and hasattr(x, "ndim")


def node_of(x: Any) -> Node:
    """The node of a proxy, number or captured tensor. Raises TraceError for anything else."""
    if isinstance(x, Dynamic):
        x = x._now()
    if isinstance(x, Scalar):
        return x.node
    if _is_tensor(x) and (x.ndim or session.get().captures is not None):
        from .rows import indexed

        return node_of(indexed(x, ()))
    if getattr(x, "ndim", None) == 0:  # NumPy's numbers; a tensor's where nothing is captured
        x = x.item()
    source = getattr(x, "source", None)
    if source is not None:
        raise TraceError(f"a captured tensor of shape {tuple(source.shape)} cannot enter an "
                         f"expression with {len(x.indices)} indices",
                         remedy="Index it: one position for each dimension.")
    if not isinstance(x, (bool, int, float)):
        raise TraceError(f"a {type(x).__name__} cannot enter an expression: use numbers, indices "
                         "and scores")
    if isinstance(x, int) and not -2**31 <= x < 2**31:
        raise TraceError(f"{x} does not fit the 32 bits positions have",
                         remedy="Use a number that does, or a float.")
    if isinstance(x, float) and (x != x or x == float("inf")):
        raise TraceError(f"{x} cannot stand in an expression",
                         remedy="Hide a key with -inf, or better with a mask.")
    return const(x)


def apply(op: str, *args: Any) -> Scalar:
    nodes = tuple(node_of(a) for a in args)
    _check_kinds(op, nodes)
    if OPS[op].result == "float" and not any(n.dtype in FLOATS for n in nodes):
        nodes = (cast(nodes[0], session.get().compute), *nodes[1:])  # indices divide as numbers
    return Scalar(make(op, *nodes, origin=session.get().origin))


def _check_kinds(op: str, nodes: tuple[Node, ...]) -> None:
    logical = op in ("and", "or", "not")
    for n in nodes if logical else nodes[:1] if op == "where" else ():
        if n.dtype != "bool":
            wanted = "conditions" if logical else "a condition"
            raise TraceError(f"{op} needs {wanted}, got {n.dtype}; compare it first")
    if all(n.dtype == "bool" for n in nodes) and not logical and op not in ("eq", "ne", "where"):
        raise TraceError(f"{op} needs numbers, got conditions; torch.where makes numbers of them")


def logic(op: str, a: Any, b: Any) -> Any:
    if hasattr(b, "items"):  # a row: element by element
        return NotImplemented
    x, y = Scalar(node_of(a)), Scalar(node_of(b))
    if op == "xor" and x.node.dtype == y.node.dtype == "bool":
        return apply("ne", x, y)
    if x.node.dtype != "bool" and y.node.dtype != "bool" \
            and not {x.node.dtype, y.node.dtype} & set(FLOATS):
        return apply(f"bit{op}", x, y)
    return apply(op, x, y)


def _bits(bits: Any) -> int:
    if not isinstance(bits, int) or not 0 <= bits < 31:
        raise TraceError(f"a shift by {bits!r}: traced scalars shift by numbers from 0 to 30")
    return bits


