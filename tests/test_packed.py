"""Packed sequences and jagged tensors against the float64 oracle, and what calls refuse."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from typing import Any

import packed_cases
import pytest
import torch
from packed_cases import PackedCase
from torch import Tensor

import attngen as ag
from attngen import errors
from attngen.runtime import cxx

ENGINES = {"cpu": ("float32", "float64"), "sm_80": ("float16", "bfloat16", "float32")}
BASE = PackedCase(fields={"causal": True}, head_dim=16)


@cache
def compiled(spec: ag.AttentionSpec, target: str, fuse: bool = True) -> ag.Attention:
    return ag.compile(spec, target, emulate=target != "cpu", fuse=fuse)


CASES = [(target, case) for target, dtypes in ENGINES.items() for n, dtype in enumerate(dtypes)
         for case in packed_cases.cases(dtype=dtype) if not n or case.name in ("causal", "window")]


@pytest.mark.parametrize(("target", "case"), CASES, ids=[f"{t} {c}" for t, c in CASES])
def test_every_sequence_is_as_if_alone(target: str, case: PackedCase) -> None:
    assert not packed_cases.check(case, case, compiled(case.spec, target))


@pytest.mark.parametrize("target", ENGINES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_unfused(target: str, dtype: str) -> None:
    for case in list(packed_cases.cases(dtype=dtype))[2:8]:
        assert not packed_cases.check(case, case, compiled(case.spec, target, fuse=False))


@pytest.mark.parametrize("target", ENGINES)
def test_random(target: str) -> None:
    for seed in range(12):
        case = packed_cases.random_case(random.Random(seed), "cpu", ENGINES[target])
        assert not packed_cases.check(case, case, compiled(case.spec, target))


@pytest.mark.full
@pytest.mark.parametrize("target", ENGINES)
@pytest.mark.parametrize("seed", range(20))
def test_random_long(seed: int, target: str) -> None:
    for n in range(20):
        case = packed_cases.random_case(random.Random(1000 + 20 * seed + n), "cpu",
                                        ENGINES[target])
        assert not packed_cases.check(case, case, compiled(case.spec, target))


def test_lengths_change_without_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    attn = compiled(BASE.spec, "cpu")
    assert not packed_cases.check(BASE, BASE, attn)

    def compiles(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a kernel was compiled")

    monkeypatch.setattr(cxx, "load_text", compiles)
    for seed in range(50):
        rng = random.Random(seed)
        lengths = tuple(rng.randint(0, 90) for _ in range(1 + seed % 7))
        case = replace(BASE, q_lens=lengths, k_lens=rng.choice((None, lengths[::-1])))
        assert not packed_cases.check(case, case, attn)


def test_boundaries_may_leave_room_at_the_end_of_lengths() -> None:
    """max_seqlen is at least the longest length, and more of it changes nothing."""
    data = packed_cases.inputs(BASE)
    attn = compiled(BASE.spec, "sm_80")
    want = attn(data.q, data.k, data.v, **data.where)
    for longest in (130, 131, 1000):
        assert want.equal(attn(data.q, data.k, data.v, **data.where, max_seqlen_q=longest))
        assert want.equal(attn(data.q, data.k, data.v, **data.where, max_seqlen_q=longest,
                               max_seqlen_k=2 * longest))


def test_the_front_door_takes_packed_sequences() -> None:
    data = packed_cases.inputs(BASE)
    o, lse = ag.attention(data.q, data.k, data.v, causal=True, return_lse=True, **data.where)
    assert not packed_cases.complaints(BASE, o, lse)


# -- jagged tensors -------------------------------------------------------------------------------


def jagged(x: Tensor, lengths: tuple[int, ...], offsets: Tensor | None = None) -> Tensor:
    """A nested tensor [n, heads, ragged, dim] of sequences end to end [1, heads, total, dim]."""
    offsets = packed_cases.boundaries(lengths).long() if offsets is None else offsets
    return torch.nested.nested_tensor_from_jagged(x[0], offsets=offsets, jagged_dim=2)


def rows(x: Tensor) -> list[Tensor]:
    return list(x.unbind())


@pytest.mark.parametrize("target", ENGINES)
def test_jagged_tensors_give_jagged_ones(target: str) -> None:
    attn, data = compiled(BASE.spec, target), packed_cases.inputs(BASE)
    offsets = packed_cases.boundaries(BASE.q_lens).long()
    q, k, v = (jagged(t, BASE.q_lens, offsets) for t in (data.q, data.k, data.v))
    o, lse = attn(q, k, v, return_lse=True)
    assert o.is_nested and o.layout == torch.jagged
    assert o.shape == q.shape and lse.shape[:3] == q.shape[:3]
    assert not packed_cases.complaints(BASE, o.values()[None], lse.values()[None])
    assert (o + q).shape == q.shape  # the same sequences, so that arithmetic goes on


def test_jagged_tensors_as_a_projection_leaves_them() -> None:
    """[n, ragged, heads, dim], transposed: read in place."""
    data = packed_cases.inputs(BASE)
    offsets = packed_cases.boundaries(BASE.q_lens).long()
    q, k, v = (torch.nested.nested_tensor_from_jagged(
        t[0].transpose(0, 1).contiguous(), offsets=offsets).transpose(1, 2)
        for t in (data.q, data.k, data.v))
    o, lse = compiled(BASE.spec, "cpu")(q, k, v, return_lse=True)
    assert not packed_cases.complaints(BASE, torch.cat(rows(o), 1)[None],
                                       torch.cat(rows(lse), 1)[None])
    assert (o.transpose(1, 2) + q.transpose(1, 2)).shape == q.transpose(1, 2).shape


def test_jagged_keys_of_other_lengths() -> None:
    case = replace(BASE, k_lens=(70, 3, 5, 0, 150, 64))
    data = packed_cases.inputs(case)
    keys = packed_cases.boundaries(case.keys).long()
    o, lse = compiled(case.spec, "cpu")(
        jagged(data.q, case.q_lens), jagged(data.k, case.keys, keys),
        jagged(data.v, case.keys, keys), return_lse=True)
    assert not packed_cases.complaints(case, o.values()[None], lse.values()[None])


def test_jagged_tensors_with_holes() -> None:
    """``torch.nested.narrow`` leaves rows between sequences that belong to none."""
    full = torch.randn(3, 50, 4, 16), torch.randn(3, 50, 2, 16), torch.randn(3, 50, 2, 16)
    start, length = torch.tensor([3, 0, 20]), torch.tensor([40, 7, 30])
    q, k, v = (torch.nested.narrow(t, 1, start, length, layout=torch.jagged).transpose(1, 2)
               for t in full)
    o = compiled(BASE.spec, "cpu")(q, k, v)
    for n, ours in enumerate(rows(o)):
        at = slice(int(start[n]), int(start[n] + length[n]))
        alone = [t[n:n + 1, at].transpose(1, 2) for t in full]
        torch.testing.assert_close(ours[None], compiled(BASE.spec, "cpu")(*alone))


# -- what is refused ------------------------------------------------------------------------------

LENGTHS = (5, 3)
CU = packed_cases.boundaries(LENGTHS)


def call(**given: Any) -> Any:
    q, k, v = torch.zeros(1, 4, 8, 16), torch.zeros(1, 2, 8, 16), torch.zeros(1, 2, 8, 16)
    return compiled(BASE.spec, "cpu")(q, k, v, **given)


@pytest.mark.parametrize(("given", "error", "text"), [
    ({"cu_seqlens_k": CU}, errors.ShapeError, "cu_seqlens_k without cu_seqlens_q"),
    ({"max_seqlen_q": 8}, errors.ShapeError, "max_seqlen_q without cu_seqlens_q"),
    ({"max_seqlen_k": 8}, errors.ShapeError, "max_seqlen_k without cu_seqlens_q"),
    ({"cu_seqlens_q": CU.long()}, errors.DtypeError, r"cu_seqlens_q is torch\.int64"),
    ({"cu_seqlens_q": [0, 8]}, errors.DtypeError, "cu_seqlens_q is list"),
    ({"cu_seqlens_q": CU[None]}, errors.ShapeError, r"has shape \(1, 3\)"),
    ({"cu_seqlens_q": CU[:0]}, errors.ShapeError, r"has shape \(0,\)"),
    ({"cu_seqlens_q": CU.to("meta")}, errors.DeviceError, "is on meta, q is on cpu"),
    ({"cu_seqlens_q": CU[:2]}, errors.ShapeError, "goes from 0 to 5, expected 0 to 8"),
    ({"cu_seqlens_q": CU[1:]}, errors.ShapeError, "goes from 5 to 8, expected 0 to 8"),
    ({"cu_seqlens_q": torch.tensor([0, 9, 8], dtype=torch.int32)}, errors.ShapeError,
     "element 1 is 9, the next is 8"),
    ({"cu_seqlens_q": CU, "cu_seqlens_k": CU[[0, 2]]}, errors.ShapeError, "2 and 1 sequences"),
    ({"cu_seqlens_q": CU, "max_seqlen_q": 4}, errors.ShapeError, "longest sequence .* has 5"),
    ({"cu_seqlens_q": CU, "max_seqlen_k": 4}, errors.ShapeError, "max_seqlen_k=4 is too short"),
    ({"cu_seqlens_q": CU, "seqlens_k": torch.tensor([1, 2, 3], dtype=torch.int32)},
     errors.ShapeError, r"seqlens_k has shape \(3,\)"),
    ({"cu_seqlens_q": CU, "q_offset": torch.tensor([1], dtype=torch.int32)},
     errors.ShapeError, r"q_offset has shape \(1,\)"),
])
def test_boundaries_that_are_none(given: dict[str, Any], error: type[Exception],
                                  text: str) -> None:
    with pytest.raises(error, match=text) as refused:
        call(**given)
    assert refused.value.remedy  # type: ignore[attr-defined]


def test_packed_tensors_have_one_batch_entry() -> None:
    q, k = torch.zeros(2, 4, 8, 16), torch.zeros(2, 2, 8, 16)
    with pytest.raises(errors.ShapeError, match="packed q has batch 2"):
        compiled(BASE.spec, "cpu")(q, k, k, cu_seqlens_q=CU)


def test_jagged_tensors_that_do_not_fit() -> None:
    attn = compiled(BASE.spec, "cpu")
    offsets = CU.long()
    q, k = (jagged(torch.zeros(1, n, 8, 16), LENGTHS, offsets) for n in (4, 2))
    with pytest.raises(errors.ShapeError, match="k is no jagged tensor"):
        attn(q, torch.zeros(2, 2, 5, 16), torch.zeros(2, 2, 5, 16))
    with pytest.raises(errors.ShapeError, match="cu_seqlens and max_seqlen were given"):
        attn(q, k, k, cu_seqlens_q=CU)
    with pytest.raises(errors.ShapeError, match=r"q has shape .*expected \[batch, heads, ragged"):
        attn(q.transpose(1, 2), k, k)
    with pytest.raises(errors.ShapeError, match="k and v are jagged in different ways"):
        attn(q, k, jagged(torch.zeros(1, 2, 8, 16), (3, 5)))
    with pytest.raises(errors.ShapeError, match="q and k differ in batch"):
        other = jagged(torch.zeros(1, 2, 8, 16), (3, 4, 1))
        attn(q, other, other)
    with pytest.raises(errors.ShapeError, match="k has 3 heads"):
        attn(q, *(jagged(torch.zeros(1, 3, 8, 16), LENGTHS, offsets),) * 2)
