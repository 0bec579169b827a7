"""Fusion and the streaming softmax: which nodes reach device memory, and what a loop rescales."""

from __future__ import annotations

import pytest
from ir_problem import lowered
from test_ir_by_hand import GRAPHS, Hand

from attngen import scores
from attngen.errors import FusionError, VerifyError
from attngen.ir.build import build_forward, graph_of
from attngen.ir.fuse import fuse
from attngen.ir.graph import Graph, Region
from attngen.ir.node import Node, const, contract, interning, make, reduce, tensor, walk
from attngen.ir.passes import canonicalise, run_pass
from attngen.ir.stream import rescale_factor, stream_region
from attngen.ir.tensor import Tensor
from attngen.ir.verify import verify
from attngen.spec import AttentionSpec

SPEC = AttentionSpec(heads=2, head_dim=8, causal=True)


def ops(graph: Graph) -> list[str]:
    return [n.op for r in graph.regions for n in walk(*r.roots)]


def roles(graph: Graph) -> dict[str, str]:
    return {t.name: f"{''.join(t.axes)} {t.dtype}" for t in graph.tensors
            if t.role == "workspace"}


def parts(graph: Graph) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """By region: tensors read and tensors written."""
    return {r.name: (r.inputs, tuple(t.name for t, _ in r.outputs)) for r in graph.regions}


# -- one kernel or several ----------------------------------------------------------------------


def test_fused_attention_is_one_region_without_workspaces() -> None:
    graph = fuse(build_forward(SPEC, "bfloat16"))
    assert parts(graph) == {"forward": (("q", "k", "v"), ("o", "lse"))}
    assert roles(graph) == {} and graph.stage == "fused"


def test_unfused_attention_is_the_textbooks_three_kernels() -> None:
    graph = fuse(build_forward(SPEC, "bfloat16"), enabled=False)
    assert parts(graph) == {"forward_s": (("q", "k"), ("w_s",)),
                            "forward_p_lse": (("w_s",), ("w_p", "lse")),
                            "forward_o": (("w_p", "v"), ("o",))}
    assert roles(graph) == {"w_s": "bhij float32", "w_p": "bhij bfloat16"}


def test_fusing_twice_or_a_graph_without_softmax_changes_nothing() -> None:
    once = fuse(build_forward(SPEC, "bfloat16"))
    assert [r.roots for r in fuse(once).regions] == [r.roots for r in once.regions]
    linear = GRAPHS["linear"](Hand("float32"))
    assert fuse(linear).regions[0].roots == linear.regions[0].roots


@pytest.mark.parametrize("name", GRAPHS)
def test_unfused_regions_come_in_an_order_they_can_run_in(name: str) -> None:
    graph = fuse(GRAPHS[name](Hand("float32")), enabled=False)
    written = {t.name for t in graph.tensors if t.role == "input"}
    for region in graph.regions:
        assert set(region.inputs) <= written
        written |= {t.name for t, _ in region.outputs}
    verify(graph)


def test_outputs_that_read_the_same_tensors_share_a_kernel() -> None:
    with interning():  # names follow origins, and an equal node keeps its first
        graph = fuse(GRAPHS["statistics_only"](Hand("float32")), enabled=False)
    assert parts(graph) == {"hand_s": (("q", "k"), ("w_s",)),
                            "hand_top_lse": (("w_s",), ("top", "lse"))}


def test_every_large_operand_of_a_sum_is_written_out_once() -> None:
    with interning():
        graph = fuse(GRAPHS["two_softmaxes"](Hand("float32")), enabled=False)
    assert sorted(roles(graph)) == ["w_p", "w_p2", "w_s", "w_s2"]
    assert len(graph.regions) == 5  # two products, two softmaxes, one difference of outputs


def test_regions_that_need_each_other_are_refused() -> None:
    a, b = (Tensor(n, ("b", "h", "i"), "float32", "workspace") for n in "ab")
    use_a, use_b = (make("neg", tensor(n, "bhi", "float32")) for n in "ab")
    graph = Graph("math", (Region("one", ((a, use_b),)), Region("two", ((b, use_a),))), (a, b),
                  (("heads", 1), ("groups", 1), ("head_dim", 8), ("head_dim_v", 8)))
    with pytest.raises(FusionError, match="depend on each other in a circle: one, two; fuse"):
        fuse(graph)


# -- the streaming softmax ----------------------------------------------------------------------


def softmax_region() -> tuple[Node, Node, Node, Node]:
    """s, lse(s), p, p·v"""
    s = tensor("s", "bhij", "float32")
    lse = reduce("lse", s, "j")
    p = make("exp", make("sub", s, make("finite_or_zero", lse)))
    return s, lse, p, contract(p, tensor("v", "bhje", "float32"), "j")


def test_softmax_becomes_sums_relative_to_the_maximum() -> None:
    s, lse, _, o = softmax_region()
    new_o, new_lse = stream_region((o, lse), "j")
    m = reduce("max", s, "j")
    e = make("exp", make("sub", s, make("finite_or_zero", m)))
    total = make("stream_sum", e, m, axes="bhi", dtype="float32", over="j")
    acc = make("stream_contract", e, tensor("v", "bhje", "float32"), m, axes="bhie",
               dtype="float32", over="j")
    assert new_lse is make("add", m, make("log", total))
    assert new_o is make("mul", acc, make("recip0", total))


def test_factors_beside_the_weights_stay_inside_the_sum() -> None:
    s, _, p, _ = softmax_region()
    gate, drop = tensor("gate", "bhij", "float32"), tensor("drop", "bhij", "float32")
    v = tensor("v", "bhje", "float32")
    for product in (make("mul", p, gate), make("mul", gate, make("mul", p, drop))):
        (o,) = stream_region((contract(product, v, "j"),), "j")
        assert o.op == "mul" and {a.op for a in o.args} == {"stream_contract", "recip0"}
        found = [n for n in walk(o) if n.op == "stream_contract"]
        assert gate in list(walk(found[0].args[0]))


def test_what_is_not_relative_to_the_maximum_is_left_for_a_second_loop() -> None:
    """Σ (p + gate)·v is no multiple of the weights: it waits for the finished normaliser."""
    _, lse, p, _ = softmax_region()
    other = make("add", p, tensor("gate", "bhij", "float32"))
    (o,) = stream_region((contract(other, tensor("v", "bhje", "float32"), "j"),), "j")
    assert "stream_contract" not in [n.op for n in walk(o)]
    assert not any(n.op == "reduce" and n.attr("kind") == "lse" for n in walk(o))


def test_a_softmax_along_the_other_axis_is_not_touched() -> None:
    s = tensor("s", "bhij", "float32")
    roots = (reduce("lse", s, "i"),)
    assert stream_region(roots, "j") == roots


def test_two_softmaxes_stream_side_by_side() -> None:
    graph = fuse(GRAPHS["two_softmaxes"](Hand("float32")))
    assert ops(graph).count("stream_contract") == 2 and ops(graph).count("reduce") == 2


def test_rescaling_is_read_off_the_exponential() -> None:
    """exp2(s·c − m·c) relative to m: what was summed before m moved counts exp2(m_prev·c − m·c)."""
    stages = lowered(AttentionSpec(heads=1, head_dim=8, score=scores.softcap(5.0)))
    total = next(n for n in walk(*stages["rebase"].regions[0].roots) if n.op == "stream_sum")
    m, previous = total.args[1], tensor("previous", "bhi", "float32")
    factor = rescale_factor(total, m, previous)
    assert factor.op == "exp2" and factor.origin == "alpha"
    before, after = factor.args[0].args
    assert before.op == after.op == "mul" and before.args[1] is after.args[1]
    assert before.args[0] == previous and after.args[0] == make("finite_or_zero", m)


def test_a_sum_that_is_relative_in_no_way_is_refused() -> None:
    m = tensor("m", "bhi", "float32")
    plain = make("stream_sum", tensor("s", "bhij", "float32"), m, axes="bhi", dtype="float32",
                 over="j")
    with pytest.raises(VerifyError, match="relative to the running maximum through one expon"):
        rescale_factor(plain, m, m)


# -- running passes -----------------------------------------------------------------------------


def test_a_pass_that_changes_the_numbers_is_caught_at_level_two() -> None:
    def wrong(graph: Graph) -> Graph:
        return graph.with_regions(tuple(
            Region(r.name, tuple((t, make("mul", n, const(1.0001, n.dtype)))
                                 for t, n in r.outputs)) for r in graph.regions))
    graph = build_forward(SPEC, "float64")
    assert run_pass("wrong", wrong, graph, level=1) != graph
    with pytest.raises(VerifyError, match="pass wrong changed o: .* before, .* after, at"):
        run_pass("wrong", wrong, graph, level=2)
    run_pass("canonicalise", canonicalise, graph, level=2)


def test_a_pass_that_breaks_the_stage_is_caught_at_level_one() -> None:
    def renamed(graph: Graph) -> Graph:
        return Graph("fused", graph.kernels, graph.tensors, graph.sizes)
    graph = build_forward(SPEC, "float64")
    with pytest.raises(VerifyError, match="a lse reduction after fusion"):
        run_pass("renamed", renamed, graph, level=1)
    assert run_pass("renamed", renamed, graph, level=0).stage == "fused"


def test_a_graph_by_hand_names_its_tensors() -> None:
    x = Hand("float32")
    graph = x.graph(o=("bhie", x.weighted(make("where", x.seen(), x.product("q", "k"),
                                               x.number(0.0)))))
    assert [t.name for t in graph.tensors] == ["q", "k", "v", "o"]
    assert graph_of("again", dict(graph.regions[0].outputs), graph.tensors[:3],
                    graph.sizes).kernels[0].name == "again"
