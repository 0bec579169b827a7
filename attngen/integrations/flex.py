"""FlexAttention's front door: the signature of ``torch.nn.attention.flex_attention`` (torch 2.13).

Positions start at 0 for queries and keys alike, as they do there. torch's own ``BlockMask`` objects
are taken for what they say: their ``mask_mod``, and the blocks they list, which may be all the
sparsity there is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxOutput, AuxRequest
from torch.nn.attention.flex_attention import BlockMask as TorchBlockMask

from ..attention import Attention
from ..errors import BlockMaskError, HeadsError, NotDeliveredError, ShapeError
from ..front import compile
from ..runtime.targets import default_target
from ..spec import AttentionSpec
from .closure import Closure, closure_of

_MOST_KEPT = 128


@dataclass(frozen=True)
class BlockMask:
    """What ``create_block_mask`` was given; which tiles are empty is proved from ``mask_mod`` when
    kernels run, so nothing is evaluated here."""

    mask_mod: Callable[..., Any]
    shape: tuple[int | None, int | None, int, int]
    block_size: tuple[int, int]

    @property
    def seq_lengths(self) -> tuple[int, int]:
        return self.shape[2:]


def create_block_mask(mask_mod: Callable[..., Any], B: int | None, H: int | None, Q_LEN: int,
                      KV_LEN: int, device: Any = None, BLOCK_SIZE: int | tuple[int, int] = 128,
                      _compile: bool = False, separate_full_blocks: bool = True,
                      compute_dq_write_order: bool = False,
                      dq_kv_order: bool = True) -> BlockMask:
    """The signature of torch's function, without its work over all pairs: O(1) for any length.

    Arguments about how blocks are stored have no meaning here and are ignored.
    """
    block = (BLOCK_SIZE, BLOCK_SIZE) if isinstance(BLOCK_SIZE, int) else tuple(BLOCK_SIZE)
    return BlockMask(mask_mod, (B, H, Q_LEN, KV_LEN), block)  # type: ignore[arg-type]


def flex_attention(query: Tensor, key: Tensor, value: Tensor,
                   score_mod: Callable[..., Any] | None = None,
                   block_mask: BlockMask | TorchBlockMask | None = None,
                   scale: float | None = None, enable_gqa: bool = False, return_lse: bool = False,
                   kernel_options: dict[str, Any] | None = None, *,
                   return_aux: AuxRequest | None = None) -> Any:
    """Attention of query [batch, heads, seqlen_q, head_dim] over key and value
    [batch, groups, seqlen_k, ...] with torch's FlexAttention semantics.

    ``score_mod(score, b, h, q_idx, kv_idx)``; ``block_mask`` from torch's ``create_block_mask`` or
    this module's. Heads that share a key/value head need ``enable_gqa``. Returns the output; with
    ``return_lse`` or ``return_aux`` also the log-sum-exp. ``kernel_options`` are for torch's
    kernels and are ignored.

    Compiled attentions are kept by what the callables mean: their code, the numbers they reach, and
    dtype and shape of the tensors, which every call reads anew. So a mask made again for each
    batch compiles nothing. Callables that reach what has no readable state, such as objects of an
    extension, or that compute tensors of captured ones, are traced at each call.

    Raises ShapeError, HeadsError, BlockMaskError, NotDeliveredError, ValueError (both ways to ask
    for the log-sum-exp), and what compiling and calling an ``Attention`` raise.
    """
    if return_lse and return_aux is not None:
        raise ValueError("return_lse and return_aux both ask for the log-sum-exp: give one")
    if return_aux is not None and return_aux.max_scores:
        raise NotDeliveredError("AuxRequest(max_scores=True) is not available in this version of "
                                "attngen")
    batch, heads, _, _ = _shape("query", query)
    batch_k, groups, _, _ = _shape("key", key)
    _shape("value", value)
    if heads != groups and not (enable_gqa and groups and heads % groups == 0):
        raise HeadsError(f"query has {heads} heads, key {groups}",
                         remedy="Pass enable_gqa=True with heads a multiple of the key's heads.")
    if batch != batch_k:
        if batch_k != 1 or block_mask is None:
            raise ShapeError("query and key differ in batch", numbers=f"{batch}, {batch_k}",
                             remedy="Expand the key and value.")
        key, value = (t.expand(batch, -1, -1, -1) for t in (key, value))
    mask = None if block_mask is None else _mask_of(block_mask, query, key)
    attn, params = _attention(query, key, value, score_mod, mask, scale)
    out, lse = attn(query, key, value, return_lse=True, q_offset=0, params=params)
    if return_aux is not None:
        return out, AuxOutput(lse=lse if return_aux.lse else None)
    return (out, lse) if return_lse else out


def _shape(name: str, tensor: Tensor) -> tuple[int, ...]:
    if tensor.dim() != 4:
        raise ShapeError(f"{name} has shape {tuple(tensor.shape)}", numbers="4 dimensions are "
                         "expected: batch, heads, length, head_dim", remedy="Reshape it.")
    return tuple(tensor.shape)


# -- masks ----------------------------------------------------------------------------------------


def _mask_of(given: BlockMask | TorchBlockMask, query: Tensor, key: Tensor) -> Callable[..., Any]:
    """What a block mask says, as a mask_mod. Raises BlockMaskError where it is for other sizes."""
    lengths = query.shape[2], key.shape[2]
    if tuple(given.seq_lengths) != lengths:
        raise BlockMaskError(
            f"block_mask is for {given.seq_lengths[0]} queries and {given.seq_lengths[1]} keys",
            numbers=f"query and key have {lengths[0]} and {lengths[1]}",
            remedy="Make one for these lengths.")
    for name, made, n in zip(("batch", "heads"), given.shape[:2], query.shape[:2], strict=True):
        if made not in (None, 1, n):
            raise BlockMaskError(f"block_mask is for {name} {made}", numbers=f"query has {n}",
                                 remedy=f"Make it with {n}, or with None for all alike.")
    if isinstance(given, BlockMask):
        return given.mask_mod
    kept = _block_masks.get(given)
    if kept is None:
        kept = _block_masks[given] = _from_blocks(given)
    return kept


# What block masks say, as long as they live; a mask changed in place is not looked at again.
_block_masks: WeakKeyDictionary[TorchBlockMask, Callable[..., Any]] = WeakKeyDictionary()


def _from_blocks(given: TorchBlockMask) -> Callable[..., Any]:
    """kind[b, h, q // rows, k // columns]: 0 hidden, 1 as mask_mod says, 2 visible."""
    rows, columns = given.BLOCK_SIZE
    width = -(-given.seq_lengths[1] // columns)
    kind = _blocks(given.kv_num_blocks, given.kv_indices, width)
    if given.full_kv_num_blocks is not None and given.full_kv_indices is not None:
        full = _blocks(given.full_kv_num_blocks, given.full_kv_indices, width)
        kind = torch.where(full > 0, torch.full_like(kind, 2), kind)
    mask_mod, (batches, heads) = given.mask_mod, kind.shape[:2]

    def visible(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        listed = kind[b if batches > 1 else 0, h if heads > 1 else 0, q_idx // rows,
                      kv_idx // columns]
        return (listed == 2) | ((listed == 1) & mask_mod(b, h, q_idx, kv_idx))

    return visible


def _blocks(counts: Tensor, indices: Tensor, width: int) -> Tensor:
    """[batch, heads, rows of blocks, width]: 1 where a block is among the first ``counts`` of its
    row's ``indices``, of which the others may be anything."""
    listed = torch.arange(indices.shape[-1], device=indices.device) < counts.unsqueeze(-1)
    found = torch.zeros((*indices.shape[:-1], width), dtype=torch.uint8, device=indices.device)
    index = torch.where(listed, indices, 0).long()
    return found.scatter_reduce_(-1, index, listed.to(torch.uint8), "amax")


# -- compiled attentions --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Compiled:
    """An attention and the callables it was made from, whose parts stay alive with it."""

    attention: Attention
    closure: Closure

    def params(self, tensors: tuple[Tensor, ...], dtype: str) -> dict[str, Tensor] | None:
        """``tensors`` in the place of those captured, by name; None where a name does not tell."""
        before = self.closure.tensors
        instead = {id(x): y for x, y in zip(before, tensors, strict=True) if x is not y}
        if not instead:
            return {}
        captured = self.attention.captured(dtype)
        if len({name for name, _ in captured}) < len(captured):
            return None
        return {name: instead[id(t)] for name, t in captured if id(t) in instead}


def _attention(q: Tensor, k: Tensor, v: Tensor, score_mod: Callable[..., Any] | None,
               mask: Callable[..., Any] | None, scale: float | None,
               ) -> tuple[Attention, dict[str, Tensor]]:
    """A compiled attention, and the captured tensors it is to be called with."""
    target = default_target(q.device.index).name if q.is_cuda else "cpu"
    closure = closure_of(*(c for c in (score_mod, mask) if c is not None))
    dtype = str(q.dtype).removeprefix("torch.")
    key: Any = None
    if closure is not None:
        key = (q.shape[1], k.shape[1], q.shape[3], v.shape[3], scale, target, dtype,
               score_mod is None, closure.key)
        known = _kept.get(key)
        params = known.params(closure.tensors, dtype) if known else None
        if known is not None and params is not None:
            return known.attention, params
    spec = AttentionSpec(heads=q.shape[1], groups=k.shape[1], head_dim=q.shape[3],
                         head_dim_v=v.shape[3], scale=scale, score=score_mod, mask=mask,
                         dtype=dtype)
    attention = compile(spec, target)
    if closure is not None and _follows(attention, closure, dtype):
        while len(_kept) >= _MOST_KEPT:
            del _kept[next(iter(_kept))]
        _kept[key] = _Compiled(attention, closure)
    return attention, {}


def _follows(attention: Attention, closure: Closure, dtype: str) -> bool:
    """Whether all that kernels read is what the callables hold, not made while they ran."""
    held = {id(t) for t in closure.tensors}
    return all(id(t) in held for _, t in attention.captured(dtype) if isinstance(t, Tensor))


_kept: dict[Any, _Compiled] = {}
