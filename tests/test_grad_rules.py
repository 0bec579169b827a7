"""Derivative rules: each against differences, and the smooth ones against sympy."""

from __future__ import annotations

import numpy as np
import pytest
import sympy

from attngen.errors import VerifyError
from attngen.ir.grad import RULES, derivatives
from attngen.ir.node import Node, cast, const, make, tensor, walk
from attngen.ir.ops import SCALAR_OPS

Array = np.ndarray
X, Y = tensor("x", "i", "float64"), tensor("y", "i", "float64")
C = tensor("c", "i", "bool")
_WHOLE = {"bitand", "bitor", "bitxor", "lt", "le", "eq", "ne", "and", "or", "not",
          "uniform"}
# What is looked at where: away from kinks, which have tests of their own, and inside domains.
_POSITIVE = {"log", "log2", "sqrt"}


def expression(op: str) -> Node:
    if op == "where":
        return make("where", C, X, Y)
    if op == "cast":
        return cast(cast(X, "float32"), "float64")
    return make(op, X, Y) if SCALAR_OPS[op].arity == 2 else make(op, X)


def evaluate(root: Node, values: dict[str, Array]) -> Array:
    """An expression of x, y and c; casts round nothing."""
    done: dict[str, Array] = {}
    for n in walk(root):
        args = [done[a.key] for a in n.args]
        if n.op in ("input", "const"):
            done[n.key] = values[n.attr("name")] if n.op == "input" else np.asarray(n.attr("value"))
        elif n.op == "cast":
            done[n.key] = args[0]
        else:
            meaning = SCALAR_OPS[n.op].evaluate
            assert meaning
            done[n.key] = np.asarray(meaning(*args))
    return done[root.key]


def points(op: str = "") -> dict[str, Array]:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 200)) * 2
    if op in _POSITIVE:
        x = np.abs(x) + 0.1
    return {"x": x, "y": np.where(np.abs(y) < 0.1, 0.7, y), "c": rng.random(200) < 0.5,
            "g": rng.normal(size=200)}


def slopes(root: Node, values: dict[str, Array], name: str, step: float = 1e-6) -> Array:
    """Differences of both sides."""
    up, down = ({**values, name: values[name] + s} for s in (step, -step))
    return (evaluate(root, up) - evaluate(root, down)) / (2 * step)


def test_every_operation_on_floats_has_a_rule() -> None:
    assert set(SCALAR_OPS) - _WHOLE - {"gather"} == set(RULES)


@pytest.mark.parametrize("op", RULES)
def test_a_rule_is_the_slope(op: str) -> None:
    root, values = expression(op), points(op)
    found = derivatives(root, tensor("g", "i", "float64"), [X, Y])
    for leaf in (X, Y):
        want = values["g"] * slopes(root, values, leaf.attr("name"))
        if leaf not in found:
            assert not want.any(), f"nothing flows to {leaf.attr('name')}"
            continue
        np.testing.assert_allclose(evaluate(found[leaf], values) + 0 * want, want, rtol=1e-6,
                                   atol=1e-6)


def test_a_chain_of_uses() -> None:
    """x is used on several paths, and its cotangents are summed."""
    t = make("tanh", make("mul", X, Y))
    root = make("add", make("mul", t, X), make("exp", make("neg", make("mul", X, X))))
    values = points()
    for leaf, found in derivatives(root, tensor("g", "i", "float64"), [X, Y]).items():
        want = values["g"] * slopes(root, values, leaf.attr("name"))
        np.testing.assert_allclose(evaluate(found, values), want, rtol=1e-5, atol=1e-6)


def test_leaves_that_do_not_matter_are_absent() -> None:
    assert set(derivatives(make("exp", X), const(1.0, "float64"), [X, Y])) == {X}
    assert derivatives(make("lt", X, Y), const(1.0, "float64"), []) == {}


def test_an_operation_without_a_rule_is_named() -> None:
    with pytest.raises(VerifyError, match="lt has no derivative rule"):
        derivatives(make("lt", X, Y), const(1.0, "float64"), [X])


@pytest.mark.parametrize("op", ["min", "max"])
def test_equal_operands_get_half_each(op: str) -> None:
    values = {"x": np.array([1.0, 2.0, 3.0]), "y": np.array([2.0, 2.0, 2.0])}
    first = [0.0, 0.5, 1.0] if op == "max" else [1.0, 0.5, 0.0]
    found = derivatives(make(op, X, Y), const(1.0, "float64"), [X, Y])
    np.testing.assert_array_equal(evaluate(found[X], values), first)
    np.testing.assert_array_equal(evaluate(found[Y], values), 1 - np.array(first))
    clamped = derivatives(make(op, X, const(2.0, "float64")), const(1.0, "float64"), [X])
    np.testing.assert_array_equal(evaluate(clamped[X], values), np.ceil(first))


def test_abs_at_zero_has_no_slope() -> None:
    (found,) = derivatives(make("abs", X), const(1.0, "float64"), [X]).values()
    np.testing.assert_array_equal(evaluate(found, {"x": np.array([-2.0, 0.0, 3.0])}), [-1, 0, 1])


_SMOOTH = {
    "add": lambda x, y: x + y, "sub": lambda x, y: x - y, "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y, "neg": lambda x: -x, "exp": sympy.exp,
    "exp2": lambda x: 2**x, "log": sympy.log, "log2": lambda x: sympy.log(x, 2),
    "tanh": sympy.tanh, "sqrt": sympy.sqrt, "sigmoid": lambda x: 1 / (1 + sympy.exp(-x)),
    "erf": sympy.erf, "recip0": lambda x: 1 / x}


@pytest.mark.parametrize("op", _SMOOTH)
def test_sympy_agrees(op: str) -> None:
    x, y = sympy.symbols("x y")
    arity = SCALAR_OPS[op].arity
    formula = _SMOOTH[op](*(x, y)[:arity])
    values = points(op)
    found = derivatives(expression(op), const(1.0, "float64"), [X, Y])
    for symbol, leaf in ((x, X), (y, Y))[:arity]:
        want = sympy.lambdify((x, y), sympy.diff(formula, symbol), "numpy")(
            values["x"], values["y"])
        np.testing.assert_allclose(evaluate(found[leaf], values) + 0 * values["x"],
                                   want + 0 * values["x"], rtol=1e-10)
