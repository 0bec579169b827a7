"""Which calls of FlexAttention's front door compile, and which only read anew."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from flex_front import SLOPES, assert_as_torch, causal, dense, eager, qkv, relative
from helpers import assert_close
from torch import Tensor
from torch.nn.attention import flex_attention as theirs

import attngen as ag
from attngen.integrations import flex


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
        assert_close(o, eager(*(t.double() for t in tensors), block_mask=them),
                     eager(*tensors, block_mask=them))
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
        return flex.flex_attention(q, k, v, block_mask=ours), eager(q, k, v, block_mask=them)

    for changed in (5, 11, 5):
        width = changed
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
