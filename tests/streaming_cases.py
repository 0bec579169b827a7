"""Attention over the tokens that a ring keeps, side by side and turned by their places there: what
streaming decodings are judged by. Used by tests and by the GPU suite."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

import attngen as ag
from attngen import kv

SPEC = ag.AttentionSpec(heads=6, groups=2, head_dim=32, causal=True)
COLUMNS = 24  # that are turned
LIMIT = {"float32": 2e-6, "bfloat16": 1.5e-2, "float16": 2e-3}  # of values about 1
# window, sinks, chunk, interleaved
RINGS = ((9, 3, 4, False), (9, 0, 1, True), (1, 2, 16, False), (20, 40, 7, True),
         (70, 4, 1, False))


def tokens(n: int, dtype: torch.dtype, spec: ag.AttentionSpec = SPEC) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    return [torch.randn(2, heads, n, spec.head_dim, generator=generator).to(dtype)
            for heads in (spec.heads, spec.kv_heads, spec.kv_heads)]


def oracle(q: Tensor, k: Tensor, v: Tensor, window: int, sinks: int, rope: kv.Rope | None,
           slope: float = 0.0) -> Tensor:
    """In float64, one query after the other."""
    out = []
    for i in range(q.shape[2]):
        kept = [j for j in range(i + 1) if j < sinks or j > i - window]
        place = torch.arange(len(kept))
        x, y, z = q[:, :, i:i + 1].double(), k[:, :, kept].double(), v[:, :, kept].double()
        if rope is not None:
            x, y = _turned(x, place[-1:], rope), _turned(y, place, rope)
        y, z = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (y, z))
        s = x @ y.transpose(-1, -2) * q.shape[3] ** -0.5 + slope * (place - place[-1])
        out.append(s.softmax(-1) @ z)
    return torch.cat(out, 2)


def _turned(x: Tensor, place: Tensor, rope: kv.Rope) -> Tensor:
    """Pairs of columns as complex numbers, times exp(i·angle)."""
    n = rope.rotary_dim
    f = 10000.0 ** (-torch.arange(0, n, 2, dtype=torch.float64) / n)
    angle = torch.polar(torch.ones(len(place), n // 2, dtype=torch.float64), place[:, None] * f)
    a, b = (x[..., 0:n:2], x[..., 1:n:2]) if rope.interleaved else (
        x[..., :n // 2], x[..., n // 2:n])
    z = torch.complex(a, b) * angle
    pair = torch.stack((z.real, z.imag), -1 if rope.interleaved else -2).flatten(-2)
    return torch.cat((pair, x[..., n:]), -1)


def streamed(attn: Any, cache: Any, rope: kv.Rope | None, q: Tensor, k: Tensor, v: Tensor,
             steps: list[int], **how: Any) -> Tensor:
    found, at = [], 0
    for n in steps:
        part = slice(at, at + n)
        cache.append(k[:, :, part], v[:, :, part], rope=rope)
        found.append(attn.decode(q[:, :, part], cache, rope=rope, **how))
        at += n
    return torch.cat(found, 2)


def steps_of(chunk: int, total: int) -> list[int]:
    steps = [1 + n % chunk for n in range(total)]
    while sum(steps) > total:
        steps.pop()
    return steps


class Stream(NamedTuple):
    """Tokens that go past the third lap of a ring."""

    window: int
    sinks: int
    chunk: int
    interleaved: bool
    dtype: str

    def tokens(self, spec: ag.AttentionSpec) -> list[Tensor]:
        return tokens(sum(self.steps()), getattr(torch, self.dtype), spec)

    def steps(self) -> list[int]:
        return steps_of(self.chunk, self.sinks + 3 * (self.window + self.chunk) + 20)

    def decoded(self, attn: Any, device: str = "cpu") -> Tensor:
        """What ``attn`` makes of them there."""
        cache = kv.RollingKVCache(attn, 2, self.window, sinks=self.sinks, chunk=self.chunk,
                                  positions="cache", dtype=getattr(torch, self.dtype),
                                  device=device)
        rope = kv.rope(cache.rope_positions, COLUMNS, interleaved=self.interleaved, device=device)
        new = (t.to(device) for t in self.tokens(attn.spec))
        return streamed(attn, cache, rope, *new, self.steps())

    def error(self, o: Tensor, spec: ag.AttentionSpec) -> float:
        """The largest of a result."""
        rope = kv.rope(1, COLUMNS, interleaved=self.interleaved)
        want = oracle(*self.tokens(spec), self.window, self.sinks, rope)
        return float((o.cpu().double() - want).abs().max())
