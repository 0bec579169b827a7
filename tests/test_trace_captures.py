"""Tracing what callables capture: rows, positions, names, dynamic numbers and what is refused."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_matches_oracle, make_qkv

import attngen as ag
from attngen.errors import PatternError, TraceError
from attngen.ir.capture import Captures
from attngen.ir.node import Node, idx
from attngen.ir.show import formula
from attngen.ir.trace import trace

MASK = (idx("b"), idx("h"), idx("i"), idx("j"))
TABLE = torch.randint(0, 5, (3, 4, 50))
IDS = torch.arange(50)


def traced(function: Callable[..., Any], heads: int | None = None) -> tuple[Node, Captures]:
    captures = Captures()
    return trace(function, MASK, "mask", "bool", captures, heads), captures


@pytest.mark.parametrize(("function", "text"), [
    (lambda b, h, i, j: IDS[i] == IDS[j], "ids[j] == ids[i]"),
    (lambda b, h, i, j: TABLE[b, h, j // 2] > 2, "2 < table[b, h, j // 2]"),
    (lambda b, h, i, j: TABLE[b][h][j] > 2, "2 < table[b, h, j]"),
    (lambda b, h, i, j: TABLE[b, 3][j] > 2, "2 < table[b, 3, j]"),
    (lambda b, h, i, j: TABLE[b, :, :][h, j] > 2, "2 < table[b, h, j]"),
    (lambda b, h, i, j, t=IDS: t[j] > i, "i < t[j]"),
    (functools.partial(lambda ids, b, h, i, j: ids[j] > i, IDS), "i < ids[j]"),
    (lambda b, h, i, j: (i & 3) == (j ^ 1) % 2, "(i bitand 3)"),
    (lambda b, h, i, j: i << 2 > j >> 1, "(j // 2) < (i * 4)"),
    (lambda b, h, i, j: torch.clamp(i - j, min=0, max=9) < 4, "min(max(i - j, 0), 9) < 4"),
    (lambda b, h, i, j: (i < j) ^ (j < 3), "!="),
    (lambda b, h, i, j: b.new_ones((), dtype=torch.bool) & (i < j), "i < j"),
], ids=lambda x: x if isinstance(x, str) else "")
def test_positions_and_operators(function: Callable[..., Any], text: str) -> None:
    node, _ = traced(function)
    spoken = formula(node).replace("bitand(i, 3)", "(i bitand 3)")
    assert text in spoken, spoken


def test_one_tensor_is_one_table_whatever_it_is_called() -> None:
    other = IDS
    _, captures = traced(lambda b, h, i, j: (IDS[i] == other[j]) & (TABLE[b, h, i] > 0))
    assert [(t.ndim, t.source is IDS) for t in captures.tables] == [(1, True), (3, False)]


def test_rows_are_unrolled() -> None:
    chosen = torch.randint(0, 8, (2, 7, 3))

    def listed(b: Any, h: Any, i: Any, j: Any) -> Any:
        return (chosen[b, i // 8] == (j // 8)).any(-1)

    q, k, v = make_qkv(ag.AttentionSpec(heads=1, head_dim=16), 2, 50)
    attn = ag.compile(ag.AttentionSpec(heads=1, head_dim=16, mask=listed), target="cpu")

    def plain(b: Any, h: Any, i: Any, j: Any) -> Any:
        row = chosen[b, i // 8]
        return (row == (j // 8).unsqueeze(-1)).any(-1)

    spec = ag.AttentionSpec(heads=1, head_dim=16, mask=plain)
    assert_matches_oracle(spec, q, k, v, attn(q, k, v))


def test_dot_of_two_rows() -> None:
    a, c = torch.randn(50, 4), torch.randn(50, 4)
    spec = ag.AttentionSpec(heads=1, head_dim=16,
                            score=lambda s, b, h, i, j: s + torch.dot(a[i], c[j]))
    plain = ag.AttentionSpec(heads=1, head_dim=16,
                             score=lambda s, b, h, i, j: s + (a[i] * c[j]).sum(-1))
    q, k, v = make_qkv(spec, 1, 50)
    assert_matches_oracle(plain, q, k, v, ag.compile(spec, target="cpu")(q, k, v))


@pytest.mark.parametrize(("function", "text"), [
    (lambda b, h, i, j: TABLE[b, -1, j] > 0, "TABLE is indexed with -1 in dimension 1, which has"),
    (lambda b, h, i, j: TABLE[b, 4, j] > 0, "TABLE is indexed with 4 in dimension 1, which has 4"),
    (lambda b, h, i, j: IDS[i / 2] > 0, "IDS is indexed with a float32"),
    (lambda b, h, i, j: IDS[i < j] > 0, "IDS is indexed with a bool"),
    (lambda b, h, i, j: IDS[i, j] > 0, "IDS has 1 dimensions, it was given 2"),
    (lambda b, h, i, j: TABLE[b, 1:2, j] > 0, "indexed with slice(1, 2, None)"),
    (lambda b, h, i, j: TABLE[b] > 0, r"shape (3, 4, 50) is used with 1 indices"),
    (lambda b, h, i, j: i & (j < 2), "and needs conditions"),
    (lambda b, h, i, j: torch.cumsum(i, 0) > 0, "torch.cumsum cannot be traced"),
], ids=lambda x: x if isinstance(x, str) else "")
def test_refusals(function: Callable[..., Any], text: str) -> None:
    with pytest.raises(TraceError, match=re.escape(text)):
        traced(function)


def test_heads_that_leave_a_table() -> None:
    slopes = torch.zeros(4)
    traced(lambda b, h, i, j: slopes[h] > i, heads=4)
    with pytest.raises(TraceError, match="head 2 reads position 4 of slopes in dimension 0, which "
                                         "has 4 elements"):
        traced(lambda b, h, i, j: slopes[h * 2] > i, heads=4)


def test_dynamic_numbers_are_numbers_outside() -> None:
    w = ag.dynamic(8, name="w")
    assert (w + 1, 1 - w, w * 2, 3 // w, w % 3, float(w), abs(-w)) == (9, -7, 16, 0, 2, 8.0, 8)
    assert torch.equal(torch.arange(10) < w, torch.arange(10) < 8)
    assert torch.equal(torch.minimum(torch.arange(10), torch.tensor(3)) * w, torch.arange(10)
                       .clamp(max=3) * 8)
    assert [0] * (w + 1) == [0] * 9 and list(range(w)) == list(range(8))
    with pytest.raises(PatternError, match="w must be a whole number, got 2.5"):
        w.value = 2.5
    with pytest.raises(PatternError, match="got 'x'"):
        ag.dynamic("x")  # type: ignore[arg-type]


def test_dynamic_numbers_are_never_baked_in() -> None:
    w = ag.dynamic(8)
    node, captures = traced(lambda b, h, i, j: i - j < w * 2 + 1)
    assert [(n.name, n.dtype) for n in captures.numbers] == [("w", "int32")]
    assert "w * 2" in formula(node)
