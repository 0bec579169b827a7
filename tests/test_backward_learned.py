"""Gradients of captured tensors and sinks, and of packed sequences."""

from __future__ import annotations

from typing import Any

import forward_cases
import packed_cases
import pytest
import torch
from backward_cases import compiled, gradcheck
from forward_cases import Case
from torch import Tensor

import attngen as ag
from attngen import errors, knobs, reference, runtime, scores
from attngen.runtime.table_gradient import add_exactly

Spec = ag.AttentionSpec

# -- what is learned ------------------------------------------------------------------------------

N = 23


def parameter(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator, requires_grad=True)


def _score(kind: str) -> tuple[Any, tuple[Tensor, ...]]:
    """A score with tensors to learn, read in some way."""
    head, bias, row, column = parameter(4), parameter(4, N, N), parameter(2, N), parameter(N, 4)
    return {
        "slopes": (lambda s, b, h, i, j: s + head[h] * (j - i), (head,)),
        "temperature": (lambda s, b, h, i, j: s * torch.exp(head[h]), (head,)),
        "bias": (lambda s, b, h, i, j: s + bias[h, i, j], (bias,)),
        "bias of keys": (lambda s, b, h, i, j: s + column[j, h], (column,)),
        "of queries": (lambda s, b, h, i, j: torch.tanh(s * row[b, i]), (row,)),
        "one twice": (lambda s, b, h, i, j: s * row[b, i] + row[b, j], (row,)),
        "one entry": (lambda s, b, h, i, j: s + head[2] * (i - j), (head,)),
        "several": (lambda s, b, h, i, j: torch.sigmoid(head[h] * s) + bias[h, i, j] * row[b, j],
                    (head, bias, row)),
    }[kind]


@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize("kind", ["slopes", "temperature", "bias", "bias of keys", "of queries",
                                  "one twice", "one entry", "several"])
def test_captured_tensors_learn(kind: str, causal: bool) -> None:
    score, learned = _score(kind)
    spec = Spec(heads=4, groups=2, head_dim=8, causal=causal, score=score)
    assert gradcheck(spec, 2, 19, N, learned)
    assert gradcheck(spec, 2, 9, 15, learned, kv_offset=torch.tensor([3, -5], dtype=torch.int32))


@pytest.mark.parametrize("target", ["cpu", "sm_80"])
def test_learned_tensors_in_a_kernels_own_types(target: str) -> None:
    """Against torch's own operations in float64, on tensors of float32."""
    slopes = torch.tensor([0.1, -0.2, 0.3, 0.05], requires_grad=True)
    bias = torch.randn(4, 50, 70, generator=torch.Generator().manual_seed(0), requires_grad=True)

    def score(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        return s + slopes[h] * (j - i) + bias[h, i, j]

    spec = Spec(heads=4, groups=2, head_dim=32, score=score)
    data = forward_cases.inputs(Case(heads=4, groups=2, head_dim=32, seqlen_q=50, seqlen_k=70))
    o = compiled(spec, target)(data.q, data.k, data.v, q_offset=0)
    dout = torch.randn(o.shape, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad(o, (slopes, bias), dout)
    wide = [t.detach().double().requires_grad_() for t in (slopes, bias)]
    q, k, v = (t.double() for t in (data.q, data.k, data.v))
    k, v = (t.repeat_interleave(2, 1) for t in (k, v))
    at = torch.arange(70) - torch.arange(50)[:, None]
    s = q @ k.mT / 32**0.5 + wide[0][:, None, None] * at + wide[1]
    right = torch.autograd.grad(s.softmax(-1) @ v, wide, dout.double())
    for got, want in zip(ours, right, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=2e-5)


def test_sinks_learn() -> None:
    spec = Spec(heads=4, groups=2, head_dim=8, causal=True, sinks=True)
    assert gradcheck(spec, 2, 20, 11, (parameter(4),))
    sinks = torch.full((4,), float("-inf"), requires_grad=True)
    q, k, v = torch.randn(3, 1, 4, 5, 8).unbind()
    compiled(spec, "cpu")(q, k[:, :2], v[:, :2], sinks=sinks).sum().backward()
    assert sinks.grad is not None and not sinks.grad.any()


def test_names_that_backward_kernels_use_themselves() -> None:
    dout, dlse, dtable_0, delta = (parameter(4) for _ in range(4))
    spec = Spec(heads=4, groups=2, head_dim=8, score=lambda s, b, h, i, j: (
        s * dout[h] + dlse[h] * i + dtable_0[h] * j + delta[h] * (i - j)))
    assert gradcheck(spec, 1, 7, 9, (dout, dlse, dtable_0, delta))


def test_what_only_a_mask_reads_has_gradient_zero() -> None:
    level = torch.zeros(2, requires_grad=True)
    attn = ag.compile(Spec(heads=2, head_dim=8, mask=lambda b, h, i, j: level[h] < i - j), "cpu")
    q = torch.randn(1, 2, 5, 8, requires_grad=True)
    attn(q, q, q).sum().backward()
    assert level.grad is not None and not level.grad.any()


# -- read at computed indices ---------------------------------------------------------------------


def _computed(kind: str, dtype: torch.dtype = torch.float64) -> tuple[Any, tuple[Tensor, ...]]:
    distance, cycle, pair, t5, window = (parameter(*shape).detach().to(dtype).requires_grad_()
                                         for shape in ((4, 2 * N), (9,), (3, 3), (32, 4), (169, 4)))
    ids = torch.randint(0, 3, (2, 80), generator=torch.Generator().manual_seed(0))
    return {
        "group": (lambda s, b, h, i, j: s * cycle[h // 2] + pair[h % 2, 1], (cycle, pair)),
        "of queries": (lambda s, b, h, i, j: s + t5[i % 32, h // 2] * j, (t5,)),
        "of keys": (lambda s, b, h, i, j: torch.tanh(s * cycle[(j + h) % 9]), (cycle,)),
        "distance": (lambda s, b, h, i, j: s + distance[h, i - j + N], (distance,)),
        "outside": (lambda s, b, h, i, j: s + distance[h, (i - j) * 3], (distance,)),
        "cycle and number": (lambda s, b, h, i, j: s * cycle[(i - j) % 9] + cycle[3], (cycle,)),
        "segments": (lambda s, b, h, i, j: s + pair[ids[b, i], ids[b, j]], (pair,)),
        "t5": (scores.relative_position_bias(t5), (t5,)),
        "swin": (lambda s, b, h, i, j: s + window[
            (i // 7 - j // 7 + 6) * 13 + i % 7 - j % 7 + 6, h], (window,)),
        "two": (lambda s, b, h, i, j: torch.tanh(s + cycle[(i + j) % 9]) * pair[b, (i - j) % 3]
                + cycle[(i * j) % 9], (cycle, pair)),
    }[kind]


COMPUTED = ("group", "of queries", "of keys", "distance", "outside", "cycle and number", "segments",
            "t5", "swin", "two")


@pytest.mark.parametrize("at_once", [1 << 26, 1], ids=["at once", "in parts"])
@pytest.mark.parametrize("kind", COMPUTED)
def test_tables_read_at_computed_indices_learn(kind: str, at_once: int,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.backward, "_PAIR_BYTES", at_once)
    score, learned = _computed(kind)
    spec = Spec(heads=4, groups=2, head_dim=8, causal=kind == "distance", score=score)
    assert gradcheck(spec, 2, 49 if at_once > 1 else 70, 49, learned)
    if kind != "swin":
        assert gradcheck(spec, 2, 9, 15, learned,
                         kv_offset=torch.tensor([3, -2], dtype=torch.int32), q_offset=1)


@pytest.mark.parametrize("target", ["cpu", "sm_80"])
@pytest.mark.parametrize("kind", ["cycle and number", "t5", "two"])
def test_computed_indices_in_a_kernels_own_types(kind: str, target: str) -> None:
    score, learned = _computed(kind, torch.float32)
    spec = Spec(heads=4, groups=2, head_dim=32, causal=True, score=score)
    data = forward_cases.inputs(Case(heads=4, groups=2, head_dim=32, seqlen_q=50, seqlen_k=70))
    dout = torch.randn(2, 4, 50, 32, generator=torch.Generator().manual_seed(1))
    found = []
    for run in (compiled(spec, target), lambda *t, **how: reference.attention(spec, *t, **how)[0]):
        o = run(data.q, data.k, data.v, dropout_p=0.2, seed=3)
        found.append(torch.autograd.grad(o, learned, dout.to(o.dtype)))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_computed_indices_give_the_same_bits() -> None:
    score, learned = _computed("t5", torch.float32)
    data = forward_cases.inputs(Case(heads=4, groups=2, head_dim=32, seqlen_q=300, seqlen_k=300))
    attn = ag.compile(Spec(heads=4, groups=2, head_dim=32, score=score), "cpu")
    found = []
    for threads in (1, 2, 2):
        with knobs.scope(threads=threads):
            found += torch.autograd.grad(attn(data.q, data.k, data.v).sum(), learned)
    assert found[0].any() and all(g.equal(found[0]) for g in found)


@pytest.mark.parametrize(("batch", "q", "k"), [(0, 5, 5), (2, 0, 5), (2, 5, 0)])
@pytest.mark.parametrize("kind", ["group", "of queries", "of keys", "t5"])
def test_empty_calls_teach_nothing(kind: str, batch: int, q: int, k: int) -> None:
    score, learned = _computed(kind, torch.float32)
    attn = compiled(Spec(heads=4, groups=2, head_dim=8, score=score), "cpu")
    o = attn(torch.zeros(batch, 4, q, 8), *torch.zeros(2, batch, 2, k, 8))
    assert all(not g.any() for g in torch.autograd.grad(o.sum(), learned))


def test_exact_sums_do_not_depend_on_the_order() -> None:
    rng = torch.Generator().manual_seed(0)
    values = torch.randn(5000, generator=rng) * 10.0 ** torch.randint(-9, 9, (5000,), generator=rng)
    at, found = torch.randint(0, 3, (5000,), generator=rng), []
    for order in (torch.arange(5000), torch.randperm(5000, generator=rng)):
        out = torch.ones(3)
        add_exactly(out, at[order], values[order])
        found.append(out)
    assert found[0].equal(found[1])
    want = torch.ones(3, dtype=torch.float64).index_add_(0, at, values.double())
    torch.testing.assert_close(found[0].double(), want, rtol=1e-6, atol=0)
    out = torch.zeros(2)
    add_exactly(out, torch.tensor([0, 1]), torch.zeros(2))
    assert not out.any()
    add_exactly(out, torch.tensor([0, 1]), torch.tensor([1.0, float("nan")]))
    assert bool(out.isnan().all())


def test_a_table_too_large_to_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.table_gradient, "_MOST_COMPUTED", 8)
    table = torch.zeros(9, requires_grad=True)
    attn = ag.compile(Spec(heads=1, head_dim=8, score=lambda s, b, h, i, j: s + table[(i - j) % 9]),
                      "cpu")
    q = torch.randn(1, 1, 5, 8)
    o = attn(q, q, q)
    with pytest.raises(errors.ShapeError, match="has 9 elements") as refused:
        o.sum().backward()
    assert "detach()" in refused.value.remedy


# -- packed sequences -----------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["cpu", "sm_80"])
@pytest.mark.parametrize("k_lens", [None, (70, 3, 5, 0, 150, 64)], ids=["same", "other keys"])
def test_packed_sequences_have_gradients_of_their_own(
        target: str, k_lens: tuple[int, ...] | None) -> None:
    case = packed_cases.PackedCase(fields={"causal": True, "score": scores.softcap(3.0)},
                                   head_dim=32, k_lens=k_lens)
    attn, data = compiled(case.spec, target), packed_cases.inputs(case)
    given = [t.detach().requires_grad_() for t in data[:3]]
    o = attn(*given, **data.where)
    dout = torch.randn(o.shape, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad(o, given, dout)
    ends = [packed_cases.boundaries(x).tolist() for x in (case.q_lens, case.keys, case.keys)]
    for n in range(len(case.q_lens)):
        parts = [slice(e[n], e[n + 1]) for e in ends]
        alone = [t[:, :, at].detach().requires_grad_() for t, at in zip(given, parts, strict=True)]
        one = attn(*alone)
        want = torch.autograd.grad(one, alone, dout[:, :, parts[0]])
        for got, right, at in zip(found, want, parts, strict=True):
            torch.testing.assert_close(got[:, :, at], right, rtol=1e-5, atol=1e-6)


def test_jagged_tensors_have_gradients() -> None:
    case = packed_cases.PackedCase(fields={"causal": True}, head_dim=16)
    data, offsets = packed_cases.inputs(case), packed_cases.boundaries(case.q_lens).long()
    given = [t.detach().requires_grad_() for t in data[:3]]
    nested = [torch.nested.nested_tensor_from_jagged(t[0], offsets=offsets, jagged_dim=2)
              for t in given]
    attn = compiled(case.spec, "cpu")
    found = torch.autograd.grad(attn(*nested).values().square().sum(), given)
    want = torch.autograd.grad(attn(*given, **data.where).square().sum(), given)
    for got, right in zip(found, want, strict=True):
        torch.testing.assert_close(got, right)


SLOPES, ROW, OF_BATCH = (torch.zeros(*n, requires_grad=True) for n in ((4,), (200, 4), (6, 200)))
PACKED_SCORES: dict[str, tuple[Any, Tensor]] = {
    "slopes": (lambda s, b, h, i, j: s + SLOPES[h] * (i - j), SLOPES),
    "keys": (lambda s, b, h, i, j: s + ROW[j, h], ROW),
    "queries": (lambda s, b, h, i, j: s * (1 + ROW[i, 3 - h]), ROW),
    "batch and keys": (lambda s, b, h, i, j: s + OF_BATCH[b, j], OF_BATCH),
    "batch": (lambda s, b, h, i, j: s * (1 + OF_BATCH[b, h]), OF_BATCH)}


@pytest.mark.parametrize("where", [{}, {"q_offset": (9, 0, 4, 5, 1, 0), "kv_offset": 2}], ids=str)
@pytest.mark.parametrize("name", PACKED_SCORES)
def test_tables_learn_from_packed_sequences(name: str, where: dict[str, Any]) -> None:
    """As from the sequences one by one."""
    score, table = PACKED_SCORES[name]
    case = packed_cases.PackedCase(head_dim=16, fields={"score": score, "causal": True}, **where)
    attn, data = compiled(case.spec, "cpu"), packed_cases.inputs(case)
    dout = torch.randn(1, 4, sum(case.q_lens), 16, generator=torch.Generator().manual_seed(1))
    (found,) = torch.autograd.grad(attn(*data[:3], **data.where), table, dout)
    q, k, v = (packed_cases.padded(t, case.q_lens).double() for t in data[:3])
    lengths = torch.tensor(case.q_lens)
    shift = {"q_offset": data.where.get("q_offset", 0), "kv_offset": case.kv_offset or 0}
    o, _ = reference.attention(case.spec, q, k, v, seqlens_k=lengths, **shift)
    (want,) = torch.autograd.grad(packed_cases.packed(o, case.q_lens), table, dout.double())
    assert want.any()
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("score", [lambda s, b, h, i, j: s + ROW[(i - j) % 9, h],
                                   lambda s, b, h, i, j: s + ROW[i, j]])
def test_tables_by_both_positions_are_refused_under_packed_sequences(score: Any) -> None:
    case = packed_cases.PackedCase(head_dim=16, fields={"score": score})
    data = packed_cases.inputs(case)
    o = compiled(case.spec, "cpu")(*data[:3], **data.where)
    with pytest.raises(errors.NotDeliveredError, match="packed sequences"):
        o.sum().backward()
