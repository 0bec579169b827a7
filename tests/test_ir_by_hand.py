"""Graphs no spec describes, built node by node: the passes know algebra, not attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ir_problem import DTYPE, Problem, assert_same, pipeline, schedule

from attngen.errors import VerifyError
from attngen.ir import eval_tensor, eval_tile
from attngen.ir.build import graph_of
from attngen.ir.eval_tensor import interpret_tensors
from attngen.ir.eval_tile import interpret_tiles
from attngen.ir.graph import Graph
from attngen.ir.node import (
    Node,
    by_head,
    cast,
    const,
    contract,
    idx,
    make,
    param,
    reduce,
    tensor,
)
from attngen.ir.tensor import Tensor
from attngen.spec import AttentionSpec
from attngen.templates.render import render_cuda
from attngen.templates.render_cpu import render_cpu

Array = np.ndarray[Any, Any]
NEG_INF = float("-inf")
SPEC = AttentionSpec(heads=4, groups=2, head_dim=8, head_dim_v=16)
HEADS = tuple(SPEC.kv_head(h) for h in range(SPEC.heads))
SIZES = (("heads", 4), ("groups", 2), ("head_dim", 8), ("head_dim_v", 16))
AXES = {"q": "bhid", "k": "bgjd", "v": "bgje", "q2": "bhid", "k2": "bgjd", "gate": "bhij",
        "row": "bhi", "column": "bgj"}


class Hand:
    """The pieces a graph is made of, for storage type ``dtype``."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.compute = "float64" if dtype == "float64" else "float32"
        self.used: dict[str, Tensor] = {}

    def load(self, name: str, dtype: str | None = None) -> Node:
        axes = AXES[name]
        heads = HEADS if "g" in axes else None
        self.used[name] = Tensor(name, tuple(axes), dtype or self.dtype, "input", heads)
        node = tensor(name, axes, dtype or self.dtype)
        return node if heads is None else by_head(node, heads)

    def number(self, x: float) -> Node:
        return const(x, self.compute)

    def product(self, a: str, b: str) -> Node:
        return contract(self.load(a), self.load(b), "d", self.compute, origin="s")

    def weighted(self, p: Node, name: str = "v") -> Node:
        return contract(cast(p, self.dtype), self.load(name), "j", self.compute, origin="o")

    def seen(self) -> Node:
        """The causal mask, as visibility."""
        q = make("add", idx("i"), param("q_offset", "b"))
        k = make("add", idx("j"), param("kv_offset", "b"))
        return make("visible", make("le", k, q))

    def scores(self) -> Node:
        s = make("mul", self.product("q", "k"), self.number(0.25))
        return make("where", self.seen(), s, self.number(NEG_INF))

    def softmax(self, s: Node) -> tuple[Node, Node]:
        lse = reduce("lse", s, "j", origin="lse")
        return make("exp", make("sub", s, make("finite_or_zero", lse)), origin="p"), lse

    def graph(self, **outputs: tuple[str, Node]) -> Graph:
        made = {Tensor(name, tuple(axes), self.dtype if "e" in axes else self.compute, "output"):
                node for name, (axes, node) in outputs.items()}
        return graph_of("hand", made, tuple(self.used.values()), SIZES)


# -- the graphs ---------------------------------------------------------------------------------


def gated(x: Hand) -> Graph:
    """softmax(s) ∘ gate, then times v."""
    p, lse = x.softmax(x.scores())
    return x.graph(o=("bhie", x.weighted(make("mul", p, x.load("gate", x.compute)))),
                   lse=("bhi", lse))


def gated_by_rows_and_columns(x: Hand) -> Graph:
    p, _ = x.softmax(x.scores())
    gate = make("mul", x.load("row", x.compute), x.load("column", x.compute))
    return x.graph(o=("bhie", x.weighted(make("mul", p, make("sigmoid", gate)))))


def two_factors(x: Hand) -> Graph:
    """A score that is the product of two inner products."""
    s = make("mul", x.product("q", "k"), x.product("q2", "k2"))
    s = make("where", x.seen(), s, x.number(NEG_INF))
    p, lse = x.softmax(s)
    return x.graph(o=("bhie", x.weighted(p)), lse=("bhi", lse))


def linear(x: Hand) -> Graph:
    """Causal linear attention: no softmax, nothing to normalise by."""
    s = make("where", x.seen(), x.product("q", "k"), x.number(0.0))
    return x.graph(o=("bhie", x.weighted(s)))


def linear_normalised(x: Hand) -> Graph:
    s = make("where", x.seen(), make("exp", make("mul", x.product("q", "k"), x.number(0.1))),
             x.number(0.0))
    total = reduce("sum", s, "j", origin="total")
    return x.graph(o=("bhie", make("mul", x.weighted(s), make("recip0", total))),
                   total=("bhi", total))


def half_masked(x: Hand) -> Graph:
    """One result sees the past only, the other every key: no tile may be skipped."""
    s = x.product("q", "k")
    masked = make("where", x.seen(), s, x.number(0.0))
    return x.graph(o=("bhie", x.weighted(masked)), all=("bhie", x.weighted(s)))


def hidden_counts(x: Hand) -> Graph:
    """Hidden keys have weight one, not nothing."""
    s = make("where", x.seen(), x.product("q", "k"), x.number(1.0))
    return x.graph(o=("bhie", x.weighted(s)))


def weights_too(x: Hand) -> Graph:
    """The softmax is an output beside o: a second loop over the keys."""
    p, lse = x.softmax(x.scores())
    return x.graph(o=("bhie", x.weighted(p)), p=("bhij", p), lse=("bhi", lse))


def statistics_only(x: Hand) -> Graph:
    s = x.scores()
    return x.graph(top=("bhi", reduce("max", s, "j", origin="top")),
                   lse=("bhi", reduce("lse", s, "j", origin="lse")))


def two_softmaxes(x: Hand) -> Graph:
    """The difference of two attentions over the same values."""
    p, _ = x.softmax(x.scores())
    r, _ = x.softmax(make("where", x.seen(), x.product("q2", "k2"), x.number(NEG_INF)))
    o = make("sub", x.weighted(p), make("mul", x.weighted(r), x.number(0.5)))
    return x.graph(o=("bhie", o))


def masked_weights(x: Hand) -> Graph:
    """Weights that are loaded, masked, multiplied and summed."""
    w = make("where", x.seen(), x.load("gate", x.compute), x.number(0.0))
    return x.graph(o=("bhie", x.weighted(w)), total=("bhi", reduce("sum", w, "j", origin="total")))


def weights_as_they_are(x: Hand) -> Graph:
    """Weights that are loaded, multiplied as they lie, and summed."""
    w = x.load("gate", x.dtype)
    return x.graph(o=("bhie", contract(w, x.load("v"), "j", x.compute, origin="o")),
                   total=("bhi", reduce("sum", cast(w, x.compute), "j", origin="total")))


def rows_only(x: Hand) -> Graph:
    """Nothing is summed along the keys: a kernel without a loop."""
    return x.graph(twice=("bhi", make("mul", x.load("row", x.compute), x.number(2.0))))


GRAPHS: dict[str, Callable[[Hand], Graph]] = {f.__name__: f for f in (
    gated, gated_by_rows_and_columns, two_factors, linear, linear_normalised, half_masked,
    hidden_counts, weights_too, statistics_only, two_softmaxes, masked_weights,
    weights_as_they_are, rows_only)}


# -- what they mean, in NumPy -------------------------------------------------------------------


def oracle(name: str, x: dict[str, Array], problem: Problem) -> dict[str, Array]:
    heads = list(HEADS)
    k, v, k2 = x["k"][:, heads], x["v"][:, heads], x["k2"][:, heads]
    column = x["column"][:, heads]
    p = problem.params
    i = np.arange(problem.seqlen_q)[:, None] + p["q_offset"][:, None, None, None]
    j = np.arange(problem.seqlen_k)[None] + p["kv_offset"][:, None, None, None]
    seen = np.broadcast_to(j <= i, x["gate"].shape)
    s = np.einsum("bhid,bhjd->bhij", x["q"], k)
    s2 = np.einsum("bhid,bhjd->bhij", x["q2"], k2)

    def times_v(w: Array) -> Array:
        return np.einsum("bhij,bhje->bhie", w, v)

    def softmax(scores: Array) -> tuple[Array, Array]:
        scores = np.where(seen, scores, NEG_INF)
        top = scores.max(-1, keepdims=True, initial=NEG_INF)
        e = np.exp(scores - np.where(np.isneginf(top), 0, top))
        total = e.sum(-1, keepdims=True)
        with np.errstate(divide="ignore"):
            lse = (top + np.log(total))[..., 0]
        return e / np.where(total == 0, 1, total), lse

    w, lse = softmax(s * 0.25)
    masked = np.where(seen, s, 0.0)
    grown = np.where(seen, np.exp(s * 0.1), 0.0)
    total = grown.sum(-1)
    gate = 1 / (1 + np.exp(-x["row"][..., None] * column[:, :, None]))
    both, both_lse = softmax(s * s2)
    table: dict[str, dict[str, Array]] = {
        "gated": {"o": times_v(w * x["gate"]), "lse": lse},
        "gated_by_rows_and_columns": {"o": times_v(w * gate)},
        "two_factors": {"o": times_v(both), "lse": both_lse},
        "linear": {"o": times_v(masked)},
        "linear_normalised": {"o": times_v(grown / np.where(total == 0, 1, total)[..., None]),
                              "total": total},
        "half_masked": {"o": times_v(masked), "all": times_v(s)},
        "hidden_counts": {"o": times_v(np.where(seen, s, 1.0))},
        "weights_too": {"o": times_v(w), "p": w, "lse": lse},
        "statistics_only": {"top": np.where(seen, s * 0.25, NEG_INF).max(-1, initial=NEG_INF),
                            "lse": lse},
        "two_softmaxes": {"o": times_v(w - 0.5 * softmax(s2)[0])},
        "masked_weights": {"o": times_v(np.where(seen, x["gate"], 0)),
                           "total": np.where(seen, x["gate"], 0).sum(-1)},
        "weights_as_they_are": {"o": times_v(x["gate"]), "total": x["gate"].sum(-1)},
        "rows_only": {"twice": x["row"] * 2},
    }
    return table[name]


def run(graph: Graph, inputs: dict[str, Array], problem: Problem) -> dict[str, Array]:
    if graph.stage in ("math", "fused"):
        return interpret_tensors(graph, inputs, problem.params, problem.extents)
    return interpret_tiles(graph, inputs, problem.params, problem.extents)[0]


CALLS = [Problem(SPEC, 37, 53, (16, -5), (0, 3)), Problem(SPEC, 20, 9),
         Problem(SPEC, 17, 0), Problem(SPEC, 1, 33, (40,))]


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "unfused"])
@pytest.mark.parametrize(("engine", "dtype"), [*DTYPE.items(), ("cpu", "bfloat16")])
@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_built_by_hand_lowers_and_means_what_it_says(
        name: str, engine: str, dtype: str, fused: bool,
        monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (eval_tensor, eval_tile):
        monkeypatch.setattr(module, "round_to", lambda x, dtype: x)
    graph = GRAPHS[name](Hand(dtype))
    for step, after in pipeline(graph, schedule(engine), fused):
        for problem in CALLS:
            rng = np.random.default_rng(1)
            inputs = {n: rng.normal(size=[problem.extents[a] for a in axes])
                      for n, axes in AXES.items()}
            assert_same(run(after, inputs, problem), oracle(name, inputs, problem), 1e-10,
                        f"{name} on {engine} after {step}, {problem.seqlen_q} x "
                        f"{problem.seqlen_k}")


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_built_by_hand_becomes_source(name: str) -> None:
    for engine, dtype in (("mma", "bfloat16"), ("simt", "float32"), ("cpu", "bfloat16"),
                          ("cpu", "float32")):
        for fused in (True, False):
            *_, (_, graph) = pipeline(GRAPHS[name](Hand(dtype)), schedule(engine), fused)
            for kernel in graph.tiles:
                text = (render_cpu(kernel) if engine == "cpu"
                        else render_cuda(kernel, "sm_80")).text
                assert all(t.name in text for t in kernel.tensors)


# -- refusals -----------------------------------------------------------------------------------


def refused(build: Callable[[Hand], Graph]) -> str:
    with pytest.raises(VerifyError) as caught:
        list(pipeline(build(Hand("float64")), schedule("cpu")))
    return str(caught.value)


def test_a_sum_that_would_count_what_lies_past_the_end_is_refused() -> None:
    def graph(x: Hand) -> Graph:
        s = make("exp", x.product("q", "k"))  # exp(0) = 1 past the end, and w is not zero there
        w = make("add", x.load("column", x.compute), x.number(1.0))
        return x.graph(o=("bhi", contract(s, w, "j", x.compute, origin="o")))
    message = refused(graph)
    assert "no operand is known to vanish past the end" in message
    assert "where(visible(...), x, 0)" in message


def test_a_product_of_computed_tiles_is_refused() -> None:
    def graph(x: Hand) -> Graph:
        doubled = make("mul", x.load("v"), x.number(2.0))
        return x.graph(o=("bhie", contract(x.product("q", "k"), doubled, "j", x.compute)))
    assert "the column operand of a product must be a tensor, got mul" in refused(graph)


def test_a_product_needs_one_operand_with_the_kept_axis() -> None:
    def graph(x: Hand) -> Graph:
        return x.graph(o=("bhi", contract(x.product("q", "k"), x.load("gate"), "j", x.compute)))
    assert "exactly one operand must carry the kept axis i" in refused(graph)
