"""Learned sink logits: one more term in each softmax denominator, on every target."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_matches_oracle, make_qkv, only_ours

import attngen as ag
from attngen import errors

TARGETS = [("cpu", "float64"), ("cpu", "float32"), ("cpu", "bfloat16"), ("sm_80", "float16"),
           ("sm_80", "float32")]
SINKS = torch.tensor([0.5, -2.0, 30.0])


def spec(**fields: object) -> ag.AttentionSpec:
    return ag.AttentionSpec(heads=3, groups=1, head_dim=32, sinks=True, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(("target", "dtype"), TARGETS, ids="-".join)
@pytest.mark.parametrize("fuse", [True, pytest.param(False, marks=pytest.mark.full)])
def test_sinks_join_the_denominator(target: str, dtype: str, fuse: bool) -> None:
    s = spec(causal=True, window=17)
    attn = ag.compile(s, target=target, emulate=target != "cpu", fuse=fuse)
    q, k, v = make_qkv(s, 2, 45, 37, dtype=getattr(torch, dtype))  # 8 rows see no key
    with only_ours():
        o, lse = attn(q, k, v, sinks=SINKS, return_lse=True)
    assert_matches_oracle(s, q, k, v, o, lse, sinks=SINKS)
    assert (o[:, :, :8] == 0).all()
    torch.testing.assert_close(lse[:, :, 0], SINKS.to(lse.dtype).expand(2, 3))


def test_no_sink_is_a_sink_of_minus_infinity() -> None:
    s = spec(causal=True)
    q, k, v = make_qkv(s, 1, 40, 30)
    none = torch.full((3,), float("-inf"))
    o, lse = ag.compile(s, target="cpu")(q, k, v, sinks=none, return_lse=True)
    plain = ag.AttentionSpec(heads=3, groups=1, head_dim=32, causal=True)
    expected = ag.compile(plain, target="cpu")(q, k, v, return_lse=True)
    torch.testing.assert_close(o, expected[0])
    torch.testing.assert_close(lse, expected[1])
    assert (lse[:, :, :10] == float("-inf")).all() and (o[:, :, :10] == 0).all()


def test_other_sinks_run_the_same_kernel() -> None:
    s = spec()
    attn = ag.compile(s, target="cpu")
    q, k, v = make_qkv(s, 1, 9)
    first = attn(q, k, v, sinks=SINKS)
    assert not torch.equal(first, attn(q, k, v, sinks=SINKS + 1))
    assert torch.equal(first, attn(q, k, v, sinks=SINKS.double()))


def test_sinks_have_a_json_form() -> None:
    assert ag.AttentionSpec.from_json(spec().to_json()) == spec()


@pytest.mark.parametrize(("given", "error", "text"), [
    (None, errors.CapturedError, "sinks is missing"),
    (torch.zeros(2), errors.ShapeError, r"sinks has shape \(2,\), expected \(3,\)"),
    (torch.zeros(3, device="meta"), errors.DeviceError, "sinks is on meta, q is on cpu"),
])
def test_sinks_that_do_not_fit(given: torch.Tensor | None, error: type[Exception],
                               text: str) -> None:
    attn = ag.compile(spec(), target="cpu")
    with pytest.raises(error, match=text):
        attn(*make_qkv(spec(), 1, 4), sinks=given)


def test_sinks_nobody_asked_for() -> None:
    s = ag.AttentionSpec(heads=3, head_dim=16)
    with pytest.raises(errors.CapturedError, match="the spec has none"):
        ag.compile(s, target="cpu")(*make_qkv(s, 1, 4), sinks=SINKS)
