"""Calling an ``Attention``: shapes, strides, positions, refusals; with hand-written kernels."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import fake_plans
import pytest
import torch
from helpers import assert_matches_oracle, make_qkv, only_ours
from torch import Tensor

from attngen import errors
from attngen.attention import Attention
from attngen.runtime.captured import Captured
from attngen.runtime.plan import Plan, TensorArg
from attngen.runtime.variant import Kind
from attngen.spec import AttentionSpec

SPEC = AttentionSpec(heads=4, groups=2, head_dim=16, head_dim_v=8, causal=True)


class Plans:
    """Gives plans and remembers which were asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bool]] = []

    def __call__(self, kind: Kind) -> tuple[Plan, Captured]:
        self.asked.append((kind.dtype, kind.vectorized))
        return fake_plans.causal(dtype=kind.dtype), Captured()


def naive(spec: AttentionSpec = SPEC) -> tuple[Attention, Plans]:
    plans = Plans()
    describe = SimpleNamespace(ir=lambda stage: f"graph at {stage}", explain=lambda: "why")
    return Attention(spec, "cpu", False, plans, *fake_plans.OTHERS, describe), plans


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that is allocated by a call arrives full of NaN."""
    for name in ("new_empty", "new_empty_strided"):
        real = getattr(Tensor, name)
        monkeypatch.setattr(Tensor, name, lambda *a, real=real, **k: real(*a, **k).fill_(
            float("nan")))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("seqlen_q", "seqlen_k"), [(1, 1), (17, 17), (3, 63), (63, 3), (5, 0)])
@pytest.mark.usefixtures("poisoned")
def test_against_the_oracle(seqlen_q: int, seqlen_k: int, dtype: torch.dtype) -> None:
    attn, _ = naive()
    q, k, v = make_qkv(SPEC, 2, seqlen_q, seqlen_k, dtype=dtype)
    with only_ours():
        o, lse = attn(q, k, v, return_lse=True)
    assert o.shape == (2, 4, seqlen_q, 8) and lse.shape == (2, 4, seqlen_q) and lse.dtype == dtype
    assert_matches_oracle(SPEC, q, k, v, o, lse)
    assert isinstance(attn(q, k, v), Tensor)


@pytest.mark.parametrize(("batch", "seqlen_q"), [(0, 3), (2, 0), (0, 0)])
def test_empty_results(batch: int, seqlen_q: int) -> None:
    attn, _ = naive()
    q, k, v = make_qkv(SPEC, batch, seqlen_q, 5)
    o, lse = attn(q, k, v, return_lse=True)
    assert o.shape == (batch, 4, seqlen_q, 8) and lse.shape == (batch, 4, seqlen_q)


# -- strides ------------------------------------------------------------------------------------


def test_strided_operands_are_read_in_place_and_o_follows_q() -> None:
    attn, plans = naive()
    q, k, v = make_qkv(SPEC, 2, 5, 7)
    expected = attn(q, k, v)
    q = q.transpose(1, 2).contiguous().transpose(1, 2)  # as a model's projection leaves it
    k = k.repeat(1, 1, 2, 1)[:, :, :7]
    fused = torch.zeros(2, 7, 2, 32)
    fused[..., 8:16] = v.transpose(1, 2)
    v = fused[..., 8:16].transpose(1, 2)
    addresses = [t.data_ptr() for t in (q, k, v)]
    o, lse = attn(q, k, v, return_lse=True)
    torch.testing.assert_close(o, expected)
    assert [t.data_ptr() for t in (q, k, v)] == addresses
    assert o.stride() == (5 * 4 * 8, 8, 4 * 8, 1) and o.transpose(1, 2).is_contiguous()
    assert lse.is_contiguous() and plans.asked == [("float32", True)]


def test_expanded_operands_are_read_in_place() -> None:
    attn, _ = naive()
    q, k, v = make_qkv(SPEC, 1, 5, 7)
    wide = [t.expand(3, -1, -1, -1) for t in (q, k, v)]
    o = attn(*wide)
    torch.testing.assert_close(o, attn(q, k, v).expand(3, -1, -1, -1))
    assert o.is_contiguous()


@pytest.mark.parametrize("which", ["q", "k", "v"])
@pytest.mark.parametrize("how", ["base", "stride"])
def test_what_is_not_aligned_takes_the_other_variant(which: str, how: str) -> None:
    attn, plans = naive()
    given = dict(zip("qkv", make_qkv(SPEC, 2, 5, 7), strict=True))
    expected = attn(**given)
    x = given[which]
    if how == "base":
        flat = torch.zeros(x.numel() + 1)[1:]
        given[which] = flat.view(x.shape).copy_(x)
    else:
        given[which] = torch.zeros(*x.shape[:3], x.shape[3] + 1)[..., :-1].copy_(x)
    torch.testing.assert_close(attn(**given), expected)
    attn(**given)
    assert plans.asked == [("float32", True), ("float32", False)]


def test_strides_of_single_entries_do_not_matter() -> None:
    attn, plans = naive()
    q, k, v = make_qkv(SPEC, 1, 1, 7)
    q = q.as_strided(q.shape, (3, 16, 5, 1))
    torch.testing.assert_close(attn(q, k, v), attn(q.clone(), k, v))
    assert plans.asked == [("float32", True)]


@pytest.mark.parametrize("which", ["q", "k", "v"])
def test_a_last_dimension_with_holes_is_refused(which: str) -> None:
    attn, _ = naive()
    given = dict(zip("qkv", make_qkv(SPEC, 2, 5, 7), strict=True))
    given[which] = given[which].transpose(2, 3).contiguous().transpose(2, 3)
    with pytest.raises(errors.NonUnitStrideError, match=rf"{which} has stride \d+ in") as refused:
        attn(**given)
    assert f"{which}.contiguous()" in refused.value.remedy


# -- positions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [
    {"q_offset": 0}, {"q_offset": 1, "kv_offset": 4}, {"kv_offset": -6},
    {"q_offset": torch.tensor([0, 6], dtype=torch.int32)},
    {"kv_offset": torch.tensor([-2, 3], dtype=torch.int32)},
    {"kv_offset": torch.tensor([-2, 3], dtype=torch.int32), "q_offset": 4},
    {"seqlens_k": torch.tensor([0, 4], dtype=torch.int32)},
    {"seqlens_k": torch.tensor([[7, 0], [3, 0]], dtype=torch.int32)[:, 0], "q_offset": 2}])
def test_positions_and_lengths(where: dict[str, Any]) -> None:
    attn, _ = naive()
    q, k, v = make_qkv(SPEC, 2, 5, 7)
    o, lse = attn(q, k, v, return_lse=True, **where)
    assert_matches_oracle(SPEC, q, k, v, o, lse, **where)


@pytest.mark.parametrize(("where", "error", "text"), [
    ({"q_offset": 1.5}, errors.DtypeError, "q_offset is a float"),
    ({"kv_offset": "0"}, errors.DtypeError, "kv_offset is a str"),
    ({"q_offset": 2**31 - 3}, errors.ShapeError, "is not a position"),
    ({"q_offset": True}, errors.ShapeError, "is not a position"),
    ({"q_offset": torch.zeros(2, dtype=torch.int64)}, errors.DtypeError, "torch.int32"),
    ({"kv_offset": torch.zeros(2)}, errors.DtypeError, "kv_offset has dtype torch.float32"),
    ({"q_offset": torch.zeros(3, dtype=torch.int32)}, errors.ShapeError, r"expected \(2,\)"),
    ({"q_offset": torch.zeros((), dtype=torch.int32)}, errors.ShapeError, r"expected \(2,\)"),
    ({"q_offset": torch.zeros(2, dtype=torch.int32, device="meta")}, errors.DeviceError,
     "q_offset is on meta, q is on cpu"),
    ({"seqlens_k": torch.tensor([8, 1], dtype=torch.int32)}, errors.ShapeError, "does not fit k"),
    ({"seqlens_k": torch.tensor([-1, 1], dtype=torch.int32)}, errors.ShapeError, r"-1 \.\.\. 1"),
    ({"seqlens_k": 8}, errors.ShapeError, "does not fit k"),
    ({"seqlens_k": torch.ones(2)}, errors.DtypeError, "seqlens_k has dtype"),
])
def test_positions_that_are_none(where: dict[str, Any], error: type[Exception], text: str) -> None:
    attn, _ = naive()
    with pytest.raises(error, match=text):
        attn(*make_qkv(SPEC, 2, 5, 7), **where)


# -- refusals -----------------------------------------------------------------------------------


def swapped(shape: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    shapes = {"q": (2, 4, 5, 16), "k": (2, 2, 7, 16), "v": (2, 2, 7, 8), **shape}
    return {name: torch.zeros(size) for name, size in shapes.items()}


@pytest.mark.parametrize(("shape", "error", "text"), [
    ({"k": (2, 7, 16)}, errors.ShapeError, "k has 3 dimensions, expected 4 [batch, groups"),
    ({"q": (5, 16)}, errors.ShapeError, "q has 2 dimensions"),
    ({"q": (2, 3, 5, 16)}, errors.HeadsError, "q has 3 heads, the spec has heads=4"),
    ({"k": (2, 4, 7, 16)}, errors.HeadsError, "k has 4 heads, the spec has groups=2"),
    ({"v": (2, 1, 7, 8)}, errors.HeadsError, "v has 1 heads, the spec has groups=2"),
    ({"q": (2, 5, 4, 16)}, errors.HeadsError, "q.transpose(1, 2), which copies nothing"),
    ({"q": (2, 4, 5, 8)}, errors.ShapeError, "q has head_dim 8, the spec has 16"),
    ({"v": (2, 2, 7, 16)}, errors.ShapeError, "v has head_dim_v 16, the spec has 8"),
    ({"k": (1, 2, 7, 16)}, errors.ShapeError, "q, k and v differ in batch"),
    ({"v": (2, 2, 6, 8)}, errors.ShapeError, "k and v differ in length"),
])
def test_shapes_that_do_not_fit(shape: dict[str, tuple[int, ...]], error: type[Exception],
                                text: str) -> None:
    attn, plans = naive()
    with pytest.raises(error, match=re.escape(text)):
        attn(**swapped(shape))
    assert plans.asked == []


def test_dtypes_and_devices_that_do_not_fit() -> None:
    attn, plans = naive()
    q, k, v = make_qkv(SPEC, 2, 5, 7)
    with pytest.raises(errors.DtypeError, match="differ in dtype"):
        attn(q, k.half(), v)
    with pytest.raises(errors.DtypeError, match=r"target cpu has no kernels for int32"):
        attn(q.int(), k.int(), v.int())
    with pytest.raises(errors.DtypeError, match=r"q is a ndarray, expected a torch\.Tensor"):
        attn(q.numpy(), k.numpy(), v.numpy())
    with pytest.raises(errors.DtypeError, match="k is a NoneType"):
        attn(q, None, v)
    with pytest.raises(errors.DtypeError, match=r"v is a ndarray, expected a torch\.Tensor"):
        attn(q, k, v.numpy())
    with pytest.raises(errors.DeviceError, match="on different devices"):
        attn(q, k.to("meta"), v)
    with pytest.raises(errors.DeviceError, match="q is on meta, the kernels run on cpu"):
        attn(q.to("meta"), k.to("meta"), v.to("meta"))
    nested = torch.nested.nested_tensor([torch.zeros(n, 4, 16) for n in (3, 2)],
                                        layout=torch.jagged).transpose(1, 2)
    with pytest.raises(errors.ShapeError, match="k is a nested tensor"):
        attn(q, nested, v)
    assert plans.asked == []


def test_a_spec_with_a_dtype_takes_no_other() -> None:
    spec = AttentionSpec(heads=4, groups=2, head_dim=16, head_dim_v=8, dtype="float64")
    attn, _ = naive(spec)
    with pytest.raises(errors.DtypeError, match="q, k and v are float32, the spec says float64"):
        attn(*make_qkv(SPEC, 2, 5, 7))
    attn(*make_qkv(SPEC, 2, 5, 7, dtype=torch.float64))


def test_gpu_targets_want_gpu_tensors_unless_emulated() -> None:
    attn = Attention(SPEC, "sm_80", False, Plans(), *fake_plans.OTHERS, SimpleNamespace())
    with pytest.raises(errors.DeviceError, match="q is on cpu, the kernels run on cuda"):
        attn(*make_qkv(SPEC, 2, 5, 7))
    attn = Attention(SPEC, "sm_80", True, Plans(), *fake_plans.OTHERS, SimpleNamespace())
    with pytest.raises(errors.DtypeError, match="target sm_80 has no kernels for float64"):
        attn(*make_qkv(SPEC, 2, 5, 7, dtype=torch.float64))


def test_nothing_of_backward_is_made_before_it_is_needed() -> None:
    attn, _ = naive()
    q, k, v = make_qkv(SPEC, 2, 5, 7)
    expected = attn(q, k, v)
    assert not expected.requires_grad
    k.requires_grad_()
    o = attn(q, k, v)
    assert o.requires_grad and torch.equal(o, expected)
    with pytest.raises(AssertionError, match="no backward here"):
        o.sum().backward()
    with torch.no_grad():
        assert not attn(q, k, v).requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(attn(q, k, v), expected)
    torch.testing.assert_close(attn(q, k.detach(), v), expected)


# -- without calling ----------------------------------------------------------------------------


def test_source_build_and_description() -> None:
    attn, plans = naive()
    text = attn.source("forward")
    assert 'extern "C" void naive_causal' in text and attn.source() == text
    with pytest.raises(errors.UnknownNameError, match="unknown kernel kind 'forwrd'") as refused:
        attn.source("forwrd")
    assert "Did you mean 'forward'" in refused.value.remedy
    (library,) = attn.build()
    assert library.naive_causal
    assert attn.ir("fused") == "graph at fused" and attn.explain() == "why"
    assert set(plans.asked) == {("float32", True)} and attn.counters == ()
    assert "target=cpu" in repr(attn)
    emulated = Attention(SPEC, "sm_80", True, plans, *fake_plans.OTHERS, SimpleNamespace())
    assert emulated.dtype == "bfloat16"


def test_workspaces_are_allocated_with_padded_rows() -> None:
    def plan_for(kind: Kind) -> tuple[Plan, Captured]:
        args = (*fake_plans.tensors(), TensorArg("s", ("b", "h", "i", "j"), "float32", "workspace"))
        fields = fake_plans.fields_of(args, fake_plans.PARAMS)
        kernel = fake_plans.causal().kernels[0]
        text = fake_plans.NAIVE.format(
            struct=fake_plans.c_struct(fields), name="spilling", heads=4, groups=2, dim=16,
            dim_v=8, real="float") + """
extern "C" int64_t seen[5];
int64_t seen[5];
extern "C" void entry(const Params* p, int threads) {
  seen[0] = p->s_stride_b; seen[1] = p->s_stride_h; seen[2] = p->s_stride_i;
  seen[3] = (int64_t)p->s % 16; seen[4] = threads;
  float* s = (float*)p->s;
  for (int64_t n = 0; n < p->batch * p->s_stride_b; ++n) s[n] = 1;
  spilling(p, threads);
}"""
        kernel = kernel._replace(text=text, name="entry", fields=fields,
                                 tensors=tuple(t.name for t in args))
        return Plan(None, "cpu", "forward", args, (kernel,), {}, {}), Captured()

    import ctypes

    attn = Attention(SPEC, "cpu", False, plan_for, *fake_plans.OTHERS, SimpleNamespace())
    q, k, v = make_qkv(SPEC, 2, 5, 7)
    torch.testing.assert_close(attn(q, k, v), naive()[0](q, k, v))
    (library,) = attn.build()
    numbers = (ctypes.c_int64 * 5).in_dll(library, "seen")
    assert list(numbers) == [4 * 5 * 8, 5 * 8, 8, 0, 1]  # rows of 7 padded to 8; one thread
