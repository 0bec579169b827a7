"""Rules: each one alone changes the form of an expression and nothing about its value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from attngen.errors import VerifyError
from attngen.ir import algebra
from attngen.ir.algebra import FOLD, REBASE, simplify
from attngen.ir.build import graph_of
from attngen.ir.eval_tensor import interpret_tensors
from attngen.ir.node import (
    Node,
    cast,
    const,
    first,
    idx,
    last,
    make,
    param,
    reduce,
    substitute,
    tensor,
    walk,
)
from attngen.ir.rewrite import rewrite
from attngen.ir.show import formula
from attngen.ir.tensor import Tensor
from attngen.spec import AttentionSpec

X, Y = tensor("x", "bhij", "float64"), tensor("y", "bhij", "float64")
I, J, N = idx("i"), idx("j"), param("n")  # noqa: E741  # named as in formulas
NEG_INF = const(float("-inf"), "float64")
EXTENTS = {"b": 1, "h": 2, "i": 5, "j": 7, "g": 1, "d": 8, "e": 8}
SIZES = (("heads", 2), ("groups", 1), ("head_dim", 8), ("head_dim_v", 8))


def f(number: float) -> Node:
    return const(number, "float64")


def values(node: Node, seed: int = 0) -> Any:
    """The node over all of i and j, on inputs that include -inf, 0 and large numbers."""
    rng = np.random.default_rng(seed)
    inputs = {}
    for name in ("x", "y"):
        a = rng.normal(size=(1, 2, 5, 7)) * 10 ** rng.uniform(-2, 2)
        a[0, 0, 1, :3], a[0, 1, 2] = -np.inf, 0.0
        inputs[name] = a
    out = Tensor("out", tuple("bhij"), "float64", "output")
    inside = tuple(Tensor(n, tuple("bhij"), "float64", "input") for n in inputs)
    graph = graph_of("test", {out: node}, inside, SIZES)
    return interpret_tensors(graph, inputs, {"n": int(rng.integers(-5, 9))}, EXTENTS)["out"]


def applied(rule: Callable[[Node], Node | None], node: Node) -> Node:
    new = rule(node)
    assert new is not None, f"{rule.__name__} does not match {formula(node)}"
    return new


MASK = make("visible", make("lt", J, N))

# rule, before, after
EXAMPLES: list[tuple[Any, Node, Node]] = [
    (algebra.fold, make("add", const(2), const(3)), const(5)),
    (algebra.fold, make("floordiv", const(-7), const(2)), const(-4)),
    (algebra.fold, make("mod", const(-7), const(4)), const(1)),
    (algebra.fold, make("lt", const(2), const(3)), const(True)),
    (algebra.fold, cast(const(3), "float64"), f(3.0)),
    (algebra.identity, make("add", I, const(0)), I),
    (algebra.identity, make("sub", I, const(0)), I),
    (algebra.identity, make("mul", X, f(1)), X),
    (algebra.identity, make("floordiv", I, const(1)), I),
    (algebra.identity, make("neg", make("neg", X)), X),
    (algebra.identity, make("not", make("not", make("lt", I, J))), make("lt", I, J)),
    (algebra.identity, make("min", I, I), I),
    (algebra.identity, make("and", make("lt", I, J), const(True)), make("lt", I, J)),
    (algebra.identity, make("and", make("lt", I, J), const(False)), const(False)),
    (algebra.identity, make("or", make("lt", I, J), const(True)), const(True)),
    (algebra.identity, make("where", const(True), X, Y), X),
    (algebra.identity, make("where", make("lt", I, J), X, X), X),
    (algebra.identity, make("visible", const(True)), const(True)),
    (algebra.nothing_visible, make("visible", const(False)),
     make("visible", make("lt", J, const(0)))),
    (algebra.repeated, make("min", make("min", make("min", I, J), N), J),
     make("min", make("min", I, J), N)),
    (algebra.repeated, make("and", MASK.args[0], make("and", make("lt", I, J), MASK.args[0])),
     make("and", make("lt", I, J), MASK.args[0])),
    (algebra.negation, make("not", make("lt", I, J)), make("le", J, I)),
    (algebra.negation, make("not", make("le", I, J)), make("lt", J, I)),
    (algebra.negation, make("not", make("eq", X, Y)), make("ne", X, Y)),
    (algebra.merge_constants, make("mul", make("mul", X, f(2)), f(3)), make("mul", X, f(6))),
    (algebra.merge_constants, make("add", make("add", I, const(2)), const(3)),
     make("add", I, const(5))),
    (algebra.merge_constants, make("div", X, f(3)), make("mul", X, f(1 / 3))),
    (algebra.merge_constants, make("div", cast(I, "float64"), f(8)),
     make("mul", cast(I, "float64"), f(1 / 8))),
    (algebra.scale_out_of_mask, make("where", MASK, make("mul", X, f(2)), NEG_INF),
     make("mul", make("where", MASK, X, NEG_INF), f(2))),
    (algebra.scale_out_of_max, reduce("max", make("mul", X, f(2)), "j"),
     make("mul", reduce("max", X, "j"), f(2))),
    (algebra.scale_out_of_finite, make("finite_or_zero", make("mul", X, f(2))),
     make("mul", make("finite_or_zero", X), f(2))),
    (algebra.base_two, make("exp", X), make("exp2", make("mul", X, f(algebra.LOG2E)))),
    (algebra.base_two, make("log", X), make("mul", make("log2", X), f(algebra.LN2))),
    (algebra.distribute_in_exponent,
     make("exp2", make("mul", make("sub", X, make("finite_or_zero", Y)), f(2))),
     make("exp2", make("sub", make("mul", X, f(2)), make("mul", make("finite_or_zero", Y), f(2))))),
]


@pytest.mark.parametrize(("rule", "before", "after"), EXAMPLES,
                         ids=lambda x: formula(x) if isinstance(x, Node) else x.__name__)
def test_a_rule_rewrites_and_keeps_the_value(rule: Any, before: Node, after: Node) -> None:
    new = applied(rule, before)
    assert new is after, f"{formula(new)}, expected {formula(after)}"
    for seed in range(5):
        np.testing.assert_allclose(values(new, seed), values(before, seed), rtol=1e-12)


@pytest.mark.parametrize(("before", "after"), [
    (make("le", first("i"), make("min", last("i"), N)), make("le", first("i"), N)),
    (make("le", make("max", N, first("i")), last("i")), make("le", N, last("i"))),
    (make("lt", last("i"), make("max", N, first("i"))), make("lt", last("i"), N)),
    (make("lt", make("min", N, last("i")), first("i")), make("lt", N, first("i"))),
    (make("lt", first("i"), make("min", last("i"), N)), None),
    (make("le", first("i"), make("min", last("j"), N)), None),
    (make("le", make("max", N, first("i")), make("min", J, last("i"))), None)], ids=str)
def test_a_tile_begins_no_later_than_it_ends(before: Node, after: Node | None) -> None:
    assert algebra.nonempty_tile(before) == after
    for start, size, n in np.ndindex(4, 4, 9) if after is not None else ():
        known = {first("i"): const(start), last("i"): const(start + size), N: const(n - 1)}
        assert simplify(substitute(before, known)) is simplify(substitute(after, known))


def test_every_rule_has_an_example() -> None:
    shown = {rule for rule, _, _ in EXAMPLES} | {algebra.relative_to_unscaled,
                                                 algebra.nonempty_tile}
    assert shown == set(REBASE)


@pytest.mark.parametrize(("rule", "node"), [
    # Floats are not numbers of algebra.
    (algebra.negation, make("not", make("lt", X, Y))),  # NaN compares false both ways
    (algebra.merge_constants, make("add", make("add", X, f(1e20)), f(-1e20))),
    (algebra.identity, make("floordiv", X, f(1))),  # rounds down
    (algebra.identity, make("mul", X, f(0))),  # 0 · inf
    (algebra.identity, make("sub", X, X)),  # inf - inf
    # Positions are exact: 49 / 49 is 1 and 49 · (1/49) is not.
    (algebra.merge_constants, make("div", cast(I, "float64"), f(49))),
    (algebra.merge_constants, make("mul", make("mul", cast(I, "float64"), f(0.1)), f(10))),
    (algebra.merge_constants, make("mul", make("mul", X, f(1e300)), f(1e300))),
    # A factor that may be zero or negative turns -inf into something else.
    (algebra.scale_out_of_mask, make("where", MASK, make("mul", X, f(-2)), NEG_INF)),
    (algebra.scale_out_of_mask, make("where", MASK, make("mul", X, f(0)), NEG_INF)),
    (algebra.scale_out_of_mask, make("where", MASK, make("mul", X, f(2)), f(0))),
    (algebra.scale_out_of_max, reduce("max", make("mul", X, f(-2)), "j")),
    (algebra.scale_out_of_max, reduce("sum", make("mul", X, f(2)), "j")),
    (algebra.fold, make("floordiv", I, const(0))),
    (algebra.fold, make("sub", f(float("inf")), f(float("inf")))),  # NaN is no constant
], ids=lambda x: formula(x) if isinstance(x, Node) else x.__name__)
def test_a_rule_leaves_alone_what_it_would_change(rule: Any, node: Node) -> None:
    assert rule(node) is None


def random_node(rng: np.random.Generator, depth: int, kind: str) -> Node:
    """An expression of kind "float", "int" or "bool" over everything the rules look for."""
    if kind == "bool":
        if depth == 0 or rng.integers(4) == 0:
            return const(bool(rng.integers(2)))
        op = ("lt", "le", "eq", "ne", "and", "or", "not")[rng.integers(7)]
        below = ("int", "float")[rng.integers(2)] if op in ("lt", "le", "eq", "ne") else "bool"
        a = random_node(rng, depth - 1, below)
        return make(op, a) if op == "not" else make(op, a, random_node(rng, depth - 1, below))
    if depth == 0:
        if kind == "int":
            return (I, J, N, const(int(rng.integers(-3, 4))))[rng.integers(4)]
        return (X, Y, f(float(rng.integers(-2, 3))), f(0.25))[rng.integers(4)]
    if rng.integers(6) == 0:
        return make("where", random_node(rng, depth - 1, "bool"),
                    random_node(rng, depth - 1, kind), random_node(rng, depth - 1, kind))
    ops = {"int": ("add", "sub", "mul", "min", "max", "neg", "abs", "floordiv", "mod"),
           "float": ("add", "sub", "mul", "max", "neg", "exp", "tanh", "finite_or_zero", "div",
                     "cast", "exp2", "recip0")}[kind]
    op = ops[rng.integers(len(ops))]
    if op == "cast":
        return cast(random_node(rng, depth - 1, "int"), "float64")
    a = random_node(rng, depth - 1, kind)
    if op in ("floordiv", "mod", "div"):
        divisor = int(rng.choice([-3, -2, -1, 1, 2, 4, 5]))
        return make(op, a, const(divisor) if kind == "int" else f(divisor))
    if op in ("neg", "abs", "exp", "exp2", "tanh", "finite_or_zero", "recip0"):
        return make(op, a)
    return make(op, a, random_node(rng, depth - 1, kind))


@pytest.mark.parametrize("rules", [FOLD, REBASE], ids=["FOLD", "REBASE"])
def test_rewriting_random_expressions_keeps_their_values(rules: Any) -> None:
    rng = np.random.default_rng(0)
    shorter = 0
    for n in range(1500):
        node = random_node(rng, int(rng.integers(1, 5)), ("float", "int", "bool")[n % 3])
        new = rewrite((node,), rules)[0]
        shorter += len(list(walk(new))) < len(list(walk(node)))
        assert new.dtype == node.dtype
        with np.errstate(all="ignore"):
            before, after = values(node, n), values(new, n)
        known = ~np.isnan(before)
        np.testing.assert_allclose(after[known], before[known], rtol=1e-9, atol=1e-12,
                                   err_msg=formula(node))
    assert shorter > 300


def test_rewriting_is_finished_when_it_says_so() -> None:
    rng = np.random.default_rng(1)
    for n in range(300):
        node = rewrite((random_node(rng, 4, ("float", "int")[n % 2]),), REBASE)[0]
        assert rewrite((node,), REBASE)[0] is node


def test_rules_that_undo_each_other_are_found() -> None:
    def turn(n: Node) -> Node | None:
        return make("sub", n.args[1], n.args[0]) if n.op == "sub" else None
    with pytest.raises(VerifyError, match="two rules undo each other"):
        rewrite((make("sub", I, J),), (turn,))


def test_simplify_keeps_masks_on_positions_exact() -> None:
    """⌊49/49⌋ = 1: a mask written with a division hides what it says, at every position."""
    from ir_problem import lowered
    spec = AttentionSpec(heads=1, head_dim=8, mask=lambda b, h, i, j: i / 49 >= 1)
    for stage in ("build", "canonicalise", "rebase"):
        ops = {n.op for n in walk(*lowered(spec)[stage].regions[0].roots)}
        assert "div" in ops
    quarter = simplify(make("div", cast(I, "float32"), const(4.0)))
    assert formula(quarter) == "cast(i, float32) * 0.25"
