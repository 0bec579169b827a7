"""Caches of keys and values: step by step as all at once, whatever the mask; what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache as once
from typing import Any

import pattern_cases
import pytest
import torch
from helpers import only_ours
from torch import Tensor

import attngen as ag
from attngen import errors, kv, masks, reference, scores
from attngen.cache_plans import append_plan
from attngen.compiler import Options
from attngen.kv.memory import zeros

Spec = ag.AttentionSpec
SPEC = Spec(heads=6, groups=2, head_dim=32, causal=True)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@once
def compiled(spec: Spec, target: str = "cpu") -> Any:
    return ag.compile(spec, target=target, emulate=target != "cpu")


def tokens(spec: Spec, n: int, dtype: torch.dtype = torch.float32, batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    return [torch.randn(batch, h, n, d, generator=generator).to(dtype) for h, d in (
        (spec.heads, spec.head_dim), (spec.kv_heads, spec.head_dim),
        (spec.kv_heads, spec.head_dim_v or 0))]


Made = Callable[[Any, torch.dtype], kv.cache.Cache]
CACHES: dict[str, Made] = {
    "contiguous": lambda attn, dtype: kv.KVCache(attn, 2, 120, dtype=dtype),
    "pages of 1": lambda attn, dtype: kv.PagedKVCache(attn, 2, 240, page_size=1, dtype=dtype),
    "pages of 16": lambda attn, dtype: kv.PagedKVCache(attn, 2, 16, page_size=16, dtype=dtype),
    "pages of 100": lambda attn, dtype: kv.PagedKVCache(attn, 2, 4, page_size=100, dtype=dtype),
}


def stepwise(attn: Any, cache: Any, q: Tensor, k: Tensor, v: Tensor, steps: list[int],
             **how: Any) -> tuple[Tensor, Tensor]:
    """(o, lse) of a decoding: a few tokens at a time."""
    found, at = [], 0
    for n in steps:
        part = slice(at, at + n)
        with only_ours():
            cache.append(k[:, :, part], v[:, :, part])
            found.append(attn.decode(q[:, :, part], cache, return_lse=True, **how))
        at += n
    return torch.cat([o for o, _ in found], 2), torch.cat([lse for _, lse in found], 2)


def agree(spec: Spec, o: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor) -> None:
    """Equal to one full forward, by the tolerance rule."""
    want, want_lse = reference.attention(spec, q, k, v)
    naive, naive_lse = reference.naive(spec, q, k, v)
    for ours, ref, same in ((o, want, naive), (lse, want_lse, naive_lse)):
        verdict = reference.compare(ours, ref, same, factor=2.0, name="step by step")
        assert verdict.ok, verdict.report


# -- step by step is all at once ------------------------------------------------------------------

STEPS = [1, 2, 5, 1, 16, 1, 3, 4, 1, 1, 30, 1, 7]


@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize(("target", "dtype"), [
    ("cpu", "float32"), ("cpu", "bfloat16"), ("sm_80", "bfloat16"), ("sm_80", "float32"),
    ("sm_80", "float16")])
def test_step_by_step(target: str, dtype: str, name: str) -> None:
    attn = compiled(SPEC, target)
    q, k, v = tokens(SPEC, sum(STEPS), DTYPES[dtype])
    o, lse = stepwise(attn, CACHES[name](attn, DTYPES[dtype]), q, k, v, STEPS)
    agree(SPEC, o, lse, q, k, v)


@pytest.mark.parametrize("name", pattern_cases.TOGETHER)
@pytest.mark.parametrize("target", ["cpu", "sm_80"])
def test_every_pattern(target: str, name: str) -> None:
    """Masks that look ahead see what there is; so these are compared where they do not."""
    fields = dict(pattern_cases.TOGETHER[name])
    case = pattern_cases.cases(fields, name, calls=[0])[0]
    spec = Spec(heads=case.heads, head_dim=16, groups=1, causal=True, mask=case.mask,
                score=case.score)
    dtype = torch.float32 if target == "cpu" else torch.bfloat16
    attn, (q, k, v) = compiled(spec, target), tokens(spec, 40, dtype, pattern_cases.BATCH)
    for cache in (kv.KVCache(attn, pattern_cases.BATCH, 64, dtype=dtype),
                  kv.PagedKVCache(attn, pattern_cases.BATCH, 40, page_size=4, dtype=dtype)):
        o, lse = stepwise(attn, cache, q, k, v, [1, 2, 13, 1, 16, 1, 6], num_splits=2)
        agree(spec, o, lse, q, k, v)
    near = masks.sliding_window(7) | masks.attention_sinks(2)
    ring = kv.RollingKVCache(attn, pattern_cases.BATCH, 7, sinks=2, chunk=2, dtype=dtype)
    o, lse = stepwise(attn, ring, q, k, v, [1, 2, 2, 1] * 6 + [2, 2], num_splits=2)
    agree(replace(spec, mask=near if case.mask is None else case.mask & near), o, lse, q, k, v)


@pytest.mark.parametrize(("target", "dtype"), [("cpu", "float32"), ("sm_80", "bfloat16")])
@pytest.mark.parametrize(("window", "sinks", "chunk"), [(9, 0, 1), (9, 3, 4), (1, 2, 16),
                                                        (20, 40, 7)])
def test_a_ring_past_its_third_turn(window: int, sinks: int, chunk: int, target: str,
                                    dtype: str) -> None:
    attn = compiled(SPEC, target)
    cache = kv.RollingKVCache(attn, 2, window, sinks=sinks, chunk=chunk, dtype=DTYPES[dtype])
    steps = [1 + n % chunk for n in range(200)]
    while sum(steps) > sinks + 3 * (window + chunk) + 20:
        steps.pop()
    q, k, v = tokens(SPEC, sum(steps), DTYPES[dtype])
    o, lse = stepwise(attn, cache, q, k, v, steps)
    seen = masks.sliding_window(window) | masks.attention_sinks(sinks)
    agree(Spec(heads=6, groups=2, head_dim=32, causal=True, mask=seen), o, lse, q, k, v)
    assert cache.k.shape[2] == sinks + window + chunk - 1


def test_any_mask_and_score_on_a_ring() -> None:
    """Positions are those of the tokens, wherever they lie."""
    spec = Spec(heads=4, groups=2, head_dim=16, causal=True, score=scores.alibi(),
                mask=lambda b, h, i, j: (i - j) % 3 != 1)
    attn, (q, k, v) = compiled(spec), tokens(spec, 70)
    o, lse = stepwise(attn, kv.RollingKVCache(attn, 2, 11, chunk=2), q, k, v, [2, 1] * 23 + [1])
    same = Spec(heads=4, groups=2, head_dim=16, causal=True, score=scores.alibi(),
                mask=lambda b, h, i, j: ((i - j) % 3 != 1) & (i - j < 11))
    agree(same, o, lse, q, k, v)


@pytest.mark.parametrize("target", ["cpu", "sm_80"])
@pytest.mark.parametrize("parts", [1, 2, 5, 16])
def test_pages_give_the_same_bits(parts: int, target: str) -> None:
    attn = compiled(SPEC, target)
    dtype = torch.bfloat16
    q, k, v = tokens(SPEC, 100, dtype)
    found = [stepwise(attn, CACHES[name](attn, dtype), q, k, v, [90, 1, 2, 7], num_splits=parts)
             for name in ("contiguous", "pages of 16", "pages of 1", "contiguous")]
    assert all(a.equal(b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


# -- sequences of different lengths ---------------------------------------------------------------


@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize("target", ["cpu", "sm_80"])
def test_every_sequence_has_its_length(target: str, name: str) -> None:
    attn, dtype = compiled(SPEC, target), torch.float32
    q, k, v = tokens(SPEC, 60)
    cache = CACHES[name](attn, dtype)
    cache.append(k[:, :, :50], v[:, :, :50], counts=[50, 0])
    cache.append(k[:, :, 50:55], v[:, :, 50:55], counts=torch.tensor([0, 3], dtype=torch.int32))
    assert cache.lengths.tolist() == [50, 3]
    o, lse = attn.decode(q[:, :, :2], cache, return_lse=True)
    for b, keys in ((0, slice(0, 50)), (1, slice(50, 53))):
        one = [x[b:b + 1] for x in (q[:, :, :2], k[:, :, keys], v[:, :, keys])]
        want, want_lse = reference.attention(SPEC, *one)
        torch.testing.assert_close(o[b:b + 1].double(), want, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(lse[b:b + 1].double(), want_lse, rtol=1e-5, atol=1e-5)
    cache.clear(0)
    o = attn.decode(q[:, :, :1], cache)
    assert bool((o[0] == 0).all()) and bool((o[1] != 0).any())


def test_a_prompt_longer_than_a_ring() -> None:
    attn = compiled(SPEC)
    q, k, v = tokens(SPEC, 60)
    cache = kv.RollingKVCache(attn, 2, 7, sinks=2, chunk=2)
    cache.append(k[:, :, :58], v[:, :, :58])
    cache.append(k[:, :, 58:], v[:, :, 58:])
    o = attn.decode(q[:, :, 58:], cache)
    spec = Spec(heads=6, groups=2, head_dim=32, causal=True,
                mask=masks.sliding_window(7) | masks.attention_sinks(2))
    want = reference.attention(spec, q, k, v)[0][:, :, 58:]
    torch.testing.assert_close(o.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", ["cpu", "sm_80"])
def test_a_tree_of_drafts(target: str) -> None:
    """Speculative decoding: the newest tokens are nodes of a tree, each sees its ancestors and
    all that came before."""
    parents, base = [-1, 0, 0, 1, 1, 2, 3], 30
    ancestors = torch.zeros(base + 7, base + 7, dtype=torch.bool).tril()
    ancestors[:, :base] = torch.ones(base + 7, base).tril().bool()
    for node, parent in enumerate(parents):
        if parent >= 0:
            ancestors[base + node] = ancestors[base + parent]
        ancestors[base + node, base + node] = True

    def seen(b: Any, h: Any, i: Any, j: Any) -> Any:
        return ancestors[i, j]

    spec = Spec(heads=6, groups=2, head_dim=32, mask=seen)
    attn, (q, k, v) = compiled(spec, target), tokens(spec, base + 7)
    cache = kv.KVCache(attn, 2, 64, dtype=torch.float32)
    cache.append(k, v)
    o = attn.decode(q[:, :, base:], cache, num_splits=2)
    want = reference.attention(spec, q, k, v)[0][:, :, base:]
    torch.testing.assert_close(o.double(), want, rtol=1e-5, atol=1e-5)


# -- the append kernel ----------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["cpu", "sm_80"])
def test_nothing_is_written_past_the_end(target: str) -> None:
    """What a replayed graph would do, whose host no longer knows the lengths."""
    attn = compiled(SPEC, target)
    q, k, v = tokens(SPEC, 8)
    cache = kv.KVCache(attn, 2, 10, dtype=torch.float32)
    guard = torch.full((2, 2, 14, 32), 7.0)
    cache.k = guard[:, :, :10]
    cache.lengths += 6
    cache._launch(k, v, 8, 8)
    assert torch.equal(cache.k[:, :, 6:], k[:, :, :4]) and bool((guard[:, :, 10:] == 7).all())
    assert bool((guard[:, :, :6] == 7).all())
    cache.lengths.fill_(-3)
    cache._launch(k, v, 8, 8)
    assert bool((guard[:, :, :6] == 7).all())


def test_the_kernel_is_generated_and_readable() -> None:
    plan = append_plan(SPEC, Options("sm_80", "bfloat16"))
    text = plan.kernels[0].text
    assert [k.kind for k in plan.kernels] == ["append"] and "kv_start" in text
    assert len(plan.kernels) == 1 and "for (int j_tile" not in text


@pytest.mark.parametrize("shape", [(3, 5), (0, 7), (5, 700_001)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8, torch.float8_e4m3fn])
def test_memory_of_a_cache(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Zeros, from the beginning of a line of the processor's caches on."""
    memory = zeros(shape, dtype, torch.device("cpu"))
    assert memory.shape == shape and memory.dtype == dtype and memory.is_contiguous()
    assert memory.data_ptr() % 64 == 0 and not bool(memory.float().any())
    memory.view(torch.uint8).fill_(1)


# -- refusals, before anything is written ---------------------------------------------------------


def test_a_full_cache_loses_nothing() -> None:
    attn = compiled(SPEC)
    q, k, v = tokens(SPEC, 12)
    for cache in (kv.KVCache(attn, 2, 10), kv.PagedKVCache(attn, 2, 7, page_size=3)):
        cache.append(k[:, :, :9], v[:, :, :9])
        before = attn.decode(q[:, :, 8:9], cache)
        with pytest.raises(errors.KVCacheFullError, match="do not fit|are free"):
            cache.append(k[:, :, 9:], v[:, :, 9:])
        assert cache.lengths.tolist() == [9, 9]
        assert attn.decode(q[:, :, 8:9], cache).equal(before)
        cache.append(k[:, :, 9:10], v[:, :, 9:10], counts=[1, 0])
        assert cache.lengths.tolist() == [10, 9]


WRONG = {
    "three dimensions": (lambda k: k[0], errors.ShapeError),
    "another batch": (lambda k: k[:1], errors.ShapeError),
    "another head_dim": (lambda k: k[..., :16], errors.ShapeError),
    "query heads": (lambda k: k.repeat(1, 3, 1, 1), errors.HeadsError),
    "another dtype": (lambda k: k.half(), errors.DtypeError),
    "another device": (lambda k: k.to("meta"), errors.DeviceError),
}


@pytest.mark.parametrize("name", WRONG)
def test_new_tokens_that_do_not_fit(name: str) -> None:
    attn = compiled(SPEC)
    change, error = WRONG[name]
    cache, (_, k, v) = kv.KVCache(attn, 2, 10), tokens(SPEC, 3)
    with pytest.raises(error):
        cache.append(change(k), v)
    assert cache.lengths.tolist() == [0, 0] and not bool(cache.k.any())


@pytest.mark.parametrize("counts", [[1], [1, 9], [-1, 1]])
def test_counts_that_do_not_fit(counts: list[int]) -> None:
    cache, (_, k, v) = kv.KVCache(compiled(SPEC), 2, 10), tokens(SPEC, 3)
    with pytest.raises(errors.ShapeError, match="counts"):
        cache.append(k, v, counts=counts)


def test_queries_that_do_not_fit() -> None:
    attn = compiled(SPEC)
    cache, (q, k, v) = kv.KVCache(attn, 2, 10), tokens(SPEC, 3)
    cache.append(k, v)
    other = compiled(Spec(heads=4, groups=4, head_dim=32, causal=True))
    with pytest.raises(errors.HeadsError, match="another spec"):
        other.decode(torch.randn(2, 4, 1, 32), cache)
    for wrong, error in ((q[:1], errors.ShapeError), (q[:, :4], errors.HeadsError),
                         (q.bfloat16(), errors.DtypeError), (q.to("meta"), errors.DeviceError)):
        with pytest.raises(error):
            attn.decode(wrong, cache)
    ring = kv.RollingKVCache(attn, 2, 5, chunk=2)
    ring.append(k, v)
    with pytest.raises(errors.ShapeError, match="3 queries"):
        attn.decode(q, ring)


@pytest.mark.parametrize("make", [
    lambda attn: kv.KVCache(attn, 2, 0), lambda attn: kv.KVCache(attn, -1, 5),
    lambda attn: kv.PagedKVCache(attn, 2, 0),
    lambda attn: kv.PagedKVCache(attn, 2, 5, page_size=0),
    lambda attn: kv.PagedKVCache(attn, 2, 5, page_size=257),
    lambda attn: kv.RollingKVCache(attn, 2, 0),
    lambda attn: kv.RollingKVCache(attn, 2, 4, sinks=-1),
    lambda attn: kv.RollingKVCache(attn, 2, 4, chunk=0)])
def test_sizes_no_cache_can_have(make: Callable[[Any], Any]) -> None:
    with pytest.raises(errors.ShapeError):
        make(compiled(SPEC))
