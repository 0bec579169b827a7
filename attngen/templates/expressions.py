"""Scalar expressions as C text: one table entry per op and language, nothing else.

``print_expression`` is given a function that names the leaves (indices, parameters, tile values);
what a value is called depends on where the target keeps it, so that is the target's business.
"""

from __future__ import annotations

from collections.abc import Callable

from ..errors import VerifyError
from ..ir.node import Node
from ..ir.ops import PROOF_OPS
from .abi import size_name, table_stride_name
from .names import c_name

_SUFFIX = {"float32": "f32", "float64": "f64", "int32": "i32", "int64": "i64"}

# Binary operators with their C precedence (larger binds tighter).
_INFIX: dict[str, tuple[str, int]] = {
    "mul": ("*", 13), "div": ("/", 13), "add": ("+", 12), "sub": ("-", 12),
    "lt": ("<", 10), "le": ("<=", 10), "eq": ("==", 9), "ne": ("!=", 9),
    "bitand": ("&", 8), "bitxor": ("^", 7), "bitor": ("|", 6), "and": ("&&", 5), "or": ("||", 4),
}
_PREFIX: dict[str, str] = {"neg": "-", "not": "!"}
_ATOM, _UNARY, _CHOICE = 16, 14, 3

# Functions provided by every target's device layer, named by the type of their result.
_FUNCTIONS = {"exp", "exp2", "log", "log2", "tanh", "sqrt", "sigmoid", "erf", "recip0",
              "finite_or_zero", "min", "max", "abs", "floordiv", "mod", "uniform"}
_C_TYPES = {"float32": "float", "float64": "double", "int32": "int", "int64": "i64",
            "bool": "bool"}


def c_type(dtype: str) -> str:
    """The C type a scalar of ``dtype`` has in registers. Raises VerifyError for storage types."""
    if dtype not in _C_TYPES:
        raise VerifyError(f"no register type for {dtype}: cast it to float32 first")
    return _C_TYPES[dtype]


def c_number(number: float | int | bool, dtype: str) -> str:
    """A literal that reads back as exactly this number."""
    if dtype == "bool":
        return "true" if number else "false"
    if dtype not in ("float32", "float64"):
        return str(int(number)) if number >= 0 else f"({int(number)})"
    if number == float("-inf"):
        return "NEG_INF"
    if number != number or number == float("inf"):
        raise VerifyError(f"{number} cannot stand in a kernel")
    text = _shortest(number, dtype)
    return text if number >= 0 else f"({text})"


def _shortest(number: float, dtype: str) -> str:
    if dtype == "float64":
        return repr(float(number))
    import numpy as np
    text = str(np.float32(number))
    return (text if "." in text or "e" in text else text + ".0") + "f"


def print_expression(node: Node, leaf: Callable[[Node], str],
                     more: Callable[[Node], tuple[str, ...]] = lambda node: ()) -> str:
    """C text of ``node``; ``leaf`` names idx, param, value, first and last nodes, ``more`` gives
    arguments that a target's functions take besides the operands.

    Raises VerifyError for an op that has no entry.
    """
    return _print(node, leaf, more)[0]


def _print(node: Node, leaf: Callable[[Node], str],
           more: Callable[[Node], tuple[str, ...]]) -> tuple[str, int]:
    op = node.op
    if op == "const":
        return c_number(node.attr("value"), node.dtype), _ATOM
    if not node.args and op != "gather":
        return leaf(node), _ATOM
    parts = [_print(a, leaf, more) for a in node.args]
    if op in _INFIX:
        symbol, rank = _INFIX[op]
        left = _wrap(parts[0], rank)
        right = _wrap(parts[1], rank if op in ("and", "or") else rank + 1)
        return f"{left} {symbol} {right}", rank
    if op in _PREFIX:
        return f"{_PREFIX[op]}{_wrap(parts[0], _UNARY + 1)}", _UNARY
    if op == "where":
        test, yes, no = (_wrap(p, _CHOICE + 1) for p in parts)
        return f"{test} ? {yes} : {no}", _CHOICE
    if op == "cast":
        return f"({c_type(node.dtype)})({parts[0][0]})", _UNARY
    if op == "gather":
        return _gather(node, [p[0] for p in parts]), _ATOM
    if op in PROOF_OPS:
        return _range(node, [p[0] for p in parts]), _ATOM
    if op in _FUNCTIONS:
        suffix = _SUFFIX[node.dtype]
        return f"{op}_{suffix}({', '.join([*(p[0] for p in parts), *more(node)])})", _ATOM
    raise VerifyError(f"no C text for op {op!r}: add it to templates/expressions.py")


def _gather(node: Node, indices: list[str]) -> str:
    table = node.attr("name")
    triples = [f"{index}, params.{size_name(table, n)}, params.{table_stride_name(table, n)}"
               for n, index in enumerate(indices)]
    return f"gather<{c_type(node.dtype)}>({', '.join([f'params.{c_name(table)}', *triples])})"


def _range(node: Node, args: list[str]) -> str:
    *leading, low, high = args
    table = node.attr("name")
    blocks = f"{table}_per_64"
    triples = [f"{index}, params.{size_name(blocks, n)}, params.{table_stride_name(blocks, n)}"
               for n, index in enumerate(leading)]
    length = f"params.{size_name(table, len(leading))}"
    return f"{node.op}({', '.join([low, high, length, f'params.{c_name(blocks)}', *triples])})"


def _wrap(part: tuple[str, int], rank: int) -> str:
    text, own = part
    return text if own >= rank else f"({text})"
