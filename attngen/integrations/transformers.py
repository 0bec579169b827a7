"""Hugging Face Transformers: generated attention in any model that has pluggable attention.

    from attngen.integrations import transformers as attngen_transformers

    attngen_transformers.register()
    model = AutoModel.from_pretrained(path, attn_implementation="attngen")

Two functions are registered: the attention, and the mask function without which a model would
silently drop padding and windows. Kernels run where the tensors are, and models train, with
attention dropout where the config says so.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import scores
from ..errors import NotDeliveredError
from ..front import attention
from .visible import Visible, visible

# Not "flash...", "sdpa..." or with a slash: those parts of a name mean something to the library.
NAME = "attngen"
_SDPA = 'Use attn_implementation="sdpa" or "eager" for this model.'


def register() -> None:
    """Make ``attn_implementation="attngen"`` known to Transformers. May be called again.

    Raises ImportError when Transformers is not installed.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, mask_forward)


def mask_forward(batch_size: int, q_length: int, kv_length: int, q_offset: int | Tensor = 0,
                 kv_offset: int = 0, mask_function: Any = None,
                 attention_mask: Tensor | None = None, **kwargs: Any) -> Visible:
    """The registered mask function: called once a forward pass, before the layers.

    ``mask_function(b, h, q_idx, kv_idx)`` speaks of absolute positions, ``attention_mask`` is bool
    [batch, positions]. Raises NotDeliveredError for masks that read tensors, TraceError for masks
    that are no expression of the positions.
    """
    if mask_function is None:
        from transformers.masking_utils import causal_mask_function as mask_function
    return visible(mask_function, attention_mask, batch_size, q_length, kv_length, q_offset,
                   kv_offset)


def attention_forward(
        module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor,
        attention_mask: Visible | Tensor | None, dropout: float = 0.0,
        scaling: float | None = None, is_causal: bool | None = None,
        softcap: float | None = None, **kwargs: Any) -> tuple[Tensor, None]:
    """The registered attention function.

    query [batch, heads, seqlen_q, head_dim], key and value [batch, groups, seqlen_k, head_dim], of
    any strides. Returns [batch, seqlen_q, heads, head_dim_v], contiguous, and no weights. Raises
    NotDeliveredError for what attngen does not have yet, and what calling an Attention raises.
    """
    _refuse(attention_mask, kwargs)
    if isinstance(attention_mask, Visible):
        given = attention_mask.call_arguments(query, key)
    else:
        given = _without_mask(module, query, key, is_causal, kwargs.get("sliding_window"))
    if softcap is not None:
        given["score"] = scores.softcap(softcap)
    o = attention(query, key, value, scale=scaling, dropout_p=dropout, **given)
    assert isinstance(o, Tensor)
    # The kernel wrote o in q's order of strides: models make q from [batch, seqlen, heads, ...],
    # so this copies nothing.
    return o.transpose(1, 2).contiguous(), None


def _without_mask(module: torch.nn.Module, query: Tensor, key: Tensor, is_causal: bool | None,
                  window: int | None) -> dict[str, Any]:
    """For models that make no mask at all. As with sdpa, ``is_causal`` decides, and one query sees
    every key."""
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    seqlen_q, seqlen_k = query.shape[2], key.shape[2]
    causal = bool(is_causal) and seqlen_q > 1
    if window is not None and seqlen_k > window:
        raise NotDeliveredError(
            f"{type(module).__name__} has a window but made no mask that says where it is",
            numbers=f"window {window}, seqlen_k {seqlen_k}", remedy=_SDPA)
    if causal and seqlen_q != seqlen_k:
        raise NotDeliveredError(
            f"{type(module).__name__} is causal but made no mask that says where its queries are",
            numbers=f"seqlen_q {seqlen_q}, seqlen_k {seqlen_k}", remedy=_SDPA)
    return {"causal": causal}


def _refuse(mask: Any, kwargs: dict[str, Any]) -> None:
    """Raises NotDeliveredError for arguments that cannot be honoured; none may be dropped."""
    def refuse(what: str, remedy: str) -> NotDeliveredError:
        return NotDeliveredError(f"{what} not available in this version of attngen",
                                 where="transformers attention", remedy=remedy)

    if kwargs.get("s_aux") is not None:
        raise refuse("attention sinks (s_aux) are",
                     'Use attn_implementation="eager" for this model.')
    if kwargs.get("position_bias") is not None:
        raise refuse("a position bias, which is a tensor added to the scores, is", _SDPA)
    if kwargs.get("output_attentions"):
        raise refuse("attention weights (output_attentions=True) are, as the kernels never store "
                     "them,", 'Use attn_implementation="eager" to see them.')
    if mask is not None and not isinstance(mask, Visible):
        raise refuse(f"a {mask.dim()}-D attention mask tensor is, as masks that read tensors are",
                     "Pass the 2-D padding mask [batch, positions], or use "
                     'attn_implementation="sdpa" for this input.')
