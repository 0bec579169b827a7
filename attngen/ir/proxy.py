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

# Names of torch's functions -> rows of the op table.
UNARY = {"neg": "neg", "negative": "neg", "abs": "abs", "absolute": "abs", "exp": "exp",
         "exp2": "exp2", "log": "log", "log2": "log2", "tanh": "tanh", "sqrt": "sqrt",
         "sigmoid": "sigmoid", "special_expit": "sigmoid", "erf": "erf", "logical_not": "not",
         "invert": "not", "bitwise_not": "not"}
BINARY = {"add": "add", "sub": "sub", "subtract": "sub", "mul": "mul", "multiply": "mul",
          "div": "div", "divide": "div", "true_divide": "div", "minimum": "min", "maximum": "max",
          "floordiv": "floordiv", "floor_divide": "floordiv",
          "remainder": "mod", "mod": "mod", "truediv": "div", "logical_and": "and",
          "logical_or": "or", "eq": "eq", "ne": "ne", "not_equal": "ne", "lt": "lt", "less": "lt",
          "le": "le", "less_equal": "le"}
# The same with the operands exchanged.
TURNED = {"gt": "lt", "greater": "lt", "ge": "le", "greater_equal": "le", "rsub": "sub"}


class Traced:
    """What operators and torch's functions on stand-ins do; more of them in ``composed.py``."""

    __slots__ = ()

    # arithmetic -------------------------------------------------------------------------
    def __add__(self, other: Any) -> Any:
        return apply("add", self, other)

    def __radd__(self, other: Any) -> Any:
        return apply("add", other, self)

    def __sub__(self, other: Any) -> Any:
        return apply("sub", self, other)

    def __rsub__(self, other: Any) -> Any:
        return apply("sub", other, self)

    def __mul__(self, other: Any) -> Any:
        return apply("mul", self, other)

    def __rmul__(self, other: Any) -> Any:
        return apply("mul", other, self)

    def __truediv__(self, other: Any) -> Any:
        return apply("div", self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return apply("div", other, self)

    def __floordiv__(self, other: Any) -> Any:
        return apply("floordiv", self, other)

    def __rfloordiv__(self, other: Any) -> Any:
        return apply("floordiv", other, self)

    def __mod__(self, other: Any) -> Any:
        return apply("mod", self, other)

    def __rmod__(self, other: Any) -> Any:
        return apply("mod", other, self)

    def __lshift__(self, bits: Any) -> Any:
        return apply("mul", self, 2 ** _bits(bits))

    def __rshift__(self, bits: Any) -> Any:
        return apply("floordiv", self, 2 ** _bits(bits))

    def __neg__(self) -> Any:
        return apply("neg", self)

    def __abs__(self) -> Any:
        return apply("abs", self)

    # comparison and logic ----------------------------------------------------------------
    def __lt__(self, other: Any) -> Any:
        return apply("lt", self, other)

    def __le__(self, other: Any) -> Any:
        return apply("le", self, other)

    def __gt__(self, other: Any) -> Any:
        return apply("lt", other, self)

    def __ge__(self, other: Any) -> Any:
        return apply("le", other, self)

    def __eq__(self, other: object) -> Any:
        return apply("eq", self, other)

    def __ne__(self, other: object) -> Any:
        return apply("ne", self, other)

    def __and__(self, other: Any) -> Any:
        return logic("and", self, other)

    def __rand__(self, other: Any) -> Any:
        return logic("and", other, self)

    def __or__(self, other: Any) -> Any:
        return logic("or", self, other)

    def __ror__(self, other: Any) -> Any:
        return logic("or", other, self)

    def __xor__(self, other: Any) -> Any:
        return logic("xor", self, other)

    __rxor__ = __xor__

    def __invert__(self) -> Any:
        return apply("not", self)

    __hash__ = None  # type: ignore[assignment]

    # functions ---------------------------------------------------------------------------
    def tanh(self) -> Any:
        return apply("tanh", self)

    def exp(self) -> Any:
        return apply("exp", self)

    def exp2(self) -> Any:
        return apply("exp2", self)

    def log(self) -> Any:
        return apply("log", self)

    def log2(self) -> Any:
        return apply("log2", self)

    def abs(self) -> Any:
        return apply("abs", self)

    def sigmoid(self) -> Any:
        return apply("sigmoid", self)

    def erf(self) -> Any:
        return apply("erf", self)

    def sqrt(self) -> Any:
        return apply("sqrt", self)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from .rows import call

        return call(func, args, kwargs or {})


class Scalar(Traced):
    """A number known only when the kernel runs."""

    __slots__ = ("node",)

    def __init__(self, node: Node) -> None:
        self.node = node

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

    def new_full(self, size: Any, fill_value: Any, dtype: Any = None,
                 device: Any = None) -> Scalar:
        """A number or condition, which is all that a tensor without dimensions is."""
        if tuple(size) != ():
            raise TraceError(f"a new tensor of shape {tuple(size)}: a traced scalar has no "
                             "dimensions")
        return Scalar(const(bool(fill_value) if str(dtype) == "torch.bool" else fill_value))

    def new_ones(self, size: Any = (), dtype: Any = None, device: Any = None) -> Scalar:
        """What torch's own ``and_masks`` begins with."""
        return self.new_full(size, 1, dtype)

    def new_zeros(self, size: Any = (), dtype: Any = None, device: Any = None) -> Scalar:
        return self.new_full(size, 0, dtype)

    @property
    def device(self) -> str:
        return "cpu"

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
    return const(x, session.get().compute if isinstance(x, float) else None)


def _is_row(x: Any) -> bool:
    return isinstance(x, Traced) and not isinstance(x, Scalar)


def apply(op: str, *args: Any) -> Any:
    """The operation recorded; of rows for each of their elements."""
    if any(map(_is_row, args)):
        from .rows import elementwise

        return elementwise(functools.partial(apply, op), args)
    nodes = tuple(node_of(a) for a in args)
    _check_kinds(op, nodes)
    if OPS[op].result == "float" and not any(n.dtype in FLOATS for n in nodes):
        nodes = (cast(nodes[0], session.get().compute), *nodes[1:])  # indices divide as numbers
    return Scalar(make(op, *nodes, origin=session.get().origin))


def _check_kinds(op: str, nodes: tuple[Node, ...]) -> None:
    logical = op in ("and", "or", "not")
    for n in nodes if logical else nodes[:1] if op == "where" else ():
        if n.dtype != "bool":
            wanted = "conditions" if logical and op != "not" else "a condition"
            raise TraceError(f"{'~' if op == 'not' else op} needs {wanted}, got {n.dtype}; "
                             "compare it first")
    if all(n.dtype == "bool" for n in nodes) and not logical and op not in ("eq", "ne", "where"):
        raise TraceError(f"{op} needs numbers, got conditions; torch.where makes numbers of them")


def logic(op: str, a: Any, b: Any) -> Any:
    """``and``, ``or`` and ``xor`` of conditions, or of the bits of integers."""
    if _is_row(a) or _is_row(b):
        from .rows import elementwise

        return elementwise(functools.partial(logic, op), (a, b))
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


