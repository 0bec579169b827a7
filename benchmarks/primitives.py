"""One small kernel for each function of the device layer, in one text that runs anywhere.

Each kernel reads ``takes`` words a thread, calls the function, writes ``gives`` words; so a device
and the emulator can be given the same words and their answers compared bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

Words = np.ndarray[Any, np.dtype[np.uint32]]
ROUNDS = 16  # each kernel repeats on that many sets of inputs


@dataclass(frozen=True)
class Primitive:
    """``body`` turns ``u32 x[takes]`` into ``u32 y[gives]``; it may use ``lane``, ``round`` and
    ``base``, the block's shared memory. ``draw(rng, count)`` makes ``count`` words.

    ``units`` is how far answers may be apart, in units of the last place of a float32 (0: same
    bits, any NaN equal to any other) and not less than ``floor``; None compares integers.
    """

    name: str
    takes: int
    gives: int
    body: str
    draw: Callable[[np.random.Generator, int], Words]
    units: float | None = None
    floor: float = 0.0
    shared: int = 0
    threads: int = 32
    grid: tuple[int, int, int] = (1, 1, 1)

    @property
    def total_threads(self) -> int:
        return self.threads * int(np.prod(self.grid))

    def inputs(self, seed: int = 0) -> Words:
        """[rounds, threads, takes] words, the same for the same seed."""
        rng = np.random.default_rng([seed, *self.name.encode()])
        count = ROUNDS * self.total_threads * self.takes
        return self.draw(rng, count).reshape(ROUNDS, self.total_threads, self.takes)


# -- words to feed them ---------------------------------------------------------------------------

_SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, 0.5, 1.5, np.inf, -np.inf, np.nan, 2.0**-126, 2.0**-140,
                     3.4e38, -3.4e38, 65504.0, 65520.0, 2.0**-24, 2.0**-25], np.float32)


def _bits(rng: np.random.Generator, count: int) -> Words:
    return rng.integers(0, 2**32, count, dtype=np.uint32)


def _floats(rng: np.random.Generator, count: int) -> Words:
    """Every magnitude, and the special values."""
    x = rng.standard_normal(count) * 2.0 ** rng.integers(-30, 30, count)
    x[::5] = rng.choice(_SPECIAL, x[::5].size)
    return x.astype(np.float32).view(np.uint32)


def _scaled(scale: float, low: float = -np.inf) -> Callable[[np.random.Generator, int], Words]:
    def draw(rng: np.random.Generator, count: int) -> Words:
        x = rng.standard_normal(count) * scale
        return np.maximum(np.abs(x) if low >= 0 else x, low).astype(np.float32).view(np.uint32)
    return draw


def _integers(low: int, high: int) -> Callable[[np.random.Generator, int], Words]:
    """From low to high, without 0 when low is negative, as these may be divisors."""
    def draw(rng: np.random.Generator, count: int) -> Words:
        x = rng.integers(low, high + 1, count, dtype=np.int32)
        return np.where((x == 0) & (low < 0), 3, x).astype(np.int32).view(np.uint32)
    return draw


def _operands(kind: str, exact: bool) -> Callable[[np.random.Generator, int], Words]:
    """Per thread four words of A and two of B, packed pairs, and four floats of C."""
    def draw(rng: np.random.Generator, count: int) -> Words:
        rows = count // 10

        def normal(n: int) -> Any:
            return rng.integers(-8, 9, (rows, n)) if exact else rng.standard_normal((rows, n))

        pairs = normal(12).astype(np.float32)
        half = (pairs.astype(np.float16).view(np.uint16) if kind == "f16"
                else (pairs.view(np.uint32) >> 16).astype(np.uint16))
        c = normal(4).astype(np.float32).view(np.uint32)
        return np.concatenate([np.ascontiguousarray(half).view(np.uint32), c], axis=1).reshape(-1)
    return draw


# -- the kernels ----------------------------------------------------------------------------------


def _unary(name: str, draw: Callable[[np.random.Generator, int], Words], units: float = 0.0,
           floor: float = 0.0) -> Primitive:
    return Primitive(name, 1, 1, f"y[0] = word({name}(real(x[0])));", draw, units, floor)


def _binary(name: str) -> Primitive:
    return Primitive(name, 2, 1, f"y[0] = word({name}(real(x[0]), real(x[1])));", _floats, 0.0)


def _whole(name: str, arguments: int, draw: Callable[[np.random.Generator, int], Words],
           ) -> Primitive:
    given = ", ".join(f"int(x[{n}])" for n in range(arguments))
    return Primitive(name, arguments, 1, f"y[0] = u32({name}({given}));", draw)


_PAIR = "(static_cast<i64>(static_cast<int>(x[{}])) * 4294967296LL + x[{}])"
_SPLIT = "y[0] = static_cast<u32>(z); y[1] = static_cast<u32>(z >> 32);"


def _long(name: str) -> Primitive:
    """Of 64-bit integers, the second from -2^31 to 2^31 without 0."""
    body = (f"const i64 b = static_cast<i64>(static_cast<int>(x[2] | 1u)); "
            f"const i64 z = {name}({_PAIR.format(0, 1)}, b); {_SPLIT}")
    return Primitive(name, 3, 2, body, _bits)


def _exchange(name: str, words: int, put: str, get: str, size: int) -> Primitive:
    """Store a thread's words in shared memory, take another thread's."""
    body = (f"{put.format(at=f'base + {size} * lane')}; sync_warp(); "
            f"{get.format(at=f'base + {size} * ((lane * 5 + 3) % 32)')}; sync_warp();")
    return Primitive(name, words, words, body, _bits, shared=32 * size)


def _ldmatrix(form: str, registers: int) -> Primitive:
    body = (f"sts_b128(base + 16 * lane, x); sync_warp(); u32 r[{registers}]; "
            f"ldmatrix_{form}(r, base + 16 * ((lane * 7 + round) % 32)); "
            f"for (int n = 0; n < {registers}; ++n) y[n] = r[n]; sync_warp();")
    return Primitive(f"ldmatrix_{form}", 4, registers, body, _bits, shared=512)


def _mma(kind: str, exact: bool) -> Primitive:
    body = ("float c[4]; for (int n = 0; n < 4; ++n) c[n] = real(x[6 + n]); "
            "const u32 a[4] = {x[0], x[1], x[2], x[3]}; "
            f"mma_m16n8k16(c[0], c[1], c[2], c[3], a, x[4], x[5], {kind}_t{{}}); "
            "for (int n = 0; n < 4; ++n) y[n] = word(c[n]);")
    # Sums of 17 terms of size about 1 to 10, each cut at the bits of the largest.
    return Primitive(f"mma_m16n8k16_{kind}{'' if exact else '_rounded'}", 10, 4, body,
                     _operands(kind, exact), 0.0 if exact else 32.0, 0.0 if exact else 8.0)


_SHFL = "for (int n = 0; n < 5; ++n) y[n] = word(shfl_xor(real(x[0]), 1 << n));"
_VOTE = ("y[0] = ballot((x[0] & 1u) != 0u); y[1] = ballot(x[0] % 3u == u32(round) % 3u); "
         "y[2] = static_cast<u32>(lowest_bit(x[0] | 1u << 31));")
_COPY = ("cp_async_16(base + 16 * thread_id(), from, (lane * 3 + round) % 17); cp_async_commit(); "
         "cp_async_wait<0>(); sync_block(); lds_b128(y, base + 16 * (thread_id() ^ 33)); "
         "sync_block();")
_HALVES = ("const bf16_t* half = reinterpret_cast<const bf16_t*>(from); "
           "f16_t* other = reinterpret_cast<f16_t*>(to); "
           "store_global(other, f16_t{load_global(half + 1).bits}); "
           "y[0] = load_global(other).bits; y[1] = load_global(half + 2).bits;")
_IDS = ("y[0] = u32(thread_id()); y[1] = u32(lane_id()); y[2] = u32(warp_id()); "
        "y[3] = u32(block_x()); y[4] = u32(block_y()); y[5] = u32(block_z());")

# Inside the table of 2 x 2 words and outside of it, by row and column.
_GATHER = ("y[0] = gather<int>(from, int(x[0] % 4) - 1, 2, 2, int(x[1] % 4) - 1, 2, 1); "
           "y[1] = gather<int>(from, i64(x[2] % 6) - 1, 4, 1); y[2] = gather<int>(from + 3);")
# Of two rows of 8 elements each; 16 bytes are the least and greatest of all 8.
_RANGES = ("const i64* blocks = reinterpret_cast<const i64*>(from); "
           "const i64 low = int(x[0] % 5) - 1, high = int(x[1] % 12); "
           "i64 z = table_min(low, high, 8, blocks); "
           "y[0] = static_cast<u32>(z); y[1] = static_cast<u32>(z >> 32); "
           "z = table_max(low, high, 8, blocks, int(x[2] % 3), 1, 2)"
            " - in_range<true>(0, 1, 8, blocks); "
           "y[2] = static_cast<u32>(z); y[3] = static_cast<u32>(z >> 32);")
# A position in seven words; the starts are made multiples of 16.
_UNIFORM = ("Philox f{{x[0], x[1], x[2], x[3]}}; philox_round(f, x[4], x[5]); "
            "for (int n = 0; n < 4; ++n) y[n] = f.word[n]; y[3] ^= word(philox_word(f, 8, 0)); "
            f"const i64 seed = {_PAIR.format(0, 1)}; const int j = int(x[5] % 16u); "
            "y[4] = word(uniform_f32(seed, int(x[2]), int(x[3]), int(x[4] << 4), int(x[5]), "
            "int(x[6] << 4), j)); "
            "y[5] = word(uniform_f32(seed, int(x[2]), int(x[3]), int(x[4] << 4), int(x[5]), "
            "int(x[6] << 4), j, int(x[5]), j));")

PRIMITIVES: dict[str, Primitive] = {p.name: p for p in (
    _unary("fast_exp2", _scaled(20.0), 4.0, 2.0**-126),
    _unary("fast_log2", _scaled(20.0, 1e-30), 4.0, 2.0**-2),
    *(_unary(name, draw, 4.0, 2.0**-126) for name, draw in (
        ("exp_f32", _scaled(20.0)), ("exp2_f32", _scaled(20.0)), ("tanh_f32", _scaled(2.0)),
        ("erf_f32", _scaled(2.0)),
        ("sigmoid_f32", _scaled(8.0)))),
    *(_unary(name, _scaled(20.0, 1e-30), 4.0, 2.0**-2) for name in ("log_f32", "log2_f32")),
    *(_unary(name, _floats) for name in ("sqrt_f32", "recip", "recip0_f32", "abs_f32", "floor_f32",
                                         "finite_or_zero_f32")),
    _binary("max_f32"), _binary("min_f32"), _binary("floordiv_f32"), _binary("mod_f32"),
    Primitive("fma_f32", 3, 1, "y[0] = word(fma_f32(real(x[0]), real(x[1]), real(x[2])));",
              _floats, 0.0),
    *(_whole(name, 2, _integers(-1000, 1000)) for name in (
        "max_i32", "min_i32", "floor_div", "floor_mod", "floordiv_i32", "mod_i32")),
    *(_long(name) for name in ("max_i64", "min_i64", "floordiv_i64", "mod_i64")),
    Primitive("abs_i64", 2, 2, f"const i64 z = abs_i64({_PAIR.format(0, 1)}); {_SPLIT}", _bits),
    Primitive("plain", 2, 3, "y[0] = word(plain(real(x[0]))); y[1] = word(plain(bf16_t{"
              "static_cast<unsigned short>(x[0])})); y[2] = word(plain(f16_t{"
              "static_cast<unsigned short>(x[1])}));", _bits, 0.0),
    Primitive("gather", 4, 3, _GATHER, _bits),
    Primitive("table_min", 4, 4, _RANGES, _bits),
    _whole("abs_i32", 1, _integers(-1000, 1000)), _whole("ceil_div", 2, _integers(1, 1000)),
    Primitive("align_up", 1, 1, "y[0] = align_up(x[0] >> 4, 1u << (lane % 11));", _bits),
    Primitive("recompute", 2, 2, "y[0] = u32(recompute(int(x[0]))); y[1] = opaque(x[1]);", _bits),
    *(Primitive(f"to_float_{kind}", 1, 1, f"y[0] = word(to_float({kind}_t{{"
                "static_cast<unsigned short>(x[0])}));", _bits, 0.0) for kind in ("bf16", "f16")),
    *(Primitive(f"pack_{kind}", 2, 2, f"y[0] = pack(real(x[0]), real(x[1]), {kind}_t{{}}); "
                f"y[1] = from_float<{kind}_t>(real(x[1])).bits;", _floats)
      for kind in ("bf16", "f16")),
    *(Primitive(f"to_float_{kind}", 1, 1, f"y[0] = word(to_float({kind}_t{{"
                f"static_cast<{c} char>(x[0])}}));", _bits, 0.0)
      for kind, c in (("s8", "signed"), ("e4m3", "unsigned"))),
    *(Primitive(f"from_float_{kind}", 1, 1, "y[0] = static_cast<unsigned char>(from_float<"
                f"{kind}_t>(real(x[0])).bits);", _scaled(scale), 0.0)
      for kind, scale in (("s8", 60.0), ("e4m3", 100.0))),
    Primitive("nearest_f32", 1, 1, "y[0] = word(nearest_f32(real(x[0])));", _scaled(1000.0), 0.0),
    Primitive("byte_of", 2, 1, "y[0] = word(byte_of<e4m3_t>(x[0], int(x[1] % 4u)));", _bits, 0.0),
    *(Primitive(f"widen_{tag}", 4, 4, f"widen(y, reinterpret_cast<const e4m3_t*>(from), {value});",
                _bits, 0.0) for tag, value in (("bf16", "bf16_t{}"), ("f16", "f16_t{}"),
                                               ("float", "1.0f"))),
    Primitive("from_float", 1, 1, "y[0] = word(from_float<float>(to_float(real(x[0]))));", _floats,
              0.0),
    _exchange("sts_f32", 1, "sts_f32({at}, real(x[0]))", "y[0] = word(lds_f32({at}))", 4),
    _exchange("sts_b32", 1, "sts_b32({at}, x[0])", "y[0] = lds_b32({at})", 4),
    _exchange("sts_b16", 1, "sts_b16({at}, static_cast<unsigned short>(x[0]))",
              "y[0] = lds_b16({at})", 2),
    _exchange("sts_b128", 4, "sts_b128({at}, x)", "lds_b128(y, {at})", 16),
    _exchange("sts_f32x4", 4, "float f[4]; for (int n = 0; n < 4; ++n) f[n] = real(x[n]); "
              "sts_f32x4({at}, f)", "lds_f32x4(f, {at}); for (int n = 0; n < 4; ++n) "
              "y[n] = word(f[n])", 16),
    _ldmatrix("x4", 4), _ldmatrix("x4_trans", 4), _ldmatrix("x2", 2), _ldmatrix("x2_trans", 2),
    _mma("bf16", True), _mma("f16", True), _mma("bf16", False), _mma("f16", False),
    Primitive("shfl_xor", 1, 5, _SHFL, _bits),
    Primitive("ballot", 1, 3, _VOTE, _bits),
    Primitive("cp_async_16", 4, 4, _COPY, _bits, shared=1024, threads=64),
    Primitive("load_global_b128", 4, 4, "load_global_b128(y, from);", _bits),
    Primitive("store_global_b128", 4, 4, "store_global_b128(to, x); load_global_b128(y, to);",
              _bits),
    Primitive("store_global_b32", 1, 1, "store_global_b32(to, ~x[0]); y[0] = ~load_global(to);",
              _bits),
    Primitive("load_global", 2, 2, _HALVES, _bits),
    Primitive("uniform_f32", 7, 6, _UNIFORM, _bits),
    Primitive("block_x", 1, 6, _IDS, _bits, threads=96, grid=(3, 2, 2)),
)}

_HEAD = """
struct Params { const u32* in; u32* out; int rounds; int blocks_x; int blocks_y; };
DEVICE_FN float real(u32 x) { return __builtin_bit_cast(float, x); }
DEVICE_FN u32 word(float x) { return __builtin_bit_cast(u32, x); }
"""

_KERNEL = """
KERNEL({threads}, 1) check_{name}(const __grid_constant__ Params p) {{
    [[maybe_unused]] const int lane = lane_id();
    [[maybe_unused]] const u32 base = align_up(shared_base(), 16u);
    const int block = block_x() + p.blocks_x * (block_y() + p.blocks_y * block_z());
    for (int round = 0; round < p.rounds; ++round) {{
        const int at = round * {total} + block * {threads} + thread_id();
        const u32* from = p.in + at * {takes};
        u32* to = p.out + at * {gives};
        u32 x[{takes}], y[{gives}];
        for (int n = 0; n < {takes}; ++n) x[n] = load_global(from + n);
        {body}
        for (int n = 0; n < {gives}; ++n) store_global(to + n, y[n]);
    }}
}}
"""


@cache
def text() -> str:
    """All kernels, ``check_<name>`` each, with the whole device layer before them."""
    from attngen.templates.device import ORDER, device_text

    return device_text(ORDER) + _HEAD + "".join(_KERNEL.format(
        name=p.name, threads=p.threads, total=p.total_threads, takes=p.takes, gives=p.gives,
        body=p.body) for p in PRIMITIVES.values())


def params(primitive: Primitive, source: int, sink: int) -> bytes:
    """``Params`` for inputs and outputs at these addresses."""
    import struct

    return struct.pack("<QQiii4x", source, sink, ROUNDS, *primitive.grid[:2])


def outputs(primitive: Primitive) -> Words:
    """Room for the answers, filled with what no answer should be left at."""
    return np.full((ROUNDS, primitive.total_threads, primitive.gives), 0x7FC0DEAD, np.uint32)


def emulated(primitive: Primitive, given: Words, seed: int = 0) -> Words:
    """The emulator's answers. Raises what the emulator objects to."""
    from attngen.runtime import emulator

    given, out = np.ascontiguousarray(given), outputs(primitive)
    regions = [emulator.Region("in", given.ctypes.data, given.nbytes, False),
               emulator.Region("out", out.ctypes.data, out.nbytes, True)]
    emulator.load(text()).launch(
        f"check_{primitive.name}", primitive.grid, primitive.threads, primitive.shared,
        params(primitive, *emulator.pointers(regions)), regions, seed=seed)
    return out


def differences(primitive: Primitive, ours: Words, theirs: Words) -> str:
    """How two answers differ beyond what is allowed; empty when they agree."""
    if ours.shape != theirs.shape:
        return f"shapes {ours.shape} and {theirs.shape}"
    if primitive.units is None:
        wrong = ours != theirs
    else:
        with np.errstate(invalid="ignore"):
            a, b = (w.view(np.float32).astype(np.float64) for w in (ours, theirs))
        size = np.maximum(np.nan_to_num(np.abs(b), posinf=3e38), primitive.floor)
        with np.errstate(invalid="ignore", over="ignore"):
            far = ~(np.abs(a - b) <= primitive.units * np.spacing(size.astype(np.float32)))
        same = (ours == theirs) | (np.isnan(a) & np.isnan(b))
        wrong = ~same & (far if primitive.units else True)
    if not wrong.any():
        return ""
    where = tuple(int(n) for n in np.argwhere(wrong)[0])
    return (f"{int(wrong.sum())} of {wrong.size} words differ, first at {where}: "
            f"{int(ours[where]):#010x} and {int(theirs[where]):#010x}")
