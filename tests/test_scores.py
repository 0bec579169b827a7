"""Named scores against their definitions, written out pair by pair, and against the models that
have them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attngen import AttentionSpec, masks, scores
from attngen.errors import PatternError, SpecJsonError, UnknownNameError
from attngen.reference import positions
from attngen.scores import Score

BATCH, HEADS = 2, 3
# (seqlen_q, seqlen_k, q_offset, kv_offset): positions may be negative or beyond a score's tensor
CALLS = ((11, 11, 0, 0), (7, 13, None, 0), (11, 11, -4, -6), (3, 5, 90, 40))

BIAS = torch.linspace(-2, 2, BATCH * HEADS * 7 * 13).reshape(BATCH, HEADS, 7, 13)
SLOPES = torch.tensor([0.5, 0.25, -1.0])
TABLE = torch.linspace(-3, 5, 8 * HEADS).reshape(8, HEADS)
SWIN = torch.linspace(-3, 5, 21 * HEADS).reshape(21, HEADS)


def read(table: Tensor, *at: int) -> float:
    """The element of a tensor, 0 outside it."""
    inside = all(0 <= i < n for i, n in zip(at, table.shape, strict=True))
    return float(table[at]) if inside else 0.0


def bucket(distance: int, count: int, far: int) -> int:
    """One direction of T5's buckets. (No distance here lies on an edge that rounding moves.)"""
    exact = count // 2
    if distance < exact:
        return distance
    return min(count - 1, exact + int(math.log(distance / exact) / math.log(far / exact)
                                      * (count - exact)))


def both_ways(i: int, j: int, h: int) -> float:
    return float(TABLE[(4 if j > i else 0) + bucket(abs(i - j), 4, 20), h])


def one_way(i: int, j: int, h: int) -> float:
    return float(TABLE[bucket(max(i - j, 0), 8, 30), h])


def swin(i: int, j: int, h: int) -> float:
    places = [(y, x) for y in range(2) for x in range(4)]
    if not (0 <= i < 8 and 0 <= j < 8):
        return 0.0
    (yi, xi), (yj, xj) = places[i], places[j]
    return float(SWIN[(yi - yj + 1) * 7 + xi - xj + 3, h])


def slope(h: int) -> float:
    return (1 / 16, 1 / 256, 1 / 4)[h]  # of three heads


# score, batch entry, head, query position, key position -> the new score
LITERAL: list[tuple[Score, Callable[[float, int, int, int, int], float]]] = [
    (scores.softcap(1.5), lambda s, b, h, i, j: 1.5 * math.tanh(s / 1.5)),
    (scores.temperature(0.3), lambda s, b, h, i, j: s / 0.3),
    (scores.alibi(), lambda s, b, h, i, j: s - slope(h) * abs(i - j)),
    (scores.alibi(slopes=[0.5, 0.25, -1]), lambda s, b, h, i, j: s - SLOPES[h] * abs(i - j)),
    (scores.alibi(slopes=SLOPES), lambda s, b, h, i, j: s - SLOPES[h] * abs(i - j)),
    (scores.activation("relu"), lambda s, b, h, i, j: max(s, 0.0)),
    (scores.activation("tanh"), lambda s, b, h, i, j: math.tanh(s)),
    (scores.activation("sigmoid"), lambda s, b, h, i, j: 1 / (1 + math.exp(-s))),
    (scores.activation("silu"), lambda s, b, h, i, j: s / (1 + math.exp(-s))),
    (scores.activation("gelu"), lambda s, b, h, i, j: s / 2 * (
        1 + math.tanh(math.sqrt(2 / math.pi) * (s + 0.044715 * s ** 3)))),
    (scores.bias(BIAS), lambda s, b, h, i, j: s + read(BIAS, b, h, i - 6, j)),
    (scores.bias(BIAS[:, :1, :, :7]), lambda s, b, h, i, j: s + read(BIAS[:, 0, :, :7], b, i, j)),
    (scores.bias(BIAS[:1, :, :1]), lambda s, b, h, i, j: s + read(BIAS[0, :, 0], h, j)),
    (scores.bias(BIAS[0, :, :, :1]), lambda s, b, h, i, j: s + read(BIAS[0, :, :, 0], h, i)),
    (scores.bias(BIAS[0, 0, 0]), lambda s, b, h, i, j: s + read(BIAS[0, 0, 0], j)),
    (scores.bias(torch.ones(1, 1, 1, 1)), lambda s, b, h, i, j: s + 1),
    (scores.relative_position_bias(TABLE, max_distance=20),
     lambda s, b, h, i, j: s + both_ways(i, j, h)),
    (scores.relative_position_bias(TABLE, 8, 30, bidirectional=False),
     lambda s, b, h, i, j: s + one_way(i, j, h)),
    (scores.swin_bias(SWIN, (2, 4)), lambda s, b, h, i, j: s + swin(i, j, h)),
    (scores.swin_bias(SWIN[:, 1:2], (2, 4)), lambda s, b, h, i, j: s + swin(i, j, 1)),
]


@pytest.mark.parametrize("score, literal", LITERAL, ids=[repr(s) for s, _ in LITERAL])
def test_score_matches_its_definition_pair_by_pair(
        score: Score, literal: Callable[[float, int, int, int, int], float]) -> None:
    spec = AttentionSpec(heads=HEADS, head_dim=8, score=score)
    [(_, mod)] = spec.score_mods()
    for rows, columns, q_offset, kv_offset in CALLS:
        at = positions(spec, BATCH, rows, columns, q_offset=q_offset, kv_offset=kv_offset)
        s = torch.randn(BATCH, HEADS, rows, columns, dtype=torch.float64)
        got = mod(s, at.b, at.h, at.q_idx, at.kv_idx)
        first = int(at.q_idx.flatten()[0])
        expected = torch.tensor([[[[literal(float(s[b, h, i, j]), b, h, first + i, kv_offset + j)
                                    for j in range(columns)] for i in range(rows)]
                                  for h in range(HEADS)] for b in range(BATCH)])
        torch.testing.assert_close(got.float(), expected.float(), rtol=1e-5, atol=1e-5)


def test_every_named_score_has_a_literal_definition() -> None:
    tested = {s.name for s, _ in LITERAL} | {"per_head"}  # in test_per_head.py
    assert tested == set(scores.NAMED)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("buckets, far", [(32, 128), (8, 20), (64, 1000), (6, 7)])
def test_buckets_are_those_of_t5(bidirectional: bool, buckets: int, far: int) -> None:
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5", reason="needs transformers")
    distance = torch.arange(-3 * far, 3 * far + 1)
    expected = t5.T5Attention._relative_position_bucket(distance, bidirectional, buckets, far)
    table = torch.arange(float(buckets)).reshape(-1, 1)
    score = scores.relative_position_bias(table, buckets, far, bidirectional)
    assert score(0, 0, 0, torch.tensor(0), distance).tolist() == expected.tolist()


def test_window_bias_is_that_of_swin() -> None:
    models = pytest.importorskip("transformers.models.swin.modeling_swin",
                                 reason="needs transformers")
    layer = models.SwinRelativePositionBias(HEADS, (3, 2))
    torch.nn.init.normal_(layer.relative_position_bias_table)
    score = scores.swin_bias(layer.relative_position_bias_table, (3, 2))
    h, i, j = torch.arange(HEADS)[:, None, None], torch.arange(6)[:, None], torch.arange(6)
    assert torch.equal(score(0.0, 0, h, i, j), layer()[0])


def test_gradients_reach_the_tensors() -> None:
    table = TABLE.double().requires_grad_()
    i, j = torch.arange(5)[:, None], torch.arange(5)
    scores.relative_position_bias(table)(0.0, 0, 1, i, j).sum().backward()
    assert table.grad is not None and table.grad[:, 1].sum() == 25 and table.grad[:, 0].sum() == 0


def test_functions_take_numbers_and_tensors() -> None:
    x = torch.tensor([-1.5, 0.25, 3.0])
    for function in (scores.tanh, scores.exp, scores.exp2, scores.sigmoid):
        assert function(x).tolist() == pytest.approx([function(float(v)) for v in x])
    assert scores.clamp(x, 0, 1).tolist() == [scores.clamp(float(v), 0, 1) for v in x]
    assert (scores.minimum(2, 3), scores.maximum(2, 3), scores.where(True, 1, 2)) == (2, 3, 1)


@pytest.mark.parametrize("make, text", [
    (lambda: scores.softcap(0), "cap must be a finite number above 0, got 0"),
    (lambda: scores.temperature(float("nan")), "t must be a finite number above 0"),
    (lambda: scores.alibi(slopes="ab"), "slopes must be finite numbers"),
    (lambda: scores.alibi(slopes=[1, float("inf")]), "slopes must be finite numbers"),
    (lambda: scores.alibi(slopes=torch.ones(2, 2)), "has 2 dimensions, not 1"),
    (lambda: scores.alibi(3, slopes=(1, 2)), "alibi has 2 slopes for 3 heads"),
    (lambda: scores.bias(2.0), "bias must be a tensor, got 2.0"),
    (lambda: scores.bias(torch.ones(3, dtype=torch.int32)), "bias is int32, not float16"),
    (lambda: scores.relative_position_bias(TABLE, 9), "a table of 8 rows for 9 buckets"),
    (lambda: scores.relative_position_bias(TABLE[:7]), "7 buckets do not divide"),
    (lambda: scores.relative_position_bias(TABLE, max_distance=2), "at least 3, got 2"),
    (lambda: scores.relative_position_bias(TABLE, bidirectional=1), "must be True or False"),
    (lambda: scores.swin_bias(SWIN, (2, 3)), "a window of 2 x 3 needs 15"),
    (lambda: scores.swin_bias(SWIN, (2, 2, 2)), "has 3 entries, not 2"),
    (lambda: AttentionSpec(heads=4, head_dim=8, score=scores.bias(BIAS)),
     "the tensor of bias is for 3 heads, the spec has 4"),
    (lambda: AttentionSpec(heads=4, head_dim=8, score=scores.relative_position_bias(TABLE)),
     "is for 3 heads, the spec has 4"),
    (lambda: AttentionSpec(heads=4, head_dim=8, score=[scores.swin_bias(SWIN, (2, 4))]),
     "is for 3 heads, the spec has 4"),
    (lambda: AttentionSpec(heads=4, head_dim=8, score=masks.causal()),
     "causal is a mask, given as a score")])
def test_bad_arguments_are_refused_with_the_argument_named(make: Callable[[], Any],
                                                           text: str) -> None:
    with pytest.raises(PatternError, match=re.escape(text)):
        make()


def test_unknown_activation_suggests_the_known_one() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'sigmoid'"):
        scores.activation("sigmoidal")


def test_a_score_with_a_tensor_has_no_json_form() -> None:
    with pytest.raises(SpecJsonError, match="Build the pattern again"):
        AttentionSpec(heads=3, head_dim=8, score=scores.bias(BIAS)).to_json()
    listed = AttentionSpec(heads=3, head_dim=8, score=scores.alibi(slopes=[1, 2, 3]))
    assert AttentionSpec.from_json(listed.to_json()) == listed
