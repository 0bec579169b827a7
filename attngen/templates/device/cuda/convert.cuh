// Between float32 and the sixteen-bit types. All roundings are to nearest, ties to even.

// The value as a float, exactly.
DEVICE_FN float to_float(float x) { return x; }
DEVICE_FN float to_float(bf16_t x) { return __uint_as_float(static_cast<u32>(x.bits) << 16); }
DEVICE_FN float to_float(f16_t x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}

// Two floats in one register, `low` in bits 0..15; the tag picks the type.
DEVICE_FN u32 pack(float low, float high, bf16_t) {
    u32 packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}
DEVICE_FN u32 pack(float low, float high, f16_t) {
    u32 packed;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

// from_float<T>(x): x in storage type T.
template <typename T> DEVICE_FN T from_float(float x) {
    return T{static_cast<unsigned short>(pack(x, 0.0f, T{}) & 0xffffu)};
}
template <> DEVICE_FN float from_float<float>(float x) { return x; }
