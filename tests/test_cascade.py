"""Merging parts of attention: against attention over all keys at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import attngen as ag
from attngen import errors, reference

Spec = ag.AttentionSpec
CUTS = ((0, 20, 50), (0, 1, 2, 50), (0, 0, 50), (0, 50))


def tensors(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, h, n, 16, generator=generator, dtype=torch.float64).to(dtype)
            .requires_grad_() for h, n in ((4, 30), (2, 50), (2, 50))]


def in_parts(attn: ag.Attention, cuts: tuple[int, ...], q: Tensor, k: Tensor,  # type: ignore[name-defined]
             v: Tensor, sinks: Tensor | None = None) -> tuple[Tensor, Tensor]:
    found: list[Tensor] = []
    for first, end in zip(cuts[:-1], cuts[1:], strict=True):
        more = {} if sinks is None else {"sinks": sinks if not first else sinks - torch.inf}
        found += attn(q, k[:, :, first:end], v[:, :, first:end], q_offset=q.shape[2] - 10,
                      kv_offset=first, return_lse=True, **more)
    return ag.merge(*found)


@pytest.mark.parametrize("cuts", CUTS)
def test_parts_make_the_whole(cuts: tuple[int, ...]) -> None:
    spec = Spec(heads=4, groups=2, head_dim=16, causal=True)
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v = tensors(dtype)
        o, lse = in_parts(ag.compile(spec, "cpu"), cuts, q, k, v)
        where = {"q_offset": 20}
        right, naive = (f(spec, q, k, v, **where) for f in (reference.attention, reference.naive))
        for name, *some in zip(("o", "lse"), (o, lse), right, naive, strict=True):
            assert not reference.compare(*some, name=name).report
        assert o.dtype == dtype and lse.dtype == torch.float32


def test_a_sink_joins_once() -> None:
    spec = Spec(heads=4, groups=2, head_dim=16, causal=True, sinks=True)
    q, k, v = tensors()
    sinks = torch.randn(4)
    o, lse = in_parts(ag.compile(spec, "cpu"), (0, 20, 50), q, k, v, sinks)
    right = reference.attention(spec, q, k, v, q_offset=20, sinks=sinks)
    torch.testing.assert_close(o.double(), right[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(lse.double(), right[1], rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_the_whole() -> None:
    attn = ag.compile(Spec(heads=4, groups=2, head_dim=16, causal=True), "cpu")
    given = tensors(torch.float64)

    def run(*t: Tensor) -> tuple[Tensor, Tensor]:
        return in_parts(attn, (0, 20, 50), *t)

    assert torch.autograd.gradcheck(run, given, fast_mode=True)
    for part in (0, 1):
        whole = attn(*given, q_offset=20, return_lse=True)[part]
        want = torch.autograd.grad(whole.square().sum(), given, allow_unused=True)
        found = torch.autograd.grad(run(*given)[part].square().sum(), given, allow_unused=True)
        for got, right in zip(found, want, strict=True):
            if right is not None:
                torch.testing.assert_close(got, right)


def test_where_nothing_is_seen() -> None:
    o = torch.zeros(3, 4, requires_grad=True)
    lse = torch.tensor([-torch.inf, 0.5, -torch.inf], requires_grad=True)
    other, log = torch.ones(3, 4), torch.tensor([-torch.inf, -torch.inf, 1.0])
    joined, whole = ag.merge(o, lse, other, log)
    assert joined.detach().equal(torch.tensor([0.0, 0.0, 1.0])[:, None].expand(3, 4))
    assert whole.detach().equal(torch.tensor([-torch.inf, 0.5, 1.0]))
    joined.sum().backward()
    assert lse.grad is not None and bool(lse.grad.isfinite().all())
    assert o.grad is not None and o.grad[:, 0].equal(torch.tensor([0.0, 1.0, 0.0]))


def test_large_logits_do_not_overflow() -> None:
    o, lse = torch.ones(2, 3), torch.tensor([800.0, -800.0])
    joined, whole = ag.merge(o, lse, 3 * o, lse)
    torch.testing.assert_close(joined, 2 * o)
    torch.testing.assert_close(whole, lse + torch.tensor(2.0).log())


def test_one_part_is_itself() -> None:
    o, lse = torch.randn(2, 3), torch.randn(2)
    joined, whole = ag.merge(o, lse)
    assert joined.equal(o) and whole.equal(lse)


@pytest.mark.parametrize(("given", "error", "message"), [
    ((torch.ones(2, 3), torch.ones(2), torch.ones(2, 3)), errors.ShapeError, "3 tensors"),
    ((torch.ones(2, 3), torch.ones(3)), errors.ShapeError, r"part 1 has o \(2, 3\) and lse \(3,\)"),
    ((torch.ones(2, 3), torch.ones(2), torch.ones(1, 3), torch.ones(1)), errors.ShapeError,
     "part 2"),
    ((torch.ones(2, 3), torch.ones(2).half()), errors.DtypeError, "float32 or float64"),
    ((torch.ones(2, 3), torch.ones(2), torch.ones(2, 3), torch.ones(2).double()),
     errors.DtypeError, "part 2 has lse of torch.float64"),
])
def test_what_is_refused(given: tuple[Tensor, ...], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        ag.merge(*given)
