"""Delete each synchronisation statement of the generated kernels: the emulator must object.

A statement that nothing needs would be a cost on every GPU; one whose loss nobody notices would be
a hole in the emulator. Either way it shows here.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import deletions
import forward_cases as cases
import pytest
from forward_cases import Case

from attngen import AttentionSpec, knobs, masks
from attngen.compiler import Options, lower, make_plan
from attngen.runtime.operands import Heads
from attngen.runtime.plan import Plan
from attngen.runtime.positions import Positions
from attngen.runtime.variant import Problem, Variant

# Head sizes small enough for quick runs; lengths with at least three key tiles, a last tile cut
# short, and (second) query tiles that see nothing, whose copies would be under way at the end.
CALLS = (Case(heads=1, batch=1, causal=True, seqlen_q=197, seqlen_k=420),
         Case(heads=1, batch=1, causal=True, seqlen_q=197, seqlen_k=60))

SKIPPING = AttentionSpec(heads=1, head_dim=CALLS[0].head_dim, causal=True,
                         mask=masks.sliding_window(70) | masks.attention_sinks(3))

KERNELS = {
    f"{dtype} {copies} {stages[0]},{stages[1]}": (dtype, copies == "16B", True, stages)
    for dtype, copies in (("bfloat16", "16B"), ("bfloat16", "scalar"), ("float32", "16B"),
                          ("float32", "scalar"))
    for stages in ((1, 1), (2, 1), (2, 2))
} | {"unfused bfloat16": ("bfloat16", True, False, (2, 1)),
     "unfused float32": ("float32", True, False, (1, 1)),
     "unfused scalar": ("float16", False, False, (2, 2)),
     "skipping 1,1": ("bfloat16", True, True, (1, 1)),
     "skipping 2,2": ("bfloat16", True, True, (2, 2))}
QUICK_KERNELS = ("bfloat16 16B 1,1", "bfloat16 16B 2,1", "bfloat16 16B 2,2", "float32 16B 1,1",
                 "unfused bfloat16", "skipping 2,2")


@cache
def plan_of(name: str) -> Plan:
    dtype, vectorized, fuse, stages = KERNELS[name]
    schedule = {"block_n": 64, "stages": stages} if dtype != "float32" else {"stages": stages}
    options = Options("sm_80", dtype, vectorized, fuse, tuple(sorted(schedule.items())))
    spec = SKIPPING if "skipping" in name else CALLS[0].spec
    return make_plan(spec, options, lower(spec, options))


def _attempt(dtype: str, plan: Plan, seed: int) -> None:
    dim = CALLS[0].head_dim
    variant = Variant(plan, Heads(1, 1, dim, dim), emulate=True)
    for case in CALLS:
        data = cases.inputs(replace(case, dtype=dtype))
        where = Positions(case.seqlen_k - case.seqlen_q, 0, case.seqlen_k)
        with knobs.scope(seed=seed):
            variant.run(data.q, data.k, data.v, Problem(
                1, case.seqlen_q, case.seqlen_k, where.numbers(), {}, None, where))


def _survivors(name: str) -> list[str]:
    plan = plan_of(name)
    return deletions.survivors(plan, deletions.of_plan(plan), partial(_attempt, KERNELS[name][0]))


@pytest.mark.parametrize("name", QUICK_KERNELS)
def test_every_deletion_is_caught(name: str) -> None:
    assert _survivors(name) == []


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(set(KERNELS) - set(QUICK_KERNELS)))
def test_every_deletion_is_caught_in_the_other_kernels(name: str) -> None:
    assert _survivors(name) == []


def test_the_kernels_have_something_to_delete() -> None:
    """So that no survivors means more than no sites."""
    sites = {name: deletions.functions(plan_of(name)) for name in KERNELS}
    for name in QUICK_KERNELS[:3]:
        assert {"cp_async_commit", "cp_async_wait", "sync_block"} <= set(sites[name]), name
    assert "sync_warp" in sites["float32 16B 2,2"]
    assert all(sites[name].count("sync_block") >= 2 for name in KERNELS if "unfused" in name)
