// Storage types, their conversions, and the machine's vectors. No header is included anywhere but
// the C integers; vectors are the compiler's own (GCC and Clang), so one text serves every machine.

#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))

// Sixteen-bit storage. Arithmetic happens in float; these only carry bits to and from memory.
struct bf16_t { uint16_t bits; };
struct f16_t { uint16_t bits; };
// Eight bits, of caches: int8_t, and floats with four bits of exponent and three of fraction (e4m3).
struct e4m3_t { uint8_t bits; };

static constexpr float NEG_INF = -__builtin_inff();

// The bits of x as another type of the same size.
template <class To, class From> INLINE To bit_cast(From x) {
    static_assert(sizeof(To) == sizeof(From), "a value keeps its size");
    To y;
    __builtin_memcpy(&y, &x, sizeof y);
    return y;
}

// -- from storage to arithmetic ------------------------------------------------------------------

INLINE float to_real(float x) { return x; }
INLINE double to_real(double x) { return x; }
INLINE float to_real(bf16_t x) { return bit_cast<float>((uint32_t)x.bits << 16); }

// The exponent moves from a bias of 15 to one of 127 by a product with 2^112, which also turns
// subnormal halves into ordinary floats; infinities and NaN get their exponent set afterwards.
INLINE float to_real(f16_t x) {
    const uint32_t sign = (uint32_t)(x.bits & 0x8000u) << 16;
    const uint32_t magnitude = (uint32_t)(x.bits & 0x7fffu) << 13;
    const uint32_t finite = bit_cast<uint32_t>(bit_cast<float>(magnitude) * 0x1p112f);
    return bit_cast<float>(sign | (magnitude < 0x0f800000u ? finite : magnitude | 0x7f800000u));
}

INLINE float to_real(int8_t x) { return (float)x; }
INLINE float to_real(e4m3_t x) {  // from a bias of 7 to one of 127, likewise
    const uint32_t sign = (uint32_t)(x.bits & 0x80u) << 24;
    const uint32_t magnitude = (uint32_t)(x.bits & 0x7fu) << 20;
    const uint32_t scaled = bit_cast<uint32_t>(bit_cast<float>(magnitude) * 0x1p120f);
    return bit_cast<float>(sign | (magnitude == 0x7f00000u ? 0x7fc00000u : scaled));
}

// -- from arithmetic to storage: to nearest, ties to even ------------------------------------------

INLINE void put(float& y, float x) { y = x; }
INLINE void put(double& y, double x) { y = x; }

INLINE void put(bf16_t& y, float x) {
    const uint32_t bits = bit_cast<uint32_t>(x);
    const uint32_t nearest = bits + 0x7fffu + ((bits >> 16) & 1u);
    const uint32_t quiet_nan = bits | 0x00400000u;
    y.bits = (uint16_t)((x == x ? nearest : quiet_nan) >> 16);
}

// Normal halves: add half a unit in the last place (less one when the kept bit is even), drop 13
// bits. Subnormal halves: adding 1/2 leaves the result, rounded, in the low bits of the sum.
INLINE void put(f16_t& y, float x) {
    const uint32_t bits = bit_cast<uint32_t>(x) & 0x7fffffffu;
    const uint32_t sign = (bit_cast<uint32_t>(x) >> 16) & 0x8000u;
    const uint32_t normal = (bits - 0x38000000u + 0xfffu + ((bits >> 13) & 1u)) >> 13;
    const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(bits) + 0.5f) & 0x7ffu;
    const uint32_t special = bits > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const uint32_t finite = bits < 0x38800000u ? subnormal : normal;
    y.bits = (uint16_t)(sign | (bits < 0x477ff000u ? finite : special));
}

// What is too large becomes the largest. Where floats lie one apart, adding rounds.
INLINE float nearest_f32(float x) { return x + 12582912.0f - 12582912.0f; }
INLINE void put(int8_t& y, float x) {
    y = (int8_t)nearest_f32(x > 127.0f ? 127.0f : x < -127.0f ? -127.0f : x);
}
INLINE void put(e4m3_t& y, float x) {
    const uint32_t sign = (bit_cast<uint32_t>(x) >> 24) & 0x80u;
    const float magnitude = bit_cast<float>(bit_cast<uint32_t>(x) & 0x7fffffffu);
    const float inside = magnitude > 448.0f ? 448.0f : magnitude;
    const uint32_t bits = bit_cast<uint32_t>(inside);
    const uint32_t normal = ((bits + 0x7ffffu + ((bits >> 20) & 1u)) >> 20) - 960u;
    const uint32_t subnormal = (uint32_t)nearest_f32(inside * 512.0f);
    y.bits = (uint8_t)(sign | (x != x ? 0x7fu : inside < 0x1p-6f ? subnormal : normal));
}

// -- vectors ---------------------------------------------------------------------------------------

#if defined(__AVX512F__)
static constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX2__)
static constexpr int VECTOR_BYTES = 32;
#else
static constexpr int VECTOR_BYTES = 16;
#endif

#if defined(__AVX512F__) || defined(__aarch64__)
static constexpr int VECTOR_REGISTERS = 32;
#else
static constexpr int VECTOR_REGISTERS = 16;
#endif

// Keeps a vector in a register: GCC otherwise rereads it from memory at each use.
#if defined(__x86_64__)
#define IN_REGISTER(x) asm("" : "+v"(x))
#elif defined(__aarch64__)
#define IN_REGISTER(x) asm("" : "+w"(x))
#else
#define IN_REGISTER(x) (void)0
#endif

template <class T, int WIDTH> struct Vector {
    typedef T type __attribute__((vector_size(WIDTH * sizeof(T))));
};

// Elements of the widest vector of T that divides `lanes`.
template <class T> constexpr int vector_width(int lanes) {
    int width = VECTOR_BYTES / (int)sizeof(T);
    while (lanes % width != 0) width /= 2;
    return width;
}
