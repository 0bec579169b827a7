"""The op table: every operation a graph may contain, one row each.

Scalar rows carry their NumPy meaning (the interpreter *is* this table); a new scalar op is one row
here, one printer entry in ``templates/expressions.py`` and, for training, one derivative rule.
Tensor rows describe operations over named axes; their meaning is in ``eval_tensor.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .philox import uniform

EIGHT_BIT = ("int8", "float8_e4m3")  # how caches may store elements; kernels widen what they load
FLOATS = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True, slots=True)
class OpInfo:
    """One row: arity, result type rule, NumPy meaning, and what rewrites may assume."""

    name: str
    arity: int  # -1: any number
    result: str  # "same" (common type of the operands), "bool", "float", "attr" (attrs["dtype"])
    evaluate: Callable[..., Any] | None = None
    commutative: bool = False
    cheap: bool = True  # may be recomputed instead of hoisted
    group: str = "scalar"


def _floor_div(a: Any, b: Any) -> Any:
    return np.floor_divide(a, b)


def _erf(x: Any) -> Any:
    x = np.asarray(x)
    return np.vectorize(math.erf, otypes=[np.float64])(x).astype(x.dtype)


def _recip0(x: Any) -> Any:
    x = np.asarray(x)
    return np.where(x == 0, np.zeros_like(x), 1 / np.where(x == 0, np.ones_like(x), x))


def _finite_or_zero(x: Any) -> Any:
    return np.where(np.isneginf(x), np.zeros_like(x), x)


def element_of(table: Any, *indices: Any) -> Any:
    """The elements of ``table`` at broadcast index arrays, one per dimension; 0 outside."""
    table = np.asarray(table)
    indices = np.broadcast_arrays(*indices) if indices else ()
    inside = np.ones(np.shape(indices[0]) if indices else (), bool)
    for index, size in zip(indices, table.shape, strict=True):
        inside &= (index >= 0) & (index < size)
    if 0 in table.shape:
        return np.zeros(inside.shape, table.dtype)
    clipped = tuple(np.clip(x, 0, size - 1) for x, size in zip(indices, table.shape, strict=True))
    return np.where(inside, table[clipped], np.zeros((), table.dtype))


def _row(*args: Any, **kwargs: Any) -> tuple[str, OpInfo]:
    info = OpInfo(*args, **kwargs)
    return info.name, info


SCALAR_OPS: dict[str, OpInfo] = dict([
    # arithmetic
    _row("add", 2, "same", np.add, commutative=True),
    _row("sub", 2, "same", np.subtract),
    _row("mul", 2, "same", np.multiply, commutative=True),
    _row("div", 2, "float", np.true_divide, cheap=False),
    _row("neg", 1, "same", np.negative),
    _row("abs", 1, "same", np.abs),
    _row("min", 2, "same", np.minimum, commutative=True),
    _row("max", 2, "same", np.maximum, commutative=True),
    _row("floordiv", 2, "same", _floor_div, cheap=False),
    _row("mod", 2, "same", np.mod, cheap=False),
    # functions of one float
    _row("exp", 1, "float", np.exp, cheap=False),
    _row("exp2", 1, "float", np.exp2, cheap=False),
    _row("log", 1, "float", np.log, cheap=False),
    _row("log2", 1, "float", np.log2, cheap=False),
    _row("tanh", 1, "float", np.tanh, cheap=False),
    _row("sqrt", 1, "float", np.sqrt, cheap=False),
    _row("sigmoid", 1, "float", lambda x: 1 / (1 + np.exp(-x)), cheap=False),
    _row("erf", 1, "float", _erf, cheap=False),
    _row("recip0", 1, "float", _recip0, cheap=False),  # 1/x, and 0 at x = 0
    _row("finite_or_zero", 1, "float", _finite_or_zero),  # x, and 0 at x = -inf
    # (seed, b, h, q_start, i, k_start, j) -> [0, 1), float32; the same wherever it is asked
    _row("uniform", 7, "attr", uniform, cheap=False),
    # predicates
    _row("lt", 2, "bool", np.less),
    _row("le", 2, "bool", np.less_equal),
    _row("eq", 2, "bool", np.equal, commutative=True),
    _row("ne", 2, "bool", np.not_equal, commutative=True),
    _row("and", 2, "bool", np.logical_and, commutative=True),
    _row("or", 2, "bool", np.logical_or, commutative=True),
    _row("not", 1, "bool", np.logical_not),
    # bits of integers
    _row("bitand", 2, "same", np.bitwise_and, commutative=True),
    _row("bitor", 2, "same", np.bitwise_or, commutative=True),
    _row("bitxor", 2, "same", np.bitwise_xor, commutative=True),
    # element of a captured tensor; attrs: name. One operand per dimension, outside of it: 0
    _row("gather", -1, "attr", element_of, cheap=False),
    # choice and type
    _row("where", 3, "same", np.where),
    _row("cast", 1, "attr"),
])

LEAF_OPS: dict[str, OpInfo] = dict([
    _row("const", 0, "attr", group="leaf"),  # attrs: value, dtype
    _row("idx", 0, "attr", group="leaf"),  # attrs: axis; the global index along that axis
    _row("param", 0, "attr", group="leaf"),  # attrs: name; a run-time number, axes () or (b)
    _row("input", 0, "attr", group="leaf"),  # attrs: name; a tensor in device memory
    _row("value", 0, "attr", group="leaf"),  # attrs: name; a tile value, in statements only
    _row("first", 0, "attr", group="leaf"),  # attrs: axis; first index of the current tile
    _row("last", 0, "attr", group="leaf"),  # attrs: axis; last valid index of the current tile
])

TENSOR_OPS: dict[str, OpInfo] = dict([
    _row("by_head", 1, "same", group="tensor"),  # attrs: map; axis g becomes h
    _row("contract", 2, "attr", group="tensor"),  # attrs: over, dtype; Σ_over a·b
    _row("reduce", 1, "same", group="tensor"),  # attrs: kind (sum max lse), over
    # Accumulations relative to a running maximum: the last operand is that maximum. On whole
    # tensors it is simply the final value; a loop rescales what it has when the maximum moves.
    _row("stream_sum", 2, "attr", group="tensor"),  # Σ_over x, x relative to the maximum
    _row("stream_contract", 3, "attr", group="tensor"),  # Σ_over a·b, likewise
    # Marks a predicate as *the* visibility of a key: tiles proved full replace it by true.
    _row("visible", 1, "bool", group="tensor"),
    # (index, part): whether it is of that part. Every index is of one; which, is for tiling to say.
    # attrs: zones; part n is of zone n mod zones, and each zone falls into as many parts.
    _row("of_part", 2, "bool", group="tensor"),
])

# In proofs about tiles only: bounds on the elements of a captured tensor; attrs: name. The last two
# operands are the range of the last dimension. Their meaning is in ``tables.py``.
PROOF_OPS: dict[str, OpInfo] = dict([
    _row("table_min", -1, "attr", group="proof", cheap=False),
    _row("table_max", -1, "attr", group="proof", cheap=False),
    _row("table_bits", -1, "attr", group="proof", cheap=False),  # which entries there are, hashed
])

OPS: dict[str, OpInfo] = {**SCALAR_OPS, **LEAF_OPS, **TENSOR_OPS, **PROOF_OPS}
