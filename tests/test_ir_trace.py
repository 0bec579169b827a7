"""Tracing: what a callable computes becomes nodes; what it may not do is refused at its line."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ir_problem import DTYPE, only, placed

from attngen import scores
from attngen.errors import TraceError
from attngen.ir.algebra import FOLD
from attngen.ir.build import build_forward
from attngen.ir.node import Node, idx, value, walk
from attngen.ir.ops import SCALAR_OPS
from attngen.ir.rewrite import rewrite
from attngen.ir.show import kernel_text
from attngen.ir.trace import trace
from attngen.spec import AttentionSpec

S = value("s", "ij", "float32")
ARGUMENTS = (S, idx("b"), idx("h"), idx("i"), idx("j"))


def traced(function: Callable[..., Any], result: str = "float32") -> Node:
    return trace(function, ARGUMENTS, "score_mod", result)


def numbers(node: Node, s: float, b: int, h: int, i: int, j: int) -> Any:
    """The node's value for these arguments."""
    known = dict(zip((a.key for a in ARGUMENTS), (s, b, h, i, j), strict=True))
    for n in walk(node):
        if n.is_const:
            known[n.key] = n.attr("value")
        elif n.op == "cast":
            known[n.key] = known[n.args[0].key]
            if n.dtype == "int32":
                known[n.key] = np.trunc(known[n.key]).astype(int)
        elif n.args:
            row = SCALAR_OPS[n.op].evaluate
            assert row is not None
            known[n.key] = row(*(known[a.key] for a in n.args))
    return known[node.key]


POINTS = [(0.75, 1, 5, 9, 4), (-1.25, 0, 2, 3, 11), (2.0, 2, 0, 0, 0)]
T = torch.tensor


SCORES: dict[str, Callable[..., Any]] = {
    "arithmetic": lambda s, b, h, i, j: (s + 1) * 2 - s / 4 - (3 - s) + (-s) + 1 / (s * s + 1),
    "indices": lambda s, b, h, i, j: s * (i - j) + (7 + h) * b,
    "floor": lambda s, b, h, i, j: s + (i - j) // 3 + (j - i) % 4 + 50 // (i + 1) + 17 % (j + 2),
    "methods": lambda s, b, h, i, j: s.tanh() + (s * s).sqrt() + s.sigmoid() + s.exp() + s.exp2(),
    "logs": lambda s, b, h, i, j: (s * s + 1).log() + abs(s) + s.abs(),
    "torch": lambda s, b, h, i, j: torch.tanh(s) + torch.exp(s) + torch.sigmoid(s)
    + torch.abs(s) + torch.sqrt(s * s) + torch.exp2(s) + torch.log(s * s + 1) + torch.neg(s),
    "torch_pairs": lambda s, b, h, i, j: torch.maximum(s, s * 2) + torch.minimum(s, s * 2)
    + torch.add(s, 1) + torch.sub(s, 1) + torch.mul(s, 3) + torch.div(s, 2),
    "where": lambda s, b, h, i, j: torch.where(i == j, s * 2, torch.where(j < 5, s, -1.0)),
    "conditions": lambda s, b, h, i, j: torch.where(
        ((i <= j) | (i >= 3)) & ~(h != 2) & (s > 0), s, s * 10),
    "constants": lambda s, b, h, i, j: s * T(2.5) + T(3) - np.float32(0.5) + np.int64(2),
    "constants_first": lambda s, b, h, i, j: T(2.5) * s + T(3) - s + T(1.5) / (s * s + 1),
    "compare_constants_first": lambda s, b, h, i, j: torch.where(
        (T(4) > j) & (T(3) <= i) & (T(5) == h), s, s + 1),
    "activations": lambda s, b, h, i, j: F.gelu(s) + F.gelu(s, approximate="tanh") + F.silu(s)
    + F.relu(s) + F.relu6(s * 4) + F.leaky_relu(s, 0.2) + F.elu(s) + F.softplus(s, 2.0)
    + F.logsigmoid(s) + torch.erf(s) + s.erf(),
    "whole": lambda s, b, h, i, j: torch.floor(s) + s.ceil() * 2 + torch.trunc(s) * 3
    + torch.round(s * 2) * 5 + torch.sign(s) + (i - j).sign() + i.floor(),
    "powers": lambda s, b, h, i, j: s ** 3 + torch.pow(s, 2) + (s * s + 1) ** -1.5 + 2.0 ** (i - j)
    + torch.rsqrt(s * s + 1) + torch.reciprocal(s) + (s * s) ** 0.5 + s ** -2 + s.square(),
    "bounds": lambda s, b, h, i, j: torch.clamp_min(s, 0.1) + s.clamp_max(0) + s.clip(-1, max=1)
    + s.masked_fill(i > j, 0.25) + torch.clamp(i, max=4) + s.unsqueeze(-1).squeeze(-1).clone(),
    "names": lambda s, b, h, i, j: torch.where(torch.gt(i, j) | torch.ge(j, 11) | torch.lt(h, 1)
                                               | torch.not_equal(b, b) & ~torch.less(i, 0),
                                               torch.subtract(s, 1), torch.rsub(s, 2))
    + torch.div(i, 4, rounding_mode="floor"),
    "methods_of_tensors": lambda s, b, h, i, j: s.mul(2).add(1).sub(0.5).div(3).neg()
    + s.where(i.ge(j).logical_or(j.eq(3)), -3.0) + (i - j).type_as(s) + (i // 8).ne(j // 8).int(),
    "likes": lambda s, b, h, i, j: torch.where(torch.ones_like(i, dtype=torch.bool) & (i > j), s,
                                               torch.full_like(s, -2.0))
    + torch.zeros_like(s) + s.new_full((), 0.25) + s.new_ones(()) + torch.ones_like(i) // 2,
    "more": lambda s, b, h, i, j: torch.fmod(j - i, 3) + torch.fmod(s, 0.5) + torch.log1p(s.abs())
    + torch.expm1(s) + F.hardtanh(s) + torch.special.expit(s) + torch.min(torch.max(s, s * 2), j),
    "floats": lambda s, b, h, i, j: s // 0.5 + s % 0.75 + i // 2.5,
    "functions": lambda s, b, h, i, j: scores.tanh(s) + scores.exp2(s / 2) + scores.sqrt(s * s),
    "captured_loop": lambda s, b, h, i, j: sum(s * k for k in range(4)),
    "truth": lambda s, b, h, i, j: s * (i == j) + s * (j < 5),
}


@pytest.mark.parametrize("name", SCORES)
def test_a_traced_score_computes_what_the_function_does(name: str) -> None:
    function = SCORES[name]
    node = traced(function)
    folded = rewrite((node,), FOLD)[0]
    for point in POINTS:
        expected = float(function(*(torch.tensor(x) for x in point)))
        assert float(numbers(node, *point)) == pytest.approx(expected, rel=1e-6)
        assert float(numbers(folded, *point)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("op", [
    operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod,
    operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne])
@pytest.mark.parametrize("constant", [3, 2.5, T(3), T(2.5), np.float32(2.5), np.int32(3)],
                         ids=lambda c: f"{type(c).__name__}_{c}")
def test_every_operator_takes_numbers_on_either_side(op: Callable[..., Any],
                                                     constant: Any) -> None:
    plain = constant.item() if hasattr(constant, "item") else constant
    for left in (True, False):
        def function(s: Any, b: Any, h: Any, i: Any, j: Any, left: bool = left) -> Any:
            value = op(constant, i + 1) if left else op(i + 1, constant)
            return torch.where(value, 1.0, 0.0) if op.__name__ in (
                "lt", "le", "gt", "ge", "eq", "ne") else value + s * 0
        node = traced(function)
        for point in POINTS:
            i = point[3] + 1
            assert float(numbers(node, *point)) == float(op(plain, i) if left else op(i, plain))


def test_logic_takes_truth_values_on_either_side() -> None:
    for constant in (True, T(True), np.bool_(True)):
        node = trace(lambda b, h, i, j, c=constant: (c & (i < j)) | (~(i < j) & c),
                     ARGUMENTS[1:], "mask_mod", "bool")
        assert node.dtype == "bool" and bool(numbers(node, *POINTS[0]))


def test_numbers_take_the_type_of_what_they_meet() -> None:
    node = traced(lambda s, b, h, i, j: s * 0.1 + i * 2)
    assert {n.dtype for n in walk(node) if n.is_const} == {"float32", "int32"}
    wide = build_forward(AttentionSpec(heads=1, head_dim=8, score=lambda s, b, h, i, j:
                                       s + h / 3 + 0.1), "float64")
    floats = {n.dtype for n in walk(*wide.regions[0].roots) if n.dtype.startswith("float")}
    assert floats == {"float64"}


def test_nodes_know_which_callable_they_came_from() -> None:
    def nearness(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        return s - (i - j) * 0.5
    node = trace(nearness, ARGUMENTS, "nearness", "float32")
    assert node.origin == "nearness" and node.args[1].origin == "nearness"


# -- refusals -----------------------------------------------------------------------------------


def python_if(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return s if i < j else -s


def python_and(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return torch.where(i < j and j < 5, s, -s)


def chained(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return torch.where(0 < i < j, s, -s)


def python_int(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return s * [1.0, 2.0][h]


def python_float(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return math.tanh(s)


def not_on_a_number(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return torch.where(~i, s, -s)


def or_on_numbers(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return torch.where(s | (i < j), s, -s)


def where_on_a_number(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return torch.where(i, s, -s)


def untraceable(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return torch.lgamma(s)


def keyword(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return torch.add(s, i, alpha=2)


def rounding(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return s + torch.div(i, 2, rounding_mode="trunc")


def whole_tensor(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return s + torch.ones(4)


def text(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return s + "x"


def unpacked(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return list(s)


def no_method(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return s.cosh()


def its_own_error(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return s + {}["missing"]


def nested_too_deep(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    for _ in range(2000):
        s = torch.tanh(s)
    return s


def too_large(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return torch.where(j < 10**10, s, 0.0)


def infinite(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return torch.where(j < 3, s, float("inf"))


def subtracted_conditions(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return s * ((i < j) - (j < 3))


@pytest.mark.parametrize(("function", "said"), [
    (python_if, ("torch.where instead of if", "return s if i < j else -s")),
    (python_and, ("use & | ~ instead of and/or/not", "i < j and j < 5")),
    (chained, ("split a < b < c", "0 < i < j")),
    (python_int, ("cannot become a Python int", "[1.0, 2.0][h]")),
    (python_float, ("cannot become a Python float", "torch.tanh", "math.tanh(s)")),
    (not_on_a_number, ("~ needs a condition, got int32; compare it first",)),
    (or_on_numbers, ("or needs conditions, got float32; compare it first",)),
    (where_on_a_number, ("where needs a condition, got int32; compare it first",)),
    (untraceable, ("torch.lgamma cannot be traced", "torch.where", "tanh", "torch.lgamma(s)")),
    (keyword, ("torch.add with alpha= cannot be traced", "alpha=2")),
    (rounding, ("torch.div with rounding_mode= cannot be traced",)),
    (whole_tensor, ("a captured tensor of shape (4,) cannot enter", "torch.ones(4)")),
    (text, ("a str cannot enter an expression",)),
    (unpacked, ("cannot be iterated",)),
    (no_method, ("cosh", "s.cosh()")),
    (its_own_error, ("KeyError: 'missing'", '{}["missing"]')),
    (nested_too_deep, ("nests 2000 operations", "at most")),
    (too_large, ("10000000000 does not fit the 32 bits", "or a float")),
    (infinite, ("inf cannot stand in an expression", "Hide a key with -inf")),
    (subtracted_conditions, ("sub needs numbers, got conditions; torch.where",)),
], ids=lambda x: getattr(x, "__name__", ""))
def test_misuse_names_the_users_line_and_a_remedy(function: Callable[..., Any],
                                                  said: tuple[str, ...]) -> None:
    with pytest.raises(TraceError) as caught:
        trace(function, ARGUMENTS, function.__name__, "float32")
    message = str(caught.value)
    assert message.startswith(function.__name__)
    for part in said:
        assert part in message, message
    if function is not nested_too_deep:
        assert "test_ir_trace.py" in message, message
    assert "remedy:" in message


def test_the_deepest_expression_allowed_lowers_and_renders() -> None:
    def deep(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        for _ in range(120):
            s = torch.tanh(s * 0.5)
        return s
    for engine in DTYPE:
        kernel = only(placed(AttentionSpec(heads=1, head_dim=8, score=deep), engine))
        assert kernel_text(kernel).count("tanh") == 120


@pytest.mark.parametrize("times", [3, 60])
def test_shared_terms_do_not_multiply(times: int) -> None:
    """x is used twice by each step; written out, 60 steps would have 2^60 terms. Bounds of the
    sums are sums of all that was added before: those grow with the square."""
    def doubled(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        for _ in range(times):
            s = s * 0.5 + s * s * 0.01
        return s

    def halved(b: Any, h: Any, i: Any, j: Any) -> Any:
        for _ in range(times):
            i = i // 2 + i // 3 + i
        return j <= i
    for spec in (AttentionSpec(heads=1, head_dim=8, score=doubled),
                 AttentionSpec(heads=1, head_dim=8, mask=halved)):
        assert len(kernel_text(only(placed(spec)))) < 6000 + 1000 * times + 20 * times**2


def test_a_result_of_the_wrong_kind_is_refused() -> None:
    with pytest.raises(TraceError, match="m must return a condition .true = visible., it returned"):
        trace(lambda b, h, i, j: i - j, ARGUMENTS[1:], "m", "bool")
    with pytest.raises(TraceError, match="f must return a number, it returned bool"):
        trace(lambda s, b, h, i, j: i < j, ARGUMENTS, "f", "float32")
    with pytest.raises(TraceError, match="a NoneType cannot enter an expression"):
        trace(lambda s, b, h, i, j: None, ARGUMENTS, "f", "float32")
