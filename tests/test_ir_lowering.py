"""Tiling: which statement a node becomes, and where it stands relative to the loops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ir_problem import lowered, only, schedule
from test_ir_by_hand import GRAPHS, Hand

from attngen import masks, scores
from attngen.errors import VerifyError
from attngen.ir.bounds import add_bounds, hidden_is_neutral, past_end
from attngen.ir.build import build_forward
from attngen.ir.fuse import fuse
from attngen.ir.graph import Graph
from attngen.ir.lower import tile
from attngen.ir.node import const, contract, idx, make, param, reduce, tensor, walk
from attngen.ir.passes import canonicalise, rebase
from attngen.ir.show import formula, statement_text
from attngen.ir.stmt import (
    Copy,
    Fill,
    Kernel,
    Load,
    Loop,
    Map,
    Mma,
    Reduce,
    Schedule,
    Store,
    statements,
    tile_axes,
)
from attngen.spec import AttentionSpec

CAUSAL = AttentionSpec(heads=2, head_dim=8, head_dim_v=24, causal=True)
INSIDE = make("lt", idx("j"), param("seqlen_k"))


def tiled(spec: AttentionSpec, dtype: str = "float32", fused: bool = True) -> Graph:
    return lowered(spec, "cpu", fused, dtype)["tile"]


def hand(name: str) -> Kernel:
    graph = rebase(fuse(canonicalise(GRAPHS[name](Hand("float32")))))
    return only(tile(graph, schedule("cpu")))


def loops(kernel: Kernel) -> list[Loop]:
    return [s for s in kernel.body if isinstance(s, Loop)]


# -- where things stand -------------------------------------------------------------------------


def test_what_does_not_move_with_the_loop_is_computed_outside() -> None:
    kernel = only(tiled(CAUSAL))
    (loop,) = loops(kernel)
    before = kernel.body[:kernel.body.index(loop)]
    after = kernel.body[kernel.body.index(loop) + 1:]
    assert [s.dst for s in before if isinstance(s, Load)] == ["q_tile"]
    assert [s.dst for s in loop.body if isinstance(s, Load)] == ["k_tile", "v_tile"]
    assert {s.dst for s in before if isinstance(s, Fill)} == {"m", "l", "acc"}
    assert [s.tensor for s in after if isinstance(s, Store)] == ["o", "lse"]
    hoisted = {d for s in before if isinstance(s, Map) for d in s.dsts}
    assert "j_end" in hoisted  # the row's limit is one number a row, not one a score


def test_masking_happens_on_partial_tiles_in_place_and_nothing_else_does() -> None:
    (loop,) = loops(only(tiled(CAUSAL)))
    partial = [s for s in loop.body if isinstance(s, Map) and s.when == "partial"]
    assert [statement_text(s) for s in partial] == [
        "map[i j] if partial s = where(j < j_end, s, -inf)"]


def test_accumulators_are_rescaled_before_they_are_added_to() -> None:
    (loop,) = loops(only(tiled(CAUSAL)))
    names = {"l": Reduce, "acc": Mma}
    for name, kind in names.items():
        rescaled = next(n for n, s in enumerate(loop.body)
                        if isinstance(s, Map) and name in s.dsts)
        added = next(n for n, s in enumerate(loop.body) if isinstance(s, kind) and s.dst == name)
        maximum = next(n for n, s in enumerate(loop.body)
                       if isinstance(s, Reduce) and s.kind == "max")
        assert maximum < rescaled < added


def test_equal_terms_are_computed_once() -> None:
    """Both the weights and the rescaling subtract the row's scaled maximum."""
    (loop,) = loops(only(tiled(CAUSAL)))
    shifts = [d for s in loop.body if isinstance(s, Map) for d in s.dsts if d == "m_scaled"]
    assert shifts == ["m_scaled"]


def test_a_score_used_twice_is_kept_once() -> None:
    spec = AttentionSpec(heads=1, head_dim=8, score=lambda s, b, h, i, j: s.tanh() * s.tanh() + s)
    text = "\n".join(statement_text(s) for s in statements(only(tiled(spec)).body))
    assert text.count("tanh(") == 1


def test_what_varies_along_columns_alone_stays_inline_when_cheap() -> None:
    spec = AttentionSpec(heads=2, head_dim=8, score=scores.alibi())
    kernel = only(tiled(spec))
    slope = [s for s in kernel.body if isinstance(s, Map)
             and any("exp2" in formula(e) for e in s.exprs)]
    assert [s.axes for s in slope] == [()]  # one slope a head, computed before the loop
    assert not any(v.axes == ("j",) for v in kernel.values)


def test_narrow_types_are_rounded_where_the_graph_rounds() -> None:
    for dtype, copies in (("bfloat16", ["p_op"]), ("float32", [])):
        (loop,) = loops(only(tiled(CAUSAL, dtype)))
        assert [s.dst for s in loop.body if isinstance(s, Copy)] == copies


def test_a_softmax_that_is_stored_takes_two_loops() -> None:
    kernel = hand("weights_too")
    one, two = loops(kernel)
    assert [s.tensor for s in two.body if isinstance(s, Store)] == ["p"]
    assert not [s for s in one.body if isinstance(s, Store)]
    recomputed = [s for s in two.body if isinstance(s, Mma)]
    assert len(recomputed) == 1 and recomputed[0].over == "d"


def test_a_kernel_without_a_sum_has_no_loop_and_no_tile_range() -> None:
    kernel = hand("rows_only")
    assert loops(kernel) == [] and not any(v.name.startswith("n_") for v in kernel.values)


def test_two_softmaxes_share_one_loop_and_one_load() -> None:
    (loop,) = loops(hand("two_softmaxes"))
    assert [s.tensor for s in loop.body if isinstance(s, Load)].count("v") == 1
    assert sum(isinstance(s, Reduce) and s.kind == "max" for s in loop.body) == 2


def test_grid_sizes_params_and_tensors() -> None:
    kernel = only(tiled(CAUSAL))
    assert [(g.axis, g.tile) for g in kernel.grid] == [("i", 16), ("h", 1), ("b", 1)]
    assert [(p.name, p.per_batch) for p in kernel.params] == [
        ("seqlen_k", False), ("seqlen_q", False), ("kv_len", True), ("kv_offset", True),
        ("q_offset", True)]
    assert [t.name for t in kernel.tensors] == ["q", "k", "v", "o", "lse"]
    shapes = {v.name: v.shape for v in kernel.values}
    assert shapes["q_tile"] == (16, 8) and shapes["v_tile"] == (16, 24) and shapes["m"] == (16,)


def test_value_names_avoid_tensors_and_axes() -> None:
    def i(s, b, h, i, j):  # type: ignore[no-untyped-def]
        return s.tanh()

    def o(s, b, h, i, j):  # type: ignore[no-untyped-def]
        return s.exp()
    for score in (i, o):
        kernel = only(tiled(AttentionSpec(heads=1, head_dim=8, score=score)))
        names = {v.name for v in kernel.values}
        assert f"{score.__name__}_2" in names and not names & {"i", "o", "q", "k", "v"}


def test_one_schedule_for_all_or_one_for_each_region() -> None:
    graph = rebase(fuse(build_forward(CAUSAL, "float32"), enabled=False))
    small, large = schedule("cpu", 16, 16), schedule("cpu", 32, 64)
    picked = tile(graph, lambda region: large if "v" in region.inputs else small)
    assert [k.schedule for k in picked.tiles] == [small, small, large]


def test_tile_axes_have_one_order() -> None:
    assert tile_axes(("b", "h", "e", "i"), "i", "j") == ("i", "e")
    assert tile_axes(("b", "i", "j"), "j", "i") == ("j", "i")
    assert tile_axes(("b", "h"), "i", "j") == ()


@pytest.mark.parametrize("mask", [masks.prefix_lm(9), masks.chunked(5),
                                  masks.sliding_window((3, 4)) & masks.dilated_window(2, 2)])
def test_what_no_range_expresses_is_asked_of_each_tile(mask: masks.Mask) -> None:
    (loop,) = loops(only(tiled(AttentionSpec(heads=1, head_dim=8, mask=mask))))
    assert loop.visible is not None and loop.full is not None
    assert {n.op for n in walk(loop.visible)} >= {"first", "last"}


@pytest.mark.parametrize("mask", [masks.causal(), masks.sliding_window((3, 4)),
                                  masks.causal() & masks.sliding_window((2, 1))])
def test_what_a_range_expresses_is_not(mask: masks.Mask) -> None:
    (loop,) = loops(only(tiled(AttentionSpec(heads=1, head_dim=8, mask=mask))))
    assert loop.visible is None and loop.full is None


def test_where_nothing_is_known_of_a_rest_no_tile_is_full() -> None:
    table = torch.ones(8, 8, dtype=torch.bool)
    spec = AttentionSpec(heads=1, head_dim=8, mask=lambda b, h, i, j: table[i, j])
    kernel = only(tiled(spec))
    (loop,) = loops(kernel)
    assert loop.visible is None and loop.full is None
    (bounds,) = (s for s in kernel.body if isinstance(s, Map) and loop.end in s.dsts)
    ranges = dict(zip(bounds.dsts, bounds.exprs, strict=True))
    assert formula(ranges["n_full_begin"]) == formula(ranges["n_full_end"]) == "0"


# -- past the end -------------------------------------------------------------------------------

S = tensor("s", "bhij", "float32")


def test_a_maximum_of_loaded_scores_is_masked_past_the_end() -> None:
    (root,) = add_bounds((reduce("max", S, "j"),), "j")
    assert root.args[0] == make("where", make("visible", INSIDE), S,
                                const(float("-inf"), "float32"))


def test_a_sum_of_loaded_numbers_needs_no_mask() -> None:
    root = reduce("sum", S, "j")
    assert add_bounds((root,), "j") == (root,)  # loads give zero there
    shifted = reduce("sum", make("add", S, const(1.0)), "j")
    assert "where" in [n.op for n in walk(*add_bounds((shifted,), "j"))]


def test_bounds_join_a_mask_that_is_there() -> None:
    seen = make("visible", make("lt", idx("j"), idx("i")))
    masked = make("where", seen, S, const(float("-inf"), "float32"))
    (root,) = add_bounds((reduce("max", masked, "j"),), "j")
    (visible,) = (n for n in walk(root) if n.op == "visible")
    assert visible.args[0] == make("and", seen.args[0], INSIDE)


@pytest.mark.parametrize(("expression", "expected"), [
    (lambda s: s, 0.0), (lambda s: make("exp", s), 1.0), (lambda s: make("add", s, s), 0.0),
    (lambda s: make("where", make("visible", INSIDE), s, const(5.0)), 5.0),
    (lambda s: make("exp", make("sub", make("where", make("visible", INSIDE), s,
                                            const(float("-inf"))), tensor("m", "bhi", "float32"))),
     0.0),
    (lambda s: make("add", s, tensor("m", "bhi", "float32")), None),
    (lambda s: make("log", make("sub", s, const(1.0))), None),
    (lambda s: make("mul", s, idx("j")), 0.0),
])
def test_values_past_the_end(expression, expected) -> None:  # type: ignore[no-untyped-def]
    node = expression(S)
    assert past_end((node,), "j")[node.key] == expected


def test_products_need_an_operand_that_vanishes() -> None:
    v = tensor("v", "bhje", "float32")
    assert add_bounds((contract(make("exp", S), v, "j"),), "j")  # v is zero there
    one = make("add", v, const(1.0))
    with pytest.raises(VerifyError, match="no operand is known to vanish past the end"):
        add_bounds((contract(make("exp", S), one, "j"),), "j")


def test_tiles_are_skipped_only_where_hidden_keys_count_nothing() -> None:
    expected = {"linear": True, "linear_normalised": True, "gated": True, "two_softmaxes": True,
                "half_masked": False, "hidden_counts": False}
    for name, neutral in expected.items():
        graph = rebase(fuse(canonicalise(GRAPHS[name](Hand("float32")))))
        assert hidden_is_neutral(graph.regions[0].roots, "j") == neutral, name


# -- what tiles cannot express ------------------------------------------------------------------


def test_schedules_that_no_kernel_can_have_are_refused() -> None:
    from attngen.ir.verify import verify
    graph = lowered(CAUSAL, "mma")["rebase"]
    for bad, said in ((Schedule(128, 64, 3), "warps split block_m"),
                      (Schedule(128, 24, 4), "block_n is a multiple of 16"),
                      (Schedule(128, 64, 4, (5, 1)), "one to four"),
                      (Schedule(0, 64, 4), "below one"),
                      (Schedule(128, 64, 4, vector_bytes=8), "16 or the element size"),
                      (Schedule(64, 64, 2, engine="gpu"), "unknown engine 'gpu'"),
                      (Schedule(64, 64, 2, (1,), engine="cpu"), "no warps, stages")):
        with pytest.raises(VerifyError, match=said):
            verify(tile(graph, bad))


def test_stages_of_graphs_are_told_apart() -> None:
    stages = lowered(CAUSAL, "mma")
    with pytest.raises(VerifyError, match="a placed graph has kernels, not regions"):
        stages["place"].regions  # noqa: B018
    with pytest.raises(VerifyError, match="a fused graph has regions, not kernels"):
        stages["fuse"].tiles  # noqa: B018
    with pytest.raises(VerifyError, match="the graph has no tensor 'w'; it has q, k, v, o, lse"):
        stages["fuse"].tensor("w")
    with pytest.raises(VerifyError):
        tile(replace(stages["place"]), schedule("mma"))
