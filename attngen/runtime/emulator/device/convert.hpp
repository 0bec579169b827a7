// Roundings bit by bit: to nearest, ties to even; every NaN becomes 0x7fff, as the GPU has it.

DEVICE_FN unsigned short bf16_bits(float x) {
    const u32 bits = __builtin_bit_cast(u32, x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

DEVICE_FN unsigned short f16_bits(float x) {
    const u32 bits = __builtin_bit_cast(u32, x), sign = bits >> 16 & 0x8000u;
    const u32 magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return 0x7fff;
    if (magnitude >= 0x47800000u) return static_cast<unsigned short>(sign | 0x7c00u);  // >= 2^16
    if (magnitude < 0x38800000u) {  // below 2^-14: a multiple of 2^-24, which adding 0.5 rounds to
        const float sum = __builtin_bit_cast(float, magnitude) + 0.5f;
        return static_cast<unsigned short>(sign | (__builtin_bit_cast(u32, sum) - 0x3f000000u));
    }
    const u32 rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
    return static_cast<unsigned short>(sign | (rounded - 0x38000000u) >> 13);
}

DEVICE_FN float to_float(float x) { return x; }
DEVICE_FN float to_float(bf16_t x) {
    return __builtin_bit_cast(float, static_cast<u32>(x.bits) << 16);
}
DEVICE_FN float to_float(f16_t x) {
    const u32 sign = static_cast<u32>(x.bits & 0x8000u) << 16;
    const u32 magnitude = static_cast<u32>(x.bits & 0x7fffu) << 13;
    if (magnitude >= 0x0f800000u) return __builtin_bit_cast(float, sign | 0x70000000u | magnitude);
    const float scaled = __builtin_bit_cast(float, magnitude) * 0x1p112f;
    return __builtin_bit_cast(float, sign | __builtin_bit_cast(u32, scaled));
}

DEVICE_FN u32 pack(float low, float high, bf16_t) {
    return bf16_bits(low) | static_cast<u32>(bf16_bits(high)) << 16;
}
DEVICE_FN u32 pack(float low, float high, f16_t) {
    return f16_bits(low) | static_cast<u32>(f16_bits(high)) << 16;
}

template <typename T> DEVICE_FN T from_float(float x) {
    return T{static_cast<unsigned short>(pack(x, 0.0f, T{}) & 0xffffu)};
}
template <> DEVICE_FN float from_float<float>(float x) { return x; }
