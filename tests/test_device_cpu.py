"""The cpu device layer: every function against its NumPy twin, in loops the compiler vectorises."""

from __future__ import annotations

import ctypes
import math
from functools import cache
from typing import Any

import numpy as np
import pytest

from attngen.runtime import cxx
from attngen.templates.render_cpu import device_layer

Array = np.ndarray[Any, Any]
C_TYPES = {"f32": "float", "f64": "double", "i32": "int", "i64": "int64_t"}
DTYPES = {"f32": np.float32, "f64": np.float64, "i32": np.int32, "i64": np.int64}

# name -> the same in extended precision, and the error allowed in units of 2^-24 or 2^-53.
UNARY: dict[str, tuple[Any, float]] = {
    "exp": (np.exp, 2.0), "exp2": (np.exp2, 2.0), "log": (np.log, 4.0), "log2": (np.log2, 4.0),
    "tanh": (np.tanh, 5.0), "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), 3.0),
    "erf": (lambda x: np.vectorize(math.erf)(x.astype(float)), 2.0),
    "sqrt": (np.sqrt, 1.0), "abs": (np.abs, 0.0),
    "recip0": (lambda x: np.where(x == 0, 0, 1 / np.where(x == 0, 1, x)), 1.0),
    "finite_or_zero": (lambda x: np.where(np.isneginf(x), 0, x), 0.0),
}
BINARY: dict[str, Any] = {"max": np.maximum, "min": np.minimum, "floordiv": np.floor_divide,
                          "mod": np.mod}


@cache
def layer() -> ctypes.CDLL:
    """One loop over arrays per function, and the conversions."""
    parts = [device_layer(("table", "philox"))]

    def loop(name: str, arguments: str, line: str) -> None:
        parts.append(f'extern "C" void {name}({arguments}, int n) {{\n#pragma omp simd\n'
                     f"    for (int i = 0; i < n; ++i) {line};\n}}\n")

    for suffix, kind in C_TYPES.items():
        for name in UNARY if suffix[0] == "f" else ("abs",):
            loop(f"test_{name}_{suffix}", f"const {kind}* x, {kind}* y",
                 f"y[i] = {name}_{suffix}(x[i])")
        for name in BINARY:
            loop(f"test_{name}_{suffix}", f"const {kind}* a, const {kind}* b, {kind}* y",
                 f"y[i] = {name}_{suffix}(a[i], b[i])")
    loop("test_by_seven", "const int* x, int* y",
         "y[i] = floordiv_i32(x[i], 7) * 100 + mod_i32(x[i], -7)")
    for kind in ("bf16_t", "f16_t"):
        loop(f"test_from_{kind}", f"const {kind}* x, float* y", "y[i] = to_real(x[i])")
        loop(f"test_to_{kind}", f"const float* x, {kind}* y", "put(y[i], x[i])")
    return cxx.load_text("".join(parts), name="device_layer")


def call(name: str, result: Any, *arrays: Array) -> Array:
    arrays = tuple(np.ascontiguousarray(a) for a in arrays)
    out = np.zeros(arrays[0].shape, result)
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (*arrays, out)]
    getattr(layer(), f"test_{name}")(*pointers, out.size)
    return out


def samples(name: str, suffix: str) -> Array:
    rng = np.random.default_rng(1)
    if name in ("log", "log2", "sqrt"):
        x = [np.exp(rng.uniform(-80, 80, 20000)), rng.uniform(0.6, 1.6, 20000)]
    else:
        x = [rng.uniform(-30, 30, 20000), rng.uniform(-1, 1, 20000), rng.normal(0, 1e-3, 5000)]
    return np.concatenate(x).astype(DTYPES[suffix])


@pytest.mark.parametrize("suffix", ["f32", "f64"])
@pytest.mark.parametrize("name", UNARY)
def test_unary_functions_are_accurate(name: str, suffix: str) -> None:
    twin, allowed = UNARY[name]
    x = samples(name, suffix)
    ref = twin(x.astype(np.longdouble))
    ours = call(f"{name}_{suffix}", x.dtype, x)
    unit = 2.0 ** (-24 if suffix == "f32" else -53)
    worst = (np.abs(ours - ref) / np.maximum(np.abs(ref), np.finfo(x.dtype).tiny)).max() / unit
    assert worst <= allowed, f"{float(worst):.2f} units at worst, {allowed} allowed"


@pytest.mark.parametrize("suffix", ["f32", "f64"])
def test_unary_functions_at_the_ends(suffix: str) -> None:
    inf, nan, tiny = np.inf, np.nan, np.finfo(DTYPES[suffix]).tiny
    x = np.array([0.0, inf, -inf, nan, -1.0, tiny / 8], DTYPES[suffix])
    expected = {
        "exp": [1, inf, 0, nan, np.exp(-1), 1], "exp2": [1, inf, 0, nan, 0.5, 1],
        "log": [-inf, inf, nan, nan, nan, np.log(float(tiny)) - np.log(8)],
        "log2": [-inf, inf, nan, nan, nan, np.log2(float(tiny)) - 3],
        "tanh": [0, 1, -1, nan, np.tanh(-1), tiny / 8],
        "sigmoid": [0.5, 1, 0, nan, 1 / (1 + np.e), 0.5],
        "recip0": [0, 0, 0, nan, -1, inf], "finite_or_zero": [0, inf, 0, nan, -1, tiny / 8],
    }
    for name, values in expected.items():
        ours = call(f"{name}_{suffix}", x.dtype, x)
        if name == "recip0":
            ours, values = ours[:5], values[:5]  # 8 / tiny is infinite in one type only
        np.testing.assert_allclose(ours, np.array(values, x.dtype), rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("suffix", ["f32", "f64"])
def test_powers_overflow_and_vanish_where_the_type_does(suffix: str) -> None:
    limit = {"f32": 128, "f64": 1024}[suffix]
    x = np.array([limit, limit - 0.1, 3 - limit, 2 - limit, -9.9 * limit], DTYPES[suffix])
    ours = call(f"exp2_{suffix}", x.dtype, x)
    assert np.isinf(ours[0]) and np.isfinite(ours[1]) and ours[1] > 2.0 ** (limit - 1)
    assert ours[2] == 2.0 ** (3 - limit) and (ours[3:] == 0).all()
    x = np.array([limit + 0.01, 3.01 - limit, 1.99 - limit], DTYPES[suffix]) * np.log(2)
    ours = call(f"exp_{suffix}", DTYPES[suffix], x.astype(DTYPES[suffix]))
    assert np.isinf(ours[0]) and ours[1] > 0 and ours[2] == 0


@pytest.mark.parametrize("suffix", C_TYPES)
@pytest.mark.parametrize("name", BINARY)
def test_binary_functions(name: str, suffix: str) -> None:
    rng = np.random.default_rng(2)
    whole = rng.integers(-100, 100, 2000), rng.integers(1, 12, 2000) * rng.choice([-1, 1], 2000)
    large = rng.integers(-2**31 + 1, 2**31, 2000), rng.integers(1, 2**20, 2000)
    a, b = (np.concatenate(pair) for pair in zip(whole, large, strict=True))
    if suffix == "i64":
        a, b = a * 2**20 + 7, b * 3
    elif suffix[0] == "f":
        a, b = a / 8, b / 8
    a, b = a.astype(DTYPES[suffix]), b.astype(DTYPES[suffix])
    if suffix == "f32" and name in ("floordiv", "mod"):
        a, b = a[:2000], b[:2000]  # beyond 2^24 a quotient rounds across an integer
    np.testing.assert_array_equal(call(f"{name}_{suffix}", a.dtype, a, b), BINARY[name](a, b))


def test_division_by_a_known_number() -> None:
    x = np.arange(-50, 50, dtype=np.int32)
    np.testing.assert_array_equal(call("by_seven", np.int32, x), x // 7 * 100 + x % -7)
    np.testing.assert_array_equal(call("abs_i32", np.int32, x), np.abs(x))


def test_every_half_and_every_rounding_to_half() -> None:
    every = np.arange(65536).astype(np.uint16)
    halves = every.view(np.float16)
    np.testing.assert_array_equal(call("from_f16_t", np.float32, every),
                                  halves.astype(np.float32))
    x = awkward_floats(halves.astype(np.float32))
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16)
    ours = call("to_f16_t", np.uint16, x).view(np.float16)
    np.testing.assert_array_equal(ours, expected)
    assert (np.signbit(ours) == np.signbit(expected)).all()


def test_every_bfloat16_and_every_rounding_to_it() -> None:
    import torch

    every = np.arange(65536).astype(np.uint16)
    exact = (every.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(call("from_bf16_t", np.float32, every), exact)
    x = awkward_floats(exact)
    ours = call("to_bf16_t", np.uint16, x)
    expected = torch.from_numpy(x).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    number = ~np.isnan(x)
    np.testing.assert_array_equal(ours[number], expected[number])
    assert np.isnan((ours[~number].astype(np.uint32) << 16).view(np.float32)).all()


def awkward_floats(representable: Array) -> Array:
    """Numbers that can be stored, what lies halfway between neighbours, and close to halfway."""
    finite = np.sort(representable[np.isfinite(representable)])
    half = (finite[:-1] / 2 + finite[1:] / 2).astype(np.float32)
    with np.errstate(over="ignore"):
        near = [np.nextafter(half, np.float32(way)) for way in (-np.inf, np.inf)]
        edge = np.abs(finite).max() * np.array([1.0001, 1.0004, 1.001, 1.01], np.float32)
    return np.concatenate([representable, half, *near, edge, -edge]).astype(np.float32)
