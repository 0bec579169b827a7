"""Gradients of attention against the float64 oracle's and by differences, on every target."""

from __future__ import annotations

import random
from dataclasses import replace

import backward_cases
import forward_cases
import pattern_cases
import pytest
import torch
from backward_cases import alone, compiled, gradcheck
from forward_cases import NAMED, Case
from helpers import only_ours
from pattern_cases import ALONE, PatternCase
from torch import Tensor

import attngen as ag
from attngen import errors, knobs, masks

Spec = ag.AttentionSpec


def chosen(target: str, dtype: str, most: int) -> list[Case]:
    return [replace(case, dtype=dtype) for feature, some in NAMED.items() for case in some[:most]
            if (not alone(case) or dtype == "float64")
            and (target == "cpu" or max(case.head_dim, case.head_dim_v or 0) <= 128)]


CASES = [("cpu", case) for dtype, most in (("float64", 5), ("float32", 2), ("bfloat16", 1))
         for case in chosen("cpu", dtype, most)]
CASES += [("sm_80", case) for dtype, most in (("bfloat16", 2), ("float16", 1), ("float32", 1))
          for case in chosen("sm_80", dtype, most)]


@pytest.mark.parametrize(("target", "case"), CASES, ids=[f"{t} {c}" for t, c in CASES])
def test_named_cases(target: str, case: Case) -> None:
    with only_ours():
        attn = compiled(case.spec, target)
    assert not backward_cases.check(case, case, attn)


@pytest.mark.full
@pytest.mark.parametrize(("target", "dtype"), [("cpu", "float32"), ("sm_80", "bfloat16")])
def test_all_named_cases(target: str, dtype: str) -> None:
    for case in chosen(target, dtype, 100):
        assert not backward_cases.check(case, case, compiled(case.spec, target))


# -- patterns -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALONE)
def test_named_patterns(name: str) -> None:
    for case in pattern_cases.cases(ALONE[name], name, (0, 2), dtype="float64"):
        assert not backward_cases.check(case, case, compiled(case.spec, "cpu"))


EMULATED = ("document_batch", "strided", "sinks_window", "neighborhood_2d", "softcap", "alibi",
            "bias_row", "gelu", "swin_bias", "global_few")


@pytest.mark.parametrize("name", EMULATED)
def test_named_patterns_emulated(name: str) -> None:
    for case in pattern_cases.cases(ALONE[name], name, (0,), dtype="bfloat16"):
        assert not backward_cases.check(case, case, compiled(case.spec, "sm_80"))


@pytest.mark.full
@pytest.mark.parametrize("name", ALONE)
def test_gradcheck_of_every_pattern(name: str) -> None:
    for case in pattern_cases.cases(ALONE[name], name, (0, 2), dtype="float64"):
        data = forward_cases.inputs(case)
        assert gradcheck(case.spec, case.batch, case.seqlen_q, case.seqlen_k, **data.where)


def random_spec(rng: random.Random) -> Spec:
    """Any mask, scores, groups and sizes."""
    table = pattern_cases.patterns()
    mask = rng.choice([None, *table.masks.values()])
    some = rng.sample(list(table.scores.values()), rng.randint(0, 2))
    size, groups = rng.choice(((1, 2), (3, 1), (2, 2), (4, 1)))
    return Spec(heads=size * groups, groups=groups, head_dim=8 * rng.randint(1, 5),
                head_dim_v=8 * rng.randint(1, 5), mask=mask, score=some or None,
                causal=rng.random() < 0.3)


def _random_check(seed: int) -> None:
    rng = random.Random(seed)
    spec = random_spec(rng)
    sizes = rng.randint(1, 2), rng.randint(1, 70), rng.randint(1, 70)
    how = {"dropout_p": rng.choice((0.1, 0.5)), "seed": seed} if rng.random() < 0.3 else {}
    assert gradcheck(spec, *sizes, **how)


@pytest.mark.parametrize("seed", range(12))
def test_gradcheck_of_random_specs(seed: int) -> None:
    _random_check(seed)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(100, 300))
def test_gradcheck_of_many_random_specs(seed: int) -> None:
    _random_check(seed)


# -- torch's side ---------------------------------------------------------------------------------


def tensors(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    data = forward_cases.inputs(case)
    q, k, v = (t.detach().requires_grad_() for t in (data.q, data.k, data.v))
    return q, k, v


CAUSAL = Case(heads=4, groups=2, head_dim=32, causal=True, seqlen_q=50, seqlen_k=70)


def test_only_what_is_asked_for() -> None:
    q, k, v = tensors(CAUSAL)
    attn = compiled(CAUSAL.spec, "cpu")
    attn(q.detach(), k, v.detach()).sum().backward()
    assert k.grad is not None and q.grad is None and v.grad is None
    with torch.no_grad():
        assert not attn(q, k, v).requires_grad


def test_gradients_may_have_any_strides() -> None:
    q, k, v = tensors(CAUSAL)
    o, lse = compiled(CAUSAL.spec, "cpu")(q, k, v, return_lse=True)
    dout = torch.randn(32, 50, 4, 2).permute(3, 2, 1, 0)
    want = torch.autograd.grad(o, (q, k, v), dout.contiguous(), retain_graph=True)
    for given in (dout, torch.stack([dout, dout], -1)[..., 0]):
        found = torch.autograd.grad(o, (q, k, v), given, retain_graph=True)
        assert all(a.equal(b) for a, b in zip(found, want, strict=True))
    ones = torch.autograd.grad(o.sum(), (q, k, v), retain_graph=True)
    alike = torch.autograd.grad(o, (q, k, v), torch.ones_like(o), retain_graph=True)
    assert all(a.equal(b) for a, b in zip(ones, alike, strict=True))
    of_lse = torch.autograd.grad(lse.sum(), (q, k), retain_graph=True)
    assert all(bool(g.isfinite().all()) and bool(g.any()) for g in of_lse)


def test_rows_that_see_nothing_have_gradient_zero() -> None:
    case = replace(CAUSAL, seqlen_q=90, seqlen_k=40, dtype="float32")
    for target in ("cpu", "sm_80"):
        q, k, v = tensors(case)
        compiled(case.spec, target)(q, k, v).sum().backward()
        assert q.grad is not None and not q.grad[:, :, :50].any() and q.grad[:, :, 50:].any()


@pytest.mark.parametrize("target", ["cpu", "sm_80"])
@pytest.mark.parametrize("mask", [~masks.prefix_lm(30), lambda b, h, i, j: i != i])
def test_a_mask_that_contradicts_itself(mask: object, target: str) -> None:
    spec = Spec(heads=4, groups=2, head_dim=32, causal=True, mask=mask, sinks=True)
    given, sinks = tensors(CAUSAL), torch.randn(4, requires_grad=True)
    o, lse = compiled(spec, target)(*given, sinks=sinks, return_lse=True)
    assert not o.any() and lse.equal(sinks[None, :, None].expand(2, 4, 50))
    of_sinks, *others = torch.autograd.grad(o.sum() + lse.sum(), (sinks, *given))
    torch.testing.assert_close(of_sinks, torch.full((4,), 100.0))
    assert not any(g.any() for g in others)


@pytest.mark.parametrize(("q", "k"), [(0, 5), (5, 0), (0, 0)])
def test_empty_tensors(q: int, k: int) -> None:
    case = replace(CAUSAL, seqlen_q=q, seqlen_k=k)
    given = tensors(case)
    o, lse = compiled(case.spec, "cpu")(*given, return_lse=True)
    (o.sum() + lse[lse.isfinite()].sum()).backward()
    assert all(t.grad is not None and not t.grad.any() for t in given)


def test_the_same_bits_every_time() -> None:
    q, k, v = tensors(replace(CAUSAL, seqlen_q=300, seqlen_k=400))
    slopes = torch.tensor([0.1, 0.2, 0.3, 0.4], requires_grad=True)
    attn = ag.compile(Spec(heads=4, groups=2, head_dim=32, causal=True,
                           score=lambda s, b, h, i, j: s + slopes[h] * (j - i)), "cpu")
    found = []
    for threads in (1, 2, 2):
        with knobs.scope(threads=threads):
            o = attn(q, k, v)
            found.append(torch.autograd.grad(o, (q, k, v, slopes), torch.ones_like(o)))
    assert all(a.equal(b) for f in found[1:] for a, b in zip(found[0], f, strict=True))


def test_emulated_schedules_give_the_same_bits() -> None:
    case = replace(CAUSAL, batch=1, heads=2, groups=1, dtype="bfloat16")
    attn, given = compiled(case.spec, "sm_80"), tensors(case)
    found = []
    for seed in range(8):
        with knobs.scope(seed=seed):
            o = attn(*given)
            found.append(torch.autograd.grad(o, given, torch.ones_like(o)))
    assert all(a.equal(b) for f in found[1:] for a, b in zip(found[0], f, strict=True))


def test_a_second_derivative_is_refused() -> None:
    q, k, v = tensors(CAUSAL)
    o = compiled(CAUSAL.spec, "cpu")(q, k, v)
    (g,) = torch.autograd.grad(o.sum(), q, create_graph=True, retain_graph=True)
    assert g.equal(torch.autograd.grad(o.sum(), q)[0])
    with pytest.raises(errors.NotDeliveredError, match="second derivative"):
        (g.square().sum() + q.sum()).backward()


def test_saved_tensors_must_not_change() -> None:
    q, k, v = tensors(CAUSAL)
    moved = q * 1
    o = compiled(CAUSAL.spec, "cpu")(moved, k, v)
    moved.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        o.sum().backward()


def test_captured_tensors_must_not_change() -> None:
    ids, where = torch.arange(70) // 9, torch.tensor([20, 20], dtype=torch.int32)
    attn = ag.compile(Spec(heads=4, groups=2, head_dim=32, mask=masks.document(ids)), "cpu")
    for changed in (ids, where):
        q, k, v = tensors(CAUSAL)
        o = attn(q, k, v, q_offset=where)
        changed.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            o.sum().backward()


def test_source_shows_the_kernels() -> None:
    attn = compiled(Spec(heads=2, head_dim=64, mask=masks.sliding_window(9)), "sm_80")
    text = attn.source("backward")
    assert all(f"attngen_backward_{name}_" in text for name in ("delta", "rows", "columns"))
    assert attn.source("backward_rows") in text
    assert isinstance(PatternCase(), Case)
