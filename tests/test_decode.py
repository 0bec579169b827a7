"""Few queries against many keys: heads in rows, keys in parts, and what a call makes of them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import forward_cases as cases
import pattern_cases
import pytest
import torch
from forward_cases import Case
from helpers import only_ours
from torch import Tensor

import attngen as ag
from attngen import errors, knobs, masks
from attngen.compiler import Options, lower
from attngen.describe import lengths
from attngen.ir.cost import predict
from attngen.runtime.splits import num_splits, tile_rows
from attngen.runtime.targets import get_target

Spec = ag.AttentionSpec
GQA = Case(heads=8, groups=2, head_dim=64, causal=True, batch=2, seqlen_q=1, seqlen_k=420)


@cache
def compiled(spec: Spec, target: str = "cpu") -> Any:
    return ag.compile(spec, target=target, emulate=target != "cpu")


def kernels(attn: Any) -> list[str]:
    """What the latest call ran."""
    return [k.plan.kind for k in attn._latest.executable.kernels()]


# -- which kernels --------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["cpu", "sm_80"])
def test_a_call_picks_its_kernels(target: str) -> None:
    attn, data = compiled(GQA.spec, target), cases.inputs(GQA)
    long = cases.inputs(replace(GQA, seqlen_q=33))
    with only_ours():
        attn(data.q, data.k, data.v, num_splits=1)
        assert kernels(attn) == ["forward"]
        assert "grid(row/" in str(lower(GQA.spec, Options(target, "float32", rows=8)).placed)
        attn(data.q, data.k, data.v, num_splits=3)
        assert kernels(attn) == ["forward_parts", "combine"]
        attn(long.q, long.k, long.v)
        assert kernels(attn) == ["forward"]


def test_rows_and_parts_follow_from_shapes_and_machine() -> None:
    assert [tile_rows(n, 4) for n in (0, 1, 2, 3, 5, 9, 16, 17)] == [0, 8, 8, 16, 32, 64, 64, 0]
    like, cpu, gpu = torch.empty(0), get_target("cpu"), get_target("sm_90")
    assert [num_splits(cpu, b, n, like) for b, n in ((1, 100), (1, 4096), (8, 4096), (64, 4096))] \
        == [1, 8, 8, 1]
    assert num_splits(gpu, 8, 100, like) == 1 == num_splits(gpu, 1000, 1 << 17, like)
    parts = num_splits(gpu, 8, 1 << 17, like)
    assert 0.85 * 132 * 4 <= 8 * parts <= 132 * 4
    assert num_splits(gpu, 2, 1024, like) == 4


@pytest.mark.parametrize("wanted", [0, -1, 5000])
def test_a_number_of_parts_that_cannot_be(wanted: int) -> None:
    data = cases.inputs(GQA)
    with pytest.raises(errors.ShapeError, match="num_splits"):
        compiled(GQA.spec)(data.q, data.k, data.v, num_splits=wanted)


@pytest.mark.parametrize("how", [{"dropout_p": 0.5}, {"cu_seqlens_q": torch.tensor(
    [0, 1], dtype=torch.int32)}])
def test_calls_that_are_not_cut(how: dict[str, Any]) -> None:
    data = cases.inputs(replace(GQA, batch=1, seqlen_k=1))
    with pytest.raises(errors.NotDeliveredError, match="num_splits=2"):
        compiled(GQA.spec)(data.q, data.k, data.v, num_splits=2, **how)


def test_unfused_is_standard_attention_for_few_queries_too() -> None:
    attn, data = ag.compile(GQA.spec, target="cpu", fuse=False), cases.inputs(GQA)
    assert cases.check(GQA, attn) == []
    assert len(kernels(attn)) == 3
    with pytest.raises(errors.NotDeliveredError):
        attn(data.q, data.k, data.v, num_splits=2)


# -- results --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_cpu(dtype: str) -> None:
    chosen = (*cases.NAMED["few queries"], *cases.NAMED["parts of the keys"])
    for case in chosen if dtype == "float32" else chosen[::3]:
        case = replace(case, dtype=dtype)
        assert cases.check(case, compiled(case.spec)) == []


@pytest.mark.parametrize("target", ["cpu", "sm_80"])
@pytest.mark.parametrize("name", pattern_cases.TOGETHER)
def test_patterns(name: str, target: str) -> None:
    """Every mask and score, in parts, with several queries and with one."""
    fields = pattern_cases.TOGETHER[name]
    dtype = "float32" if target == "cpu" else "bfloat16"
    chosen = pattern_cases.cases(fields, name, calls=[2], dtype=dtype)
    attn = compiled(chosen[0].spec, target)
    for queries, parts in ((1, 2), (5, 3)):
        for case in chosen:
            case = replace(case, seqlen_q=queries, num_splits=parts)
            assert cases.check(case, attn) == []


@pytest.mark.parametrize("target", ["cpu", "sm_80"])
def test_sinks_join_once(target: str) -> None:
    spec = Spec(heads=6, groups=2, head_dim=32, causal=True, sinks=True)
    q, k, v = (torch.randn(2, h, n, 32) for h, n in ((6, 3), (2, 200), (2, 200)))
    sinks = torch.randn(6)
    want, want_lse = ag.reference.attention(spec, q, k, v, sinks=sinks)
    for parts in (1, 2, 7):
        o, lse = compiled(spec, target)(q, k, v, sinks=sinks, num_splits=parts, return_lse=True)
        torch.testing.assert_close(o.double(), want, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(lse.double(), want_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", ["cpu", "sm_80"])
@pytest.mark.parametrize("parts", [1, 2, 3, 8, 16])
def test_the_same_bits_every_time(parts: int, target: str) -> None:
    case = replace(GQA, seqlen_q=2, dtype="bfloat16")
    attn, data = compiled(case.spec, target), cases.inputs(case)
    found = []
    for n in range(4):
        with knobs.scope(seed=n, threads=1 + n % 2):
            found.append(attn(data.q, data.k, data.v, num_splits=parts, return_lse=True))
    assert all(o.equal(found[0][0]) and lse.equal(found[0][1]) for o, lse in found)
    assert cases.complaints(case, data, *found[0]) == []


def test_parts_alone_agree_with_merge() -> None:
    """``combine`` is ``ag.merge`` of the parts."""
    spec = Spec(heads=4, groups=2, head_dim=32)
    q, k, v = (torch.randn(1, h, n, 32).double() for h, n in ((4, 2), (2, 256), (2, 256)))
    attn = compiled(spec)
    o, lse = attn(q, k, v, num_splits=2, return_lse=True)
    halves = [attn(q, k[:, :, s], v[:, :, s], num_splits=1, return_lse=True)
              for s in (slice(0, 128), slice(128, None))]
    torch.testing.assert_close(ag.merge(*halves[0], *halves[1]), (o, lse))


# -- one read for all heads, one kernel for all lengths -------------------------------------------


def test_keys_are_read_once_for_all_heads_of_a_group() -> None:
    """Counted by the emulator, and as the cost model predicts."""
    case = replace(GQA, heads=16, batch=1, seqlen_q=2, seqlen_k=197, dtype="bfloat16")
    attn, data = compiled(case.spec, "sm_80"), cases.inputs(case)
    for parts in (1, 3):
        attn(data.q, data.k, data.v, num_splits=parts)
        once = 2 * 197 * 64 * 2
        assert attn.counters[0].read_by["k"] == attn.counters[0].read_by["v"] == once
        options = Options("sm_80", "bfloat16", rows=16, split=parts > 1)
        placed = lower(case.spec, options).placed
        extents, params = lengths(dict(placed.sizes), 1, 2, 197, parts)
        for cost, counts in zip(predict(placed, extents, params), attn.counters, strict=True):
            assert cost.matrix_instructions == counts.mma
            for tensor, count in cost.read.items():
                lanes = 16 if tensor == "lse_part" else 1  # each lane of a row asks for its number
                assert lanes * count == counts.read_by[tensor]
            assert cost.written == {n: counts.written_by[n] for n in cost.written}


def test_one_kernel_for_all_lengths_and_offsets() -> None:
    attn = ag.compile(GQA.spec, target="cpu")
    for n in range(1, 51):
        case = replace(GQA, seqlen_k=17 * n, q_offset=(n, 5 * n), num_splits=1 + n % 7, seed=n)
        assert cases.check(case, attn) == []
    made = [k for v in attn._variants.values() for k in v.executable.kernels()]
    assert sorted(k.plan.kind for k in made) == ["combine", "forward", "forward_parts"]


def test_heads_with_a_mask_each_are_not_rows_of_one_tile() -> None:
    spec = Spec(heads=4, groups=2, head_dim=32, mask=ag.per_head(
        [masks.sliding_window(9), masks.causal(), masks.sliding_window(70), masks.causal()]))
    assert "grid(i/" in str(lower(spec, Options("cpu", "float32", rows=8, split=True)).placed)
    q, k, v = (torch.randn(2, h, n, 32) for h, n in ((4, 2), (2, 200), (2, 200)))
    torch.testing.assert_close(compiled(spec)(q, k, v, num_splits=3).double(),
                               ag.reference.attention(spec, q, k, v)[0], rtol=1e-5, atol=1e-5)


# -- gradients, and torch.compile -----------------------------------------------------------------


def leaves() -> list[Tensor]:
    return [torch.randn(2, h, n, 32, dtype=torch.float64, requires_grad=True)
            for h, n in ((4, 3), (2, 40), (2, 40))]


def test_gradients() -> None:
    attn = compiled(Spec(heads=4, groups=2, head_dim=32, causal=True))
    assert torch.autograd.gradcheck(
        lambda *x: attn(*x, num_splits=2, return_lse=True), leaves(), fast_mode=True)


def test_compiled_graphs() -> None:
    attn = compiled(Spec(heads=4, groups=2, head_dim=32, causal=True))
    x = leaves()
    want = attn(*x, num_splits=2)
    got = torch.compile(lambda *x: attn(*x, num_splits=2), fullgraph=True)(*x)
    assert got.equal(want)
