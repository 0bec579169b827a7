"""``attngen.attention``: the spec is read off the tensors and what it compiled is kept."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import fake_plans
import pytest
import torch
from helpers import make_qkv

from attngen import attention as attention_function
from attngen import errors
from attngen.attention import Attention
from attngen.runtime.captured import Captured
from attngen.runtime.plan import Plan
from attngen.runtime.variant import Kind
from attngen.spec import AttentionSpec

SPEC = AttentionSpec(heads=4, groups=2, head_dim=16, head_dim_v=8, causal=True)


def causal_plan(kind: Kind) -> tuple[Plan, Captured]:
    return fake_plans.causal(dtype=kind.dtype), Captured()


def test_attention_reads_the_spec_off_the_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    specs: list[tuple[AttentionSpec, str]] = []

    def compile(spec: AttentionSpec, target: str) -> Attention:
        specs.append((spec, target))
        return Attention(spec, target, False, causal_plan, *fake_plans.OTHERS,
                         SimpleNamespace())

    compiler = ModuleType("attngen.compiler")
    compiler.compile = compile  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "attngen.compiler", compiler)
    home = sys.modules["attngen.front"]
    monkeypatch.setattr(home, "_kept", {})
    q, k, v = make_qkv(SPEC, 2, 5, 7)
    for _ in range(3):
        o = attention_function(q, k, v, causal=True)
    expected = Attention(SPEC, "cpu", False, causal_plan, *fake_plans.OTHERS,
                         SimpleNamespace())(q, k, v)
    torch.testing.assert_close(o, expected)
    assert specs == [(SPEC, "cpu")]
    attention_function(q, k, v, causal=True, window=[3, 0])  # a list cannot be a key
    attention_function(q, k, v, causal=True, window=(3, 0))
    attention_function(q, k, v, causal=True, window=(3, 0))
    assert len(specs) == 3 and specs[1] == specs[2]

    def even(b: Any, h: Any, i: Any, j: Any) -> Any:
        return j % 2 == 0

    for _ in range(2):  # what a callable means may change between calls
        attention_function(q, k, v, mask=even)
    assert len(specs) == 5
    with pytest.raises(errors.SpecError, match="heads is read off the tensors"):
        attention_function(q, k, v, heads=4)
    with pytest.raises(errors.ShapeError, match="k has 3 dimensions"):
        attention_function(q, k[0], v)
    monkeypatch.setattr(home, "_MOST_KEPT", 1)
    attention_function(q, k, v)
    assert len(home._kept) == 1
