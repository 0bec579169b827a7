"""Tracing what callables capture: rows, positions, names, dynamic numbers and what is refused."""

from __future__ import annotations

import functools
import itertools
import re
import types
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


SMALL = torch.arange(5)
MARKS = torch.zeros(9, dtype=torch.bool)


@pytest.mark.parametrize(("function", "text"), [
    (lambda b, h, i, j: SMALL[i % 4 + 5] > 0, "SMALL is never read inside dimension 0, which has "
                                              "5 elements: positions are 5 ... 8"),
    (lambda b, h, i, j: SMALL[-1 - abs(i - j)] > 0, "positions are at most -1"),
    (lambda b, h, i, j: SMALL[torch.clamp(j, min=5)] > 0, "positions are at least 5"),
    (lambda b, h, i, j: SMALL[(i & 3) * 2 - h - 7] > 0, "positions are -8 ... -1"),
    (lambda b, h, i, j: SMALL[torch.where(i < j, 7, 5) + MARKS[i]] > 0, "positions are 5 ... 8"),
    (lambda b, h, i, j: SMALL[SMALL[j] % 3 // 2 - 2] > 0, "positions are -2 ... -1"),
    (lambda b, h, i, j: TABLE[b, h * 0 + i % 2 + 4, j] > 0, "never read inside dimension 1"),
])
def test_positions_that_are_never_inside(function: Callable[..., Any], text: str) -> None:
    with pytest.raises(TraceError, match=re.escape(text)) as error:
        traced(function, heads=2)
    assert "Positions count from 0" in error.value.remedy


GUARDED: tuple[Callable[..., Any], ...] = (
    lambda b, h, i, j: SMALL[i], lambda b, h, i, j: SMALL[i % 9], lambda b, h, i, j: SMALL[i - j],
    lambda b, h, i, j: SMALL[SMALL[j] - 3], lambda b, h, i, j: SMALL[(i - 3).clamp(max=0)],
    lambda b, h, i, j: SMALL[b + 4], lambda b, h, i, j: SMALL[abs(i) // 7 - 1],
    lambda b, h, i, j: SMALL[i * 0 + 4])


def test_positions_that_may_be_inside_are_guarded() -> None:
    """In a kernel an index outside reads 0: rows and keys go on beyond the tensor's five."""
    padded = torch.zeros(100, dtype=torch.long)  # negative positions land on zeros
    padded[:5] = SMALL
    elsewhere = [types.FunctionType(f.__code__, {**globals(), "SMALL": padded}) for f in GUARDED]

    def score(functions: Any) -> Callable[..., Any]:
        return lambda s, b, h, i, j: s + sum(
            f(b, h, i, j) / (n + 5) for n, f in enumerate(functions))

    spec, right = (ag.AttentionSpec(heads=1, head_dim=16, score=score(f))
                   for f in (GUARDED, elsewhere))
    q, k, v = make_qkv(spec, 1, 20)
    assert_matches_oracle(right, q, k, v, ag.compile(spec, target="cpu")(q, k, v))


def test_the_size_of_expressions_is_capped() -> None:
    def many(b: Any, h: Any, i: Any, j: Any) -> Any:
        parts = [(i + n) % 7 == (j * n) % 5 for n in range(1500)]
        while len(parts) > 1:
            parts = [x if y is None else x | y for x, y in
                     itertools.zip_longest(parts[::2], parts[1::2])]
        return parts[0]

    with pytest.raises(TraceError, match="operations, at most 4096 are taken"):
        traced(many)
    wide = torch.zeros(50, 1025, dtype=torch.int32)
    with pytest.raises(TraceError, match="all but one of at most 1024 elements"):
        traced(lambda b, h, i, j: (wide[i] == j).any(-1))


def test_captured_tensors_do_not_become_numbers() -> None:
    length, rows = torch.tensor(5), torch.tensor([3, 4])
    for function in (lambda b, h, i, j: i < length.item(), lambda b, h, i, j: i < int(length),
                     lambda b, h, i, j: i < rows.tolist()[0],
                     lambda b, h, i, j: (i < 3) & bool(length)):
        with pytest.raises(TraceError, match="becomes a Python value, which would not follow"):
            traced(function)
    _, captures = traced(lambda b, h, i, j: (i < length) & (j < rows[1]))
    assert captures.tables[0].source is length and captures.tables[1].ndim == 0


def test_tensors_no_kernel_reads() -> None:
    phases = torch.zeros(9, dtype=torch.complex64)
    with pytest.raises(TraceError, match="the captured tensor phases is complex64"):
        traced(lambda b, h, i, j: phases[i] == 0)


def test_rows_take_every_operation() -> None:
    rows, weights = torch.randint(0, 9, (50, 3)), torch.randn(50, 3)
    few = torch.tensor([4, 17])
    spec = ag.AttentionSpec(
        heads=1, head_dim=16,
        mask=lambda b, h, i, j: (((rows[i] - j % 5 > 2) & ~(rows[j] == 7)).sum(-1) >= 1)
        | torch.isin(j, few),
        score=lambda s, b, h, i, j: s + torch.tanh(weights[i] / 2 * s).amax(-1)
        - (3.0 - weights[j].exp()).mean(-1) + (weights[i] ** 2).amin(-1))

    def row(x: Any) -> Any:
        return x.unsqueeze(-1)

    wide = ag.AttentionSpec(
        heads=1, head_dim=16,
        mask=lambda b, h, i, j: (((rows[i] - row(j) % 5 > 2) & ~(rows[j] == 7)).sum(-1) >= 1)
        | torch.isin(j, few),
        score=lambda s, b, h, i, j: s + torch.tanh(weights[i] / 2 * row(s)).amax(-1)
        - (3.0 - weights[j].exp()).mean(-1) + (weights[i] ** 2).amin(-1))
    q, k, v = make_qkv(spec, 1, 50)
    assert_matches_oracle(wide, q, k, v, ag.compile(spec, target="cpu")(q, k, v))


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
