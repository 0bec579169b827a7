"""Longformer's attention, in which global tokens have projections of their own ("Longformer: The
Long-Document Transformer", Beltagy et al. 2020, section 3.2; ``LongformerSelfAttention`` in
Transformers). Two attentions make it up:

    rows that are not global    one softmax over window and global keys, of q, k, v
    rows that are global        all keys, of q_global, k_global, v_global; only these rows are run
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..attention import Attention
from ..errors import DeviceError, DtypeError, ShapeError, WindowError
from ..front import compile
from ..masks import sliding_window
from ..runtime.operands import Heads, sizes_of
from ..runtime.targets import default_target
from ..spec import AttentionSpec

# What a token is. A kernel reads 0 outside the tensor, so nothing is visible there.
_PADDING, _LOCAL, _GLOBAL = 0, 1, 2
_MOST_KEPT = 64


def longformer_attention(
        q: Tensor, k: Tensor, v: Tensor, q_global: Tensor, k_global: Tensor, v_global: Tensor, *,
        window: tuple[int, int], is_global: Tensor, padding: Tensor | None = None,
        scale: float | None = None, target: str | None = None, emulate: bool = False) -> Tensor:
    """Attention with a window and global tokens, which have projections of their own.

    q          [batch, heads, seqlen, head_dim]
    k          [batch, groups, seqlen, head_dim]
    v          [batch, groups, seqlen, head_dim_v]
    q_global, k_global, v_global
               as q, k, v; of q_global only the rows of global tokens are read
    window     (left, right) positions visible to either side besides the token's own. For an
               ``attention_window`` of Transformers it is (w // 2, w // 2).
    is_global  bool [batch, seqlen]
    padding    bool [batch, seqlen], true for real tokens; default: all are. A token that is not
               real is no key of any row, and not global either.
    scale      factor on q·kᵀ in both attentions; default 1/√head_dim
    target, emulate
               as for ``attngen.compile``; default: where the tensors are

    Returns [batch, heads, seqlen, head_dim_v], 0 in the rows of padding. A global key inside the
    window counts once.

    Kernels are kept by heads, sizes, window and scale. Lengths, and which tokens are global or
    real, are read at each call and compile nothing. The largest number of global tokens of a
    sequence is read back from the device, as that many rows of each sequence are run a second time.

    Raises ShapeError, DtypeError, DeviceError, WindowError (a window that is no pair), PatternError
    (a negative side), and what compiling and calling an ``Attention`` raise.
    """
    sizes = sizes_of(q, k, v)
    if k.shape[2] != q.shape[2]:
        raise ShapeError(f"q has {q.shape[2]} tokens, k {k.shape[2]}",
                         remedy="Queries and keys are the same tokens here.")
    for name, tensor, like in (("q", q_global, q), ("k", k_global, k), ("v", v_global, v)):
        _check(f"{name}_global", tensor, tuple(like.shape), like.dtype, q.device)
    for name, marks in (("is_global", is_global), ("padding", padding)):
        if marks is not None:
            _check(name, marks, (q.shape[0], q.shape[2]), torch.bool, q.device)
    sides = _pair(window)
    if target is None:
        target = default_target(q.device.index).name if q.is_cuda else "cpu"
    kind = torch.where(is_global, _GLOBAL, _LOCAL)
    if padding is not None:
        kind = torch.where(padding, kind, _PADDING)
    kind = kind.to(torch.int8)
    o = _local(sizes, sides, scale, target, emulate)(q, k, v, params={"kind": kind})
    assert isinstance(o, Tensor)
    chosen = kind == _GLOBAL
    most = int(chosen.sum(1).max()) if chosen.numel() else 0
    if most:
        # Each sequence's global tokens first, in order; sequences with fewer than most run others.
        rows = torch.argsort(chosen.to(torch.int8), dim=1, descending=True, stable=True)[:, :most]
        index = rows[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[3])
        run = _everywhere(sizes, scale, target, emulate)
        of_rows = run(q_global.gather(2, index), k_global, v_global, params={"kind": kind})
        assert isinstance(of_rows, Tensor)
        b, n = chosen.gather(1, rows).nonzero(as_tuple=True)
        o[b, :, rows[b, n]] = of_rows[b, :, n]
    return o


@lru_cache(_MOST_KEPT)
def _local(sizes: Heads, window: tuple[int, int], scale: float | None, target: str,
           emulate: bool) -> Attention:
    """Rows that are not global; the others see nothing, which makes them 0 and costs little."""
    near, kind = sliding_window(window), _any_kind()

    def mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        key = kind[b, kv_idx]
        seen = (key == _GLOBAL) | ((key == _LOCAL) & near(b, h, q_idx, kv_idx))
        return (kind[b, q_idx] == _LOCAL) & seen

    return compile(_spec(sizes, scale, mask), target, emulate=emulate)


@lru_cache(_MOST_KEPT)
def _everywhere(sizes: Heads, scale: float | None, target: str, emulate: bool) -> Attention:
    """All keys but padding, for whatever rows are given."""
    kind = _any_kind()

    def mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return kind[b, kv_idx] != _PADDING

    return compile(_spec(sizes, scale, mask), target, emulate=emulate)


def _any_kind() -> Tensor:
    """In place of the tensor [batch, seqlen] that each call gives."""
    return torch.zeros(1, 1, dtype=torch.int8)


def _spec(sizes: Heads, scale: float | None, mask: Any) -> AttentionSpec:
    return AttentionSpec(heads=sizes.heads, groups=sizes.groups, head_dim=sizes.head_dim,
                         head_dim_v=sizes.head_dim_v, scale=scale, mask=mask)


def _pair(window: Any) -> tuple[int, int]:
    """Raises WindowError, also for an int: it might be one side or both."""
    if not isinstance(window, tuple | list) or len(window) != 2:
        raise WindowError(f"window={window!r} is not a pair", where="longformer_attention",
                          remedy="Write window=(left, right); an attention_window w of "
                                 "Transformers is (w // 2, w // 2).")
    return window[0], window[1]


def _check(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype,
           device: torch.device) -> None:
    """Raises ShapeError, DtypeError and DeviceError."""
    if tuple(tensor.shape) != shape:
        raise ShapeError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}",
                         where="longformer_attention",
                         remedy="Marks are [batch, seqlen]; q_global, k_global and v_global are "
                                "as q, k and v.")
    if tensor.dtype != dtype:
        raise DtypeError(f"{name} is {tensor.dtype}, expected {dtype}",
                         where="longformer_attention", remedy=f"Convert it with .to({dtype}).")
    if tensor.device != device:
        raise DeviceError(f"{name} is on {tensor.device}, q is on {device}",
                          where="longformer_attention",
                          remedy=f"Move it with .to({str(device)!r}).")
