"""Arithmetic of masks and scores in kernels: every operation on every type that can meet it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_matches_oracle, make_qkv

import attngen as ag

N = 50
WIDE = torch.arange(N) * 7 % 23 - 9  # int64
NARROW = (WIDE * 5 % 11 + 1).to(torch.int32)
BYTES = (WIDE % 13).to(torch.uint8)
REAL = WIDE.double() / 4


def mixed(b: Any, h: Any, i: Any, j: Any) -> Any:
    """int64 first, int64 second, and with int32."""
    return ((WIDE[i] // NARROW[j] + WIDE[j] % NARROW[i] - j // (WIDE[i] * WIDE[i] + 1)
             + j % (WIDE[j] * WIDE[j] + 2)) % 3 != 0) | (
        torch.minimum(i, WIDE[j]) + torch.maximum(WIDE[i], j) < abs(WIDE[i] - j) + 20)


def clamped(b: Any, h: Any, i: Any, j: Any) -> Any:
    return ((WIDE[i] - j).clamp(-5, 9) + WIDE[j].clamp(min=0) + (BYTES[i] & 6)
            < (i ^ NARROW[j]) + torch.where(WIDE[i] > 3, i, WIDE[j])) | ~(WIDE[j] == i)


def fractions(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    """Remainders and quotients of numbers that are exact in every type."""
    return s + (i - j) % 2.5 / 4 - REAL[j] // 0.75 / 8 + REAL[i] % (1.25 + NARROW[j] % 2) \
        + (WIDE[i] - j) / 32 + WIDE[i] % 4 * 0.125


def whole(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return s + torch.floor(REAL[i]) / 8 + torch.ceil(REAL[j]) / 8 + REAL[i].round() / 4 \
        + torch.trunc(REAL[j]) / 16 + torch.sign(WIDE[i] - j) / 2


def activated(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return torch.erf(s) + F.gelu(s + 0.1 * h) + F.softplus(s) + 2.0 ** (REAL[j] / 4) * 0.1 \
        + F.silu(s) ** 2


MODS: dict[str, dict[str, Callable[..., Any]]] = {
    "mixed": {"mask": mixed}, "clamped": {"mask": clamped}, "fractions": {"score": fractions},
    "whole": {"score": whole}, "activated": {"score": activated}}


@pytest.mark.parametrize(("target", "dtype"), [
    ("cpu", torch.float32), ("sm_80", torch.bfloat16),
    pytest.param("cpu", torch.float64, marks=pytest.mark.full),
    pytest.param("sm_80", torch.float32, marks=pytest.mark.full)])
@pytest.mark.parametrize("name", MODS)
def test_operations(name: str, target: str, dtype: torch.dtype) -> None:
    spec = ag.AttentionSpec(heads=2, head_dim=16, **MODS[name])
    tensors = make_qkv(spec, 1, N, dtype=dtype)
    o, lse = ag.compile(spec, target, emulate=target != "cpu")(*tensors, return_lse=True)
    assert_matches_oracle(spec, *tensors, o, lse)


@pytest.mark.parametrize("target", ["cpu", "sm_80"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_divisor_read_outside_of_its_tensor_is_no_division_by_zero(dtype: torch.dtype,
                                                                     target: str) -> None:
    """Rows beyond the last, and here queries beyond the table, read 0 and leave 0."""
    steps = (torch.arange(30) % 4 + 1).to(dtype)

    def mask(b: Any, h: Any, i: Any, j: Any) -> Any:
        return ((i - j) % steps[i] == 0) & (j // steps[i] < 20)

    def padded(b: Any, h: Any, i: Any, j: Any) -> Any:
        inside = i < 30
        step = steps[torch.where(inside, i, 0)]
        return ~inside | (((i - j) % step == 0) & (j // step < 20))

    spec = ag.AttentionSpec(heads=1, head_dim=16, mask=mask)
    tensors = make_qkv(spec, 1, N, dtype=torch.bfloat16)
    o = ag.compile(spec, target, emulate=target != "cpu")(*tensors)
    right = ag.AttentionSpec(heads=1, head_dim=16, mask=padded)
    assert_matches_oracle(right, *tensors, o)
