"""FlexAttention's front door beside torch's own function: tensors, the judgement, and callables."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import assert_close, only_ours
from torch import Tensor
from torch.nn.attention import flex_attention as theirs
from torch.nn.attention.flex_attention import AuxRequest

from attngen.integrations import flex

SLOPES = torch.tensor([0.25, -0.125, 0.03125, 0.5])
_flex_attention = theirs.flex_attention  # before helpers.only_ours replaces it


def eager(*args: Any, **options: Any) -> Any:
    """torch's function without Dynamo, which gives up after a few callables."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
        return _flex_attention(*args, **options)



def qkv(heads: int = 4, groups: int | None = None, seqlen_q: int = 70, seqlen_k: int | None = None,
        dim: int = 16, dim_v: int | None = None, batch: int = 2,
        dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    seqlen_k, groups = seqlen_k or seqlen_q, groups or heads
    return (torch.randn(batch, heads, seqlen_q, dim, dtype=dtype),
            torch.randn(batch, groups, seqlen_k, dim, dtype=dtype),
            torch.randn(batch, groups, seqlen_k, dim_v or dim, dtype=dtype))


def assert_as_torch(tensors: tuple[Tensor, Tensor, Tensor], **options: Any) -> None:
    """Ours against torch's in float64; torch's in the tensors' type is the yardstick."""
    aux = AuxRequest(lse=True)
    with only_ours():
        o, mine = flex.flex_attention(*tensors, return_aux=aux, **options)
    wide = tuple(t.double() for t in tensors)
    ref, ref_aux = eager(*wide, return_aux=aux, **options)
    naive, naive_aux = eager(*tensors, return_aux=aux, **options)
    assert o.dtype == tensors[0].dtype and mine.lse.dtype == naive_aux.lse.dtype
    assert_close(o, ref, naive, name="o")
    assert_close(mine.lse, ref_aux.lse, naive_aux.lse, name="lse")


def relative(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score + SLOPES[h] * (q_idx - kv_idx)


def capped(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return torch.tanh(score / 2) * 2 - b


def causal(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx >= kv_idx


def windowed(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return (q_idx - kv_idx).abs() <= 9 + h * b


def dense(tensors: tuple[Tensor, ...], seen: Tensor) -> Tensor:
    """Softmax attention over what is seen, in the tensors' type."""
    q, k, v = tensors
    s = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~seen, float("-inf"))
    return torch.nan_to_num(s.softmax(-1)) @ v
