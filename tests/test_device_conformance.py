"""The device layer on a GPU against the emulator: same kernel text, same inputs, same bits.

What only hardware can decide (is the manual's layout the real one, is the PTX right) is decided
here; the same cases run in the emulator alone in the other tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import test_device_convert as convert
import test_device_matrix as matrix
import test_device_memory as memory
from emulated import complete, launch, pack
from hand_attention import Case, from_bf16, text

from attngen.runtime import emulator
from attngen.runtime.device_kernel import DeviceKernel
from attngen.runtime.launch import Call
from attngen.runtime.plan import KernelPlan

pytestmark = pytest.mark.gpu


def on_device(kernel: str, entry: str, values: Mapping[str, Any], *, threads: int = 32,
              shared: int = 0, grid: tuple[int, int, int] = (1, 1, 1)) -> dict[str, np.ndarray]:
    """Run on the GPU; the arrays as they are afterwards, by name."""
    import torch

    tensors = {name: torch.from_numpy(np.ascontiguousarray(v).view(np.uint8).reshape(-1)).cuda()
               for name, v in values.items() if isinstance(v, np.ndarray)}
    pointers = {name: tensors[name].data_ptr() if name in tensors else v
                for name, v in values.items()}
    major, minor = torch.cuda.get_device_capability()
    plan = KernelPlan(entry, "test", "cuda", f"sm_{major}{minor}", kernel, (), (), (), {},
                      threads=threads, shared_bytes=shared)
    DeviceKernel(plan).launch(pack(pointers, set(tensors)), grid, Call({}, {}, {}, None, 1))
    torch.cuda.synchronize()
    return {name: t.cpu().numpy().view(values[name].dtype).reshape(values[name].shape)
            for name, t in tensors.items()}


def both(kernel: str, entry: str, values: Mapping[str, Any], *, threads: int = 32,
         shared: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """``out`` from the GPU and from the emulator."""
    real = on_device(complete(kernel), entry, values, threads=threads, shared=shared)["out"]
    launch(emulator.load(complete(kernel)), entry, values, threads=threads, shared=shared)
    return real, values["out"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mma(dtype: str) -> None:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 4, (32, 12))
    # 0, 1, 2 and 3 in both formats: sums are exact, so a layout is right or wrong.
    table = np.array([0, 0x3F80, 0x4000, 0x4040] if dtype == "bfloat16"
                     else [0, 0x3C00, 0x4000, 0x4200], np.uint16)[small]
    values = {"a": table[:, :8].copy().view(np.uint32), "b": table[:, 8:].copy().view(np.uint32),
              "c": rng.integers(-9, 9, (32, 4)).astype(np.float32),
              "out": np.zeros((32, 4), np.float32)}
    assert np.array_equal(*both(matrix.MMA, dtype, values))


@pytest.mark.parametrize("form", ["x4", "x4_trans", "x2", "x2_trans"])
def test_ldmatrix(form: str) -> None:
    rng = np.random.default_rng(3)
    values = {"rows": rng.permutation(64)[:32].astype(np.int32),
              "data": rng.permutation(65536)[:512].astype(np.uint16),
              "out": np.zeros((32, 4), np.uint32)}
    assert np.array_equal(*both(matrix.LDMATRIX, form, values, shared=64 * 16 + 112))


@pytest.mark.parametrize("mask", [1, 7, 31])
def test_threads(mask: int) -> None:
    values = {"out": np.zeros((3, 128), np.float32), "mask": mask}
    assert np.array_equal(*both(matrix.WARP, "test", values, threads=128))


@pytest.mark.parametrize("name", memory.NAMES)
def test_memory(name: str) -> None:
    data = np.random.default_rng(4).integers(0, 2**32, 256, dtype=np.uint32)
    values = {"in": data, "out": np.zeros_like(data)}
    assert np.array_equal(*both(memory.ROUND_TRIPS, name, values, shared=1024))


@pytest.mark.parametrize("valid", [0, 2, 6, 8, 14, 16])
def test_copies(valid: int) -> None:
    data = np.random.default_rng(4).integers(1, 256, (32, 16), dtype=np.uint8)
    values = {"in": data, "out": np.full_like(data, 255), "valid": valid}
    assert np.array_equal(*both(memory.COPY, "test", values, shared=512))


def _convert(name: str, x: np.ndarray, words: int = 1) -> tuple[np.ndarray, np.ndarray]:
    values = {"x": x, "out": np.zeros((words, x.size), np.uint32), "n": x.size}
    real = on_device(convert.module().text, name, values)["out"]
    return real, convert.call(name, x, words)


@pytest.mark.parametrize(("name", "mantissa"), [("bf16", 7), ("f16", 10)])
def test_conversions(name: str, mantissa: int) -> None:
    assert np.array_equal(*_convert(f"narrow_{name}", convert.floats_to_round(mantissa), 2))
    patterns = np.arange(65536, dtype=np.uint32).view(np.float32)
    real, emulated = (w.view(np.float32) for w in _convert(f"widen_{name}", patterns))
    assert np.array_equal(real, emulated, equal_nan=True)


@pytest.mark.parametrize("name", [*convert.UNARY, *convert.BINARY])
def test_functions(name: str) -> None:
    x = np.random.default_rng(1).standard_normal(4000).astype(np.float32) * np.float32(20)
    if "log" in name or "sqrt" in name:
        x = np.abs(x) + np.float32(1e-3)
    real, emulated = (w.view(np.float32)[0].astype(np.float64) for w in _convert(f"{name}_", x))
    unit = np.spacing(np.maximum(np.abs(emulated), 2.0**-20 if "log" in name else 2.0**-126)
                      .astype(np.float32))
    assert (np.abs(real - emulated) <= 4 * unit).all()


@pytest.mark.parametrize("name", convert.INTEGER)
def test_integers(name: str) -> None:
    x = np.random.default_rng(2).integers(-50, 50, 1000).astype(np.float32)
    x[x == 0] = 3
    assert np.array_equal(*_convert(f"{name}_", x))


@pytest.mark.parametrize(("seqlen_q", "seqlen_k", "causal"), [(197, 197, 1), (130, 60, 1),
                                                             (65, 420, 0)])
def test_hand_written_attention(seqlen_q: int, seqlen_k: int, causal: int) -> None:
    case = Case(seqlen_q, seqlen_k, causal, heads=2)
    grid, threads, shared = case.shape()
    after = on_device(text(), "attention", case.values(), grid=grid, threads=threads,
                      shared=shared)
    case.o, case.lse = after["o"], after["lse"]
    case.check()
    real = from_bf16(case.o)
    case.run()
    assert np.abs(real - from_bf16(case.o)).max() < 0.01
