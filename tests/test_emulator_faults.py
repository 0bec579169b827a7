"""Each mistake of tests/kernels/faults.cu is found, named and located; correct kernels pass."""

from __future__ import annotations

import platform
import re
from functools import cache

import numpy as np
import pytest
from emulated import KERNELS, complete, from_file, launch

from attngen import errors
from attngen.errors import EmulatorError, OutOfBoundsError
from attngen.runtime import cxx, emulator
from attngen.runtime.emulator import Counters, EmulatedModule

SEEDS = range(8)
_CASE = re.compile(r"// ((?:\w+ or )?\w+)\b[^\n]*\n"
                   r"(KERNEL\((\d+), 1\) (\w+)\(.*?\n\}\n)", re.DOTALL)
CASES = {name: (expected, int(threads), body) for expected, body, threads, name
         in _CASE.findall((KERNELS / "faults.cu").read_text())}


@cache
def faults() -> EmulatedModule:
    return emulator.load(from_file("faults.cu"))


def attempt(name: str, **options: object) -> tuple[Counters, np.ndarray]:
    out = np.full(256, np.nan, np.float32)
    values = {"in": np.zeros(4096, np.uint16), "out": out, "n": 0}
    blocks = 2 if name.startswith("blocks") else 1
    return launch(faults(), name, values, threads=CASES[name][1], shared=2048,
                  grid=(blocks, 1, 1), **options), out


def test_every_kernel_of_the_file_is_a_case() -> None:
    assert set(CASES) == set(faults().entries) and len(CASES) > 30


@pytest.mark.parametrize("name", [n for n, (kind, *_) in CASES.items() if kind != "none"])
def test_fault(name: str) -> None:
    expected, _, body = CASES[name]
    for seed in SEEDS:
        with pytest.raises(EmulatorError) as caught:
            attempt(name, seed=seed)
        error = caught.value
        assert type(error).__name__ in expected.split(" or "), f"seed {seed}: {error}"
        lines = faults().text.splitlines()
        if "HERE" in body:
            assert error.line and "HERE" in lines[error.line - 1], f"seed {seed}: {error}"
            first = faults().text[:faults().text.index(body)].count("\n")
            assert first < error.line <= first + body.count("\n")
            assert f"line {error.line}: {lines[error.line - 1].strip()}" in str(error)


@pytest.mark.parametrize("name", [n for n, (kind, *_) in CASES.items() if kind == "none"])
def test_correct_kernels_pass(name: str) -> None:
    for seed in SEEDS:
        _, out = attempt(name, seed=seed)
        assert np.isfinite(out[:CASES[name][1]]).all()


def test_same_seed_same_error_whatever_the_number_of_workers() -> None:
    def message(workers: int) -> str:
        with pytest.raises(EmulatorError) as caught:
            attempt("write_after_read", seed=3, workers=workers)
        return str(caught.value)

    assert message(1) == message(1) == message(3)


@pytest.mark.parametrize(("name", "parts"), [
    ("write_after_read", ("thread ", "line ", "no sync_block between", " after ")),
    ("lanes_write_after_read", ("neither sync_warp nor sync_block",)),
    ("global_read", ("reads global memory", "bytes at in +81", "in has 8192 bytes")),
    ("global_write", ("writes global memory", "bytes at out +1", "out has 1024 bytes")),
    ("read_only", ("writes in, which is read-only",)),
    ("shared_end", ("4 bytes at offset 2048, the block has 2048 bytes",)),
    ("local_index", ("index 4, the array is 'float [4]'",)),
    ("warp_leaves", ("64 of 96 threads wait", "warp 1 has exited", "warp 2 waits at sync_block")),
    ("shuffle_in_branch", ("at shfl_xor in line", "at sync_warp in line")),
    ("early_return", ("has left the kernel", "left the kernel while")),
    ("wait_too_little", ("has not been waited for",)),
    ("blocks_overlap", ("that block (", "of the same launch wrote")),
])
def test_messages_say_who_and_where(name: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(EmulatorError) as caught:
        attempt(name, seed=1)
    found = [part in str(caught.value) for part in parts]
    assert any(found) if name == "early_return" else all(found), str(caught.value)
    assert "seed 1" in str(caught.value) and "block (" in str(caught.value)


def test_without_the_detector_poison_and_schedules_still_show_a_missing_barrier() -> None:
    wrong = 0
    for seed in SEEDS:
        _, out = attempt("read_after_write", seed=seed, detect_races=False)
        wrong += not (out[:64] == 1.0).all()
    assert wrong == len(SEEDS)  # one of the two warps is always first


@pytest.mark.parametrize("declaration", ["float x[1]", "float x[4]", "float x[16][4]", "float x[9]",
                                         "float x[1024]", "u32 x[4]", "float x"])
def test_uninitialised_variables_are_nan(declaration: str) -> None:
    """Not merely huge: zero times them must not look right."""
    if platform.machine() != "x86_64" or "clang" in cxx.compiler().version:
        pytest.skip("local variables are poisoned with NaN by gcc on x86-64 only")
    kernel = f"""
struct Params {{ float* out; int n; }};
DEVICE_FN float value(float x) {{ return x; }}
DEVICE_FN float value(u32 x) {{ return __builtin_bit_cast(float, x); }}
template <typename T, int N> DEVICE_FN float value(const T (&x)[N], int n) {{
    float sum = 0.0f;
    for (int i = 0; i < N; ++i) if (i >= n) sum += value(x[i]) * 0.0f;
    return sum;
}}
template <typename T, int N, int M> DEVICE_FN float value(const T (&x)[N][M], int n) {{
    return value(x[n], n) + value(x[N - 1], n);
}}
DEVICE_FN float value(float x, int n) {{ return x * static_cast<float>(n); }}
KERNEL(32, 1) test(const __grid_constant__ Params p) {{
    {declaration};
    store_global(p.out + lane_id(), value(x, p.n));
}}
"""
    out = np.zeros(32, np.float32)
    launch(emulator.load(complete(kernel)), "test", {"out": out, "n": 0})
    assert np.isnan(out).all()


def test_stack_overflow_is_reported() -> None:
    kernel = """
struct Params { float* out; int n; };
KERNEL(32, 1) test(const __grid_constant__ Params p) {
    float big[40000];
    for (int i = 39999; i >= p.n; --i) big[i] = 1.0f;
    store_global(p.out + lane_id(), big[p.n]);
}
"""
    out = np.zeros(32, np.float32)
    with pytest.raises(errors.OutOfBoundsError, match="overflow the stack"):
        launch(emulator.load(complete(kernel)), "test", {"out": out, "n": 0})


def test_an_index_never_leads_from_one_tensor_into_another() -> None:
    """As with two tensors cut from one piece of memory: right after ``in`` lies ``out``."""
    memory = np.zeros(8192 + 1024 + 16, np.uint8)
    memory = memory[-memory.ctypes.data % 16:][:8192 + 1024]
    values = {"in": memory[:8192].view(np.uint16), "out": memory[8192:].view(np.float32), "n": 0}
    with pytest.raises(OutOfBoundsError, match="outside in, by a pointer to it") as caught:
        launch(faults(), "copy_source", values, threads=32, shared=2048)
    assert re.search(r"at in \+8\d\d\d, in has 8192 bytes", str(caught.value))
