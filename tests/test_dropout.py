"""Dropout: its numbers, what a call does with them, and the ways to say which."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import backward_cases
import numpy as np
import packed_cases
import pytest
import torch
from emulated import complete, launch
from forward_cases import NAMED
from packed_cases import PackedCase
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import attngen as ag
from attngen import errors, masks, reference
from attngen.ir.philox import philox, uniform
from attngen.runtime import emulator

Spec = ag.AttentionSpec
SPEC = Spec(heads=4, groups=2, head_dim=32, causal=True)

# -- the numbers ----------------------------------------------------------------------------------

# From the authors' own table of known answers (Random123, kat_vectors, philox4x32 7).
KNOWN = (
    ((0,) * 4, (0,) * 2, (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A)))


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, ...],
                       words: tuple[int, ...]) -> None:
    found = philox(tuple(np.uint64(x) for x in counter), tuple(np.uint64(x) for x in key))  # type: ignore[misc]
    assert tuple(int(x) for x in found) == words


def positions() -> tuple[Any, ...]:
    """seed, b, h, q_start, i, k_start, j: positions of either sign."""
    rng = np.random.default_rng(0)
    seed = np.concatenate([rng.integers(-2**63, 2**63, 4000), [0, -1, 2**63 - 1]])
    some = [rng.integers(0, 2**31, seed.size), rng.integers(0, 100, seed.size)]
    for _ in range(2):
        some += [rng.integers(-2**26, 2**26, seed.size) * 16, rng.integers(0, 2**20, seed.size)]
    return seed, *(x.astype(np.int32) for x in some)


KERNEL = """
struct Params { const i64* seed; const int* at; float* out; int n; };
KERNEL(32, 1) test(const __grid_constant__ Params p) {
    for (int x = lane_id(); x < p.n; x += 32) {
        int a[6];
        for (int c = 0; c < 6; ++c) { a[c] = load_global(p.at + c * p.n + x); }
        const i64 seed = load_global(p.seed + x);
        const int i = a[3], j = a[5];
        store_global(p.out + x, uniform_f32(seed, a[0], a[1], a[2], i, a[4], j));
        const float same = uniform_f32(seed, a[0], a[1], a[2], i, a[4], j, i % 16, j % 16);
        store_global(p.out + p.n + x, same);
    }
}
"""


def test_everyone_has_the_same_numbers() -> None:
    at = positions()
    ours = uniform(*at)
    assert ours.dtype == np.float32 and ours.min() >= 0 and ours.max() < 1
    out = np.full((2, ours.size), np.nan, np.float32)
    launch(emulator.load(complete(KERNEL)), "test", {
        "seed": at[0], "at": np.stack(at[1:]), "out": out, "n": ours.size})
    np.testing.assert_array_equal(out, [ours, ours])
    wide = [torch.from_numpy(x.astype(np.int64)) for x in at]
    for n in range(0, ours.size, 97):  # the oracle's takes one seed
        seed, b, h, q_start, i, k_start, j = (x[n] for x in wide)
        assert float(reference.uniform(int(seed), b, h, q_start + i, k_start + j)) == ours[n]


def test_the_numbers_look_random() -> None:
    """Their mean, variance and correlation with neighbours along every axis, within 5 deviations;
    and no two are alike because of how they share a block."""
    i, j = np.arange(512)[:, None], np.arange(512)
    x = np.stack([uniform(7, b, h, 0, i, 0, j) for b in range(2) for h in range(3)]).astype(float)
    x = (x - 0.5) * math.sqrt(12)
    n = x.size
    assert abs(x.mean()) < 5 / math.sqrt(n) and abs((x * x).mean() - 1) < 5 / math.sqrt(n)
    for axis in range(3):
        for step in (1, 2, 4, 8, 16, 256):
            if step < x.shape[axis]:
                pairs = (np.roll(x, step, axis) * x).mean()
                assert abs(pairs) < 5 / math.sqrt(n), (axis, step)
    diagonal = (np.roll(x, (8, 8), (1, 2)) * x).mean()
    assert abs(diagonal) < 5 / math.sqrt(n)
    other = (uniform(8, 0, 0, 0, i, 0, j) - 0.5) * math.sqrt(12)
    assert abs((other * x[0]).mean()) < 5 / 512


# -- a call ---------------------------------------------------------------------------------------


@cache
def compiled(target: str = "cpu") -> ag.Attention:
    return ag.compile(SPEC, target, emulate=target != "cpu")


def tensors(q: int = 50, k: int = 70, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, h, n, 32, generator=generator).to(dtype).requires_grad_()
                 for h, n in ((4, q), (2, k), (2, k)))


PATTERNS: dict[str, dict[str, Any]] = {
    "document sinks": {"causal": True, "mask": masks.document(torch.arange(300) // 70)
                       | masks.attention_sinks(3)},
    "softcap": {"score": ag.scores.softcap(3.0), "window": (60, 20)},
    "neighborhood": {"mask": masks.neighborhood((15, 20), 7)}}


@pytest.mark.parametrize("target", ["cpu", "sm_80"])
@pytest.mark.parametrize("name", PATTERNS)
def test_with_masks_and_scores(name: str, target: str) -> None:
    spec = Spec(heads=2, groups=1, head_dim=32, **PATTERNS[name])
    attn = ag.compile(spec, target, emulate=target != "cpu")
    q, k, v = (torch.randn(2, h, 300, 32, generator=torch.Generator().manual_seed(h),
                           dtype=torch.float32).bfloat16() for h in (2, 1, 1))
    how = {"dropout_p": 0.25, "seed": 3}
    ours = attn(q, k, v, **how)
    right, naive = (f(spec, q, k, v, q_offset=0, **how)[0]
                    for f in (reference.attention, reference.naive))
    assert not reference.compare(ours, right, naive).report


@pytest.mark.parametrize("target", ["cpu", "sm_80"])
def test_packed_sequences(target: str) -> None:
    case = PackedCase(head_dim=32, fields={"causal": True}, q_lens=(3, 70, 0, 33),
                      k_lens=(20, 70, 5, 50), dtype="float32" if target == "cpu" else "bfloat16")
    data, how = packed_cases.inputs(case), {"dropout_p": 0.4, "seed": 11}
    attn = ag.compile(case.spec, target, emulate=target != "cpu")
    o, lse = attn(data.q, data.k, data.v, return_lse=True, **data.where, **how)
    assert not packed_cases.complaints(case, o, lse, **how)
    assert packed_cases.complaints(case, o, lse)


def test_sinks_are_not_dropped() -> None:
    spec = Spec(heads=4, groups=2, head_dim=32, causal=True, sinks=True)
    sinks = torch.randn(4, requires_grad=True)
    given = (*tensors(), sinks)
    attn = ag.compile(spec, "cpu")

    def of(f: Any, *given: Tensor) -> tuple[Tensor, ...]:
        o, lse = f(*given[:3], sinks=given[3], dropout_p=0.4, seed=5)
        return o, *torch.autograd.grad(o.square().sum() + lse.sum(), given)

    ours = of(lambda *t, **how: attn(*t, return_lse=True, **how), *given)
    wide = of(lambda *t, **how: reference.attention(spec, *t, **how),
              *(t.detach().double().requires_grad_() for t in given))
    for got, want in zip(ours, wide, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)


def test_lse_is_what_it_is_without() -> None:
    q, k, v = tensors()
    attn = compiled()
    _, lse = attn(q, k, v, return_lse=True)
    assert attn(q, k, v, return_lse=True, dropout_p=0.7, seed=1)[1].equal(lse)


def test_the_expectation_is_the_attention() -> None:
    """Within 5 standard deviations of the mean over 400 seeds, which are estimated from them."""
    q, k, v = (t.detach() for t in tensors())
    attn = compiled()
    some = torch.stack([attn(q, k, v, dropout_p=0.3, seed=n) for n in range(400)])
    off = (some.mean(0) - attn(q, k, v)).abs() / (some.std(0) / 20 + 1e-6)
    assert float(off.max()) < 5.5
    assert 0.25 < float((off > 1).double().mean()) < 0.4  # 0.32 of a normal distribution


def test_chunks_of_queries_and_keys_agree_with_the_whole() -> None:
    """Positions decide, so that shards of a long sequence drop what one device would."""
    q, k, v = (t.detach() for t in tensors(160, 160))
    attn, how = compiled(), {"dropout_p": 0.5, "seed": 9}
    whole = attn(q, k, v, **how)
    part = attn(q[:, :, 48:112], k, v, q_offset=48, **how)
    torch.testing.assert_close(part, whole[:, :, 48:112])
    moved = attn(q, k, v, q_offset=32, kv_offset=32, **how)
    assert not torch.allclose(moved, whole)


def test_one_seed_is_one_pattern() -> None:
    q, k, v = tensors()
    attn = compiled()
    one = attn(q, k, v, dropout_p=0.5, seed=4)
    assert one.equal(attn(q, k, v, dropout_p=0.5, seed=torch.tensor(4)))
    assert not one.equal(attn(q, k, v, dropout_p=0.5, seed=5))
    assert not one.equal(attn(q, k, v, dropout_p=0.5, seed=4 + 2**32))
    assert attn(q, k, v, dropout_p=0.5, seed=-1).equal(
        attn(q, k, v, dropout_p=0.5, seed=2**64 - 1))
    torch.manual_seed(0)
    drawn = [attn(q, k, v, dropout_p=0.5) for _ in range(2)]
    assert not drawn[0].equal(drawn[1])
    torch.manual_seed(0)
    assert drawn[0].equal(attn(q, k, v, dropout_p=0.5))


def test_without_it_nothing_changes() -> None:
    q, k, v = tensors()
    attn = ag.compile(SPEC, "cpu")
    plain = attn(q, k, v)
    state = torch.random.get_rng_state()
    assert attn(q, k, v, dropout_p=0.0).equal(plain) and attn(q, k, v, seed=3).equal(plain)
    assert torch.random.get_rng_state().equal(state)
    assert len(attn._variants) == 1
    for p in (0.1, 0.35, 1):
        attn(q, k, v, dropout_p=p)
    assert len(attn._variants) == 2  # of any p
    assert "uniform" not in attn.source() and "uniform_f32(" in attn.source(dropout=True)
    assert "uniform_f32(" in attn.source("backward", dropout=True)


def test_nothing_is_kept_of_p_one() -> None:
    q, k, v = tensors()
    o = compiled()(q, k, v, dropout_p=1.0)
    found = torch.autograd.grad(o.sum(), (q, k, v))
    assert not o.any() and not any(g.any() for g in found)


def test_the_front_door() -> None:
    q, k, v = tensors()
    assert ag.attention(q, k, v, causal=True, dropout_p=0.5, seed=4).equal(
        compiled()(q, k, v, dropout_p=0.5, seed=4))


def test_a_checkpoint_draws_the_same_again() -> None:
    q, k, v = tensors()
    attn = compiled()
    torch.manual_seed(3)
    want = torch.autograd.grad(attn(q, k, v, dropout_p=0.4).sum(), q)
    torch.manual_seed(3)
    o = checkpoint(lambda *t: attn(*t, dropout_p=0.4), q, k, v, use_reentrant=False)
    assert torch.autograd.grad(o.sum(), q)[0].equal(want[0])


def test_the_seed_must_not_change_before_backward() -> None:
    q, k, v = tensors()
    seed = torch.tensor([3])
    o = compiled()(q, k, v, dropout_p=0.5, seed=seed)
    seed.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        o.sum().backward()


@pytest.mark.parametrize(("how", "error", "message"), [
    ({"dropout_p": 1.5}, errors.DropoutError, "dropout_p is 1.5"),
    ({"dropout_p": -0.1}, errors.DropoutError, "a probability, 0 to 1"),
    ({"dropout_p": math.nan}, errors.DropoutError, "dropout_p is nan"),
    ({"dropout_p": "0.1"}, errors.DropoutError, "dropout_p is '0.1'"),
    ({"dropout_p": True}, errors.DropoutError, "dropout_p is True"),
    ({"dropout_p": 0.1, "seed": 2**64}, errors.DropoutError, "seed is 18446744073709551616"),
    ({"dropout_p": 0.1, "seed": 0.5}, errors.DropoutError, "seed is 0.5"),
    ({"dropout_p": 0.1, "seed": torch.tensor(1.0)}, errors.DtypeError, "seed is torch.float32"),
    ({"dropout_p": 0.1, "seed": torch.zeros(2, dtype=torch.int64)}, errors.ShapeError,
     r"seed has shape \(2,\)"),
    ({"dropout_p": 0.1, "seed": torch.zeros(1, dtype=torch.int64, device="meta")},
     errors.DeviceError, "seed is on meta"),
    ({"params": {"dropout_seed": torch.zeros(1, dtype=torch.int64)}}, errors.UnknownNameError,
     "unknown captured name"),
])
def test_what_is_refused(how: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        compiled()(*tensors(), **how)


def test_a_captured_tensor_may_be_called_seed() -> None:
    dropout_seed = torch.tensor([0.5, 1.0, 1.5, 2.0])
    spec = Spec(heads=4, groups=2, head_dim=32,
                score=lambda s, b, h, i, j: s * dropout_seed[h])
    q, k, v = tensors()
    attn = ag.compile(spec, "cpu")
    how = {"dropout_p": 0.3, "seed": 2}
    want = reference.attention(spec, q, k, v, **how)[0]
    torch.testing.assert_close(attn(q, k, v, **how).double(), want, rtol=1e-5, atol=1e-5)


# -- gradients, beside the named cases of test_backward -------------------------------------------


@pytest.mark.parametrize("n", range(len(NAMED["dropout"])))
@pytest.mark.parametrize(("target", "dtype"), [
    ("cpu", "float32"), ("sm_80", "bfloat16"), ("sm_80", "float32")])
def test_gradients(target: str, dtype: str, n: int) -> None:
    case = replace(NAMED["dropout"][n], dtype=dtype)
    if target != "cpu" and case.head_dim > 128 and dtype == "float32":
        case = replace(case, head_dim=136)
    assert not backward_cases.check(case, case, backward_cases.compiled(case.spec, target))


def test_gradients_are_the_same_bits_every_time() -> None:
    q, k, v = tensors(dtype=torch.bfloat16)
    for target in ("cpu", "sm_80"):
        o = compiled(target)(q, k, v, dropout_p=0.2, seed=6)
        found = [torch.autograd.grad(o, (q, k, v), torch.ones_like(o), retain_graph=True)
                 for _ in range(2)]
        assert all(a.equal(b) for a, b in zip(*found, strict=True))
