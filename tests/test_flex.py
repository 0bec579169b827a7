"""FlexAttention's front door against torch's own eager function, forward on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from flex_front import assert_as_torch, capped, causal, dense, eager, qkv, relative, windowed
from helpers import assert_close
from torch import Tensor
from torch.nn.attention import flex_attention as theirs
from torch.nn.attention.flex_attention import AuxRequest

from attngen.errors import (
    AttngenError,
    BlockMaskError,
    DtypeError,
    HeadsError,
    NotDeliveredError,
    ShapeError,
    TraceError,
)
from attngen.integrations import flex


@pytest.mark.parametrize(("score", "dtype"), [
    (None, torch.float32), (relative, torch.bfloat16), (capped, torch.float16),
    *(pytest.param(s, d, marks=pytest.mark.full) for s in (None, relative, capped)
      for d in (torch.float32, torch.bfloat16, torch.float16, torch.float64))])
def test_scores(score: Any, dtype: torch.dtype) -> None:
    assert_as_torch(qkv(dtype=dtype), score_mod=score)


@pytest.mark.parametrize(("mask", "batch", "heads"), [(causal, None, None), (windowed, 2, 4)])
@pytest.mark.parametrize("lengths", [(70, 70), (33, 150), (150, 33), (1, 300)])
def test_torchs_block_masks(mask: Any, lengths: tuple[int, int], batch: int | None,
                            heads: int | None) -> None:
    tensors = qkv(seqlen_q=lengths[0], seqlen_k=lengths[1])
    assert_as_torch(tensors, score_mod=relative, block_mask=theirs.create_block_mask(
        mask, batch, heads, *lengths, device="cpu", BLOCK_SIZE=(32, 64)))


@pytest.mark.full
def test_torchs_block_masks_of_every_shape() -> None:
    for sizes in ({}, {"dim": 32, "dim_v": 24, "seqlen_q": 129}):
        tensors = qkv(**sizes)
        n = tensors[0].shape[2]
        for batch, heads in ((2, None), (None, 4), (2, 4)):
            mask = theirs.create_block_mask(causal, batch, heads, n, n, device="cpu",
                                            BLOCK_SIZE=(16, 128))
            assert_as_torch(tensors, block_mask=mask)


def test_our_block_masks() -> None:
    tensors = qkv(seqlen_q=90, seqlen_k=129)
    for mask in (causal, windowed):
        ours = flex.create_block_mask(mask, 2, 4, 90, 129, device="cpu")
        them = theirs.create_block_mask(mask, 2, 4, 90, 129, device="cpu")
        o, lse = flex.flex_attention(*tensors, relative, ours, return_lse=True)
        wide = eager(*(t.double() for t in tensors), relative, them, return_lse=True)
        naive = eager(*tensors, relative, them, return_lse=True)
        assert_close(o, wide[0], naive[0])
        assert_close(lse, wide[1], naive[1])


def test_our_block_masks_cost_nothing_to_make() -> None:
    mask = flex.create_block_mask(causal, None, None, 10**9, 10**9, BLOCK_SIZE=(64, 32))
    assert mask.seq_lengths == (10**9, 10**9) and mask.block_size == (64, 32)


def test_torchs_combinators() -> None:
    mask = theirs.or_masks(theirs.and_masks(causal, windowed), lambda b, h, q, k: k < 3)
    tensors = qkv()
    assert_as_torch(tensors, block_mask=theirs.create_block_mask(mask, 2, 4, 70, 70, device="cpu"))
    assert_as_torch(tensors, block_mask=theirs.create_block_mask(
        theirs.noop_mask, None, None, 70, 70, device="cpu"))


# -- blocks that say more than the mask_mod, which eager torch does not look at -------------------


def seen_blocks(counts: Tensor, indices: Tensor, rows: int, columns: int, q: int, k: int) -> Tensor:
    """bool [batch, heads, q, k], block by block."""
    seen = torch.zeros(*counts.shape[:2], q, k, dtype=torch.bool)
    for b, h, r in torch.cartesian_prod(*map(torch.arange, counts.shape)).tolist():
        for n in indices[b, h, r, :int(counts[b, h, r])].tolist():
            seen[b, h, r * rows:(r + 1) * rows, n * columns:(n + 1) * columns] = True
    return seen


@pytest.mark.parametrize(("batch", "heads"), [(1, 1), (2, 4), (1, 4), (2, 1)])
def test_sparsity_carried_by_the_blocks_alone(batch: int, heads: int) -> None:
    """Unlisted entries of kv_indices are rubbish, and there are fewer of them than blocks."""
    tensors = qkv(seqlen_q=90, seqlen_k=100)
    order = torch.rand(batch, heads, 3, 7).argsort(-1)[..., :5].to(torch.int32)
    counts = torch.randint(0, 5, (batch, heads, 3), dtype=torch.int32)
    counts[0, 0, 1] = 0
    order = torch.where(torch.arange(5) < counts.unsqueeze(-1), order, 10**6)
    mask = theirs.BlockMask.from_kv_blocks(counts, order, BLOCK_SIZE=(32, 16),
                                           seq_lengths=(90, 100), compute_q_blocks=False)
    seen = seen_blocks(counts, order, 32, 16, 90, 100)
    assert_close(flex.flex_attention(*tensors, block_mask=mask),
                 dense(tuple(t.double() for t in tensors), seen), dense(tensors, seen))


def test_partial_and_full_blocks() -> None:
    """Full blocks are not asked about their elements, partial ones are."""
    tensors = qkv(seqlen_q=90, seqlen_k=96)
    partial = torch.tensor([[[[0, 1, 9], [2, 9, 9], [0, 3, 5]]]], dtype=torch.int32)
    full = torch.tensor([[[[3, 9, 9], [4, 0, 9], [1, 9, 9]]]], dtype=torch.int32)
    counts = (torch.tensor([[[2, 1, 3]]], dtype=torch.int32),
              torch.tensor([[[1, 2, 0]]], dtype=torch.int32))
    mask = theirs.BlockMask.from_kv_blocks(
        counts[0], partial, counts[1], full, BLOCK_SIZE=(32, 16), mask_mod=causal,
        seq_lengths=(90, 96), compute_q_blocks=False)
    pairs = torch.arange(90)[:, None] >= torch.arange(96)
    seen = (seen_blocks(counts[0], partial, 32, 16, 90, 96) & pairs) \
        | seen_blocks(counts[1], full, 32, 16, 90, 96)
    assert_close(flex.flex_attention(*tensors, block_mask=mask),
                 dense(tuple(t.double() for t in tensors), seen), dense(tensors, seen))


# -- the rest of the signature


def test_groups_scale_and_results() -> None:
    tensors = qkv(heads=6, groups=2)
    assert_as_torch(tensors, score_mod=capped, scale=0.4, enable_gqa=True)
    alone = flex.flex_attention(*tensors, enable_gqa=True, kernel_options={"BLOCK_M": 16})
    o, lse = flex.flex_attention(*tensors, enable_gqa=True, return_lse=True)
    again, aux = flex.flex_attention(*tensors, enable_gqa=True, return_aux=AuxRequest())
    assert aux.lse is None and aux.max_scores is None and lse.shape == (2, 6, 70)
    assert torch.equal(alone, o) and torch.equal(again, o)


def test_keys_of_one_batch_entry_serve_all_with_a_block_mask() -> None:
    q, k, v = qkv(batch=3)
    one = q, k[:1], v[:1]
    assert_as_torch(one, block_mask=theirs.create_block_mask(causal, 3, None, 70, 70, device="cpu"))
    with pytest.raises(ShapeError, match="differ in batch"):
        flex.flex_attention(*one)


ERRORS: dict[str, tuple[Callable[[], Any], type[Exception], tuple[str, ...]]] = {
    "both results": (lambda: flex.flex_attention(*qkv(), return_lse=True, return_aux=AuxRequest()),
                     ValueError, ("give one",)),
    "max_scores": (lambda: flex.flex_attention(*qkv(), return_aux=AuxRequest(max_scores=True)),
                   NotDeliveredError, ("max_scores",)),
    "dimensions": (lambda: flex.flex_attention(qkv()[0][0], *qkv()[1:]),
                   ShapeError, ("query has shape (4, 70, 16)", "batch, heads, length, head_dim")),
    "heads": (lambda: flex.flex_attention(*qkv(4, 2)),
              HeadsError, ("query has 4 heads, key 2", "enable_gqa=True")),
    "heads that do not divide": (lambda: flex.flex_attention(*qkv(4, 3), enable_gqa=True),
                                 HeadsError, ("query has 4 heads, key 3",)),
    "block mask of other lengths": (
        lambda: flex.flex_attention(*qkv(), block_mask=flex.create_block_mask(
            causal, None, None, 70, 71)), BlockMaskError, ("70 queries and 71 keys", "70 and 70")),
    "block mask of other batch": (
        lambda: flex.flex_attention(*qkv(), block_mask=flex.create_block_mask(
            causal, 3, None, 70, 70)), BlockMaskError, ("batch 3", "query has 2", "None")),
    "torch's block mask of other heads": (
        lambda: flex.flex_attention(*qkv(), block_mask=theirs.create_block_mask(
            causal, 2, 3, 70, 70, device="cpu")), BlockMaskError, ("heads 3", "query has 4")),
    "mixed types": (lambda: flex.flex_attention(qkv()[0].double(), *qkv()[1:]),
                    DtypeError, ("float64", "float32")),
    "number for a condition": (
        lambda: flex.flex_attention(*qkv(), block_mask=flex.create_block_mask(
            lambda b, h, q, k: q - k, None, None, 70, 70)),
        TraceError, ("must return a condition",)),
    "head past a table": (
        lambda: flex.flex_attention(*qkv(heads=5), score_mod=relative),
        TraceError, ("head 4 reads position 4 of SLOPES", "5 heads")),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    call, kind, said = ERRORS[name]
    with pytest.raises(kind) as caught:
        call()
    for part in said:
        assert part in str(caught.value), caught.value
    if isinstance(caught.value, AttngenError):
        assert caught.value.remedy
