"""FlexAttention's front door: the signature of ``torch.nn.attention.flex_attention`` (torch 2.13).

Positions start at 0 for queries and keys alike, as they do there. torch's own ``BlockMask`` objects
are taken for what they say: their ``mask_mod``, and the blocks they list, which may be all the
sparsity there is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxOutput, AuxRequest
from torch.nn.attention.flex_attention import BlockMask as TorchBlockMask

from ..attention import Attention, compile
from ..errors import BlockMaskError, HeadsError, NotDeliveredError, ShapeError
from ..runtime.targets import default_target
from ..spec import AttentionSpec

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
    kernels and are ignored. Compiled attentions are kept as long as what the callables capture is
    the same objects and numbers.

    Raises ShapeError, HeadsError, BlockMaskError, NotDeliveredError, ValueError (both ways to ask
    for the log-sum-exp), and what compiling and calling an ``Attention`` raise.
    """
    if return_lse and return_aux is not None:
        raise ValueError("return_lse and return_aux both ask for the log-sum-exp: give one")
    if return_aux is not None and return_aux.max_scores:
        raise NotDeliveredError("AuxRequest(max_scores=True) is not available in this version of "
                                "attngen")
    batch, heads, seqlen_q, _ = _shape("query", query)
    batch_k, groups, seqlen_k, _ = _shape("key", key)
    _shape("value", value)
    if heads != groups and not (enable_gqa and heads % groups == 0):
        raise HeadsError(f"query has {heads} heads, key {groups}",
                         remedy="Pass enable_gqa=True with heads a multiple of the key's heads.")
    if batch != batch_k:
        if batch_k != 1 or block_mask is None:
            raise ShapeError("query and key differ in batch", numbers=f"{batch}, {batch_k}",
                             remedy="Expand the key and value.")
        key, value = (t.expand(batch, -1, -1, -1) for t in (key, value))
    mask = None if block_mask is None else _mask_of(block_mask, seqlen_q, seqlen_k)
    attn = _attention(query, key, value, score_mod, mask, scale)
    out, lse = attn(query, key, value, return_lse=True, q_offset=0)
    if return_aux is not None:
        return out, AuxOutput(lse=lse if return_aux.lse else None)
    return (out, lse) if return_lse else out


def _shape(name: str, tensor: Tensor) -> tuple[int, ...]:
    if tensor.dim() != 4:
        raise ShapeError(f"{name} has shape {tuple(tensor.shape)}", numbers="4 dimensions are "
                         "expected: batch, heads, length, head_dim", remedy="Reshape it.")
    return tuple(tensor.shape)


# -- masks ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Mask:
    """A mask and what it is made of: objects that must be the same for a compiled one to serve."""

    function: Callable[..., Any]
    parts: tuple[Any, ...]


def _mask_of(given: BlockMask | TorchBlockMask, seqlen_q: int, seqlen_k: int) -> _Mask:
    if tuple(given.seq_lengths) != (seqlen_q, seqlen_k):
        raise BlockMaskError(
            f"block_mask is for {given.seq_lengths[0]} queries and {given.seq_lengths[1]} keys",
            numbers=f"query and key have {seqlen_q} and {seqlen_k}",
            remedy="Make one for these lengths.")
    if isinstance(given, BlockMask):
        return _Mask(given.mask_mod, (given.mask_mod,))
    kept = _block_masks.get(id(given))
    if kept is None or kept[0] is not given:
        while len(_block_masks) >= _MOST_KEPT:
            del _block_masks[next(iter(_block_masks))]
        kept = _block_masks[id(given)] = given, _from_blocks(given)
    return kept[1]


_block_masks: dict[int, tuple[TorchBlockMask, _Mask]] = {}


def _from_blocks(given: TorchBlockMask) -> _Mask:
    """kind[b, h, q // rows, k // columns]: 0 hidden, 1 as mask_mod says, 2 visible."""
    kind = _blocks(given.kv_num_blocks, given.kv_indices)
    if given.full_kv_num_blocks is not None and given.full_kv_indices is not None:
        kind = torch.where(_blocks(given.full_kv_num_blocks, given.full_kv_indices) > 0,
                           torch.full_like(kind, 2), kind)
    rows, columns = given.BLOCK_SIZE
    mask_mod, (batches, heads) = given.mask_mod, kind.shape[:2]

    def visible(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        listed = kind[b if batches > 1 else 0, h if heads > 1 else 0, q_idx // rows,
                      kv_idx // columns]
        return (listed == 2) | ((listed == 1) & mask_mod(b, h, q_idx, kv_idx))

    return _Mask(visible, (visible, mask_mod))


def _blocks(counts: Tensor, indices: Tensor) -> Tensor:
    """1 where a block is among the first ``counts`` of its row's ``indices``."""
    columns = torch.arange(indices.shape[-1], device=indices.device)
    listed = (columns < counts.unsqueeze(-1)).to(torch.uint8)
    found = torch.zeros(indices.shape, dtype=torch.uint8, device=indices.device)
    return found.scatter_reduce_(-1, indices.long(), listed, "amax")


# -- compiled attentions --------------------------------------------------------------------------


def _attention(q: Tensor, k: Tensor, v: Tensor, score_mod: Callable[..., Any] | None,
               mask: _Mask | None, scale: float | None) -> Attention:
    target = default_target(q.device.index).name if q.is_cuda else "cpu"
    callables = (*((score_mod,) if score_mod else ()), *(mask.parts if mask else ()))
    sizes = (q.shape[1], k.shape[1], q.shape[3], v.shape[3], scale, target, score_mod is None)
    key = sizes, tuple(_held(c) for c in callables)
    attn = _kept.get(key)
    if attn is None:
        spec = AttentionSpec(heads=q.shape[1], groups=k.shape[1], head_dim=q.shape[3],
                             head_dim_v=v.shape[3], scale=scale, score=score_mod,
                             mask=mask.function if mask else None)
        while len(_kept) >= _MOST_KEPT:
            del _kept[next(iter(_kept))]
        # The compiled one keeps the callables, and so what they hold: their ids stay theirs.
        attn = _kept[key] = compile(spec, target)
    return attn


_kept: dict[Any, Attention] = {}


def _held(value: Any, depth: int = 0) -> Any:
    """Something equal while a callable means the same: its code, and what it captured, numbers by
    value and objects by identity."""
    if value is None or isinstance(value, int | float | str):
        return type(value).__name__, value
    if isinstance(value, dict):
        value = tuple(value.items())
    if isinstance(value, tuple | list) and depth < 4:
        return tuple(_held(v, depth + 1) for v in value)
    code = getattr(value, "__code__", None)
    if code is None or depth >= 4:
        return id(value)
    cells = [c.cell_contents for c in value.__closure__ or ()]
    reached = [value.__globals__[n] for n in code.co_names if n in value.__globals__]
    inner = (*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values(), *reached)
    return id(code), tuple(_held(v, depth + 1) for v in inner)
