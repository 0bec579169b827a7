"""Conversions and elementary functions of the emulator's device layer, against torch and NumPy."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from emulated import complete, launch

from attngen.runtime import emulator
from attngen.runtime.emulator import EmulatedModule

UNARY = {
    "exp_f32": np.exp, "exp2_f32": np.exp2, "fast_exp2": np.exp2, "log_f32": np.log,
    "log2_f32": np.log2, "fast_log2": np.log2, "tanh_f32": np.tanh, "sqrt_f32": np.sqrt,
    "recip": np.reciprocal, "abs_f32": np.abs, "floor_f32": np.floor,
    "erf_f32": np.vectorize(math.erf),
    "sigmoid_f32": lambda x: 1 / (1 + np.exp(-x)),
    "recip0_f32": lambda x: np.where(x == 0, 0, 1 / np.where(x == 0, 1, x)),
    "finite_or_zero_f32": lambda x: np.where(np.isneginf(x), 0, x),
}
INTEGER = {
    "floor_div": np.floor_divide, "floor_mod": np.mod, "floordiv_i32": np.floor_divide,
    "mod_i32": np.mod, "max_i32": np.maximum, "min_i32": np.minimum,
    "floordiv_i64": np.floor_divide, "mod_i64": np.mod, "max_i64": np.maximum,
    "min_i64": np.minimum,
}
BINARY = {"max_f32": np.fmax, "min_f32": np.fmin}

CONVERT = """
template <typename T> DEVICE_FN void narrow(const Params& p) {
    for (int i = lane_id(); i < p.n; i += 32) {
        const float x = load_global(p.x + i), y = load_global(p.x + p.n - 1 - i);
        store_global(p.out + i, pack(x, y, T{}));
        const u32 one = from_float<T>(x).bits;
        store_global(p.out + p.n + i, one);
    }
}
template <typename T> DEVICE_FN void widen(const Params& p) {
    for (int i = lane_id(); i < p.n; i += 32) {
        const T x{static_cast<unsigned short>(__builtin_bit_cast(u32, load_global(p.x + i)))};
        store_global(p.out + i, __builtin_bit_cast(u32, to_float(x)));
    }
}
KERNEL(32, 1) narrow_bf16(const __grid_constant__ Params p) { narrow<bf16_t>(p); }
KERNEL(32, 1) narrow_f16(const __grid_constant__ Params p) { narrow<f16_t>(p); }
KERNEL(32, 1) widen_bf16(const __grid_constant__ Params p) { widen<bf16_t>(p); }
KERNEL(32, 1) widen_f16(const __grid_constant__ Params p) { widen<f16_t>(p); }
"""


def _kernel(name: str, result: str) -> str:
    return f"""
KERNEL(32, 1) {name}_(const __grid_constant__ Params p) {{
    for (int i = lane_id(); i < p.n; i += 32) {{
        const float x = load_global(p.x + i), y = load_global(p.x + p.n - 1 - i);
        store_global(p.out + i, __builtin_bit_cast(u32, {result}));
    }}
}}
"""


@cache
def module() -> EmulatedModule:
    text = "struct Params { const float* x; u32* out; int n; };\n" + CONVERT
    text += "".join(_kernel(name, f"{name}(x)") for name in UNARY)
    text += "".join(_kernel(name, f"{name}(x, y)") for name in BINARY)
    text += "".join(_kernel(n, f"static_cast<int>({n}(static_cast<int>(x), static_cast<int>(y)))")
                    for n in INTEGER)
    return emulator.load(complete(text))


def call(name: str, x: np.ndarray, words: int = 1) -> np.ndarray:
    out = np.zeros((words, x.size), np.uint32)
    launch(module(), name, {"x": x, "out": out, "n": x.size})
    return out


def floats_to_round(mantissa_bits: int) -> np.ndarray:
    """Values of every exponent, ties between neighbours and just beside them, and the edges."""
    rng = np.random.default_rng(5)
    any_bits = rng.integers(0, 2**32, 20000, dtype=np.uint32)
    kept = np.uint32(23 - mantissa_bits)
    ties = (any_bits >> kept << kept) | np.uint32(1) << (kept - np.uint32(1))
    edges = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519.99, 65520, 65536, 3.39e38,
                      2.0**-14, 2.0**-24, 2.0**-25, 2.0**-25 * 1.0001, 3 * 2.0**-25, 6.1e-5,
                      2.0**-126, 1e-45, 1e-40], np.float32)
    small = ((rng.integers(-4096, 4096, 4000) * 2.0**-26).astype(np.float32))
    return np.concatenate([any_bits.view(np.float32), ties.view(np.float32),
                           (ties + np.uint32(1)).view(np.float32),
                           (ties - np.uint32(1)).view(np.float32), small, edges, -edges])


@pytest.mark.parametrize(("name", "dtype", "mantissa"), [
    ("bf16", torch.bfloat16, 7), ("f16", torch.float16, 10)])
def test_rounding_to_nearest_even(name: str, dtype: torch.dtype, mantissa: int) -> None:
    x = floats_to_round(mantissa)
    packed, single = call(f"narrow_{name}", x, 2)
    want = torch.from_numpy(x).to(dtype).view(torch.int16).numpy().astype(np.uint16)
    want = np.where(np.isnan(x), 0x7FFF, want)  # the hardware's one NaN
    assert np.array_equal(single, want)
    assert np.array_equal(packed & 0xFFFF, want)
    assert np.array_equal(packed >> 16, want[::-1])


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_widening_every_pattern(name: str, dtype: torch.dtype) -> None:
    patterns = np.arange(65536, dtype=np.uint32)
    got = call(f"widen_{name}", patterns.view(np.float32))[0].view(np.float32)
    halves = torch.from_numpy(patterns.astype(np.uint16).view(np.int16)).view(dtype)
    assert np.array_equal(got, halves.float().numpy(), equal_nan=True)


def ulps(name: str) -> float:
    return 0.5001 if name in ("sqrt_f32", "recip", "abs_f32", "floor_f32", "recip0_f32") else 4.0


@pytest.mark.parametrize("name", UNARY)
def test_elementary_functions(name: str) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal(3000).astype(np.float32) * np.float32(20)
    if "log" in name or "sqrt" in name:
        x = np.abs(x) + np.float32(1e-3)
    if name == "finite_or_zero_f32":
        x[::7] = -np.inf
    if name == "recip0_f32":
        x[::7] = 0
    got = call(f"{name}_", x)[0].view(np.float32).astype(np.float64)
    want = UNARY[name](x.astype(np.float64))
    unit = np.spacing(np.maximum(np.abs(want), 2.0**-20 if "log" in name else 0)
                      .astype(np.float32))
    assert (np.abs(got - want) <= ulps(name) * unit).all()


def test_edges_of_the_functions() -> None:
    def at(name: str, *x: float) -> list[Any]:
        return call(f"{name}_", np.array(x, np.float32))[0].view(np.float32).tolist()

    inf = float("inf")
    assert at("exp2_f32", -inf, 0, inf, -126, -127, 128) == [0, 1, inf, 2.0**-126, 0, inf]
    assert at("log2_f32", 0, 1, inf) == [-inf, 0, inf]
    assert at("fast_log2", 0, 1e-40, inf) == [-inf, -inf, inf]
    assert at("recip", inf, 0) == [0, inf]
    assert at("max_f32", 1, 2, float("nan"), 4) == [4, 2, 2, 4]  # a number beats NaN
    assert at("min_f32", 1, 2, 3, -inf) == [-inf, 2, 2, -inf]
    assert at("tanh_f32", -100, 100, 0) == [-1, 1, 0]


@pytest.mark.parametrize("name", INTEGER)
def test_integers(name: str) -> None:
    x = np.random.default_rng(2).integers(-50, 50, 1000).astype(np.float32)
    x[x == 0] = 3
    got = call(f"{name}_", x)[0].view(np.int32)
    assert np.array_equal(got, INTEGER[name](x.astype(np.int32), x[::-1].astype(np.int32)))


@pytest.mark.parametrize("name", BINARY)
def test_choices(name: str) -> None:
    x = np.random.default_rng(2).standard_normal(1000).astype(np.float32)
    assert np.array_equal(call(f"{name}_", x)[0].view(np.float32), BINARY[name](x, x[::-1]))
