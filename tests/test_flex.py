"""FlexAttention's front door against torch's own eager function, forward on the CPU."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import assert_close, only_ours
from torch import Tensor
from torch.nn.attention import flex_attention as theirs
from torch.nn.attention.flex_attention import AuxRequest

import attngen as ag
from attngen.errors import (
    AttngenError,
    BackwardNotDeliveredError,
    BlockMaskError,
    DtypeError,
    HeadsError,
    NotDeliveredError,
    ShapeError,
    TraceError,
)
from attngen.integrations import flex

SLOPES = torch.tensor([0.25, -0.125, 0.03125, 0.5])
THEIRS = theirs.flex_attention  # before helpers.only_ours replaces it


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's function without Dynamo, which gives up after a few callables."""
    monkeypatch.setattr(theirs, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The specs compiled meanwhile."""
    specs: list[Any] = []

    def compile(spec: Any, target: Any) -> Any:
        specs.append(spec)
        return ag.compile(spec, target)

    monkeypatch.setattr(flex, "compile", compile)
    flex._kept.clear()
    yield specs
    flex._kept.clear()


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
    ref, ref_aux = THEIRS(*wide, return_aux=aux, **options)
    naive, naive_aux = THEIRS(*tensors, return_aux=aux, **options)
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
        wide = THEIRS(*(t.double() for t in tensors), relative, them, return_lse=True)
        naive = THEIRS(*tensors, relative, them, return_lse=True)
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


# -- blocks that say more than the mask_mod, which eager torch does not look at ---------------------


def dense(tensors: tuple[Tensor, ...], seen: Tensor) -> Tensor:
    """Softmax attention over what is seen, in the tensors' type."""
    q, k, v = tensors
    s = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~seen, float("-inf"))
    return torch.nan_to_num(s.softmax(-1)) @ v


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


# -- the rest of the signature ----------------------------------------------------------------------


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
    "gradients": (lambda: flex.flex_attention(qkv()[0].requires_grad_(), *qkv()[1:]),
                  BackwardNotDeliveredError, ("q requires grad", "no_grad")),
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


# -- what is compiled, and what is not --------------------------------------------------------------


def test_a_mask_made_again_for_each_batch_compiles_once(compiled: list[Any]) -> None:
    def document(ids: Tensor, width: int) -> Callable[..., Any]:
        def mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            return (ids[b, q_idx] == ids[b, kv_idx]) & (q_idx - kv_idx < width)
        return mask

    for seed in range(3):
        ids = torch.randint(0, 3 + seed, (2, 70))
        own = document(ids, 20)
        mask = flex.create_block_mask(own, None, None, 70, 70)
        o = flex.flex_attention(*(tensors := qkv()), block_mask=mask)
        them = theirs.create_block_mask(own, 2, None, 70, 70, device="cpu")
        assert_close(o, THEIRS(*(t.double() for t in tensors), block_mask=them),
                     THEIRS(*tensors, block_mask=them))
    assert len(compiled) == 1
    flex.flex_attention(*qkv(), block_mask=flex.create_block_mask(document(ids, 21), None, None,
                                                                  70, 70))
    assert len(compiled) == 2


def test_torchs_block_masks_made_again_compile_once(compiled: list[Any]) -> None:
    for _ in range(3):
        mask = theirs.create_block_mask(causal, None, None, 70, 70, device="cpu", BLOCK_SIZE=16)
        assert_as_torch(qkv(), block_mask=mask)
    assert len(compiled) == 1


def test_a_number_that_changed_is_seen(compiled: list[Any]) -> None:
    width = 5

    def mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return (q_idx - kv_idx).abs() < width

    q, k, v = qkv()

    def results() -> tuple[Tensor, Tensor]:
        ours = flex.create_block_mask(mask, None, None, 70, 70)
        them = theirs.create_block_mask(mask, None, None, 70, 70, device="cpu")
        return flex.flex_attention(q, k, v, block_mask=ours), THEIRS(q, k, v, block_mask=them)

    for width in (5, 11, 5):
        ours, them = results()
        torch.testing.assert_close(ours, them)
    assert len(compiled) == 2


class Reach:
    """A callable with state: its own, and that of what it holds."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.more = types.SimpleNamespace(factor=1, names=["a"])

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return self.reaches(q_idx - kv_idx)

    def reaches(self, distance: Any) -> Any:
        return abs(distance) < self.width * self.more.factor * FACTOR


FACTOR = 1


@pytest.mark.parametrize("bound", [True, pytest.param(False, marks=pytest.mark.full)])
def test_state_that_changed_anywhere_is_seen(compiled: list[Any], bound: bool,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = qkv()
    reach = Reach(4)
    mask = flex.create_block_mask(reach.__call__ if bound else reach, None, None, 70, 70)

    def agrees() -> bool:
        width = reach.width * reach.more.factor * FACTOR
        at = torch.arange(70)
        seen = (at[:, None] - at).abs() < width
        ours = flex.flex_attention(q, k, v, block_mask=mask)
        return torch.allclose(ours, dense((q, k, v), seen), atol=1e-5)

    assert agrees() and agrees() and len(compiled) == 1
    reach.width = 7
    assert agrees() and len(compiled) == 2
    reach.more.factor = 3
    assert agrees() and len(compiled) == 3
    monkeypatch.setitem(globals(), "FACTOR", 2)
    assert agrees() and len(compiled) == 4
    reach.more.extension = object()  # nothing can tell whether this changes
    assert agrees() and agrees() and len(compiled) == 6


def test_tensors_that_changed_are_read_anew(compiled: list[Any]) -> None:
    bias = torch.randn(4, 70)
    scale = torch.tensor(2.0)

    def score(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score + bias[h, kv_idx] * scale

    for change in (lambda: None, lambda: bias.mul_(-1), lambda: scale.fill_(0.5)):
        change()
        assert_as_torch(qkv(), score_mod=score)
    bias = torch.randn(4, 70)
    assert_as_torch(qkv(), score_mod=score)
    assert len(compiled) == 1


def test_two_tensors_of_one_name_are_told_apart(compiled: list[Any]) -> None:
    def biased(bias: Tensor) -> Callable[..., Any]:
        return lambda score, b, h, q, k: score + bias[k]

    def both(first: Any, second: Any) -> Callable[..., Any]:
        return lambda s, b, h, q, k: second(first(s, b, h, q, k), b, h, k, q)

    for _ in range(2):
        assert_as_torch(qkv(), score_mod=both(biased(torch.randn(70)), biased(torch.randn(70))))
    one = biased(torch.randn(70))
    assert_as_torch(qkv(), score_mod=both(one, one))


def test_tensors_computed_while_tracing_are_never_stale(compiled: list[Any]) -> None:
    slopes = torch.rand(4)

    def score(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score + slopes.neg()[h] * kv_idx

    for _ in range(2):
        assert_as_torch(qkv(), score_mod=score)
        slopes.mul_(-2)


def test_dynamic_numbers_compile_once(compiled: list[Any]) -> None:
    width = ag.dynamic(4, name="width")
    mask = flex.create_block_mask(lambda b, h, q, k: q - k < width, None, None, 70, 70)
    at = torch.arange(70)
    q, k, v = qkv()
    for width.value in (4, 9, -3):
        torch.testing.assert_close(flex.flex_attention(q, k, v, block_mask=mask),
                                   dense((q, k, v), at[:, None] - at < width.value))
    assert len(compiled) == 1


def test_fifty_lengths_one_compilation(compiled: list[Any]) -> None:
    for n in range(50):
        tensors = qkv(seqlen_q=1 + 7 * n % 90, seqlen_k=2 + 11 * n % 130, batch=1)
        lengths = tensors[0].shape[2], tensors[1].shape[2]
        mask = flex.create_block_mask(causal, None, None, *lengths)
        o = flex.flex_attention(*tensors, relative, mask)
        seen = torch.arange(lengths[0])[:, None] >= torch.arange(lengths[1])
        q, k, v = tensors
        bias = SLOPES[:, None, None] * (torch.arange(lengths[0])[:, None]
                                        - torch.arange(lengths[1]))
        s = (q @ k.mT / 4 + bias).masked_fill(~seen, float("-inf"))
        torch.testing.assert_close(o, s.softmax(-1) @ v)
    assert len(compiled) == 1
