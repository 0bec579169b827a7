"""Placement: spaces, padding, shared memory, registers, and the schedules a target can run."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from ir_problem import ROOMY, lowered, only, placed, schedule
from test_ir_by_hand import Hand

from attngen.errors import ScheduleError, VerifyError
from attngen.ir.build import build_forward
from attngen.ir.fuse import fuse
from attngen.ir.graph import Graph
from attngen.ir.lanes import finish_lanes, only_rescales
from attngen.ir.lower import tile
from attngen.ir.node import cast, contract, make, reduce, value
from attngen.ir.passes import canonicalise, rebase
from attngen.ir.place import place, tile_bytes
from attngen.ir.ring import ring_operands
from attngen.ir.schedule import Limits, choose, engine_for, shared_need
from attngen.ir.sink import sink_partial
from attngen.ir.stmt import (
    Barrier,
    Copy,
    Fill,
    Kernel,
    LaneReduce,
    Loop,
    Map,
    Mma,
    Reduce,
    Schedule,
    Stmt,
    rewrite_body,
    statements,
)
from attngen.ir.verify import verify
from attngen.ir.verify_placed import check_placement
from attngen.spec import AttentionSpec

SPEC = AttentionSpec(heads=2, head_dim=40, head_dim_v=24, causal=True)


def spaces(kernel: Kernel) -> dict[str, str]:
    return {v.name: v.space for v in kernel.values}


def loop_of(kernel: Kernel) -> Loop:
    return next(s for s in kernel.body if isinstance(s, Loop))


# -- spaces -------------------------------------------------------------------------------------


def test_tensor_cores_read_shared_memory_and_packed_fragments() -> None:
    found = spaces(only(placed(SPEC, "mma")))
    assert {n: found[n] for n in ("q_tile", "k_tile", "v_tile", "s", "p", "p_op", "acc", "m", "l",
                                  "n_begin")} == {
        "q_tile": "shared", "k_tile": "shared", "v_tile": "shared", "s": "fragment",
        "p": "fragment", "p_op": "operand", "acc": "fragment", "m": "row", "l": "row",
        "n_begin": "scalar"}


def test_cuda_cores_pass_the_weights_through_shared_memory() -> None:
    kernel = only(placed(SPEC, "simt"))
    assert spaces(kernel)["p_s"] == "shared" and "p_op" not in spaces(kernel)
    body = loop_of(kernel).body
    copy = next(n for n, s in enumerate(body) if isinstance(s, Copy))
    assert body[copy + 1:copy + 2] == (Barrier("warp"),) or Barrier() in body[copy:]
    assert any(isinstance(s, Mma) and s.a == "p_s" for s in body)


def test_a_cpu_reads_in_place_what_it_does_not_walk_down() -> None:
    found = spaces(only(placed(SPEC, "cpu")))
    assert (found["k_tile"], found["v_tile"]) == ("view", "rows")
    assert found["q_tile"] == found["s"] == found["acc"] == "array" and found["m"] == "row"


def test_a_cpu_widens_storage_types_once() -> None:
    kernel = only(placed(SPEC, "cpu", dtype="bfloat16"))
    assert {v.dtype for v in kernel.values} == {"float32", "int32"}
    assert spaces(kernel)["k_tile"] == "rows"
    assert not any(isinstance(s, Copy) for s in statements(kernel.body))


@pytest.mark.parametrize(("engine", "d", "e"), [("mma", 48, 32), ("simt", 40, 24),
                                                ("cpu", 40, 24)])
def test_columns_are_padded_to_what_the_engine_multiplies(engine: str, d: int, e: int) -> None:
    kernel = only(placed(SPEC, engine))
    assert (kernel.value("q_tile").shape, kernel.value("v_tile").shape) == ((16, d), (16, e))
    assert (kernel.size("head_dim"), kernel.size("head_dim_v")) == (40, 24)


# -- shared memory ------------------------------------------------------------------------------


@pytest.mark.parametrize(("head_dim", "panel"), [(8, 16), (16, 16), (32, 32), (40, 16), (64, 64),
                                                 (96, 32), (128, 64), (192, 64), (256, 64)])
def test_panels_are_the_widest_that_divide_a_row(head_dim: int, panel: int) -> None:
    kernel = only(placed(AttentionSpec(heads=1, head_dim=head_dim), "mma"))
    assert kernel.value("k_tile").panel == panel


def test_tiles_follow_each_other_and_add_up() -> None:
    kernel = only(placed(SPEC, "mma", plan=schedule("mma", 32, 16, (3, 2), warps=2)))
    tiles = [v for v in kernel.values if v.space == "shared"]
    assert [v.offset for v in tiles] == [0, 32 * 48 * 2, 32 * 48 * 2 + 3 * 16 * 48 * 2]
    assert kernel.shared_bytes == sum(tile_bytes(v) for v in tiles)
    assert {v.name: v.stages for v in tiles} == {"q_tile": 1, "k_tile": 3, "v_tile": 2}


@pytest.mark.parametrize("engine", ["mma", "simt"])
@pytest.mark.parametrize("stages", [(1, 1), (2, 1), (3, 2)])
def test_the_heuristics_arithmetic_is_the_placements(engine: str, stages: tuple[int, int]) -> None:
    plan = schedule(engine, 64, 32, stages, warps=4)
    kernel = only(placed(SPEC, engine, plan=plan))
    assert kernel.shared_bytes == shared_need(plan, 40, 24)


def test_a_tile_too_big_for_the_target_is_refused_with_the_arithmetic() -> None:
    graph = lowered(AttentionSpec(heads=1, head_dim=128), "mma",
                    plan=schedule("mma", 128, 128, (2, 1), warps=4))["tile"]
    with pytest.raises(ScheduleError) as caught:
        place(graph, Limits(101376, 102400))
    message = str(caught.value)
    assert ("tile 128 x 128 needs 131072 B of shared memory, the target allows 101376 B"
            in message)
    assert "k_tile 65536 (2 x 128 x 128 bfloat16)" in message and "Try block_n=64" in message
    stated = [int(n) for n in re.findall(r"_tile (\d+) ", message)]
    assert sum(stated) == 131072


# -- the schedule's heuristic -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("shared", [(49152, 65536), (101376, 102400), (166912, 167936),
                                    (232448, 233472)])
def test_the_heuristic_picks_legal_schedules_only(dtype: str, shared: tuple[int, int]) -> None:
    limits = Limits(*shared)
    engine = engine_for(dtype, cpu=False)
    for head_dim in range(8, 257, 8):
        if shared[0] < 100_000 and head_dim > 128:
            continue  # no entry fits: the refusal is tested above
        graph = build_forward(AttentionSpec(heads=1, head_dim=head_dim), dtype)
        for vector_bytes in (16, 2 if engine == "mma" else 4):
            plan = choose(engine, graph.regions[0], dict(graph.sizes), limits, vector_bytes)
            tiled = tile(rebase(fuse(canonicalise(graph))), plan)
            verify(place(tiled, limits))


def test_engines() -> None:
    assert engine_for("float16", cpu=False) == engine_for("bfloat16", cpu=False) == "mma"
    assert engine_for("float32", cpu=False) == "simt"
    assert engine_for("float16", cpu=True) == engine_for("float64", cpu=True) == "cpu"


# -- rings, lanes, registers, and what sinks ----------------------------------------------------


def test_ring_operands_in_order_of_use() -> None:
    stages = lowered(SPEC, "mma")
    assert ring_operands(only(stages["tile"])) == ("k_tile", "v_tile")
    assert ring_operands(only(stages["place"])) == ("k_tile", "v_tile")


def test_a_placed_schedule_names_the_depth_of_each_ring() -> None:
    deep = replace(schedule("mma"), stages=(3, 2))
    kernels = placed(SPEC, "mma", fused=False, plan=deep).tiles
    assert {k.name: k.schedule.stages for k in kernels} == {
        "forward_s": (3,), "forward_p_lse": (), "forward_o": (3, 2)}
    assert only(placed(SPEC, "mma", plan=replace(deep, stages=(2,)))).schedule.stages == (2, 2)


def test_sums_are_joined_across_lanes_after_the_loop_and_maxima_inside() -> None:
    kernel = only(placed(SPEC, "mma"))
    found = {s.dst: s.lanes for s in statements(kernel.body) if isinstance(s, Reduce)}
    assert found == {"m": "now", "l": "later"}
    assert [s for s in kernel.body if isinstance(s, LaneReduce)] == [
        LaneReduce("l", "sum", origin="l")]
    assert not any(isinstance(s, LaneReduce) for s in loop_of(kernel).body)


L, A = value("l", "i", "float32"), value("a", "i", "float32")


@pytest.mark.parametrize(("expression", "linear"), [
    (make("mul", L, A), True), (make("mul", A, L), True), (A, True),
    (make("mul", L, L), False), (make("add", L, A), False), (make("exp", L), False),
    (make("mul", make("add", L, A), A), False), (make("mul", L, make("exp", L)), False)])
def test_only_rescaling_lets_a_sum_wait(expression, linear) -> None:  # type: ignore[no-untyped-def]
    assert only_rescales(Map(("l",), (expression,), ("i",)), "l") == linear


def test_a_sum_that_is_read_in_its_loop_is_joined_there() -> None:
    body = (Fill("l", 0.0), Loop("j", "a", "b", "c", "d", (
        Reduce("l", "sum", "p", "j", True), Map(("x",), (make("exp", L),), ("i",)))))
    kernel = replace(only(lowered(SPEC, "mma")["tile"]), body=body)
    assert finish_lanes(kernel).body == body


def test_what_only_partial_tiles_need_is_computed_on_them() -> None:
    tiled = only(lowered(SPEC, "mma")["tile"])
    sunk = sink_partial(tiled)
    outside = [d for s in sunk.body if isinstance(s, Map) for d in s.dsts]
    inside = [s for s in loop_of(sunk).body if isinstance(s, Map) and "j_end" in s.dsts]
    assert "j_end" not in outside and [s.when for s in inside] == ["partial"]


def test_registers_count_what_lives_at_once() -> None:
    """head_dim 128, 64 keys, 128 queries in 4 warps: 64 for acc, 32 each for scores and weights."""
    big = only(placed(AttentionSpec(heads=1, head_dim=128), "mma",
                      plan=Schedule(128, 64, 4, (1, 1))))
    small = only(placed(AttentionSpec(heads=1, head_dim=64), "mma",
                        plan=Schedule(128, 64, 4, (1, 1))))
    assert big.registers - small.registers == 128 * 64 // 128
    wide = only(placed(AttentionSpec(heads=1, head_dim=64), "mma",
                       plan=Schedule(128, 128, 4, (1, 1))))
    assert wide.registers > small.registers
    assert only(placed(SPEC, "cpu")).registers == 0


# -- what no placement can hold -----------------------------------------------------------------


def refused(engine: str, graph: Graph) -> str:
    with pytest.raises(VerifyError) as caught:
        verify(place(tile(rebase(fuse(canonicalise(graph))), schedule(engine)), ROOMY))
    return str(caught.value)


def test_cuda_cores_take_single_precision_only() -> None:
    assert "p_op is bfloat16: CUDA cores take float32" in refused(
        "simt", build_forward(SPEC, "bfloat16"))


def test_tensor_cores_take_half_precision_only() -> None:
    assert "is float64: mma takes float16, bfloat16, float32" in refused(
        "mma", build_forward(SPEC, "float64"))
    assert "mma does not take float32" in refused("mma", build_forward(SPEC, "float32"))


def test_a_tile_multiplied_and_summed_is_loaded_twice() -> None:
    """The product finds the gate in shared memory, the sum in registers."""
    x = Hand("float32")
    gate = x.load("gate", "float32")
    summed = reduce("sum", make("mul", gate, x.number(2.0)), "j")
    graph = x.graph(o=("bhie", make("mul", contract(gate, x.load("v"), "j", "float32"), summed)))
    kernel = only(place(tile(rebase(fuse(canonicalise(graph))), schedule("simt")), ROOMY))
    assert spaces(kernel)["gate_tile"] == "shared" and spaces(kernel)["gate_tile_r"] == "fragment"


def test_loads_read_element_by_element_are_widened() -> None:
    x = Hand("bfloat16")
    kernel = {e: only(place(tile(rebase(fuse(canonicalise(x.graph(total=("bhi", reduce(
        "sum", cast(x.load("gate"), "float32"), "j")))))), schedule(e)), ROOMY))
        for e in ("mma", "cpu")}
    assert kernel["mma"].value("gate_tile").dtype == kernel["cpu"].value("gate_tile").dtype == (
        "float32")
    assert kernel["mma"].tensor("gate").dtype == "bfloat16"


def test_packed_operands_are_read_by_products_alone() -> None:
    graph = placed(SPEC, "mma")

    def change(stmt: Stmt) -> tuple[Stmt, ...]:
        return (replace(stmt, src="p_op"),) if isinstance(stmt, Reduce) and stmt.src == "p" else (
            stmt,)
    kernel = replace(only(graph), body=rewrite_body(only(graph).body, change))
    with pytest.raises(VerifyError, match="Reduce reads p_op, which only products do where it "):
        check_placement(kernel)
