"""A mask or score of its own for each head: against each head alone, and in its written form."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import attngen as ag
from attngen import masks, reference, scores
from attngen.combined import _among
from attngen.errors import PatternError


def own(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return (q_idx + kv_idx) % 3 == b


A, B, C = masks.causal(), masks.dilated_window(2, 2), masks.dilated_window(2, 3)
MASKS: list[list[Any]] = [
    [A], [A, A, A], [A, B, C, A], [A, B] * 4, [A, A, A, B, B, B, C, C], [None, A, None, own],
    [own, None], [None, None], [A | own, ~B, A | own, masks.document(torch.arange(9) // 4)],
    [masks.chunked(3), A, B, C, A, masks.chunked(3), masks.chunked(3)]]


@pytest.mark.parametrize("each", MASKS, ids=lambda each: re.sub(" at 0x[0-9a-f]+", "", str(each)))
def test_each_head_has_its_own_mask(each: list[Any]) -> None:
    spec = ag.AttentionSpec(heads=len(each), head_dim=8, mask=ag.per_head(each))
    got = reference.visible(spec, 2, 7, 9)
    for h, mask in enumerate(each):
        alone = ag.AttentionSpec(heads=1, head_dim=8, mask=mask)
        assert torch.equal(got[:, h], reference.visible(alone, 2, 7, 9)[:, 0]), h


S, T = scores.softcap(2), scores.temperature(0.5)
SCORES: list[list[Any]] = [
    [S], [S, T, S], [None, S, T, None], [S, S, T, T], [None, None],
    [lambda score, b, h, q_idx, kv_idx: score + h, T]]


@pytest.mark.parametrize("each", SCORES, ids=lambda each: str(len(each)))
def test_each_head_has_its_own_score(each: list[Any]) -> None:
    heads = len(each)
    mod = scores.per_head(each)
    s = torch.randn(2, heads, 5, 6, dtype=torch.float64)
    at = (torch.arange(n).reshape([-1 if d == e else 1 for e in range(4)])
          for d, n in enumerate((2, heads, 5, 6)))
    b, h, i, j = at
    got = mod(s, b, h, i, j)
    for k, score in enumerate(each):
        expected = s[:, k] if score is None else score(s[:, k:k + 1], b, k, i, j)[:, 0]
        torch.testing.assert_close(got[:, k], expected, rtol=0, atol=0)


def test_equal_entries_are_evaluated_once() -> None:
    calls = []

    def counted(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        calls.append(1)
        return kv_idx <= q_idx

    mask = ag.per_head([counted, B, counted, masks.dilated_window(2, 2), counted])
    reference.visible(ag.AttentionSpec(heads=5, head_dim=8, mask=mask), 1, 4, 4)
    assert len(calls) == 1


class Said:
    """A head number that writes down what is asked of it."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __eq__(self, other: object) -> Any:
        return Said(f"{self.text} == {other}")

    def __le__(self, other: object) -> Any:
        return Said(f"{self.text} <= {other}")

    def __ge__(self, other: object) -> Any:
        return Said(f"{self.text} >= {other}")

    def __mod__(self, other: int) -> Said:
        return Said(f"{self.text} % {other}")

    def __and__(self, other: Said) -> Said:
        return Said(f"{self.text} and {other.text}")

    def __or__(self, other: Said) -> Said:
        return Said(f"{self.text}, {other.text}")

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("heads, count, text", [
    ([2], 8, "h == 2"), ([0, 1, 2], 8, "h <= 2"), ([5, 6, 7], 8, "h >= 5"),
    ([2, 3, 4], 8, "h >= 2 and h <= 4"), ([0, 2, 4, 6], 8, "h % 2 == 0"),
    ([1, 4, 7], 8, "h % 3 == 1"), ([0, 2, 4], 8, "h == 0, h == 2, h == 4"),
    ([0, 1, 4, 6, 7], 8, "h <= 1, h == 4, h >= 6")])
def test_heads_become_comparisons(heads: list[int], count: int, text: str) -> None:
    assert _among(Said("h"), heads, count).text == text
    h = torch.arange(count)
    assert torch.nonzero(_among(h, heads, count)).flatten().tolist() == heads


def test_json_round_trip_and_equality() -> None:
    spec = ag.AttentionSpec(heads=3, head_dim=8, mask=ag.per_head([A, B, None]) & masks.chunked(4),
                            score=[ag.per_head([scores.alibi(), None, S]), T])
    again = ag.AttentionSpec.from_json(spec.to_json())
    assert again == spec and hash(again) == hash(spec) and again.cache_key() == spec.cache_key()
    assert isinstance(spec.score, tuple) and spec.score[0].each[0] == scores.alibi(3)
    mixed = ag.AttentionSpec(heads=2, head_dim=8, mask=ag.per_head([A, own]))
    assert mixed.cache_key() is None and mixed.mask_mods()[0][0] == "per_head"


@pytest.mark.parametrize("make, text", [
    (lambda: ag.per_head([]), "per_head takes a mask for each head, got ()"),
    (lambda: ag.per_head(A), "per_head takes a list"),
    (lambda: ag.per_head([A, 3]), "mask is a int, not a pattern or callable"),
    (lambda: ag.per_head([A, S]), "mixes masks and scores: head 0 has a mask, head 1 has a score"),
    (lambda: ag.per_head([A, masks.causal]), "Call it: causal(...)"),
    (lambda: masks.per_head([S]), "softcap is a score, given as a mask"),
    (lambda: ag.per_head([A, lambda i, j: i < j]), "mixes masks and scores"),
    (lambda: ag.AttentionSpec(heads=2, head_dim=8, mask=ag.per_head([A])),
     "per_head has 1 entries, the spec has 2 heads"),
    (lambda: ag.AttentionSpec(heads=2, head_dim=8, score=ag.per_head([A, A])),
     "per_head is a mask, given as a score"),
    (lambda: ag.AttentionSpec(heads=2, head_dim=8, mask=ag.per_head([A, ag.per_head([A])])),
     "per_head has 1 entries, the spec has 2 heads")])
def test_what_makes_no_sense_is_refused(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(PatternError) as error:
        make()
    assert text in str(error.value)
