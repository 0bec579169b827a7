"""The cpu device layer's products of few rows, against NumPy."""

from __future__ import annotations

import ctypes
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from attngen.runtime import cxx
from attngen.templates.render_cpu import device_layer

Array = np.ndarray[Any, Any]
DIMS = (8, 40, 72, 128)
STORED = {"float": (torch.float32, "float"), "double": (torch.float64, "double"),
          "bf16_t": (torch.bfloat16, "float"), "f16_t": (torch.float16, "float"),
          "int8_t": (torch.int8, "float"), "e4m3_t": (torch.float8_e4m3fn, "float")}
COLUMNS = 96


@cache
def layer() -> ctypes.CDLL:
    """Rows of the second operand lie backwards, so that nothing depends on even strides."""
    parts = [device_layer(("few_rows",))]
    for (stored, (_, real)), dim in product(STORED.items(), DIMS):
        parts.append(f"""
extern "C" void dot_{stored}_{dim}(
    const {real}* a, const {stored}* b, {real}* y, int rows, int n) {{
    const auto row = [=](int r) {{ return b + (int64_t)(n - 1 - r) * {dim}; }};
    dot_rows<false>(({real} (*)[{COLUMNS}])y, (const {real} (*)[{dim}])a, row, rows, n);
    dot_rows<true>(({real} (*)[{COLUMNS}])y, (const {real} (*)[{dim}])a, row, rows, n);
}}
extern "C" void weigh_{stored}_{dim}(
    const {real}* a, const {stored}* b, {real}* y, int rows, int n) {{
    const auto row = [=](int r) {{ return b + (int64_t)(n - 1 - r) * {dim}; }};
    weigh_rows<false>(({real} (*)[{dim}])y, (const {real} (*)[{COLUMNS}])a, row, rows, n);
    weigh_rows<true>(({real} (*)[{dim}])y, (const {real} (*)[{COLUMNS}])a, row, rows, n);
}}
extern "C" {real} sum_{stored}_{dim}(const {real}* x, int n) {{ return sum_row(x, n); }}
extern "C" {real} max_{stored}_{dim}(const {real}* x, int n) {{ return max_row(x, n); }}
""")
    return cxx.load_text("".join(parts), name="few_rows")


def aligned(shape: tuple[int, ...], dtype: Any) -> Array:
    """As the kernels' local arrays are, filled with NaN."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    out = memory[start:start + size].view(dtype).reshape(shape)
    out.fill(np.nan)
    return out


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("stored", STORED)
def test_products(stored: str, dim: int) -> None:
    kind, real = STORED[stored]
    dtype = np.float64 if real == "double" else np.float32
    rng = np.random.default_rng(dim)
    for rows, n in ((1, 1), (2, 15), (3, 16), (4, 17), (5, 64), (7, 63), (8, 96), (16, 30)):
        b = torch.from_numpy(rng.standard_normal((n, dim))).to(kind)
        wide = b.double().numpy()[::-1]
        for name, width, made in (("dot", dim, COLUMNS), ("weigh", COLUMNS, dim)):
            a, y = aligned((rows, width), dtype), aligned((rows, made), dtype)
            used = dim if name == "dot" else n
            a[:, :used] = rng.standard_normal((rows, used))
            getattr(layer(), f"{name}_{stored}_{dim}")(
                ctypes.c_void_p(a.ctypes.data), ctypes.c_void_p(b.data_ptr()),
                ctypes.c_void_p(y.ctypes.data), rows, n)
            exact = a[:, :used].astype(np.float64)
            want = 2 * (exact @ wide.T if name == "dot" else exact @ wide)
            found = y[:, :n] if name == "dot" else y
            limit = (1e-12 if real == "double" else 3e-6) * max(1.0, float(np.abs(wide).max()))
            np.testing.assert_allclose(found, want, rtol=limit, atol=limit * np.sqrt(used) * 3)
            assert name == "weigh" or bool(np.isnan(y[:, n:]).all())


@pytest.mark.parametrize("n", [1, 7, 16, 63, 96])
def test_sums_and_maxima_of_rows(n: int) -> None:
    x = np.random.default_rng(n).standard_normal(COLUMNS).astype(np.float32)
    for name, want in (("sum", x[:n].sum(dtype=np.float64)), ("max", x[:n].max())):
        function = getattr(layer(), f"{name}_float_72")
        function.restype = ctypes.c_float
        found = function(ctypes.c_void_p(x.ctypes.data), n)
        assert found == pytest.approx(want, rel=1e-6, abs=1e-5)
    x[:n] = -np.inf
    function = layer().max_float_72
    function.restype = ctypes.c_float
    assert function(ctypes.c_void_p(x.ctypes.data), n) == -np.inf
