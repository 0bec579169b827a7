"""Kernel text reaches threads and memory through the device layer alone, and lint sees when not."""

from __future__ import annotations

import pytest
from emulated import KERNELS, complete, from_file

import attngen as ag
from attngen.compiler import Options, lower, make_plan
from attngen.runtime.emulator.lint import check
from attngen.templates.device import device_text

BAD = {
    "float f(const float* x, int n) { return x[n]; }": "x[...]",
    "float f(const float* x) { return *x; }": "*x",
    "float f(const float* x) { return *(x + 1); }": "*(",
    "float f(const float* x) { return (x + 1)[2]; }": "(...)[...]",
    "float f(const Params* p) { return p->n; }": "p->n",
    "struct Params { const float* q; }; float f(const Params& p) { return p.q[0]; }": "q[...]",
    "template <typename T> T f(Tile<T>* t) { return *t; }": "*t",
    "void f(float* const __restrict__ x) { x[0] = 1.0f; }": "x[...]",
    "#ifdef __CUDA_ARCH__": "#ifdef __CUDA_ARCH__",
    "#define X 1": "#define X 1",
    "#include <cmath>": "#include",
    'void f() { asm("bar.sync 0;"); }': "asm",
    "void f() { __syncthreads(); }": "__syncthreads",
    "int f() { return threadIdx.x; }": "threadIdx",
    "void f(float* x) { atomicAdd(x, 1.0f); }": "atomicAdd",
    "__shared__ float s[4];": "__shared__",
}
GOOD = (
    "float f(const float* x, int n) { return load_global(x + n); }",
    "int f(int a, int b) { return a * b * (a + b); }",
    "float f(float (&x)[4], const u32 (&y)[2][2]) { return x[1] * y[0][1]; }",
    "void f() { float x[4]; x[0] = 1.0f; } void g(const float* x) { load_global(x); }",
    "void f(Tile<4>* tile, const T* q) { const T* k = q + 1; }",
    "// x->y, *z, asm\n/* #ifdef */ int f() { return 1; }",
    "#pragma unroll\nint f() { return 1; }",
    "int f(int a, int b) { return a && b ? a : -b; }",
    "constexpr int SIZES[3] = {1, 2, 3}; int f(int i) { return SIZES[i]; }",
)


@pytest.mark.parametrize("text", BAD)
def test_offences(text: str) -> None:
    found = check(complete("\n" + text + "\n"))
    assert [BAD[text] in f.what for f in found] == [True], found
    assert complete("\n" + text + "\n").splitlines()[found[0].line - 1] == text.splitlines()[0]


@pytest.mark.parametrize("text", GOOD)
def test_proper_text(text: str) -> None:
    assert check(complete(text)) == []


def test_hand_written_kernels_are_clean() -> None:
    assert check(from_file("attention.cu")) == []
    wild = (KERNELS / "faults.cu").read_text()
    assert [f.what for f in check(complete(wild))] == ["a raw dereference: *nowhere"]


def test_the_device_layer_itself_is_not_judged_but_its_compositions_are() -> None:
    text = device_text(["matrix", "ops"])
    assert check(text) == []
    broken = text.replace("return fast_exp2(x);", 'asm("");')
    assert [f.what for f in check(broken)] == ["inline assembly: asm"]


SPECS = (
    ag.AttentionSpec(heads=4, head_dim=64, groups=2, causal=True),
    ag.AttentionSpec(heads=6, head_dim=40, groups=(0, 0, 1, 1, 1, 1), window=(70, 3)),
    ag.AttentionSpec(heads=2, head_dim=72, head_dim_v=128),
)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("vectorized", [True, False])
@pytest.mark.parametrize("fuse", [True, False])
def test_generated_kernels_are_clean(dtype: str, vectorized: bool, fuse: bool) -> None:
    for spec in SPECS:
        options = Options("sm_80", dtype, vectorized, fuse)
        for kernel in make_plan(spec, options, lower(spec, options)).kernels:
            assert check(kernel.text) == [], kernel.name
