"""mma, ldmatrix and shuffles against the layouts of the PTX manual, written out in NumPy.

The formulas are the manual's (sections "Matrix Fragments for mma.m16n8k16" and "ldmatrix"), element
by element; nothing is shared with the emulator's code.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from emulated import complete, launch

from attngen.runtime import emulator

LANES = np.arange(32)
GROUP, IN_GROUP = LANES >> 2, LANES % 4

MMA = """
struct Params { const int* a; const int* b; const float* c; float* out; };
template <typename T> DEVICE_FN void multiply(const Params& p) {
    const int lane = lane_id();
    u32 a[4];
    float c[4];
    for (int i = 0; i < 4; ++i) {
        a[i] = static_cast<u32>(load_global(p.a + 4 * lane + i));
        c[i] = load_global(p.c + 4 * lane + i);
    }
    const u32 b0 = static_cast<u32>(load_global(p.b + 2 * lane));
    const u32 b1 = static_cast<u32>(load_global(p.b + 2 * lane + 1));
    mma_m16n8k16(c[0], c[1], c[2], c[3], a, b0, b1, T{});
    for (int i = 0; i < 4; ++i) store_global(p.out + 4 * lane + i, c[i]);
}
KERNEL(32, 1) bfloat16(const __grid_constant__ Params p) { multiply<bf16_t>(p); }
KERNEL(32, 1) float16(const __grid_constant__ Params p) { multiply<f16_t>(p); }
"""


def fragments(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, ...]:
    """Registers of each lane for A [16, 16] and B [16, 8] of 16-bit patterns, and C [16, 8]."""
    ra, rb = np.zeros((32, 8), np.uint16), np.zeros((32, 4), np.uint16)
    rc = np.zeros((32, 4), np.float32)
    for i in range(8):
        row = GROUP if i < 2 or 4 <= i < 6 else GROUP + 8
        col = IN_GROUP * 2 + (i & 1) + (0 if i < 4 else 8)
        ra[:, i] = a[row, col]
    for i in range(4):
        rb[:, i] = b[IN_GROUP * 2 + (i & 1) + (0 if i < 2 else 8), GROUP]
        rc[:, i] = c[GROUP + (0 if i < 2 else 8), IN_GROUP * 2 + (i & 1)]
    return ra.view(np.uint32), rb.view(np.uint32), rc


def unpacked_c(rc: np.ndarray) -> np.ndarray:
    c = np.zeros((16, 8), np.float32)
    for i in range(4):
        c[GROUP + (0 if i < 2 else 8), IN_GROUP * 2 + (i & 1)] = rc[:, i]
    return c


def bits(x: torch.Tensor) -> np.ndarray:
    return x.view(torch.int16).numpy().astype(np.uint16)


def multiply(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, seed: int = 0) -> np.ndarray:
    ra, rb, rc = fragments(bits(a), bits(b), c.numpy())
    out = np.full((32, 4), np.nan, np.float32)
    counters = launch(emulator.load(complete(MMA)), str(a.dtype).removeprefix("torch."),
                      {"a": ra, "b": rb, "c": rc, "out": out}, seed=seed)
    assert counters.mma == 1
    return unpacked_c(out)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mma_of_small_integers_is_exact(dtype: torch.dtype) -> None:
    for seed in range(4):
        a, b, c = (torch.randint(-8, 9, shape).float() for shape in ((16, 16), (16, 8), (16, 8)))
        assert np.array_equal(multiply(a.to(dtype), b.to(dtype), c, seed), (a @ b + c).numpy())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mma_sums_in_float32(dtype: torch.dtype) -> None:
    a, b = torch.randn(16, 16).to(dtype), torch.randn(16, 8).to(dtype)
    c = torch.randn(16, 8)
    exact = a.double() @ b.double() + c.double()
    assert np.abs(multiply(a, b, c) - exact.numpy()).max() < 1e-5
    # 1 is lost beside 2^24 in float32, and only there.
    one = torch.ones(16, 16).to(dtype), torch.ones(16, 8).to(dtype)
    assert (multiply(*one, torch.full((16, 8), 2.0**24)) == 2.0**24).all()
    assert (multiply(*one, torch.full((16, 8), 2.0**23)) == 2.0**23 + 16).all()


def test_mma_takes_every_float16_at_its_value() -> None:
    """All finite patterns, subnormal ones included, times one."""
    every = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(torch.float16)
    finite = every[every.isfinite()]
    eye = torch.eye(16, 8).half()
    for part in finite[::97].split(128):
        a = torch.zeros(16, 16).half()
        a[:, :8] = torch.nn.functional.pad(part, (0, 128 - len(part))).view(16, 8)
        assert np.array_equal(multiply(a, eye, torch.zeros(16, 8)), a[:, :8].float().numpy())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mma_passes_nan_and_infinity_on(dtype: torch.dtype) -> None:
    a, b, c = torch.zeros(16, 16), torch.ones(16, 8), torch.zeros(16, 8)
    a[3, 5], a[4, 1], c[7, 2] = float("nan"), float("inf"), float("-inf")
    got = multiply(a.to(dtype), b.to(dtype), c)
    assert np.isnan(got[3]).all() and np.isposinf(got[4]).all() and np.isneginf(got[7, 2])
    assert np.isfinite(np.delete(got, [3, 4, 7], 0)).all()


LDMATRIX = """
struct Params { const int* rows; const unsigned short* data; int* out; };
template <int COUNT, bool TRANS> DEVICE_FN void load(const Params& p) {
    const u32 s = align_up(shared_base(), 128);
    const int lane = lane_id();
    for (int i = lane; i < 64 * 8; i += 32) sts_b16(s + 2 * i, load_global(p.data + i));
    sync_warp();
    const u32 row = s + 16 * load_global(p.rows + lane);
    u32 r[4] = {0, 0, 0, 0}, pair[2] = {0, 0};
    if constexpr (COUNT == 4 && TRANS) ldmatrix_x4_trans(r, row);
    if constexpr (COUNT == 4 && !TRANS) ldmatrix_x4(r, row);
    if constexpr (COUNT == 2 && TRANS) ldmatrix_x2_trans(pair, row);
    if constexpr (COUNT == 2 && !TRANS) ldmatrix_x2(pair, row);
    for (int i = 0; i < 4; ++i)
        store_global(p.out + 4 * lane + i, static_cast<int>(COUNT == 2 && i < 2 ? pair[i] : r[i]));
}
KERNEL(32, 1) x4(const __grid_constant__ Params p) { load<4, false>(p); }
KERNEL(32, 1) x4_trans(const __grid_constant__ Params p) { load<4, true>(p); }
KERNEL(32, 1) x2(const __grid_constant__ Params p) { load<2, false>(p); }
KERNEL(32, 1) x2_trans(const __grid_constant__ Params p) { load<2, true>(p); }
"""


@pytest.mark.parametrize("form", ["x4", "x4_trans", "x2", "x2_trans"])
def test_ldmatrix(form: str) -> None:
    count, trans = int(form[1]), form.endswith("trans")
    rng = np.random.default_rng(3)
    rows = rng.permutation(64)[:32].astype(np.int32)
    data = rng.permutation(65536)[:512].astype(np.uint16)
    out = np.zeros((32, 4), np.uint32)
    counters = launch(emulator.load(complete(LDMATRIX)), form,
                      {"rows": rows, "data": data, "out": out}, shared=64 * 16 + 112)
    assert counters.ldmatrix == 1
    for i in range(count):
        # Lane 8 i + r names row r of matrix i; a lane gets two elements of row lane / 4.
        matrix = data.reshape(64, 8)[rows[8 * i:8 * i + 8]]
        matrix = matrix.T if trans else matrix
        pair = matrix[GROUP, 2 * IN_GROUP].astype(np.uint32) \
            | matrix[GROUP, 2 * IN_GROUP + 1].astype(np.uint32) << 16
        assert np.array_equal(out[:, i], pair)
    assert not out[:, count:].any()


WARP = """
struct Params { float* out; int mask; };
KERNEL(128, 1) test(const __grid_constant__ Params p) {
    const int thread = thread_id();
    store_global(p.out + thread, shfl_xor(static_cast<float>(thread), p.mask));
    store_global(p.out + 128 + thread, static_cast<float>(warp_id() * 100 + lane_id()));
    store_global(p.out + 256 + thread,
                 static_cast<float>(block_x() * 10000 + block_y() * 100 + block_z()));
    const u32 votes = ballot(lane_id() % 5 == warp_id());
    store_global(p.out + 384 + thread, static_cast<float>(votes >> 16) + 0.5f);
    store_global(p.out + 512 + thread, static_cast<float>(lowest_bit(votes & ~31u)));
}
"""


@pytest.mark.parametrize("mask", [1, 2, 7, 16, 31])
def test_threads_know_themselves_and_their_neighbours(mask: int) -> None:
    out = np.full((5, 128), np.nan, np.float32)
    launch(emulator.load(complete(WARP)), "test", {"out": out, "mask": mask}, threads=128)
    threads = np.arange(128)
    assert np.array_equal(out[0], threads ^ mask)
    assert np.array_equal(out[1], threads // 32 * 100 + threads % 32)
    assert not out[2].any()
    for warp in range(4):  # bit n of a vote is lane n's, the same for every lane
        bits = [lane % 5 == warp for lane in range(32)]
        assert (out[3, 32 * warp:][:32] == sum(2**(n - 16) for n in range(16, 32) if bits[n]) + 0.5
                ).all()
        assert (out[4, 32 * warp:][:32] == bits.index(True, 5)).all()


def test_every_block_runs_once() -> None:
    kernel = """
struct Params { float* out; int x; int y; };
KERNEL(32, 1) test(const __grid_constant__ Params p) {
    const int block = block_x() + p.x * (block_y() + p.y * block_z());
    if (lane_id() == 0) store_global(p.out + block, static_cast<float>(block));
}
"""
    module = emulator.load(complete(kernel))
    for workers in (1, 3):
        out = np.full(3 * 4 * 5, np.nan, np.float32)
        launch(module, "test", {"out": out, "x": 3, "y": 4}, grid=(3, 4, 5), workers=workers)
        assert np.array_equal(out, np.arange(60))
    launch(module, "test", {"out": out, "x": 3, "y": 4}, grid=(3, 0, 5))  # nothing to do
