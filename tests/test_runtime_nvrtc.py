"""CUDA text to machine code without a GPU, and what the assembler reports."""

from __future__ import annotations

import time
from pathlib import Path

import fake_plans
import pytest
from helpers import run_python

from attngen import knobs
from attngen.errors import AttngenError, CompileError, NoCompilerError
from attngen.runtime import nvrtc
from attngen.runtime.resources import Resources, parse_remarks, parse_resources

SPILLING = """
extern "C" __global__ void __launch_bounds__(1024) hungry(float* p) {
  float a[96];
  #pragma unroll
  for (int i = 0; i < 96; ++i) a[i] = p[i * 1024 + threadIdx.x];
  __syncthreads();
  #pragma unroll
  for (int r = 1; r < 4; ++r)
    #pragma unroll
    for (int i = 0; i < 96; ++i) a[i] = a[i] * a[(i * 7 + r) % 96] + a[(i + 13 * r) % 96];
  #pragma unroll
  for (int i = 0; i < 96; ++i) p[i * 1024 + threadIdx.x] = a[i];
}
extern "C" __global__ void modest(float* p) {
  __shared__ float s[64];
  s[threadIdx.x] = p[threadIdx.x];
  __syncthreads();
  p[threadIdx.x] = s[threadIdx.x ^ 1];
}
"""


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNGEN_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"])
def test_every_architecture_gives_machine_code(arch: str) -> None:
    kernel = fake_plans.copy_cuda(arch).kernels[0]
    cubin = nvrtc.compile_cubin(kernel.text, arch, name=kernel.name)
    assert cubin.code.startswith(b"\x7fELF") and not cubin.cached
    assert set(cubin.resources) == {"copy_rows"}
    assert 0 < cubin.resources["copy_rows"].registers <= 255 and cubin.remarks == ()


def test_found_again_in_the_cache_and_by_its_flags() -> None:
    kernel = fake_plans.copy_cuda().kernels[0]
    first = nvrtc.compile_cubin(kernel.text, "sm_80")
    again = nvrtc.compile_cubin(kernel.text, "sm_80")
    assert again.cached and (again.code, again.resources) == (first.code, first.resources)
    with knobs.scope(lineinfo=True):
        lines = nvrtc.compile_cubin(kernel.text, "sm_80")
    assert not lines.cached and len(lines.code) > len(first.code)
    assert not nvrtc.compile_cubin(kernel.text, "sm_80", ("--ftz=true",)).cached


def test_resources_are_told_apart_by_kernel() -> None:
    found = nvrtc.compile_cubin(SPILLING, "sm_80").resources
    assert found["modest"].spill_stores == found["modest"].stack == 0
    assert found["modest"].shared_static == 256 and found["modest"].barriers == 1
    assert found["hungry"].spill_stores > 0 and found["hungry"].spill_loads > 0
    assert found["hungry"].registers == 64


def test_parsing_a_report_with_remarks() -> None:
    log = """ptxas info    : (C7510) Potential Performance Loss: wgmma serialized due to a wait
ptxas info    : Compiling entry function 'one' for 'sm_90a'
ptxas info    : Function properties for one
ptxas         .     384 bytes stack frame, 388 bytes spill stores, 452 bytes spill loads
ptxas info    : Used 255 registers, used 3 barriers, 2048 bytes smem, 544 bytes cmem[0]
ptxas info    : Function properties for a_device_function
ptxas         .     8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
"""
    assert parse_resources(log) == {"one": Resources(255, 388, 452, 384, 2048, 3, 544)}
    assert len(parse_remarks(log)) == 1 and "C7510" in parse_remarks(log)[0]


def test_an_error_shows_its_lines_and_where_the_text_is() -> None:
    text = "\n".join(["// line"] * 20 + ['extern "C" __global__ void k() { int x = ; }']
                     + ["// line"] * 20)
    with pytest.raises(CompileError) as refused:
        nvrtc.compile_cubin(text, "sm_80", name="broken")
    error = refused.value
    assert error.line == 21 and "expected an expression" in str(error)
    assert ">   21 | extern" in str(error) and "18 | // line" in str(error)
    assert isinstance(error.path, Path) and error.path.read_text() == text
    assert str(error.path) in str(error)


def test_an_error_of_the_assembler_is_one_too() -> None:
    with pytest.raises(CompileError, match="bogus"):
        nvrtc.compile_cubin('extern "C" __global__ void k() { asm("bogus.f32;"); }', "sm_80")


@pytest.mark.parametrize("flag", ["-G", "-Ofc=max", "--device-debug"])
def test_options_that_spoil_later_compilations_are_refused(flag: str) -> None:
    with pytest.raises(AttngenError, match="is not accepted"):
        nvrtc.options_for("sm_80", (flag,))


def test_no_fast_math_and_one_option_each() -> None:
    options = nvrtc.options_for("sm_90", ("-DX=1",))
    assert options == ("--gpu-architecture=sm_90", "--std=c++17", "--ptxas-options=-v", "-DX=1")


def test_without_nvrtc_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvrtc.library.cache_clear()
    monkeypatch.setattr(nvrtc, "_MAJOR", 99)
    try:
        with pytest.raises(NoCompilerError, match=r'pip install "attngen\[cuda13\]"'):
            nvrtc.compile_cubin(SPILLING, "sm_80")
    finally:
        nvrtc.library.cache_clear()


def test_a_fresh_process_compiles_without_cupy_and_in_time() -> None:
    start = time.perf_counter()
    out = run_python("""
import sys, time
start = time.perf_counter()
from attngen.runtime import nvrtc
code = 'extern "C" __global__ void k(float* p) { p[threadIdx.x] = 1.f; }'
assert not nvrtc.compile_cubin(code, "sm_80").cached
print([m for m in ("cupy", "torch", "numpy") if m in sys.modules])
""")
    assert out.strip() == "[]"
    assert time.perf_counter() - start < 20
    assert nvrtc.version()[0] == 13
