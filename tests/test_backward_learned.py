"""Gradients of captured tensors and sinks, and of packed sequences."""

from __future__ import annotations

from typing import Any

import forward_cases
import packed_cases
import pytest
import torch
from backward_cases import compiled, gradcheck
from forward_cases import Case
from torch import Tensor

import attngen as ag
from attngen import errors, scores

Spec = ag.AttentionSpec

# -- what is learned ------------------------------------------------------------------------------

N = 23


def parameter(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator, requires_grad=True)


def _score(kind: str) -> tuple[Any, tuple[Tensor, ...]]:
    """A score with tensors to learn, read in some way."""
    head, bias, row, column = parameter(4), parameter(4, N, N), parameter(2, N), parameter(N, 4)
    return {
        "slopes": (lambda s, b, h, i, j: s + head[h] * (j - i), (head,)),
        "temperature": (lambda s, b, h, i, j: s * torch.exp(head[h]), (head,)),
        "bias": (lambda s, b, h, i, j: s + bias[h, i, j], (bias,)),
        "bias of keys": (lambda s, b, h, i, j: s + column[j, h], (column,)),
        "of queries": (lambda s, b, h, i, j: torch.tanh(s * row[b, i]), (row,)),
        "one twice": (lambda s, b, h, i, j: s * row[b, i] + row[b, j], (row,)),
        "one entry": (lambda s, b, h, i, j: s + head[2] * (i - j), (head,)),
        "several": (lambda s, b, h, i, j: torch.sigmoid(head[h] * s) + bias[h, i, j] * row[b, j],
                    (head, bias, row)),
    }[kind]


@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize("kind", ["slopes", "temperature", "bias", "bias of keys", "of queries",
                                  "one twice", "one entry", "several"])
def test_captured_tensors_learn(kind: str, causal: bool) -> None:
    score, learned = _score(kind)
    spec = Spec(heads=4, groups=2, head_dim=8, causal=causal, score=score)
    assert gradcheck(spec, 2, 19, N, learned)
    assert gradcheck(spec, 2, 9, 15, learned, kv_offset=torch.tensor([3, -5], dtype=torch.int32))


@pytest.mark.parametrize("target", ["cpu", "sm_80"])
def test_learned_tensors_in_a_kernels_own_types(target: str) -> None:
    """Against torch's own operations in float64, on tensors of float32."""
    slopes = torch.tensor([0.1, -0.2, 0.3, 0.05], requires_grad=True)
    bias = torch.randn(4, 50, 70, generator=torch.Generator().manual_seed(0), requires_grad=True)

    def score(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        return s + slopes[h] * (j - i) + bias[h, i, j]

    spec = Spec(heads=4, groups=2, head_dim=32, score=score)
    data = forward_cases.inputs(Case(heads=4, groups=2, head_dim=32, seqlen_q=50, seqlen_k=70))
    o = compiled(spec, target)(data.q, data.k, data.v, q_offset=0)
    dout = torch.randn(o.shape, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad(o, (slopes, bias), dout)
    wide = [t.detach().double().requires_grad_() for t in (slopes, bias)]
    q, k, v = (t.double() for t in (data.q, data.k, data.v))
    k, v = (t.repeat_interleave(2, 1) for t in (k, v))
    at = torch.arange(70) - torch.arange(50)[:, None]
    s = q @ k.mT / 32**0.5 + wide[0][:, None, None] * at + wide[1]
    right = torch.autograd.grad(s.softmax(-1) @ v, wide, dout.double())
    for got, want in zip(ours, right, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=2e-5)


def test_sinks_learn() -> None:
    spec = Spec(heads=4, groups=2, head_dim=8, causal=True, sinks=True)
    assert gradcheck(spec, 2, 20, 11, (parameter(4),))
    sinks = torch.full((4,), float("-inf"), requires_grad=True)
    q, k, v = torch.randn(3, 1, 4, 5, 8).unbind()
    compiled(spec, "cpu")(q, k[:, :2], v[:, :2], sinks=sinks).sum().backward()
    assert sinks.grad is not None and not sinks.grad.any()


def test_names_that_backward_kernels_use_themselves() -> None:
    dout, dlse, dtable_0, delta = (parameter(4) for _ in range(4))
    spec = Spec(heads=4, groups=2, head_dim=8, score=lambda s, b, h, i, j: (
        s * dout[h] + dlse[h] * i + dtable_0[h] * j + delta[h] * (i - j)))
    assert gradcheck(spec, 1, 7, 9, (dout, dlse, dtable_0, delta))


def test_what_only_a_mask_reads_has_gradient_zero() -> None:
    level = torch.zeros(2, requires_grad=True)
    attn = ag.compile(Spec(heads=2, head_dim=8, mask=lambda b, h, i, j: level[h] < i - j), "cpu")
    q = torch.randn(1, 2, 5, 8, requires_grad=True)
    attn(q, q, q).sum().backward()
    assert level.grad is not None and not level.grad.any()


def test_an_index_that_is_computed_is_refused() -> None:
    table = torch.zeros(9, requires_grad=True)
    attn = ag.compile(Spec(heads=1, head_dim=8, score=lambda s, b, h, i, j: s + table[(i - j) % 9]),
                      "cpu")
    q = torch.randn(1, 1, 5, 8)
    o = attn(q, q, q)
    with pytest.raises(errors.NotDeliveredError, match="gradient of table") as refused:
        o.sum().backward()
    assert "detach()" in refused.value.remedy


# -- packed sequences -----------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["cpu", "sm_80"])
@pytest.mark.parametrize("k_lens", [None, (70, 3, 5, 0, 150, 64)], ids=["same", "other keys"])
def test_packed_sequences_have_gradients_of_their_own(
        target: str, k_lens: tuple[int, ...] | None) -> None:
    case = packed_cases.PackedCase(fields={"causal": True, "score": scores.softcap(3.0)},
                                   head_dim=32, k_lens=k_lens)
    attn, data = compiled(case.spec, target), packed_cases.inputs(case)
    given = [t.detach().requires_grad_() for t in data[:3]]
    o = attn(*given, **data.where)
    dout = torch.randn(o.shape, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad(o, given, dout)
    ends = [packed_cases.boundaries(x).tolist() for x in (case.q_lens, case.keys, case.keys)]
    for n in range(len(case.q_lens)):
        parts = [slice(e[n], e[n + 1]) for e in ends]
        alone = [t[:, :, at].detach().requires_grad_() for t, at in zip(given, parts, strict=True)]
        one = attn(*alone)
        want = torch.autograd.grad(one, alone, dout[:, :, parts[0]])
        for got, right, at in zip(found, want, parts, strict=True):
            torch.testing.assert_close(got[:, :, at], right, rtol=1e-5, atol=1e-6)


def test_jagged_tensors_have_gradients() -> None:
    case = packed_cases.PackedCase(fields={"causal": True}, head_dim=16)
    data, offsets = packed_cases.inputs(case), packed_cases.boundaries(case.q_lens).long()
    given = [t.detach().requires_grad_() for t in data[:3]]
    nested = [torch.nested.nested_tensor_from_jagged(t[0], offsets=offsets, jagged_dim=2)
              for t in given]
    attn = compiled(case.spec, "cpu")
    found = torch.autograd.grad(attn(*nested).values().square().sum(), given)
    want = torch.autograd.grad(attn(*given, **data.where).square().sum(), given)
    for got, right in zip(found, want, strict=True):
        torch.testing.assert_close(got, right)


def test_slopes_learn_from_packed_sequences_and_tables_by_position_are_refused() -> None:
    slopes, row = (torch.zeros(n, requires_grad=True) for n in (4, 200))
    case = packed_cases.PackedCase(head_dim=16)
    data = packed_cases.inputs(case)

    def learn(score: Any) -> Tensor:
        attn = ag.compile(Spec(heads=4, groups=2, head_dim=16, score=score), "cpu")
        return attn(*data[:3], **data.where).square().sum()

    (found,) = torch.autograd.grad(learn(lambda s, b, h, i, j: s + slopes[h] * (i - j)), slopes)
    assert bool(found.isfinite().all()) and found.all()
    with pytest.raises(errors.NotDeliveredError, match="packed sequences"):
        learn(lambda s, b, h, i, j: s + row[j]).backward()
