// Eight-bit storage of caches: whole numbers, and floats with four bits of exponent and three of
// fraction (e4m3; Micikevicius et al. 2022). Roundings are to nearest, ties to even; what is too large
// becomes the largest. Compositions only. Needs convert.cuh and global.cuh.

struct s8_t { signed char bits; };
struct e4m3_t { unsigned char bits; };

// The value as a float, exactly. A product with 2^120 moves the exponent from a bias of 7 to one of
// 127, and turns subnormal numbers into ordinary ones.
DEVICE_FN float to_float(s8_t x) { return static_cast<float>(x.bits); }
DEVICE_FN float to_float(e4m3_t x) {
    const u32 sign = static_cast<u32>(x.bits & 0x80) << 24;
    const u32 magnitude = static_cast<u32>(x.bits & 0x7f) << 20;
    const u32 scaled = __builtin_bit_cast(u32, __builtin_bit_cast(float, magnitude) * 0x1p120f);
    return __builtin_bit_cast(float, sign | ((x.bits & 0x7f) == 0x7f ? 0x7fc00000u : scaled));
}

// x without its fraction, rounded to nearest, for |x| < 2^22: where floats lie one apart, adding
// rounds.
DEVICE_FN float nearest_f32(float x) { return x + 12582912.0f - 12582912.0f; }

// x in eight bits.
template <> DEVICE_FN s8_t from_float<s8_t>(float x) {
    const float inside = x > 127.0f ? 127.0f : x < -127.0f ? -127.0f : x;
    return s8_t{static_cast<signed char>(nearest_f32(inside))};
}
template <> DEVICE_FN e4m3_t from_float<e4m3_t>(float x) {
    const u32 sign = __builtin_bit_cast(u32, x) >> 24 & 0x80u;
    const float magnitude = __builtin_bit_cast(float, __builtin_bit_cast(u32, x) & 0x7fffffffu);
    const float inside = magnitude > 448.0f ? 448.0f : magnitude;
    const u32 bits = __builtin_bit_cast(u32, inside);
    const u32 normal = ((bits + 0x7ffffu + (bits >> 20 & 1u)) >> 20) - 960u;
    const u32 subnormal = static_cast<u32>(nearest_f32(inside * 512.0f));
    const u32 code = x != x ? 0x7fu : inside < 0x1p-6f ? subnormal : normal;
    return e4m3_t{static_cast<unsigned char>(sign | code)};
}

// One chunk of a tile: sixteen bytes of the tag's type from as many elements at p.
struct Octet { u32 low, high; };
template <typename S> DEVICE_FN float byte_of(u32 word, int n) {
    return to_float(__builtin_bit_cast(S, static_cast<unsigned char>(word >> 8 * n)));
}
template <typename S, typename T> DEVICE_FN void widen(u32 (&x)[4], const S* p, T tag) {
    const Octet bytes = load_global(static_cast<const Octet*>(static_cast<const void*>(p)));
    #pragma unroll
    for (int n = 0; n < 4; ++n) {
        const u32 word = n < 2 ? bytes.low : bytes.high;
        x[n] = pack(byte_of<S>(word, n % 2 * 2), byte_of<S>(word, n % 2 * 2 + 1), tag);
    }
}
template <typename S> DEVICE_FN void widen(u32 (&x)[4], const S* p, float) {
    const u32 word = load_global(static_cast<const u32*>(static_cast<const void*>(p)));
    #pragma unroll
    for (int n = 0; n < 4; ++n) x[n] = __builtin_bit_cast(u32, byte_of<S>(word, n));
}
