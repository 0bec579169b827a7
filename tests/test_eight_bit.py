"""Caches in eight bits: the conversions, what is stored, and how far results are off."""

from __future__ import annotations

import ctypes
from functools import cache as once
from typing import Any

import numpy as np
import pytest
import torch
from emulated import complete, launch
from torch import Tensor

import attngen as ag
from attngen import errors, kv, reference, scores
from attngen.ir.eval_tensor import round_to
from attngen.runtime import cxx, emulator
from attngen.templates.render_cpu import device_layer

Spec = ag.AttentionSpec
SPEC = Spec(heads=6, groups=2, head_dim=128, causal=True)
TORCH = {"int8": torch.int8, "float8_e4m3": torch.float8_e4m3fn}
LARGEST = {"int8": 127.0, "float8_e4m3": 448.0}
CAPACITY = 64

# -- conversions ----------------------------------------------------------------------------------

CUDA = """
struct Params {
    const float* x; const unsigned char* codes; unsigned char* to; float* from; int n;
};
template <typename S> DEVICE_FN void convert(const Params& p) {
    for (int i = lane_id(); i < p.n; i += 32) {
        const S y = from_float<S>(load_global(p.x + i));
        store_global(p.to + i, static_cast<unsigned char>(y.bits));
    }
    for (int i = lane_id(); i < 256; i += 32) {
        store_global(p.from + i, to_float(__builtin_bit_cast(S, load_global(p.codes + i))));
    }
}
KERNEL(32, 1) int8(const __grid_constant__ Params p) { convert<s8_t>(p); }
KERNEL(32, 1) float8_e4m3(const __grid_constant__ Params p) { convert<e4m3_t>(p); }
"""
CPU = """
template <class S> void convert(const float* x, const S* codes, S* to, float* from, int n) {
    for (int i = 0; i < n; ++i) put(to[i], x[i]);
    for (int i = 0; i < 256; ++i) from[i] = to_real(codes[i]);
}
extern "C" void int8(const float* x, const int8_t* codes, int8_t* to, float* from, int n) {
    convert(x, codes, to, from, n);
}
extern "C" void float8_e4m3(const float* x, const e4m3_t* codes, e4m3_t* to, float* from, int n) {
    convert(x, codes, to, from, n);
}
"""


def numbers() -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(0)
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    codes = np.sort(codes[np.isfinite(codes)])
    halves = np.arange(-130, 130, 0.5)
    x = np.concatenate([rng.normal(0, 60, 3000), rng.normal(0, 0.01, 3000), halves, codes,
                        (codes[1:] + codes[:-1]) / 2, [0.0, -0.0, 1e-30, 2.0**-10, 2.0**-6]])
    x = x.astype(np.float32)
    return np.concatenate([x, np.nextafter(x, np.float32(np.inf)),
                           np.nextafter(x, np.float32(-np.inf))])


def converted(where: str, kind: str, x: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    """Codes of x, and the values of all codes."""
    codes, to = np.arange(256, dtype=np.uint8), np.zeros(x.size, np.uint8)
    found = np.zeros(256, np.float32)
    if where == "cuda":
        launch(emulator.load(complete(CUDA)), kind, {"x": x, "codes": codes, "to": to,
                                                     "from": found, "n": x.size},
               writes=("to", "from"))
    else:
        library = cxx.load_text(device_layer() + CPU, name="eight_bit")
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (x, codes, to, found)]
        getattr(library, kind)(*pointers, x.size)
    return to, found


@pytest.mark.parametrize("where", ["cuda", "cpu"])
@pytest.mark.parametrize("kind", TORCH)
def test_conversions_are_torchs(kind: str, where: str) -> None:
    x = numbers()
    to, values = converted(where, kind, x)
    codes = torch.arange(256, dtype=torch.uint8).view(TORCH[kind]).float().numpy()
    np.testing.assert_array_equal(values, codes)
    inside = np.clip(x, -LARGEST[kind], LARGEST[kind])
    rounded = torch.from_numpy(inside)
    if kind == "int8":
        rounded = rounded.round()
    want = rounded.to(TORCH[kind]).view(torch.uint8).numpy()
    np.testing.assert_array_equal(to, want)
    np.testing.assert_array_equal(round_to(x.astype(np.float64), kind), values[to])


def test_the_largest_and_what_is_no_number() -> None:
    x = np.array([np.inf, -np.inf, 1e30, -1e30, np.nan], np.float32)
    for where in ("cuda", "cpu"):
        to, values = converted(where, "float8_e4m3", x)
        assert values[to[:4]].tolist() == [448, -448, 448, -448] and np.isnan(values[to[4]])
        to, values = converted(where, "int8", x[:4])
        assert values[to].tolist() == [127, -127, 127, -127]


# -- what is stored -------------------------------------------------------------------------------


@once
def compiled(spec: Spec, target: str) -> Any:
    return ag.compile(spec, target=target, emulate=target != "cpu")


def tokens(n: int, dtype: torch.dtype, spec: Spec = SPEC) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    return [torch.randn(2, h, n, spec.head_dim, generator=generator).to(dtype)
            for h in (spec.heads, spec.kv_heads, spec.kv_heads)]


@pytest.mark.parametrize("kind", TORCH)
@pytest.mark.parametrize(("target", "dtype"), [
    ("cpu", torch.float32), ("cpu", torch.bfloat16), ("sm_80", torch.bfloat16),
    ("sm_80", torch.float32)])
def test_elements_and_scales(target: str, dtype: torch.dtype, kind: str) -> None:
    cache = kv.KVCache(compiled(SPEC, target), 2, CAPACITY, dtype=dtype, quantize=kind)
    _, k, v = tokens(21, dtype)
    v[0, 1, 5] = 0  # a row of zeros has a scale of 0
    cache.append(k[:, :, :20], v[:, :, :20])
    cache.append(k[:, :, 20:], v[:, :, 20:])
    for x, kept, scale in ((k, cache.k, "k_scale"), (v, cache.v, "v_scale")):
        want = x.float().abs().amax(-1) * (1 / LARGEST[kind])
        torch.testing.assert_close(cache.scales[scale][:, :, :21], want, rtol=1e-6, atol=0)
        again = kept[:, :, :21].float() * cache.scales[scale][:, :, :21, None]
        step = {"int8": 0.5, "float8_e4m3": 16.0}[kind]  # half the gap between the largest
        limit = step * 1.001 * cache.scales[scale][:, :, :21, None]
        assert bool(((again - x.float()).abs() <= limit + 1e-12).all())
        assert not bool(cache.scales[scale][:, :, 21:].any())


def test_bytes_per_token() -> None:
    """Of two heads of 128 columns, scales included."""
    attn = compiled(SPEC, "cpu")
    sizes = {(dtype, kind): kv.KVCache(attn, 1, 4, dtype=dtype, quantize=kind).bytes_per_token
             for dtype in (torch.float32, torch.bfloat16) for kind in (None, *TORCH)}
    assert sizes == {
        (torch.float32, None): 2048, (torch.float32, "int8"): 528,
        (torch.float32, "float8_e4m3"): 528, (torch.bfloat16, None): 1024,
        (torch.bfloat16, "int8"): 528, (torch.bfloat16, "float8_e4m3"): 528}


def test_an_unknown_type_is_named() -> None:
    with pytest.raises(errors.UnknownNameError, match="int8"):
        kv.KVCache(compiled(SPEC, "cpu"), 1, 4, quantize="int4")


# -- results --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TORCH)
@pytest.mark.parametrize(("target", "dtype"), [
    ("cpu", torch.float32), ("cpu", torch.bfloat16), ("sm_80", torch.bfloat16),
    ("sm_80", torch.float16), ("sm_80", torch.float32)])
def test_relative_error(target: str, dtype: torch.dtype, kind: str) -> None:
    """Norm over norm, random normal data, against exact arithmetic on what was given."""
    attn, (q, k, v) = compiled(SPEC, target), tokens(60, dtype)
    found = []
    for cache in (kv.KVCache(attn, 2, CAPACITY, dtype=dtype, quantize=kind),
                  kv.PagedKVCache(attn, 2, 40, page_size=5, dtype=dtype, quantize=kind),
                  kv.RollingKVCache(attn, 2, CAPACITY, dtype=dtype, quantize=kind)):
        cache.append(k[:, :, :40], v[:, :, :40])
        cache.append(k[:, :, 40:], v[:, :, 40:])
        found.append(attn.decode(q[:, :, 44:], cache, num_splits=2).double())
    want = reference.attention(SPEC, q, k, v)[0][:, :, 44:]
    error = (found[0] - want).norm() / want.norm()
    assert 0 < error <= {"int8": 0.015, "float8_e4m3": 0.05}[kind]
    assert found[1].equal(found[0])
    torch.testing.assert_close(found[2], found[0], rtol=0, atol=2e-2)


@pytest.mark.parametrize("target", ["cpu", "sm_80"])
def test_many_queries_and_a_score(target: str) -> None:
    """Tiles of more rows than few, and a score that sees the scaled product."""
    spec = Spec(heads=16, groups=1, head_dim=64, causal=True, score=scores.softcap(3.0))
    attn, (q, k, v) = compiled(spec, target), tokens(50, torch.float32, spec)
    cache = kv.KVCache(attn, 2, CAPACITY, dtype=torch.float32, quantize="int8")
    cache.append(k, v)
    o = attn.decode(q[:, :, 34:], cache).double()
    want = reference.attention(spec, q, k, v)[0][:, :, 34:]
    assert (o - want).norm() / want.norm() < 0.015


def test_a_fork_copies_scales() -> None:
    attn, (q, k, v) = compiled(SPEC, "cpu"), tokens(12, torch.float32)
    cache = kv.PagedKVCache(attn, 2, 12, page_size=4, quantize="int8")
    k[1, :, :6], v[1, :, :6] = k[0, :, :6], v[0, :, :6]
    cache.append(k[:, :, :6], v[:, :, :6], counts=[6, 0])
    cache.fork(0, 1)
    cache.append(k[:, :, 6:], v[:, :, 6:])
    alone = kv.KVCache(attn, 2, CAPACITY, quantize="int8")
    alone.append(k, v)
    assert attn.decode(q[:, :, 11:], cache).equal(attn.decode(q[:, :, 11:], alone))


# -- rotary embeddings of keys --------------------------------------------------------------------


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("target", "dtype"), [
    ("cpu", torch.float32), ("sm_80", torch.bfloat16), ("sm_80", torch.float32)])
def test_rope(target: str, dtype: torch.dtype, interleaved: bool) -> None:
    attn, (_, k, v) = compiled(SPEC, target), tokens(50, dtype)
    for columns in (128, 32, 2):
        tables = kv.rope(CAPACITY, columns, interleaved=interleaved)
        cache = kv.KVCache(attn, 2, CAPACITY, dtype=dtype)
        for part, counts in ((slice(0, 40), None), (slice(40, 41), None), (slice(41, 50), [3, 9])):
            cache.append(k[:, :, part], v[:, :, part], counts=counts, rope=tables)
        want = tables.rotate(k, range(50))
        for b, n in ((0, 44), (1, 50)):
            torch.testing.assert_close(cache.k[b, :, :n], want[b, :, :n],
                                       rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)
            assert cache.v[b, :, :n].equal(v[b, :, :n])


def test_rope_is_the_published_rotation() -> None:
    """As a complex product, one column at a time; scores depend on distances alone."""
    tables = kv.rope(40, 6, base=100.0, interleaved=True)
    x = torch.randn(1, 1, 40, 8)
    turned = tables.rotate(x, range(40))
    for position in (0, 1, 39):
        for f in range(3):
            pair = complex(*x[0, 0, position, 2 * f:2 * f + 2].tolist())
            want = pair * np.exp(1j * position * 100.0 ** (-2 * f / 6))
            got = complex(*turned[0, 0, position, 2 * f:2 * f + 2].tolist())
            assert got == pytest.approx(want, abs=1e-5)
    assert turned[..., 6:].equal(x[..., 6:])
    half = kv.rope(40, 8)
    q, k = (half.rotate(torch.ones(1, 1, 40, 8) * n, range(40)) for n in (1, 2))
    product = (q @ k.mT)[0, 0]
    torch.testing.assert_close(product[3:, 3:], product[:-3, :-3], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [None, "int8"])
def test_rope_on_every_cache(kind: str | None) -> None:
    spec = Spec(heads=6, groups=2, head_dim=128, causal=True)
    attn, (q, k, v) = compiled(spec, "cpu"), tokens(50, torch.float32)
    tables = kv.rope(CAPACITY, 64)
    turned = [tables.rotate(x, range(50)) for x in (q, k)]
    want = reference.attention(spec, *turned, v)[0][:, :, 49:]
    for cache in (kv.KVCache(attn, 2, CAPACITY, quantize=kind),
                  kv.PagedKVCache(attn, 2, 30, page_size=7, quantize=kind),
                  kv.RollingKVCache(attn, 2, 60, quantize=kind)):
        cache.append(k, v, rope=tables)
        o = attn.decode(turned[0][:, :, 49:], cache).double()
        assert (o - want).norm() / want.norm() < (0.015 if kind else 1e-5)


@pytest.mark.parametrize(("change", "error"), [
    (lambda r: r._replace(sin=r.sin[:5]), errors.ShapeError),
    (lambda r: r._replace(cos=r.cos.double(), sin=r.sin.double()), errors.DtypeError),
    (lambda r: r._replace(sin=r.sin.to("meta")), errors.DeviceError),
    (lambda r: kv.rope(8, 130), errors.ShapeError)])
def test_tables_that_do_not_fit(change: Any, error: type[Exception]) -> None:
    cache, (_, k, v) = kv.KVCache(compiled(SPEC, "cpu"), 2, 9), tokens(3, torch.float32)
    with pytest.raises(error):
        cache.append(k, v, rope=change(kv.rope(8, 64)))
    assert not bool(cache.k.any()) and cache.lengths.tolist() == [0, 0]


def test_tables_that_end_too_early() -> None:
    attn, (q, k, v) = compiled(SPEC, "cpu"), tokens(9, torch.float32)
    for cache in (kv.KVCache(attn, 2, 20), kv.PagedKVCache(attn, 2, 20, page_size=4),
                  kv.RollingKVCache(attn, 2, 5)):
        cache.append(k[:, :, :5], v[:, :, :5], counts=[3, 5], rope=kv.rope(5, 64))
        before = cache.k.clone()
        with pytest.raises(errors.ShapeError, match="7 are wanted"):
            cache.append(k[:, :, 5:], v[:, :, 5:], counts=[4, 2], rope=kv.rope(6, 64))
        assert cache.k.equal(before) and cache.lengths.tolist() == [3, 5]
        if isinstance(cache, kv.PagedKVCache):
            assert cache.pool.free == 20 - 1 - 2
        with pytest.raises(errors.ShapeError, match="5 are wanted"):
            attn.decode(q[:, :, :1], cache, rope=kv.rope(4, 64))


@pytest.mark.parametrize(("positions", "columns"), [(0, 4), (4, 3), (4, 0)])
def test_sizes_no_table_can_have(positions: int, columns: int) -> None:
    with pytest.raises(errors.ShapeError):
        kv.rope(positions, columns)
