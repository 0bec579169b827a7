"""Positions inside a ring, as StreamingLLM counts them."""

from __future__ import annotations

from functools import cache as once
from typing import Any

import pytest
import torch
from helpers import only_ours
from streaming_cases import COLUMNS, LIMIT, RINGS, SPEC, Stream, oracle, streamed, tokens

import attngen as ag
from attngen import errors, kv
from attngen.ir import rolling


@once
def compiled(spec: ag.AttentionSpec, target: str) -> Any:
    return ag.compile(spec, target=target, emulate=target != "cpu")


@pytest.mark.parametrize(("target", "dtype"), [
    ("cpu", "float32"), ("cpu", "bfloat16"), ("sm_80", "float32"), ("sm_80", "bfloat16"),
    ("sm_80", "float16")])
@pytest.mark.parametrize("ring", RINGS)
def test_places_past_the_third_lap(ring: tuple[int, int, int, bool], target: str,
                                   dtype: str) -> None:
    stream = Stream(*ring, dtype)
    with only_ours():
        o = stream.decoded(compiled(SPEC, target))
    assert stream.error(o, SPEC) < LIMIT[dtype]


@pytest.mark.parametrize("target", ["cpu", "sm_80"])
def test_scores_see_places(target: str) -> None:
    """Distances are those within the cache, with a rotary embedding and without."""
    spec = ag.AttentionSpec(heads=6, groups=2, head_dim=32, causal=True,
                            score=lambda s, b, h, i, j: s + (j - i) * 0.25)
    attn, (q, k, v) = compiled(spec, target), tokens(60, torch.float32)
    for rope in (None, kv.rope(200, COLUMNS)):
        cache = kv.RollingKVCache(attn, 2, 8, sinks=3, chunk=2, positions="cache",
                                  dtype=torch.float32)
        o = streamed(attn, cache, rope, q, k, v, [2, 1] * 20)
        want = oracle(q, k, v, 8, 3, rope, 0.25)
        torch.testing.assert_close(o.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", ["cpu", "sm_80"])
def test_parts_of_every_zone(target: str) -> None:
    """Any number of parts gives the same values, and each number the same bits every time."""
    attn, (q, k, v) = compiled(SPEC, target), tokens(200, torch.float32)
    rope, found = kv.rope(600, COLUMNS), []
    for parts in (1, 2, 5, 16, 5):
        cache = kv.RollingKVCache(attn, 2, 150, sinks=5, chunk=4, positions="cache",
                                  dtype=torch.float32)
        found.append(streamed(attn, cache, rope, q, k, v, [4] * 50, num_splits=parts)[:, :, 150:])
    assert found[2].equal(found[4])
    for o in found[1:]:
        torch.testing.assert_close(o, found[0], rtol=1e-5, atol=1e-6)


def test_eight_bits_and_lengths_of_their_own() -> None:
    attn, (q, k, v) = compiled(SPEC, "cpu"), tokens(50, torch.float32)
    cache = kv.RollingKVCache(attn, 2, 12, sinks=2, positions="cache", quantize="int8")
    rope = kv.rope(cache.rope_positions, 32)
    cache.append(k[:, :, :40], v[:, :, :40], counts=[40, 7], rope=rope)
    o = attn.decode(q[:, :, 39:40], cache, rope=rope)
    want = torch.cat([oracle(q[b:b + 1, :, 40 - n:40], k[b:b + 1, :, :n], v[b:b + 1, :, :n], 12, 2,
                             rope)[:, :, -1:] for b, n in ((0, 40), (1, 7))])
    assert float((o.double() - want).norm() / want.norm()) < 0.03


@pytest.mark.parametrize("target", ["cpu", "sm_80"])
def test_a_stream_of_a_billion_tokens(target: str) -> None:
    """Tables stay as small, and nothing changes but which lap of the ring it is."""
    attn, (q, k, v) = compiled(SPEC, target), tokens(60, torch.float32)
    found = []
    for skipped in (0, 10 ** 9):
        cache = kv.RollingKVCache(attn, 2, 9, sinks=3, chunk=4, positions="cache",
                                  dtype=torch.float32)
        rope = kv.rope(cache.rope_positions, COLUMNS)
        cache.append(k[:, :, :3], v[:, :, :3], rope=rope)
        cache.lengths += skipped
        cache.append(k[:, :, 3:56], v[:, :, 3:56], rope=rope)
        cache.append(k[:, :, 56:], v[:, :, 56:], rope=rope)
        found.append(attn.decode(q[:, :, 56:], cache, rope=rope))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", ["cpu", "sm_80"])
@pytest.mark.parametrize("interleaved", [False, True])
def test_queries_are_turned_for_any_cache(target: str, interleaved: bool) -> None:
    """``decode(rope=)`` is turning them by hand."""
    attn, (q, k, v) = compiled(SPEC, target), tokens(40, torch.float32)
    rope = kv.rope(64, COLUMNS, interleaved=interleaved)
    for cache in (kv.KVCache(attn, 2, 64, dtype=torch.float32),
                  kv.PagedKVCache(attn, 2, 40, page_size=4, dtype=torch.float32),
                  kv.RollingKVCache(attn, 2, 9, sinks=3, chunk=5, dtype=torch.float32)):
        cache.append(k, v, counts=[40, 33], rope=rope)
        ours = attn.decode(q[:, :, :5], cache, rope=rope)
        at = torch.tensor([[35], [28]]) + torch.arange(5)
        torch.testing.assert_close(ours, attn.decode(rope.rotate(q[:, :, :5], at), cache))
        strided = q.transpose(1, 2).contiguous().transpose(1, 2)[:, :, :5]
        assert attn.decode(strided, cache, rope=rope).equal(ours)


def test_other_heads_on_the_same_cache() -> None:
    """Queries are turned by the kernel of the attention they are for."""
    wide = ag.AttentionSpec(heads=10, groups=2, head_dim=32, causal=True)
    narrow, (_, k, v) = compiled(SPEC, "cpu"), tokens(9, torch.float32)
    q = torch.randn(2, 10, 2, 32)
    cache, rope = kv.KVCache(narrow, 2, 9), kv.rope(9, COLUMNS)
    cache.append(k, v, rope=rope)
    narrow.decode(q[:, :6], cache, rope=rope)
    o = compiled(wide, "cpu").decode(q, cache, rope=rope)
    same = compiled(wide, "cpu").decode(rope.rotate(q, [7, 8]), cache)
    torch.testing.assert_close(o, same)


def test_the_kernel_is_readable() -> None:
    text = compiled(SPEC, "cpu").source("rotate")
    assert "rope_cos" in text and "q_idx" in text
    assert "j_tile" not in text.split("// --")[-1]


def test_a_number_of_the_users_called_zone() -> None:
    zone = ag.dynamic(3, name="zone")
    spec = ag.AttentionSpec(heads=2, head_dim=16, causal=True, mask=lambda b, h, i, j: j >= zone)
    same = ag.AttentionSpec(heads=2, head_dim=16, causal=True, mask=lambda b, h, i, j: j >= 3)
    q, k, v = (torch.randn(1, 2, n, 16) for n in (1, 40, 40))
    o = compiled(spec, "cpu")(q, k, v, num_splits=2)
    assert o.equal(compiled(same, "cpu")(q, k, v, num_splits=2))
    ring = kv.RollingKVCache(compiled(spec, "cpu"), 1, 100)
    ring.append(k, v)
    torch.testing.assert_close(compiled(spec, "cpu").decode(q, ring), o)


def test_parts_are_of_all_zones() -> None:
    assert kv.RollingKVCache.zones == rolling.ZONES and kv.KVCache.zones == 1


def test_refusals() -> None:
    attn, (q, k, v) = compiled(SPEC, "cpu"), tokens(8, torch.float32)
    with pytest.raises(errors.UnknownNameError, match="unknown positions 'cahce'"):
        kv.RollingKVCache(attn, 2, 9, positions="cahce")
    cache = kv.RollingKVCache(attn, 2, 9, sinks=3, chunk=4, positions="cache")
    assert cache.rope_positions == 3 + 9 + 3 + 9 + 6
    with pytest.raises(errors.ShapeError, match="30 are wanted"):
        cache.append(k, v, rope=kv.rope(29, 8))
    assert cache.lengths.tolist() == [0, 0]
    rope = kv.rope(30, 8)
    cache.append(k, v, rope=rope)
    for other in (None, kv.rope(30, 16), kv.rope(30, 8, interleaved=True)):
        with pytest.raises(errors.CapturedError, match="rope is not what"):
            attn.decode(q[:, :, :1], cache, rope=other)
        with pytest.raises(errors.CapturedError, match="rope is not what"):
            cache.append(k, v, rope=other)
    with pytest.raises(errors.DtypeError, match="float32"):
        attn.decode(q[:, :, :1], cache, rope=kv.Rope(rope.cos.double(), rope.sin.double()))
    assert cache.lengths.tolist() == [8, 8]
    cache.clear()
    cache.append(k, v)
    attn.decode(q[:, :, :1], cache)
