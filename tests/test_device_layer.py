"""The device layer exists twice: the same functions for a GPU and for the emulator."""

from __future__ import annotations

import re

import pytest

from attngen.errors import CompileError, UnknownNameError
from attngen.runtime import emulator
from attngen.runtime.emulator import sections, source
from attngen.runtime.nvrtc import compile_cubin
from attngen.templates import device
from attngen.templates.device import ORDER, device_text

CUDA = {name: (device.Path(device.__file__).parent / "cuda" / f"{name}.cuh").read_text()
        for name in ORDER}
EMULATED = {p.stem: p.read_text() for p in (source._HERE / "device").glob("*.hpp")}
INTERNAL = {"runtime", "checks"}
HELPERS = {"bf16_bits", "f16_bits"}  # roundings the GPU has as instructions

_FUNCTION = re.compile(
    r"(?:template <([^>]*)>\s*)?\b(DEVICE_FN|SYNC_FN)\s+(\w+)\s+(\w+(?:<\w+>)?)"
    r"\(([^)]*(?:\(&[^)]*\)[^)]*)*)\)\s*\{")


def signatures(text: str) -> set[tuple[str, ...]]:
    """(template parameters, mark, result, name, parameters) of every function."""
    found = set()
    for template, mark, result, name, parameters in _FUNCTION.findall(text):
        plain = re.sub(r",?\s*\bCALLED_FROM$", "", re.sub(r"\s+", " ", parameters))
        found.add((template, mark, result, name, plain))
    return found


@pytest.mark.parametrize("name", [n for n in ORDER if n in EMULATED])
def test_both_layers_have_the_same_functions(name: str) -> None:
    mine = {f for f in signatures(EMULATED[name]) if f[3] not in HELPERS}
    assert mine == signatures(CUDA[name]) and mine


def test_every_file_is_implemented_or_kept() -> None:
    assert set(EMULATED) - INTERNAL <= set(ORDER)
    for name in set(ORDER) - set(EMULATED):  # kept as it is: nothing a C++ compiler cannot read
        text = re.sub(r"//.*|__builtin_bit_cast", "", CUDA[name])
        assert "asm" not in text and "__" not in text


def test_the_text_is_complete_without_any_header() -> None:
    text = device_text(ORDER)
    assert "#include" not in text and "#if" not in text
    assert text.splitlines()[0] == sections.BEGIN == device.BEGIN
    assert text.splitlines()[-1] == sections.END == device.END


def test_order_and_repetition_do_not_matter() -> None:
    assert device_text(["math", "thread"]) == device_text(["thread", "math", "math"])
    assert list(sections.split(device_text(["ops"])).device) == ["types", "math", "ops"]


def test_unknown_file() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'matrix'"):
        device_text(["matrices"])


def test_every_function_says_what_it_does() -> None:
    """A comment stands above each function or the block of functions it belongs to."""
    for text in CUDA.values():
        for block in text.split("\n\n"):
            if "_FN " in block and "#define" not in block:
                assert block.lstrip().startswith("//"), block


# Calls every function of the layer, so that none escapes the assembler.
USE = """
struct Params {
    const float* a; const bf16_t* b; float* out; f16_t* h; i64 stride; const i64* w; int n;
};
template <typename T> DEVICE_FN float use_all(const Params& p) {
    const u32 s = align_up(shared_base(), 128);
    const int lane = lane_id();
    u32 r[4], pair[2];
    float c[4] = {0.0f, 0.0f, 0.0f, 0.0f}, d[4];
    cp_async_16(s + 16 * thread_id(), p.a + 4 * thread_id(), 16);
    cp_async_commit();
    cp_async_wait<0>();
    sync_block();
    ldmatrix_x4(r, s + 16 * lane);
    ldmatrix_x2(pair, s + 16 * lane);
    mma_m16n8k16(c[0], c[1], c[2], c[3], r, pair[0], pair[1], T{});
    ldmatrix_x4_trans(r, s + 16 * lane);
    ldmatrix_x2_trans(pair, s + 16 * lane);
    mma_m16n8k16(c[0], c[1], c[2], c[3], r, pair[0], pair[1], T{});
    sync_block();
    const u32 mine = s + 64 * thread_id();
    sts_f32(mine, c[0]);
    sts_b32(mine + 4, pack(c[0], c[1], T{}));
    sts_b16(mine + 8, from_float<T>(c[1]).bits);
    sts_f32x4(mine + 16, c);
    sts_b128(mine + 32, r);
    sync_warp();
    lds_b128(r, mine + 32);
    lds_f32x4(d, mine + 16);
    float x = lds_f32(mine) + static_cast<float>(lds_b32(mine + 4)) + d[0] + d[1] + d[2] + d[3];
    x += static_cast<float>(lds_b16(mine + 8)) + static_cast<float>(warp_id() + block_y());
    x += static_cast<float>(lowest_bit(ballot(x > 0.0f) | 1u));
    x += shfl_xor(x, 1) + static_cast<float>(recompute(p.n) + block_x() + block_z());
    x = max_f32(x, NEG_INF) + min_f32(x, 1.0f) + exp2_f32(x) + exp_f32(x) + log_f32(x);
    x += log2_f32(x) + fast_log2(x) + tanh_f32(x) + sqrt_f32(x) + recip0_f32(x) + sigmoid_f32(x);
    x += uniform_f32(p.stride, p.n, 1, 0, lane, 16, p.n);
    x += uniform_f32(p.stride, p.n, 1, 0, lane, 16, p.n, lane, p.n);
    x += static_cast<float>(opaque(static_cast<u32>(p.n)));
    Philox words{{1u, 2u, 3u, 4u}};
    philox_round(words, 5u, 6u);
    x += philox_word(words, 8, 0);
    x += to_float(from_float<s8_t>(x)) + to_float(from_float<e4m3_t>(x)) + nearest_f32(x);
    widen(r, reinterpret_cast<const s8_t*>(p.a), T{});
    x += static_cast<float>(r[0]) + byte_of<e4m3_t>(r[1], 2);
    widen(r, reinterpret_cast<const e4m3_t*>(p.a), 1.0f);
    x += finite_or_zero_f32(x) + abs_f32(x) + floor_f32(x) + fma_f32(x, x, x);
    x += static_cast<float>(floordiv_i32(p.n, 3) + mod_i32(p.n, 5) + ceil_div(p.n, 7));
    x += static_cast<float>(max_i32(p.n, 2) + min_i32(p.n, 3) + abs_i32(p.n));
    x += static_cast<float>(floordiv_i64(p.stride, 3) + mod_i64(p.stride, 5) + abs_i64(p.stride));
    x += static_cast<float>(max_i64(p.stride, 2) + min_i64(p.stride, 3));
    x += floordiv_f32(x, 3.0f) + mod_f32(x, 5.0f) + erf_f32(x);
    x += load_global(p.a) + to_float(load_global(p.b)) + to_float(from_float<T>(x));
    x += plain(1.0f) + plain(bf16_t{1}) + plain(f16_t{1});
    x += gather<float>(p.a, lane, p.n, p.stride, 3, p.n, 1) + gather<float>(p.b, 2, p.n, p.stride);
    x += static_cast<float>(table_min(p.stride, 9, p.n, p.w, lane, 2, 3));
    x += static_cast<float>(table_max(1, 2, p.n, p.w));
    x += static_cast<float>(in_range<true>(1, 2, p.n, p.w));
    load_global_b128(r, p.a);
    const int at = 8 * thread_id();
    store_global(p.h + at, from_float<f16_t>(x));
    store_global_b32(p.out + at, r[0]);
    store_global_b128(p.out + at + 4, r);
    return from_float<float>(to_float(x));
}
KERNEL(64, 1) use(const __grid_constant__ Params p) {
    const float x = use_all<bf16_t>(p) + use_all<f16_t>(p);
    store_global(p.out + 8 * thread_id() + 1, x);
}
"""


def test_the_probe_uses_every_function() -> None:
    names = {f[3].split("<")[0] for text in CUDA.values() for f in signatures(text)}
    called = set(re.findall(r"\b(\w+)(?:<\w+>)?\(", USE))
    through_others = {"fast_exp2", "recip", "floor_div", "floor_mod"}
    assert names - called - through_others == set()


@pytest.mark.parametrize("arch", ["sm_80", "sm_120"])
def test_every_function_assembles(arch: str) -> None:
    cubin = compile_cubin(device_text(ORDER) + USE, arch, name="device_layer")
    assert not cubin.remarks
    used = cubin.resources["use"]
    assert used.spill_stores == used.spill_loads == 0


def test_every_function_compiles_for_the_emulator() -> None:
    assert emulator.load(device_text(ORDER) + USE).entries == ("use",)


def test_only_the_files_named_are_there() -> None:
    """As on a GPU: a kernel that forgot to ask for a file does not compile."""
    kernel = ("struct Params { float* out; };\n"
              "KERNEL(32, 1) test(const __grid_constant__ Params p) { sync_block(); }\n")
    assert emulator.load(device_text(["thread"]) + kernel).entries == ("test",)
    with pytest.raises(CompileError, match="sync_block"):
        emulator.load(device_text(["math"]) + kernel)


def test_compile_errors_show_the_lines_of_the_emitted_text() -> None:
    text = device_text(["thread"]) + "struct Params { int n; };\n\nint broken( { }\n"
    with pytest.raises(CompileError) as caught:
        emulator.load(text)
    assert caught.value.line == text.count("\n", 0, text.index("int broken")) + 1
    assert "> " in str(caught.value) and "int broken( { }" in str(caught.value)


def test_text_without_markers_is_refused() -> None:
    for text in ("", "KERNEL(32, 1) x() {}", device.END + "\n" + device.BEGIN + "\n"):
        with pytest.raises(CompileError, match="no device layer"):
            emulator.load(text)
