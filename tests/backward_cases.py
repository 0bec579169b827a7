"""Gradients of a call against those of the float64 oracle. Used by tests and by the GPU suite."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import forward_cases
import torch
from forward_cases import Case
from torch import Tensor

import attngen as ag
from attngen import reference

FACTOR = 3.0  # times the error of plain torch operations of the same dtype


def alone(case: Case) -> bool:
    """Whether queries see one key alone. Then ds is a difference of equal numbers: plain operations
    cancel exactly, kernels that sum dout·v and dout·o in an order of their own do not. Those cases
    are judged in float64."""
    return case.window in (1, (0, 0)) or case.seqlen_k == 1


def gradients(run: Callable[..., tuple[Tensor, Tensor]], inputs: list[Tensor], dout: Tensor,
              dlse: Tensor) -> tuple[Tensor, ...]:
    """Gradients of ``inputs`` for cotangents of o and lse; where lse is −inf it has none."""
    with torch.enable_grad():
        given = [t.detach().requires_grad_() for t in inputs]
        o, lse = run(*given)
        seen = torch.where(torch.isinf(lse), torch.zeros_like(lse), lse)
        loss = (o * dout.to(o.dtype)).sum() + (seen * dlse.to(lse.dtype)).sum()
        return torch.autograd.grad(loss, given)


def complaints(spec: Any, inputs: list[Tensor], ours: tuple[Tensor, ...], dout: Tensor,
               dlse: Tensor, where: dict[str, Any], factor: float = FACTOR) -> list[str]:
    """What is wrong with gradients of q, k and v; empty when they are right."""
    where = {"kv_offset": 0} | where
    wide = [t.double() for t in inputs]
    right = gradients(lambda *t: reference.attention(spec, *t, **where), wide, dout, dlse)
    naive = gradients(lambda *t: reference.naive(spec, *t, **where), inputs, dout, dlse)
    found = []
    for name, got, want, plain in zip("qkv", ours, right, naive, strict=True):
        if got.dtype != inputs[0].dtype:
            found.append(f"d{name} is {got.dtype}")
        verdict = reference.compare(got, want, plain, factor=factor, name=f"d{name}")
        if not verdict.ok:
            found.append(verdict.report)
    return found


def check(case: Case, there: Any, attn: Callable[..., Any], device: str = "cpu") -> list[str]:
    """Gradients of one call of ``attn``, judged on the cpu. ``there`` is the case with captured
    tensors on ``device``."""
    here, data = forward_cases.inputs(case), forward_cases.inputs(there, device)
    generator = torch.Generator().manual_seed(case.seed + 1)
    heads, rows = case.spec.heads, case.seqlen_q
    assert case.spec.head_dim_v is not None
    dtype = getattr(torch, case.dtype)
    dout = torch.randn(case.batch, heads, rows, case.spec.head_dim_v, generator=generator).to(dtype)
    dlse = torch.randn(case.batch, heads, rows, generator=generator)
    ours = gradients(lambda *t: attn(*t, return_lse=True, **data.where),
                     [data.q, data.k, data.v], dout.to(device), dlse.to(device))
    if not all(t.numel() for t in ours):
        return []
    wrong = complaints(case.spec, [here.q, here.k, here.v], tuple(t.cpu() for t in ours), dout,
                       dlse, here.where)
    return [f"{case}: {line}" for line in wrong]


@cache
def compiled(spec: ag.AttentionSpec, target: str) -> ag.Attention:
    return ag.compile(spec, target, emulate=target != "cpu")


def gradcheck(spec: ag.AttentionSpec, batch: int, q: int, k: int,
              learned: tuple[Tensor, ...] = (), **where: Any) -> bool:
    """torch's gradcheck of o, and of lse where it is finite."""
    torch.manual_seed(0)
    dims = (spec.head_dim, spec.head_dim, spec.head_dim_v)
    heads = (spec.heads, spec.kv_heads, spec.kv_heads)
    inputs = [torch.randn(batch, h, n, d or 0, dtype=torch.float64, requires_grad=True)
              for h, n, d in zip(heads, (q, k, k), dims, strict=True)]
    attn = compiled(spec, "cpu")

    def run(*given: Tensor) -> tuple[Tensor, Tensor]:
        more = {"sinks": given[3]} if spec.sinks else {}
        o, lse = attn(*given[:3], return_lse=True, **more, **where)
        return o, torch.where(torch.isinf(lse), 0.0, lse)

    return torch.autograd.gradcheck(run, (*inputs, *learned), fast_mode=True, atol=1e-6)
