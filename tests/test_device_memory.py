"""Loads, stores and copies move the right bytes, and bank conflicts are counted as they are."""

from __future__ import annotations

import numpy as np
import pytest
from emulated import complete, launch

from attngen.runtime import emulator
from attngen.runtime.emulator import Counters

ROUND_TRIPS = """
struct Params { const u32* in; u32* out; };
template <typename T> DEVICE_FN void elements(const Params& p) {
    constexpr int N = 1024 / static_cast<int>(sizeof(T));
    const T* in = reinterpret_cast<const T*>(p.in);
    T* out = reinterpret_cast<T*>(p.out);
    for (int i = lane_id(); i < N; i += 32) store_global(out + i, load_global(in + i));
}
KERNEL(32, 1) global_float(const __grid_constant__ Params p) { elements<float>(p); }
KERNEL(32, 1) global_int(const __grid_constant__ Params p) { elements<int>(p); }
KERNEL(32, 1) global_short(const __grid_constant__ Params p) { elements<unsigned short>(p); }
KERNEL(32, 1) global_bf16(const __grid_constant__ Params p) { elements<bf16_t>(p); }
KERNEL(32, 1) global_f16(const __grid_constant__ Params p) { elements<f16_t>(p); }
KERNEL(32, 1) global_b128(const __grid_constant__ Params p) {
    for (int i = lane_id(); i < 64; i += 32) {
        u32 x[4];
        load_global_b128(x, p.in + 4 * i);
        store_global_b128(p.out + 4 * i, x);
    }
}
KERNEL(32, 1) global_b32(const __grid_constant__ Params p) {
    for (int i = lane_id(); i < 256; i += 32) store_global_b32(p.out + i, load_global(p.in + i));
}
template <typename PUT, typename GET> DEVICE_FN void through_shared(PUT put, GET get) {
    put(shared_base());
    sync_warp();
    get(shared_base());
}
KERNEL(32, 1) shared_words(const __grid_constant__ Params p) {
    const u32 s = shared_base();
    for (int i = lane_id(); i < 256; i += 32) {
        const u32 x = load_global(p.in + i);
        if (i < 64) sts_f32(s + 4 * i, __builtin_bit_cast(float, x));
        else if (i < 128) sts_b32(s + 4 * i, x);
        else {
            sts_b16(s + 4 * i, static_cast<unsigned short>(x));
            sts_b16(s + 4 * i + 2, static_cast<unsigned short>(x >> 16));
        }
    }
    sync_warp();
    for (int n = 0; n < 256; n += 32) {
        const int i = n + (31 - lane_id());
        u32 x = 0;
        if (i < 64) x = lds_b32(s + 4 * i);
        else if (i < 128) x = __builtin_bit_cast(u32, lds_f32(s + 4 * i));
        else x = lds_b16(s + 4 * i) | static_cast<u32>(lds_b16(s + 4 * i + 2)) << 16;
        store_global(p.out + i, x);
    }
}
KERNEL(32, 1) shared_quads(const __grid_constant__ Params p) {
    const u32 s = shared_base();
    u32 x[4];
    float y[4];
    for (int i = lane_id(); i < 64; i += 32) {
        load_global_b128(x, p.in + 4 * i);
        for (int n = 0; n < 4; ++n) y[n] = __builtin_bit_cast(float, x[n]);
        if (i < 32) sts_b128(s + 16 * i, x);
        else sts_f32x4(s + 16 * i, y);
    }
    sync_warp();
    for (int n = 0; n < 64; n += 32) {
        const int i = n + (31 - lane_id());
        if (i < 32) {
            lds_f32x4(y, s + 16 * i);
            for (int m = 0; m < 4; ++m) x[m] = __builtin_bit_cast(u32, y[m]);
        } else {
            lds_b128(x, s + 16 * i);
        }
        store_global_b128(p.out + 4 * i, x);
    }
}
"""
NAMES = ("global_float", "global_int", "global_short", "global_bf16", "global_f16", "global_b128",
         "global_b32", "shared_words", "shared_quads")


@pytest.mark.parametrize("name", NAMES)
def test_bytes_arrive(name: str) -> None:
    data = np.random.default_rng(4).integers(0, 2**32, 256, dtype=np.uint32)
    out = np.zeros_like(data)
    counters = launch(emulator.load(complete(ROUND_TRIPS)), name, {"in": data, "out": out},
                      shared=1024)
    assert np.array_equal(out, data)
    assert counters.read_by == {"in": 1024, "out": 0}
    assert counters.written_by == {"in": 0, "out": 1024}


COPY = """
struct Params { const bf16_t* in; u32* out; int valid; };
KERNEL(32, 1) test(const __grid_constant__ Params p) {
    const u32 s = shared_base() + 16 * lane_id();
    cp_async_16(s, p.in + 8 * lane_id(), p.valid);
    cp_async_commit();
    cp_async_wait<0>();
    u32 x[4];
    lds_b128(x, s);
    store_global_b128(p.out + 4 * lane_id(), x);
}
"""


@pytest.mark.parametrize("valid", [0, 2, 4, 6, 8, 14, 16])
def test_copies_fill_up_with_zeros(valid: int) -> None:
    data = np.random.default_rng(4).integers(1, 256, (32, 16), dtype=np.uint8)
    out = np.full_like(data, 255)
    for seed in range(4):
        counters = launch(emulator.load(complete(COPY)), "test",
                          {"in": data, "out": out, "valid": valid}, shared=512, seed=seed)
        want = data.copy()
        want[:, valid:] = 0
        assert np.array_equal(out, want)
        assert counters.async_bytes == counters.read_by["in"] == 32 * valid


BANKS = """
struct Params { float* out; int stride; };
KERNEL(32, 1) words(const __grid_constant__ Params p) {
    sts_f32(align_up(shared_base(), 128) + p.stride * lane_id(), 1.0f);
}
KERNEL(32, 1) broadcast(const __grid_constant__ Params p) {
    const u32 s = align_up(shared_base(), 128);
    if (lane_id() == 0) sts_f32(s, 1.0f);
    sync_warp();
    store_global(p.out + lane_id(), lds_f32(s));
}
KERNEL(32, 1) quads(const __grid_constant__ Params p) {
    float x[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    sts_f32x4(align_up(shared_base(), 128) + p.stride * lane_id(), x);
}
KERNEL(32, 1) copies(const __grid_constant__ Params p) {
    cp_async_16(align_up(shared_base(), 128) + p.stride * lane_id(), p.out, 0);
    cp_async_commit();
    cp_async_wait<0>();
}
KERNEL(32, 1) matrices(const __grid_constant__ Params p) {
    const u32 s = align_up(shared_base(), 128);
    u32 r[4] = {0, 0, 0, 0};
    sts_b128(s + p.stride * lane_id(), r);
    sync_warp();
    ldmatrix_x4(r, s + p.stride * lane_id());
}
KERNEL(32, 1) swizzled(const __grid_constant__ Params p) {
    const u32 s = align_up(shared_base(), 128);
    u32 r[4] = {0, 0, 0, 0};
    const u32 row = s + 128 * lane_id() + 16 * (3 ^ (lane_id() & 7));
    sts_b128(row, r);
    sync_warp();
    ldmatrix_x4(r, row);
}
KERNEL(32, 1) two_sites(const __grid_constant__ Params p) {
    const u32 s = align_up(shared_base(), 128) + 128 * lane_id();
    if (lane_id() % 2) sts_f32(s, 1.0f);
    sts_f32(s + 4 * lane_id(), 1.0f);
}
"""


def conflicts(entry: str, stride: int = 0) -> Counters:
    out = np.zeros(32, np.float32)
    return launch(emulator.load(complete(BANKS)), entry, {"out": out, "stride": stride},
                  shared=32 * 160 + 112, seed=stride)


@pytest.mark.parametrize(("stride", "extra"), [(4, 0), (8, 1), (16, 3), (128, 31), (132, 0),
                                               (64, 15), (12, 0)])
def test_words(stride: int, extra: int) -> None:
    assert conflicts("words", stride).conflicts_shared == extra


def test_one_word_for_all_is_no_conflict() -> None:
    assert conflicts("broadcast").bank_conflicts == 0


@pytest.mark.parametrize(("stride", "extra"), [(16, 0), (32, 4), (64, 12), (128, 28), (144, 0)])
def test_quads_copies_and_matrix_rows_go_in_phases_of_eight(stride: int, extra: int) -> None:
    assert conflicts("quads", stride).conflicts_shared == extra
    assert conflicts("copies", stride).conflicts_async == extra
    assert conflicts("matrices", stride).conflicts_ldmatrix == extra


def test_swizzled_rows_do_not_conflict() -> None:
    assert conflicts("swizzled").bank_conflicts == 0


def test_lanes_that_skip_an_access_do_not_blur_the_next() -> None:
    # Sixteen lanes in one bank, then a diagonal free of conflicts.
    assert conflicts("two_sites").conflicts_shared == 15
