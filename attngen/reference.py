"""The oracle: attention written from its definition, in float64 and without any cleverness.

It shares nothing with the compiler but the user's own callables, evaluated here on index tensors.
``attention`` is what is right; ``naive`` is the same formula in the tensors' own dtype, whose error
is the yardstick; ``compare`` judges a result by the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .spec import AttentionSpec

Offset = int | Tensor | None


@dataclass(frozen=True)
class Positions:
    """Index tensors that broadcast to [batch, heads, seqlen_q, seqlen_k], int64."""

    b: Tensor  # [batch, 1, 1, 1]
    h: Tensor  # [1, heads, 1, 1]
    q_idx: Tensor  # [batch or 1, 1, seqlen_q, 1]
    kv_idx: Tensor  # [batch or 1, 1, 1, seqlen_k]
    within: Tensor  # [batch or 1, 1, 1, seqlen_k], false where seqlens_k hides the key
    q_start: Tensor  # [batch or 1, 1, 1, 1], where the first query sits; k_start likewise
    k_start: Tensor


def _per_batch(value: int | Tensor, device: torch.device) -> Tensor:
    """An int or a [batch] tensor as int64 [batch or 1, 1, 1, 1]."""
    return torch.as_tensor(value, device=device).to(torch.int64).reshape(-1, 1, 1, 1)


def positions(spec: AttentionSpec, batch: int, seqlen_q: int, seqlen_k: int, *,
              q_offset: Offset = None, kv_offset: int | Tensor = 0, seqlens_k: Offset = None,
              device: torch.device | str = "cpu") -> Positions:
    """Where every query and key sits. Offsets and ``seqlens_k`` are ints or [batch] tensors.

    Query i is at q_offset + i, by default q_offset = kv_offset + seqlen_k − seqlen_q; key j at
    kv_offset + j. ``seqlens_k`` counts keys from the tensor's start and moves nothing.
    """
    device = torch.device(device)
    start_k = _per_batch(kv_offset, device)
    start_q = (start_k + (seqlen_k - seqlen_q) if q_offset is None
               else _per_batch(q_offset, device))
    i = torch.arange(seqlen_q, device=device).reshape(1, 1, -1, 1)
    j = torch.arange(seqlen_k, device=device).reshape(1, 1, 1, -1)
    limit = _per_batch(seqlen_k if seqlens_k is None else seqlens_k, device)
    return Positions(torch.arange(batch, device=device).reshape(-1, 1, 1, 1),
                     torch.arange(spec.heads, device=device).reshape(1, -1, 1, 1),
                     start_q + i, start_k + j, j < limit, start_q, start_k)


def _visible(spec: AttentionSpec, at: Positions, shape: tuple[int, ...]) -> Tensor:
    result = at.within
    for _, mask_mod in spec.mask_mods():
        result = result & mask_mod(at.b, at.h, at.q_idx, at.kv_idx)
    return result.expand(shape)


def visible(spec: AttentionSpec, batch: int, seqlen_q: int, seqlen_k: int,
            **where: Any) -> Tensor:
    """Which keys each query sees: bool [batch, heads, seqlen_q, seqlen_k].

    ``where`` takes q_offset, kv_offset, seqlens_k and device as ``positions`` does.
    """
    at = positions(spec, batch, seqlen_q, seqlen_k, **where)
    return _visible(spec, at, (batch, spec.heads, seqlen_q, seqlen_k))


@contextmanager
def _numbers_as(dtype: torch.dtype) -> Iterator[None]:
    """Index arithmetic such as ``h / 8`` yields torch's default dtype: make it this one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def attention(spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor, *, q_offset: Offset = None,
              kv_offset: int | Tensor = 0, seqlens_k: Offset = None,
              sinks: Tensor | None = None, dropout_p: float = 0.0,
              seed: int = 0) -> tuple[Tensor, Tensor]:
    """Attention in float64, differentiable.

    q [batch, heads, seqlen_q, head_dim], k [batch, kv_heads, seqlen_k, head_dim],
    v [batch, kv_heads, seqlen_k, head_dim_v] of any floating dtype. Returns o
    [batch, heads, seqlen_q, head_dim_v] and lse [batch, heads, seqlen_q] (natural log), both
    float64. A query that sees nothing has o = 0 and lse = −inf; values of keys it does not see do
    not reach it, not even NaN. ``sinks`` [heads] are logits of one more column of the softmax,
    which has no value. ``dropout_p`` and ``seed`` as for a call of an ``Attention``.
    """
    at = positions(spec, q.shape[0], q.shape[2], k.shape[2], q_offset=q_offset,
                   kv_offset=kv_offset, seqlens_k=seqlens_k, device=q.device)
    return _attend(spec, at, q.double(), k.double(), v.double(),
                   None if sinks is None else sinks.double(),
                   _kept(at, dropout_p, seed))


def naive(spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor, *, q_offset: Offset = None,
          kv_offset: int | Tensor = 0, seqlens_k: Offset = None,
          sinks: Tensor | None = None, dropout_p: float = 0.0,
          seed: int = 0) -> tuple[Tensor, Tensor]:
    """The same formula as unfused torch operations in the tensors' own dtype.

    Returns o in that dtype and lse in float32 (float64 for float64), as kernels do. In float64 this
    would be the oracle itself, and off by nothing: there the products of q and k are summed in the
    opposite order, so that the difference shows what float64 is worth for these tensors.
    """
    at = positions(spec, q.shape[0], q.shape[2], k.shape[2], q_offset=q_offset,
                   kv_offset=kv_offset, seqlens_k=seqlens_k, device=q.device)
    if q.dtype == torch.float64:
        q, k = q.flip(-1), k.flip(-1)
    return _attend(spec, at, q, k, v, sinks, _kept(at, dropout_p, seed))


def _attend(spec: AttentionSpec, at: Positions, q: Tensor, k: Tensor, v: Tensor,
            sinks: Tensor | None, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    heads = torch.tensor([spec.kv_head(h) for h in range(spec.heads)], device=q.device)
    k, v = k[:, heads], v[:, heads]
    s = torch.matmul(q, k.transpose(-1, -2)) * spec.softmax_scale  # [batch, heads, i, j]
    with _numbers_as(wide):
        for _, score_mod in spec.score_mods():
            s = score_mod(s, at.b, at.h, at.q_idx, at.kv_idx).to(q.dtype)
    seen = _visible(spec, at, tuple(s.shape))
    s = torch.where(seen, s, float("-inf"))
    if sinks is not None:
        column = sinks.to(s.dtype).reshape(1, -1, 1, 1).expand(*s.shape[:3], 1)
        s = torch.cat([s, column], -1)
    lse = torch.logsumexp(s.to(wide), -1)
    # A row with nothing to see has NaN in its softmax; a score may also be −inf by itself.
    seen = seen & (lse != float("-inf")).unsqueeze(-1)
    p = torch.where(seen, torch.softmax(s, -1)[..., :seen.shape[-1]], 0.0)
    if kept is not None:
        p = p * kept.to(p.dtype)
    if bool(torch.isfinite(v).all()):
        return torch.matmul(p, v), lse
    # 0 · NaN is NaN: sum the visible products alone.
    products = torch.where(seen.unsqueeze(-1), p.unsqueeze(-1) * v.unsqueeze(-3), 0.0)
    return products.sum(-2), lse


# -- dropout ------------------------------------------------------------------------------------


def uniform(seed: int, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """In [0, 1): 24 bits of Philox4x32-7 with the seed as its key. The counter is (k, q, h, b)
    with the bit that is worth 8 cleared in k and q; these two bits choose one of its four words.
    b, h, q and k are int64 and broadcast; the result is float64."""
    full = 2**32 - 1

    def times(x: Tensor, by: int) -> tuple[Tensor, Tensor]:
        """The upper and lower word of a product, of which an int64 holds 48 bits."""
        low, high = x * (by & 0xFFFF), x * (by >> 16)
        middle = high + (low >> 16)
        return middle >> 16, (middle & 0xFFFF) << 16 | low & 0xFFFF

    x = [k & full & ~8, q & full & ~8, h & full, b & full]
    key = [seed & full, seed >> 32 & full]
    for _ in range(7):
        (high_0, low_0), (high_2, low_2) = times(x[0], 0xD2511F53), times(x[2], 0xCD9E8D57)
        x = [high_2 ^ x[1] ^ key[0], low_2, high_0 ^ x[3] ^ key[1], low_0]
        key = [key[0] + 0x9E3779B9 & full, key[1] + 0xBB67AE85 & full]
    word = torch.where(q & 8 != 0, torch.where(k & 8 != 0, x[3], x[2]),
                       torch.where(k & 8 != 0, x[1], x[0]))
    return (word >> 8).double() / 2**24


def _kept(at: Positions, p: float, seed: int) -> Tensor | None:
    """What probabilities are multiplied by: 0, or 1/(1 − p). Positions for it begin at multiples of
    16; p is compared in float32."""
    if p == 0:
        return None

    u = uniform(seed, at.b, at.h, at.q_idx - at.q_start % 16, at.kv_idx - at.k_start % 16)
    threshold = torch.tensor(p, dtype=torch.float32).double().to(u.device)
    return (u >= threshold).double() * (1 / (1 - p) if p < 1 else 0.0)


# -- judging a result ---------------------------------------------------------------------------

# Rounding allowed beside the naive error: this many eps of the dtype, times max|ref| or the floor.
# It matters where the naive result happens to be exact: half of the last place when rounding a
# 16-bit output; a few places of float32, whose exp2 and log2 on a GPU are good to about two.
_SMALL = {torch.bfloat16: (0.5, 0.0), torch.float16: (0.5, 0.0),
          torch.float32: (8.0, 1.0), torch.float64: (64.0, 1.0)}


@dataclass(frozen=True)
class Comparison:
    """Verdict on one tensor: ``ok``, its largest error, what was allowed, and why not."""

    ok: bool
    error: float
    allowed: float
    naive_error: float
    report: str


def compare(ours: Tensor, ref: Tensor, naive: Tensor, *, factor: float = 2.0,
            name: str = "result") -> Comparison:
    """The rule: max|ours − ref| ≤ factor · max|naive − ref| + small.

    ``ref`` is the float64 oracle, ``naive`` the same formula in the tensors' dtype; ``small`` is
    rounding of ``naive``'s dtype (see _SMALL). Where ref is infinite ours must be equal to it,
    everywhere else finite. All three have one shape; devices may differ.
    """
    if ours.shape != ref.shape:
        return Comparison(False, float("inf"), 0.0, 0.0,
                          f"{name}: shape {tuple(ours.shape)}, expected {tuple(ref.shape)}")
    dtype = naive.dtype
    got, want, plain = (t.detach().cpu().double() for t in (ours, ref, naive))
    finite = torch.isfinite(want)
    places, floor = _SMALL[dtype]
    small = places * torch.finfo(dtype).eps * max(floor, _largest(want[finite]))
    naive_error = _largest((plain - want)[finite & torch.isfinite(plain)])
    allowed = factor * naive_error + small
    difference = torch.where(finite, (got - want).abs(), torch.where(got == want, 0.0, torch.inf))
    difference = torch.nan_to_num(difference, nan=torch.inf, posinf=torch.inf)
    error = _largest(difference)
    ok = error <= allowed
    report = "" if ok else _report(name, got, want, difference, allowed, naive_error)
    return Comparison(ok, error, allowed, naive_error, report)


def _largest(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


def _report(name: str, got: Tensor, want: Tensor, difference: Tensor, allowed: float,
            naive_error: float) -> str:
    bad = difference > allowed
    flat = difference.flatten()
    worst = int(flat.argmax())

    def line(n: int) -> str:
        at = tuple(int(x) for x in torch.unravel_index(torch.tensor(n), difference.shape))
        return (f"    {at}: ours {got.flatten()[n]:.9g}, expected {want.flatten()[n]:.9g}, "
                f"off by {flat[n]:.3g}")

    wrong = torch.nonzero(bad.flatten()).flatten()[:5].tolist()
    unfinite = int((~torch.isfinite(got) & torch.isfinite(want)).sum())
    return "\n".join([
        f"{name}: {int(bad.sum())} of {bad.numel()} elements are off by more than {allowed:.3g} "
        f"(naive error {naive_error:.3g})",
        f"  not finite where the oracle is: {unfinite}",
        "  worst:", line(worst), "  first of the wrong ones:", *(line(n) for n in wrong)])
