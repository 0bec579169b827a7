"""Every pass preserves meaning: each stage, interpreted, against the float64 oracle.

Rounding is what differs between formulations, so it is taken out: storage types round to nothing
here, and what remains must agree to float64's own precision on every engine.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from ir_problem import (
    DTYPE,
    Problem,
    assert_same,
    lowered,
    pipeline,
    schedule,
)

from attngen import masks, scores
from attngen.ir import eval_tensor, eval_tile
from attngen.ir.build import build_forward
from attngen.spec import AttentionSpec

# math and fused graphs on whole tensors, tiled and placed ones with running maxima
TOLERANCE = {"math": 1e-12, "fused": 1e-12, "tiled": 1e-10, "placed": 1e-10}


def hide_third(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return torch.where(j != 3, s, float("-inf"))


SPECS: dict[str, AttentionSpec] = {
    "mha": AttentionSpec(heads=2, head_dim=8),
    "gqa": AttentionSpec(heads=4, groups=2, head_dim=8, causal=True),
    "mqa": AttentionSpec(heads=3, groups=1, head_dim=16, causal=True),
    "seven": AttentionSpec(heads=7, groups=7, head_dim=8, head_dim_v=16, causal=True),
    "six_over_three": AttentionSpec(heads=6, groups=3, head_dim=8, window=(5, 3)),
    "uneven": AttentionSpec(heads=4, groups=(0, 1, 1, 0), head_dim=8, causal=True),
    "last_five": AttentionSpec(heads=2, head_dim=8, causal=True, window=5),
    "pair": AttentionSpec(heads=2, groups=1, head_dim=24, head_dim_v=8, window=(16, 40)),
    "own_position": AttentionSpec(heads=1, head_dim=8, window=(0, 0)),
    "softcap": AttentionSpec(heads=2, head_dim=8, causal=True, score=scores.softcap(2.0)),
    "alibi": AttentionSpec(heads=2, head_dim=8, score=[scores.alibi(), scores.softcap(3.0)]),
    "tiny_scale": AttentionSpec(heads=1, head_dim=8, causal=True, scale=1e-9),
    "large_scale": AttentionSpec(heads=1, head_dim=8, causal=True, scale=300.0),
    "zero_scale": AttentionSpec(heads=1, head_dim=8, causal=True,
                                score=lambda s, b, h, i, j: s * 0),
    "negative_scale": AttentionSpec(heads=1, head_dim=8, causal=True,
                                    score=lambda s, b, h, i, j: -s * 3),
    "chunked": AttentionSpec(heads=2, head_dim=8, mask=masks.chunked(7)),
    "prefix": AttentionSpec(heads=2, head_dim=8, mask=masks.prefix_lm(11)),
    "dilated": AttentionSpec(heads=2, head_dim=8, mask=masks.dilated_window(4, 3)),
    "negated": AttentionSpec(heads=2, head_dim=8, mask=~masks.causal()),
    "hidden_by_score": AttentionSpec(heads=2, head_dim=8, score=hide_third),
}

# seqlen_q, seqlen_k, q_offset, kv_offset, kv_len
CALLS: dict[str, tuple[int, int, tuple[int, ...] | None, tuple[int, ...], tuple[int, ...] | None]]
CALLS = {
    "more_keys": (37, 53, None, (0,), None),
    "more_queries": (53, 37, None, (0,), None),
    "offsets": (17, 37, (20, -4), (0, -9), (37, 30)),
    "unaligned": (33, 40, (-50, 3, 100), (0, 7, 2), (40, 0, 17)),
    "one_query": (1, 37, None, (0, 0), (37, 5)),
    "one_key": (17, 1, (0,), (0,), None),
    "single": (1, 1, None, (0,), None),
    "no_queries": (0, 17, None, (0,), None),
    "no_keys": (17, 0, None, (0,), None),
}


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage types that do not round."""
    for module in (eval_tile, eval_tensor):
        monkeypatch.setattr(module, "round_to", lambda x, dtype: x)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "unfused"])
@pytest.mark.parametrize("name", SPECS)
def test_every_stage_computes_the_oracles_numbers(name: str, fused: bool) -> None:
    spec = SPECS[name]
    graphs = {engine: lowered(spec, engine, fused) for engine in DTYPE}
    for call, (seqlen_q, seqlen_k, q_offset, kv_offset, kv_len) in CALLS.items():
        problem = Problem(spec, seqlen_q, seqlen_k, q_offset, kv_offset, kv_len)
        expected = problem.oracle()
        for engine, stages in graphs.items():
            for step, graph in stages.items():
                if graph.stage in ("math", "fused") and engine != "cpu":
                    continue  # the same nodes for every engine
                assert_same(problem.run(graph), expected, TOLERANCE[graph.stage],
                            f"{call}, {engine} after {step}")


RINGS = [(1, 1), (2, 1), (1, 2), (2, 2), (3, 2), (3, 3), (3, 1)]


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "unfused"])
@pytest.mark.parametrize(("engine", "stages", "vector_bytes"), [
    (engine, stages, width) for engine, stages in product(("mma", "simt"), RINGS)
    for width in (16, {"mma": 2, "simt": 4}[engine])])
def test_every_ring_computes_the_oracles_numbers(engine: str, stages: tuple[int, int],
                                                 vector_bytes: int, fused: bool) -> None:
    spec = AttentionSpec(heads=2, groups=1, head_dim=8, head_dim_v=24, causal=True,
                         window=(40, 0))
    plan = schedule(engine, 16, 16, stages, vector_bytes=vector_bytes)
    graph = lowered(spec, engine, fused, plan=plan)["place"]
    for seqlen_q, seqlen_k in ((20, 100), (1, 16), (35, 33)):
        problem = Problem(spec, seqlen_q, seqlen_k, kv_len=(seqlen_k, seqlen_k - 9))
        assert_same(problem.run(graph), problem.oracle(), 1e-10)


@pytest.mark.parametrize(("block_m", "block_n"), [(16, 16), (16, 48), (48, 16), (64, 32)])
@pytest.mark.parametrize("engine", DTYPE)
def test_tiles_of_any_shape_compute_the_oracles_numbers(engine: str, block_m: int,
                                                        block_n: int) -> None:
    for spec in (SPECS["pair"], SPECS["softcap"]):
        for fused in (True, False):
            graph = lowered(spec, engine, fused, plan=schedule(engine, block_m, block_n))["place"]
            problem = Problem(spec, 50, 71, (21, -3), (0, 4), (71, 44))
            assert_same(problem.run(graph), problem.oracle(), 1e-10)


def random_problem(rng: np.random.Generator) -> Problem:
    """Any mixture of the features a spec has, on short random lengths."""
    heads, group_size = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    causal = bool(rng.integers(2))
    window = None if rng.integers(2) else (int(rng.integers(0, 20)), int(rng.integers(0, 20)))
    spec = AttentionSpec(
        heads=heads * group_size, groups=heads, head_dim=8 * int(rng.integers(1, 4)),
        head_dim_v=8 * int(rng.integers(1, 4)), causal=causal, window=window,
        score=scores.softcap(float(rng.uniform(0.5, 5))) if rng.integers(2) else None,
        scale=float(10 ** rng.uniform(-3, 2)))
    batch = int(rng.integers(1, 4))

    def per_batch(low: int, high: int) -> tuple[int, ...]:
        return tuple(int(n) for n in rng.integers(low, high, batch))

    seqlen_q, seqlen_k = int(rng.integers(0, 70)), int(rng.integers(0, 70))
    return Problem(spec, seqlen_q, seqlen_k, per_batch(-60, 60), per_batch(-30, 30),
                   per_batch(0, seqlen_k + 1), seed=int(rng.integers(1 << 30)))


def check_random(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = random_problem(rng)
    expected = problem.oracle()
    engine = ("mma", "simt", "cpu")[seed % 3]
    stages = tuple(int(n) for n in rng.integers(1, 4, 2))
    plan = schedule(engine, 16 * int(rng.integers(1, 4)), 16 * int(rng.integers(1, 4)), stages)
    graph = build_forward(problem.spec, DTYPE[engine])
    for name, after in pipeline(graph, plan, fused=bool(rng.integers(2))):
        assert_same(problem.run(after), expected, TOLERANCE[after.stage],
                    f"seed {seed}, {engine} {plan} after {name}, {problem}")


@pytest.mark.parametrize("seed", range(30))
def test_random_problems(seed: int) -> None:
    check_random(seed)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(30, 600))
def test_more_random_problems(seed: int) -> None:
    check_random(seed)
