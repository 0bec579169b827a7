"""Turning a Python ``mask_mod`` or ``score_mod`` into nodes: run it once on scalar proxies.

The proxies carry no values, so anything that would ask for one (``if``, ``and``, ``int()``) is
refused with the user's line and the spelling that works.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from ..errors import TraceError
from .capture import Captures
from .node import Node, cast, const, make, walk
from .ops import FLOATS, OPS

_origin: ContextVar[str] = ContextVar("attngen_trace_origin", default="")
_float: ContextVar[str] = ContextVar("attngen_trace_float", default="float32")
_MAX_DEPTH = 250  # expressions are lowered and printed by recursion

_UNARY = {"neg": "neg", "abs": "abs", "exp": "exp", "exp2": "exp2", "log": "log", "log2": "log2",
          "tanh": "tanh", "sqrt": "sqrt", "sigmoid": "sigmoid", "logical_not": "not"}
_BINARY = {"add": "add", "sub": "sub", "subtract": "sub", "mul": "mul", "multiply": "mul",
           "div": "div", "true_divide": "div", "minimum": "min", "maximum": "max",
           "floor_divide": "floordiv", "remainder": "mod", "logical_and": "and",
           "logical_or": "or", "eq": "eq", "ne": "ne", "lt": "lt", "le": "le"}


class Scalar:
    """A number known only when the kernel runs."""

    __slots__ = ("node",)

    def __init__(self, node: Node) -> None:
        self.node = node

    # arithmetic -------------------------------------------------------------------------
    def __add__(self, other: Any) -> Scalar:
        return _apply("add", self, other)

    def __radd__(self, other: Any) -> Scalar:
        return _apply("add", other, self)

    def __sub__(self, other: Any) -> Scalar:
        return _apply("sub", self, other)

    def __rsub__(self, other: Any) -> Scalar:
        return _apply("sub", other, self)

    def __mul__(self, other: Any) -> Scalar:
        return _apply("mul", self, other)

    def __rmul__(self, other: Any) -> Scalar:
        return _apply("mul", other, self)

    def __truediv__(self, other: Any) -> Scalar:
        return _apply("div", self, other)

    def __rtruediv__(self, other: Any) -> Scalar:
        return _apply("div", other, self)

    def __floordiv__(self, other: Any) -> Scalar:
        return _apply("floordiv", self, other)

    def __rfloordiv__(self, other: Any) -> Scalar:
        return _apply("floordiv", other, self)

    def __mod__(self, other: Any) -> Scalar:
        return _apply("mod", self, other)

    def __rmod__(self, other: Any) -> Scalar:
        return _apply("mod", other, self)

    def __neg__(self) -> Scalar:
        return _apply("neg", self)

    def __abs__(self) -> Scalar:
        return _apply("abs", self)

    # comparison and logic ----------------------------------------------------------------
    def __lt__(self, other: Any) -> Scalar:
        return _apply("lt", self, other)

    def __le__(self, other: Any) -> Scalar:
        return _apply("le", self, other)

    def __gt__(self, other: Any) -> Scalar:
        return _apply("lt", other, self)

    def __ge__(self, other: Any) -> Scalar:
        return _apply("le", other, self)

    def __eq__(self, other: object) -> Scalar:  # type: ignore[override]
        return _apply("eq", self, other)

    def __ne__(self, other: object) -> Scalar:  # type: ignore[override]
        return _apply("ne", self, other)

    def __and__(self, other: Any) -> Scalar:
        return _logic("and", self, other)

    def __rand__(self, other: Any) -> Scalar:
        return _logic("and", other, self)

    def __or__(self, other: Any) -> Scalar:
        return _logic("or", self, other)

    def __ror__(self, other: Any) -> Scalar:
        return _logic("or", other, self)

    def __invert__(self) -> Scalar:
        if self.node.dtype != "bool":
            raise TraceError(f"~ needs a condition, got {self.node.dtype}; compare it first")
        return _apply("not", self)

    __hash__ = None  # type: ignore[assignment]

    # functions ---------------------------------------------------------------------------
    def tanh(self) -> Scalar:
        return _apply("tanh", self)

    def exp(self) -> Scalar:
        return _apply("exp", self)

    def exp2(self) -> Scalar:
        return _apply("exp2", self)

    def log(self) -> Scalar:
        return _apply("log", self)

    def abs(self) -> Scalar:
        return _apply("abs", self)

    def sigmoid(self) -> Scalar:
        return _apply("sigmoid", self)

    def sqrt(self) -> Scalar:
        return _apply("sqrt", self)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        if kwargs:
            raise TraceError(f"torch.{name} with {', '.join(f'{k}=' for k in kwargs)} cannot be "
                             "traced: write what it does with operators")
        op = _UNARY.get(name) or _BINARY.get(name) or {"where": "where"}.get(name)
        if op is None or len(args) != OPS[op].arity:
            known = sorted({"where", *_UNARY, *_BINARY})
            raise TraceError(f"torch.{name} cannot be traced. Available: "
                             f"{', '.join(f'torch.{k}' for k in known)} and Python operators")
        return _apply(op, *args)

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


def _node(x: Any) -> Node:
    if isinstance(x, Scalar):
        return x.node
    item = getattr(x, "item", None)
    if item is not None and getattr(x, "ndim", None) == 0 and not getattr(x, "requires_grad", 0):
        x = item()
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


def _apply(op: str, *args: Any) -> Scalar:
    nodes = tuple(_node(a) for a in args)
    _check_kinds(op, nodes)
    if OPS[op].result == "float" and not any(n.dtype in FLOATS for n in nodes):
        nodes = (cast(nodes[0], _float.get()), *nodes[1:])  # indices divide as numbers
    return Scalar(make(op, *nodes, origin=_origin.get()))


def _check_kinds(op: str, nodes: tuple[Node, ...]) -> None:
    logical = op in ("and", "or", "not")
    for n in nodes if logical else nodes[:1] if op == "where" else ():
        if n.dtype != "bool":
            wanted = "conditions" if logical else "a condition"
            raise TraceError(f"{op} needs {wanted}, got {n.dtype}; compare it first")
    if all(n.dtype == "bool" for n in nodes) and not logical and op not in ("eq", "ne", "where"):
        raise TraceError(f"{op} needs numbers, got conditions; torch.where makes numbers of them")


def _logic(op: str, a: Any, b: Any) -> Scalar:
    return _apply(op, a, b)


def trace(function: Callable[..., Any], args: tuple[Node, ...], name: str, result: str,
          captures: Captures | None = None) -> Node:
    """The node ``function(*args)`` computes; ``result`` is "bool" or the score's type.

    Raises TraceError, naming the function and its line, for what cannot be traced and for a
    result of the wrong kind.
    """
    token = _origin.set(name)
    compute = _float.set("float32" if result == "bool" else result)
    try:
        out = function(*(Scalar(a) for a in args))
        node = _node(out)
    except TraceError as error:
        raise TraceError(f"{name}{_where(error)}: {error.what}", remedy=error.remedy) from None
    except Exception as error:
        raise TraceError(f"{name}{_where(error)}: {type(error).__name__}: {error}") from error
    finally:
        _origin.reset(token)
        _float.reset(compute)
    if (node.dtype == "bool") != (result == "bool"):
        wanted = "a condition (true = visible)" if result == "bool" else "a number"
        raise TraceError(f"{name} must return {wanted}, it returned {node.dtype}")
    _check_depth(node, name)
    return node


def _check_depth(root: Node, name: str) -> None:
    depth: dict[str, int] = {}
    for n in walk(root):
        depth[n.key] = 1 + max((depth[a.key] for a in n.args), default=-1)
    if depth[root.key] > _MAX_DEPTH:
        raise TraceError(f"{name} nests {depth[root.key]} operations, at most {_MAX_DEPTH} are "
                         "taken", remedy="Replace a long Python loop by a formula.")


def _where(error: BaseException) -> str:
    """The innermost line of user code in a traceback."""
    frames = [f for f in traceback.extract_tb(error.__traceback__)
              if not f.filename.startswith(str(Path(__file__).parent))]
    own = [f for f in frames if "site-packages" not in f.filename] or frames
    if not own:
        return ""
    frame = own[-1]
    return f" ({frame.filename}:{frame.lineno}: {frame.line})"
