"""Forward attention on the cpu target against the float64 oracle, through the public interface."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from typing import Any

import forward_cases as cases
import pytest
import torch
from forward_cases import Case
from helpers import assert_matches_oracle, only_ours

import attngen as ag

DTYPES = ("float32", "bfloat16", "float16", "float64")


@cache
def attention_of(spec: ag.AttentionSpec) -> Any:
    return ag.compile(spec, target="cpu")


def _complaints(chosen: Iterable[Case], **changes: Any) -> list[str]:
    return [line for case in chosen for line in cases.check(replace(case, **changes),
                                                            attention_of(case.spec))]


@pytest.mark.parametrize("feature", cases.NAMED)
def test_feature(feature: str) -> None:
    assert _complaints(cases.of_few_specs(feature, 2)) == []


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("feature", ["lengths", "layouts"])
def test_dtypes(feature: str, dtype: str) -> None:
    assert _complaints(cases.NAMED[feature][-4:], dtype=dtype) == []


@pytest.mark.full
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("feature", cases.NAMED)
def test_feature_in_every_dtype(feature: str, dtype: str) -> None:
    assert _complaints(cases.NAMED[feature], dtype=dtype) == []


def _random(seed: int, calls: int) -> list[str]:
    rng = random.Random(seed)
    spec = cases.random_spec(rng, DTYPES)
    attn = ag.compile(spec.spec, target="cpu")
    return [line for _ in range(calls)
            for line in cases.check(cases.random_call(rng, spec), attn)]


@pytest.mark.parametrize("seed", range(6))
def test_random(seed: int) -> None:
    assert _random(seed, 4) == []


@pytest.mark.full
@pytest.mark.parametrize("seed", range(100, 300))
def test_many_random(seed: int) -> None:
    assert _random(seed, 15) == []


# -- beyond closeness -----------------------------------------------------------------------------

SHARED = Case(heads=6, groups=2, head_dim=64, causal=True, seqlen_q=197, seqlen_k=420)


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_only_our_kernels_run(dtype: str) -> None:
    data = cases.inputs(replace(SHARED, dtype=dtype))
    with only_ours():
        attn = ag.compile(SHARED.spec, target="cpu")
        o, lse = attn(data.q, data.k, data.v, return_lse=True)
        assert ag.attention(data.q, data.k, data.v, causal=True).equal(o)
    assert cases.complaints(SHARED, data, o, lse) == []


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_bits_repeat_and_do_not_depend_on_threads(dtype: str, monkeypatch: Any) -> None:
    data = cases.inputs(replace(SHARED, dtype=dtype))
    attn = attention_of(SHARED.spec)
    results = []
    for threads in ("1", "1", "2", "2", "5"):
        monkeypatch.setenv("ATTNGEN_THREADS", threads)
        results.append(attn(data.q, data.k, data.v, return_lse=True))
    for o, lse in results[1:]:
        assert o.equal(results[0][0]) and lse.equal(results[0][1])


@pytest.mark.parametrize("layout", [n for n in cases.LAYOUTS if n != "shared_kv"])
def test_bits_do_not_depend_on_the_layout(layout: str) -> None:
    attn = attention_of(SHARED.spec)
    want = cases.inputs(SHARED)
    data = cases.inputs(replace(SHARED, layout=layout))
    assert attn(data.q, data.k, data.v).equal(attn(want.q, want.k, want.v))


def test_o_keeps_the_order_of_q() -> None:
    data = cases.inputs(replace(SHARED, layout="bshd"))
    o = attention_of(SHARED.spec)(data.q, data.k, data.v)
    assert o.transpose(1, 2).is_contiguous()


def test_hidden_keys_may_be_nan() -> None:
    case = replace(SHARED, seqlens_k=(63, 300), causal=False)
    clean, data = cases.inputs(case), cases.inputs(case)
    for b, n in enumerate((63, 300)):
        data.k[b, :, n:] = float("nan")
    attn = attention_of(case.spec)
    o, lse = attn(data.q, data.k, data.v, return_lse=True, **data.where)
    assert cases.complaints(case, clean, o, lse) == []


def test_large_scores_neither_overflow_nor_lose_the_largest() -> None:
    spec = ag.AttentionSpec(heads=2, head_dim=64, scale=30.0)
    q, k, v = (torch.randn(1, 2, 130, 64) for _ in range(3))
    o, lse = attention_of(spec)(q, k, v, return_lse=True)
    assert_matches_oracle(spec, q, k, v, o, lse)


def test_constant_values_come_back_and_equal_scores_average() -> None:
    attn = attention_of(ag.AttentionSpec(heads=2, head_dim=64, causal=True))
    q, k = (torch.randn(1, 2, 197, 64) for _ in range(2))
    ones = attn(q, k, torch.ones(1, 2, 197, 64))
    torch.testing.assert_close(ones, torch.ones_like(ones), rtol=0, atol=1e-6)
    v = torch.randn(1, 2, 197, 64)
    mean = v.double().cumsum(2) / torch.arange(1, 198).reshape(1, 1, -1, 1)
    torch.testing.assert_close(attn(torch.zeros_like(q), k, v).double(), mean, rtol=0, atol=2e-6)


def test_each_value_is_reached_by_its_own_index() -> None:
    """Query i attends to key perm[i] alone: any confusion of rows, columns or heads shows."""
    spec = ag.AttentionSpec(heads=4, groups=2, head_dim=128, scale=100.0)
    perm = torch.randperm(128, generator=torch.Generator().manual_seed(3))
    k = torch.eye(128).expand(2, 2, 128, 128)
    q = torch.eye(128)[perm].expand(2, 4, 128, 128)
    v = torch.arange(2 * 2 * 128 * 128, dtype=torch.float32).reshape(2, 2, 128, 128)
    o = attention_of(spec)(q, k, v)
    assert o.equal(v.repeat_interleave(2, dim=1)[:, :, perm])
