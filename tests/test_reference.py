"""The oracle against the definition written as loops over Python numbers, and its edge cases."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import assert_close, assert_matches_oracle, make_qkv, only_ours
from torch import Tensor

from attngen import masks, reference, scores
from attngen.spec import AttentionSpec

INF = float("inf")


def by_loops(spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor, sees: Any, score: Any,
             q_offset: list[int], kv_offset: list[int],
             lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Attention one query at a time in Python floats; ``sees`` and ``score`` take numbers."""
    batch, heads, seqlen_q, _ = q.shape
    o = torch.zeros(batch, heads, seqlen_q, v.shape[-1], dtype=torch.float64)
    lse = torch.full((batch, heads, seqlen_q), -INF, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            g = spec.kv_head(h)
            for n in range(seqlen_q):
                i = q_offset[b] + n
                row = {}
                for m in range(min(lengths[b], k.shape[2])):
                    j = kv_offset[b] + m
                    if sees(b, h, i, j):
                        dot = math.fsum(x * y for x, y in zip(
                            q[b, h, n].tolist(), k[b, g, m].tolist(), strict=True))
                        row[m] = score(spec.softmax_scale * dot, b, h, i, j)
                if row:
                    total = math.fsum(math.exp(s) for s in row.values())
                    lse[b, h, n] = math.log(total)
                    for m, s in row.items():
                        o[b, h, n] += math.exp(s) / total * v[b, g, m].double()
    return o, lse


def alibi_slope(h: int, heads: int) -> float:
    """Slopes as the paper's authors publish them, by recursion on powers of two."""
    if heads & (heads - 1) == 0:
        return 2 ** (-(h + 1) * 2 ** -(math.log2(heads) - 3))
    nearest = 2 ** math.floor(math.log2(heads))
    return (alibi_slope(h, nearest) if h < nearest
            else alibi_slope(2 * (h - nearest), 2 * nearest))


CASES: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "plain": ({}, lambda b, h, i, j: True, lambda s, b, h, i, j: s),
    "causal, uneven groups": (
        {"causal": True, "groups": (0, 0, 0, 1, 1, 2)},
        lambda b, h, i, j: j <= i, lambda s, b, h, i, j: s),
    "window, MQA, own v size, scale": (
        {"window": (2, 1), "groups": 1, "head_dim_v": 16, "scale": 0.7},
        lambda b, h, i, j: -1 <= i - j <= 2, lambda s, b, h, i, j: s),
    "causal and window and mask, scores in order": (
        {"causal": True, "window": 4, "groups": 3, "mask": ~masks.chunked(3),
         "score": [scores.softcap(0.5), lambda s, b, h, q_idx, kv_idx: s + 0.1 * b, scores.alibi(),
                   scores.temperature(0.5)]},
        lambda b, h, i, j: j <= i and i - j <= 3 and i // 3 != j // 3,
        lambda s, b, h, i, j: (0.5 * math.tanh(s / 0.5) + 0.1 * b
                               - alibi_slope(h, 6) * abs(i - j)) / 0.5),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seqlens", [(5, 7), (7, 5), (1, 9)])
@pytest.mark.parametrize("where", ["default", "ints", "tensors"])
def test_oracle_matches_loops(case: str, seqlens: tuple[int, int], where: str) -> None:
    fields, sees, score = CASES[case]
    spec = AttentionSpec(**{"heads": 6, "head_dim": 8, **fields})
    q, k, v = make_qkv(spec, 2, *seqlens)
    shift = seqlens[1] - seqlens[0]
    given: dict[str, Any] = {
        "default": {}, "ints": {"q_offset": 2, "kv_offset": -3, "seqlens_k": 4},
        "tensors": {"kv_offset": torch.tensor([1, -4], dtype=torch.int32),
                    "seqlens_k": torch.tensor([3, 0], dtype=torch.int32)}}[where]
    at: tuple[list[int], list[int], list[int]] = {
        "default": ([shift] * 2, [0, 0], [99, 99]), "ints": ([2, 2], [-3, -3], [4, 4]),
        "tensors": ([1 + shift, -4 + shift], [1, -4], [3, 0])}[where]
    o, lse = reference.attention(spec, q, k, v, **given)
    want_o, want_lse = by_loops(spec, q, k, v, sees, score, *at)
    torch.testing.assert_close(o, want_o, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(lse, want_lse, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("heads", [1, 2, 6, 7, 8, 12, 32])
def test_alibi_slopes_are_the_published_ones(heads: int) -> None:
    mod = scores.alibi(heads)
    with reference._numbers_as(torch.float64):
        got = mod(torch.zeros(heads, dtype=torch.float64), 0, torch.arange(heads), 0, 1)
    want = [-alibi_slope(h, heads) for h in range(heads)]
    assert got.tolist() == pytest.approx(want, rel=1e-14)


def test_visible_has_the_full_shape_and_default_is_bottom_right_causal() -> None:
    spec = AttentionSpec(heads=2, head_dim=8, causal=True)
    seen = reference.visible(spec, 3, 2, 4)
    assert seen.shape == (3, 2, 2, 4)
    assert seen[0, 0].tolist() == [[True, True, True, False], [True, True, True, True]]
    assert reference.visible(spec, 1, 2, 4, q_offset=0)[0, 0].sum(-1).tolist() == [1, 2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_nothing_visible_gives_zero_and_minus_infinity_and_finite_gradients(
        dtype: torch.dtype) -> None:
    spec = AttentionSpec(heads=2, head_dim=8, causal=True, score=scores.softcap(20))
    q, k, v = (x.requires_grad_() for x in make_qkv(spec, 1, 6, 3, dtype=dtype))
    for compute in (reference.attention, reference.naive):
        o, lse = compute(spec, q, k, v)
        assert (o[:, :, :3] == 0).all() and (lse[:, :, :3] == -INF).all()
        assert torch.isfinite(o).all() and torch.isfinite(lse[:, :, 3:]).all()
        grads = torch.autograd.grad(o.sum(), (q, k, v))
        assert all(torch.isfinite(g).all() for g in grads) and (grads[0][:, :, :3] == 0).all()


def test_a_score_of_minus_infinity_everywhere_is_nothing_visible() -> None:
    spec = AttentionSpec(heads=1, head_dim=8, score=lambda s, b, h, q_idx, kv_idx: s - INF)
    o, lse = reference.attention(spec, *make_qkv(spec, 1, 2))
    assert (o == 0).all() and (lse == -INF).all()


@pytest.mark.parametrize("seqlen_q, seqlen_k", [(0, 5), (3, 0), (0, 0)])
def test_empty_sequences(seqlen_q: int, seqlen_k: int) -> None:
    spec = AttentionSpec(heads=4, groups=2, head_dim=8, head_dim_v=24)
    q, k, v = make_qkv(spec, 2, seqlen_q, seqlen_k)
    o, lse = reference.attention(spec, q, k, v)
    assert o.shape == (2, 4, seqlen_q, 24) and (o == 0).all()
    assert lse.shape == (2, 4, seqlen_q) and (lse == -INF).all()


def test_values_of_hidden_keys_do_not_reach_a_query_not_even_nan() -> None:
    spec = AttentionSpec(heads=1, head_dim=8, causal=True)
    q, k, v = make_qkv(spec, 1, 4)
    clean, _ = reference.attention(spec, q, k, v)
    k[:, :, 3], v[:, :, 3] = float("nan"), float("nan")
    o, _ = reference.attention(spec, q, k, v)
    torch.testing.assert_close(o[:, :, :3], clean[:, :, :3], rtol=1e-14, atol=1e-14)
    assert torch.isnan(o[:, :, 3]).all()


def test_naive_keeps_the_dtype_and_is_close() -> None:
    spec = AttentionSpec(heads=4, groups=2, head_dim=16, causal=True, score=scores.alibi())
    for dtype, within in ((torch.bfloat16, 0.05), (torch.float32, 1e-5), (torch.float64, 1e-13)):
        q, k, v = make_qkv(spec, 1, 33, dtype=dtype)
        o, lse = reference.naive(spec, q, k, v)
        ref, _ = reference.attention(spec, q, k, v)
        assert o.dtype == dtype
        assert lse.dtype == (dtype if dtype == torch.float64 else torch.float32)
        assert 0 < float((o.double() - ref).abs().max()) <= within


def test_matches_torch_where_torch_has_the_same_meaning() -> None:
    spec = AttentionSpec(heads=4, groups=2, head_dim=16, causal=True)
    q, k, v = make_qkv(spec, 2, 9, dtype=torch.float64)
    o, _ = reference.attention(spec, q, k, v)
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True,
                                                            enable_gqa=True)
    torch.testing.assert_close(o, want)


# -- the judgement --------------------------------------------------------------------------------


def test_compare_accepts_twice_the_naive_error_and_no_more() -> None:
    ref = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(1, 2, 3, 4)
    naive = (ref + 0.01).to(torch.bfloat16)
    assert reference.compare((ref + 0.02).float(), ref, naive).ok
    verdict = reference.compare((ref + 0.03).float(), ref, naive)
    assert not verdict.ok and verdict.error == pytest.approx(0.03, rel=1e-3)
    assert reference.compare((ref + 0.03).float(), ref, naive, factor=3.0).ok


def test_compare_allows_only_rounding_when_naive_is_exact() -> None:
    ref = torch.linspace(-1, 1, 24, dtype=torch.float64)
    for dtype, good, bad in ((torch.bfloat16, 2e-3, 9e-3), (torch.float32, 5e-7, 2e-6)):
        exact = ref.to(dtype).double()
        assert reference.compare(exact + good, exact, exact.to(dtype)).ok
        assert not reference.compare(exact + bad, exact, exact.to(dtype)).ok


def test_report_names_the_worst_and_the_first_wrong_elements() -> None:
    ref = torch.zeros(1, 2, 3, 4, dtype=torch.float64)
    ours = ref.clone()
    ours[0, 1, 2, 3], ours[0, 0, 1, 0], ours[0, 0, 0, 2] = 5.0, 1.0, float("nan")
    report = reference.compare(ours, ref, ref.float(), name="o").report
    assert "o: 3 of 24 elements are off" in report and "not finite where the oracle is: 1" in report
    assert "worst:\n    (0, 0, 0, 2): ours nan" in report
    assert "(0, 1, 2, 3): ours 5, expected 0, off by 5" in report


@pytest.mark.parametrize("ours, ok", [([-INF, 1.0], True), ([-1e30, 1.0], False),
                                      ([-INF, INF], False), ([-INF, float("nan")], False)])
def test_infinities_must_agree(ours: list[float], ok: bool) -> None:
    ref = torch.tensor([-INF, 1.0], dtype=torch.float64)
    assert reference.compare(torch.tensor(ours), ref, ref.float()).ok is ok


def test_wrong_shape_is_a_failure_not_a_broadcast() -> None:
    ref = torch.zeros(2, 3, dtype=torch.float64)
    assert "shape (1, 3)" in reference.compare(torch.zeros(1, 3), ref, ref).report


def test_helpers_judge_and_forbid() -> None:
    spec = AttentionSpec(heads=2, head_dim=8, causal=True)
    q, k, v = make_qkv(spec, 1, 5, 8)
    o, lse = reference.naive(spec, q, k, v)
    assert_matches_oracle(spec, q, k, v, o, lse)
    with pytest.raises(AssertionError, match="o: .* elements are off"):
        assert_matches_oracle(spec, q, k, v, o, lse, q_offset=0)
    with pytest.raises(AssertionError, match="lse: "):
        assert_matches_oracle(spec, q, k, v, o, lse + 0.1)
    with pytest.raises(AssertionError, match="shape"):
        assert_close(o[:, :1], o, o)
    with only_ours(), pytest.raises(AssertionError, match="__matmul__ was called"):
        q @ k.mT
    with only_ours(), pytest.raises(AssertionError, match="softmax was called"):
        q.softmax(-1)
    q @ k.mT
