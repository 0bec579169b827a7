"""Tensors and numbers that masks and scores capture: read at each call, never compiled in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import assert_matches_oracle, make_qkv, only_ours
from torch import Tensor

import attngen as ag
from attngen import errors, masks
from attngen.runtime import cxx, nvrtc

TARGETS = [("cpu", "float64"), ("cpu", "float32"), ("cpu", "float16"), ("sm_80", "bfloat16"),
           ("sm_80", "float32")]
INTEGERS = ("uint8", "int8", "int16", "int32", "int64")
FLOATS = ("float16", "bfloat16", "float32", "float64")


def spec(**fields: Any) -> ag.AttentionSpec:
    return ag.AttentionSpec(heads=2, groups=1, head_dim=32, **fields)


def check(s: ag.AttentionSpec, target: str, dtype: str, seqlen_q: int = 45,
          seqlen_k: int = 70, **where: Any) -> ag.attention.Attention:  # type: ignore[name-defined]
    attn = ag.compile(s, target=target, emulate=target != "cpu")
    q, k, v = make_qkv(s, 2, seqlen_q, seqlen_k, dtype=getattr(torch, dtype))
    with only_ours():
        o, lse = attn(q, k, v, return_lse=True, **where)
    assert_matches_oracle(s, q, k, v, o, lse, **where)
    return attn


@pytest.mark.parametrize(("target", "dtype"), TARGETS, ids="-".join)
def test_masks_and_scores_read_tensors(target: str, dtype: str) -> None:
    ids = torch.randint(0, 3, (2, 70))
    keep = torch.rand(70) > 0.3
    table = torch.randn(2, 5)
    bias = torch.randn(70, 2, 45).transpose(0, 2)[..., ::2]  # [q, head, k / 2], strided

    def mask(b: Any, h: Any, i: Any, j: Any) -> Any:
        return (ids[b, i] == ids[b, j]) & keep[j]

    def score(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        return s * 0.5 + table[h, (i - j) % 5] + bias[i - 25, h, j // 2]

    check(spec(mask=mask, score=score, causal=True), target, dtype)


@pytest.mark.parametrize("target", ["cpu", "sm_80"])
@pytest.mark.parametrize("kind", INTEGERS)
def test_integers_of_every_width(target: str, kind: str) -> None:
    ids = torch.randint(0, 3, (70,)).to(getattr(torch, kind))
    if kind == "int64":
        ids = ids * 2**40 + 5  # differences that 32 bits would lose
    check(spec(mask=lambda b, h, i, j: ids[i] == ids[j]), target, "float32", 70)


@pytest.mark.parametrize("target", ["cpu", "sm_80"])
@pytest.mark.parametrize("kind", FLOATS)
def test_floats_of_every_width(target: str, kind: str) -> None:
    slopes = torch.tensor([0.25, -0.125]).to(getattr(torch, kind))
    check(spec(score=lambda s, b, h, i, j: s + slopes[h] * (i - j)), target, "float32")


@pytest.mark.parametrize("target", ["cpu", "sm_80"])
def test_lengths_of_64_bits_bound_a_loop(target: str) -> None:
    check(spec(causal=True, mask=masks.padding(torch.tensor([40, 0]))), target, "float32")


def test_positions_outside_a_table_read_zero() -> None:
    table = torch.full((10,), 3.0)
    s = spec(score=lambda s, b, h, i, j: s + table[i - 30] * table[j])
    attn = ag.compile(s, target="cpu")
    q, k, v = make_qkv(s, 1, 50)

    def padded(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        inside = (i >= 30) & (i < 40) & (j < 10)
        return s + torch.where(inside, 9.0, 0.0)

    assert_matches_oracle(spec(score=padded), q, k, v, attn(q, k, v))


def test_values_lengths_and_tensors_change_without_compiling(
        monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.zeros(80, dtype=torch.int32)
    s = spec(mask=lambda b, h, i, j: ids[i] == ids[j])
    attn = ag.compile(s, target="cpu")
    attn(*make_qkv(s, 2, 80))

    def compiles(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a kernel was compiled")

    monkeypatch.setattr(cxx, "load_text", compiles)
    monkeypatch.setattr(nvrtc, "compile_cubin", compiles)
    for n in range(50):
        length = 24 + n  # with 17 queries and more: few have kernels of their own
        other = torch.randint(0, 1 + n % 4, (length + n,), dtype=torch.int32)
        ids.copy_(torch.randint(0, 3, (80,)))
        q, k, v = make_qkv(s, 1 + n % 3, length - n % 7, length, seed=n)
        assert_matches_oracle(s, q, k, v, attn(q, k, v))
        given = spec(mask=lambda b, h, i, j, ids=other: ids[i] == ids[j])
        assert_matches_oracle(given, q, k, v, attn(q, k, v, params={"ids": other}))


def test_params_by_name() -> None:
    first, second = torch.zeros(9), torch.zeros(9)
    s = spec(score=[lambda s, b, h, i, j, t=first: s + t[i],
                    lambda s, b, h, i, j, t=second: s + t[j]])
    attn = ag.compile(s, target="cpu")
    q, k, v = make_qkv(s, 1, 9)
    with pytest.raises(errors.CapturedError, match="2 captured objects are called 't'"):
        attn(q, k, v, params={"t": first})
    with pytest.raises(errors.UnknownNameError, match="captured name 'slope'"):
        attn(q, k, v, params={"slope": first})


@pytest.mark.parametrize(("given", "error", "text"), [
    (torch.zeros(9, dtype=torch.float64), errors.DtypeError, "bias is torch.float64"),
    (torch.zeros(9, 1), errors.ShapeError, r"bias has shape \(9, 1\)"),
    (torch.zeros(9, device="meta"), errors.DeviceError, "bias is on meta, q is on cpu"),
    ([0.0] * 9, errors.CapturedError, "bias is a list"),
])
def test_captured_tensors_that_do_not_fit(given: Any, error: type[Exception], text: str) -> None:
    bias = torch.zeros(9)
    s = spec(score=lambda s, b, h, i, j: s + bias[j])
    attn = ag.compile(s, target="cpu")
    with pytest.raises(error, match=text):
        attn(*make_qkv(s, 1, 9), params={"bias": given})


def test_a_tensor_read_at_the_batch_entry_has_one_for_each() -> None:
    ids = torch.zeros(2, 9, dtype=torch.int32)
    attn = ag.compile(spec(mask=lambda b, h, i, j: ids[b, i] == ids[b, j]), target="cpu")
    attn(*make_qkv(spec(), 2, 9))
    with pytest.raises(errors.ShapeError, match="ids has 2 entries along dimension 0") as refused:
        attn(*make_qkv(spec(), 3, 9))
    assert "the call has 3" in str(refused.value)
    attn(*make_qkv(spec(), 3, 9), params={"ids": torch.zeros(3, 9, dtype=torch.int32)})
    q, k, v = make_qkv(spec(), 1, 9)
    cu = torch.tensor([0, 4, 5, 9], dtype=torch.int32)
    with pytest.raises(errors.ShapeError, match="the call has 3"):
        attn(q, k, v, cu_seqlens_q=cu)


def test_a_dynamic_number_is_an_argument() -> None:
    width, cap = ag.dynamic(8, name="w"), ag.dynamic(30.0)
    s = spec(mask=lambda b, h, i, j: i - j < width * 2,
             score=lambda s, b, h, i, j: cap * torch.tanh(s / cap))
    for target in ("cpu", "sm_80"):
        attn = check(s, target, "float32")
        before = attn.source()
        width.value, cap.value = 3, 1.5
        q, k, v = make_qkv(s, 1, 40)
        assert_matches_oracle(s, q, k, v, attn(q, k, v))
        assert attn.source() == before
        width.value = 5
        wanted = attn(q, k, v)
        width.value = 8
        assert torch.equal(wanted, attn(q, k, v, params={"w": 5}))
    with pytest.raises(errors.DtypeError, match="w is 2.5, the kernel was compiled for a whole"):
        attn(q, k, v, params={"w": 2.5})


def test_hostile_names_stay_out_of_the_text() -> None:
    evil = torch.zeros(9)
    namespace: dict[str, Any] = {"x); __trap(); (": evil}
    exec("def score(s, b, h, i, j): return s + globals()['x); __trap(); ('][j]", namespace)
    text = ag.compile(spec(score=namespace["score"]), target="sm_80").source()
    assert "__trap" not in text


@pytest.mark.parametrize("name", ["do", "int", "q", "params", "kv_len", "q_stride_b", "acc", "i"])
def test_names_the_kernel_uses_itself(name: str) -> None:
    """A captured tensor may be called anything a variable can be."""
    namespace: dict[str, Any] = {name: torch.randn(70)}
    exec(f"def score(s, b, h, q_idx, kv_idx): return s + {name}[kv_idx]", namespace)
    check(spec(score=namespace["score"]), "cpu", "float32")
    check(spec(score=namespace["score"]), "sm_80", "float16")
