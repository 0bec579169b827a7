"""As ``test_mutation_forward``, for the kernels of few queries and of parts of the keys."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import deletions
import forward_cases as cases
import pytest
import torch
from forward_cases import Case

import attngen as ag
from attngen import decoding, knobs, kv
from attngen.compiler import Options, lower, make_plan
from attngen.runtime.operands import Heads
from attngen.runtime.plan import Plan
from attngen.runtime.positions import Positions
from attngen.runtime.variant import Problem, Variant

CALLS = (Case(heads=6, groups=2, batch=1, causal=True, seqlen_q=3, seqlen_k=420),
         Case(heads=6, groups=2, batch=1, causal=True, seqlen_q=5, seqlen_k=130))
# dtype, 16-byte copies, rows, parts
KERNELS = {"one warp": ("bfloat16", True, 16, 2), "scalar copies": ("bfloat16", False, 16, 2),
           "two warps": ("float16", True, 32, 1), "CUDA cores": ("float32", True, 16, 2),
           "many queries": ("bfloat16", True, 0, 3)}


@cache
def plan_of(name: str) -> Plan:
    dtype, vectorized, rows, parts = KERNELS[name]
    options = Options("sm_80", dtype, vectorized, rows=rows, split=parts > 1)
    return make_plan(CALLS[0].spec, options, lower(CALLS[0].spec, options))


def _attempt(name: str, plan: Plan, seed: int) -> None:
    dtype, _, _, parts = KERNELS[name]
    variant = Variant(plan, Heads(6, 2, 64, 64), emulate=True)
    for case in CALLS:
        data = cases.inputs(case)
        q, k, v = (t.to(getattr(torch, dtype)) for t in (data.q, data.k, data.v))
        where = Positions(case.seqlen_k - case.seqlen_q, 0, case.seqlen_k)
        with knobs.scope(seed=seed):
            variant.run(q, k, v, Problem(1, case.seqlen_q, case.seqlen_k, where.numbers(), {},
                                         None, where, parts))


CACHES: dict[str, tuple[str, Any]] = {
    "pages": ("bfloat16", lambda attn, dtype: kv.PagedKVCache(attn, 1, 30, page_size=16,
                                                              dtype=dtype)),
    "pages, CUDA cores": ("float32", lambda attn, dtype: kv.PagedKVCache(attn, 1, 30, page_size=16,
                                                                         dtype=dtype)),
    "int8": ("bfloat16", lambda attn, dtype: kv.KVCache(attn, 1, 440, dtype=dtype,
                                                        quantize="int8")),
    "ring": ("bfloat16", lambda attn, dtype: kv.RollingKVCache(attn, 1, 400, dtype=dtype))}


@cache
def of_cache(name: str) -> tuple[Plan, Any, Any, Any]:
    """The plan of a decoding, what it captured, the cache, and the queries."""
    dtype, make = CACHES[name]
    spec, data = CALLS[0].spec, cases.inputs(CALLS[0])
    attn = ag.compile(spec, target="sm_80", emulate=True)
    filled = make(attn, getattr(torch, dtype))
    q, k, v = (t.to(filled.dtype) for t in (data.q, data.k, data.v))
    filled.append(k, v)
    options = Options("sm_80", dtype, filled.cached.stored == "", rows=16, split=True,
                      cached=filled.cached)
    lowered = lower(spec, options)
    return make_plan(spec, options, lowered), lowered.captured, filled, q


def _attempt_with_cache(name: str, plan: Plan, seed: int) -> None:
    _, captured, filled, q = of_cache(name)
    found, _ = decoding.ready(filled.attn, q, filled, None, 2, None, None)
    variant = Variant(plan, Heads(6, 2, 64, 64), emulate=True, captured=captured)
    with knobs.scope(seed=seed):
        variant.run(q, filled.k, filled.v, found.problem, filled.scales)


@pytest.mark.parametrize("name", [
    pytest.param(n, marks=() if n in ("one warp", "CUDA cores") else pytest.mark.full)
    for n in KERNELS])
def test_every_deletion_is_caught(name: str) -> None:
    plan = plan_of(name)
    assert deletions.survivors(plan, deletions.of_plan(plan), partial(_attempt, name)) == []


@pytest.mark.parametrize("name", [
    pytest.param(n, marks=() if n in ("pages", "int8") else pytest.mark.full) for n in CACHES])
def test_every_deletion_is_caught_with_a_cache(name: str) -> None:
    plan, *_ = of_cache(name)
    assert deletions.survivors(plan, deletions.of_plan(plan),
                               partial(_attempt_with_cache, name)) == []


def test_the_kernels_have_something_to_delete() -> None:
    for name, (_, vectorized, _, _) in KERNELS.items():
        copies = {"cp_async_commit", "cp_async_wait"} if vectorized else set()
        assert {"sync_block"} | copies <= set(deletions.functions(plan_of(name)))
