// Elementary functions of float and double and the integer arithmetic of positions: what printed
// expressions call, as <op>_<f32|f64|i32>. Branch-free, so that loops over lanes become vector
// code. Powers below twice the smallest normal number become 0.

// c0 + x (c1 + x (c2 + ...))
template <class T> INLINE T horner(T, double c) { return (T)c; }
template <class T, class... C> INLINE T horner(T x, double c, C... rest) {
    return (T)c + x * horner(x, rest...);
}

// Layout of a floating-point number. Adding ROUND to x, |x| < 2^21, rounds x to an integer and
// leaves that integer, in two's complement, in the low bits of the sum.
template <class T> struct Layout;
template <> struct Layout<float> {
    typedef uint32_t Bits;
    static constexpr int MANTISSA = 23, BIAS = 127;
    static constexpr float ROUND = 0x1.8p23f, LN2_HIGH = 0x1.62ep-1f, LN2_LOW = 0x1.0bfbe8p-15f;
};
template <> struct Layout<double> {
    typedef uint64_t Bits;
    static constexpr int MANTISSA = 52, BIAS = 1023;
    static constexpr double ROUND = 0x1.8p52;
    static constexpr double LN2_HIGH = 0x1.62e42fep-1, LN2_LOW = 0x1.f473de6af278fp-30;
};
template <class T> using Bits = typename Layout<T>::Bits;

static constexpr double LOG2_E = 1.4426950408889634, LN_2 = 0.6931471805599453;

template <class T> INLINE T clamp(T x, T low, T high) {  // NaN stays NaN
    x = x < low ? low : x;
    return x > high ? high : x;
}

// 2^f - 1 for |f| <= 1/2, by minimax polynomials of relative error 2e-9 and 4e-18.
INLINE float exp2_minus_1(float f) {
    return f * horner(f, 0.693147202781, 0.240226479143, 0.0555033257379, 0.00961843750226,
                      0.00133988437994, 0.000153532847209);
}
INLINE double exp2_minus_1(double f) {
    return f * horner(f, 0.6931471805599453, 0.2402265069591013, 0.05550410866482009,
                      0.009618129107594187, 0.0013333558146774026, 0.00015403530457037388,
                      1.5252733493413587e-05, 1.3215435315753667e-06, 1.0178199528374722e-07,
                      7.073778002087502e-09, 4.434770053138378e-10);
}

// 2^(n-1) for the integer n that `rounded` = n + ROUND holds. Half of what is wanted: 2^n itself has
// no bits for n = BIAS + 1, where the power may still be finite.
template <class T> INLINE T half_power(T rounded) {
    typedef Layout<T> L;
    return bit_cast<T>((bit_cast<Bits<T>>(rounded) + (L::BIAS - 1)) << L::MANTISSA);
}

template <class T> INLINE T exp2_real(T x) {
    typedef Layout<T> L;
    x = clamp<T>(x, 1 - L::BIAS, L::BIAS + 2);
    const T rounded = x + L::ROUND;
    const T power = 1 + exp2_minus_1(x - (rounded - L::ROUND));
    return (power + power) * half_power(rounded);
}

template <class T> INLINE T exp_real(T x) {
    typedef Layout<T> L;
    x = clamp<T>(x, (1 - L::BIAS) * (T)LN_2, (L::BIAS + 2) * (T)LN_2);
    const T rounded = x * (T)LOG2_E + L::ROUND;
    const T n = rounded - L::ROUND;
    const T rest = (x - n * L::LN2_HIGH) - n * L::LN2_LOW;
    const T power = 1 + exp2_minus_1(rest * (T)LOG2_E);
    return (power + power) * half_power(rounded);
}

// x = m 2^e with m in [sqrt(1/2), sqrt(2)); ln m = 2 artanh s = 2 (s + s^3/3 + s^5/5 + ...) at
// s = (m - 1) / (m + 1), |s| < 0.172. Returns ln m and leaves e in `exponent`.
template <class T> INLINE T ln_mantissa(T x, T& exponent) {
    typedef Layout<T> L;
    typedef decltype(bit_cast<Bits<T>>(x)) U;
    const bool tiny = x < bit_cast<T>((U)1 << L::MANTISSA);
    const U bits = bit_cast<U>(tiny ? x * (T)((U)1 << L::MANTISSA) : x);
    const U from_sqrt_half = bits - bit_cast<U>((T)0.7071067811865476);
    const U biased = (from_sqrt_half + ((U)L::BIAS << L::MANTISSA)) >> L::MANTISSA;
    const T m = bit_cast<T>(bits - ((biased - L::BIAS) << L::MANTISSA));
    exponent = (bit_cast<T>(bit_cast<U>(L::ROUND) + biased) - L::ROUND)
             - (T)(tiny ? L::BIAS + L::MANTISSA : L::BIAS);
    const T s = (m - 1) / (m + 1), z = s * s;
    const T tail = sizeof(T) == 4
        ? horner(z, 1. / 3, 1. / 5, 1. / 7, 1. / 9)
        : horner(z, 1. / 3, 1. / 5, 1. / 7, 1. / 9, 1. / 11, 1. / 13, 1. / 15, 1. / 17, 1. / 19,
                 1. / 21);
    return 2 * s + 2 * s * z * tail;
}

// The logarithm of 0 is -inf, of a negative number NaN, of infinity infinity.
template <class T> INLINE T at_the_ends(T x, T logarithm) {
    logarithm = x > 0 ? logarithm : (T)NEG_INF;
    return x >= 0 ? (x < (T)-NEG_INF ? logarithm : x) : (T)__builtin_nan("");
}
template <class T> INLINE T log2_real(T x) {
    T exponent;
    const T ln_m = ln_mantissa(x, exponent);
    return at_the_ends(x, exponent + ln_m * (T)LOG2_E);
}
template <class T> INLINE T log_real(T x) {
    T exponent;
    const T ln_m = ln_mantissa(x, exponent);
    return at_the_ends(x, exponent * Layout<T>::LN2_HIGH + (exponent * Layout<T>::LN2_LOW + ln_m));
}

// tanh |x| = y / (y + 2) at y = e^(2|x|) - 1, which is computed without cancellation.
template <class T> INLINE T tanh_real(T x) {
    typedef Layout<T> L;
    const T magnitude = x < 0 ? -x : x;
    const T twice = clamp<T>(2 * magnitude, 0, 40);
    const T rounded = twice * (T)LOG2_E + L::ROUND;
    const T n = rounded - L::ROUND;
    const T rest = (twice - n * L::LN2_HIGH) - n * L::LN2_LOW;
    const T scale = 2 * half_power(rounded);
    const T y = scale * exp2_minus_1(rest * (T)LOG2_E) + (scale - 1);
    const T result = y / (y + 2);
    return x < 0 ? -result : result;
}

// -- the names printed expressions use -------------------------------------------------------------

#define REAL_FUNCTIONS(T, suffix)                                                                  \
    INLINE T exp_##suffix(T x) { return exp_real(x); }                                             \
    INLINE T exp2_##suffix(T x) { return exp2_real(x); }                                           \
    INLINE T log_##suffix(T x) { return log_real(x); }                                             \
    INLINE T log2_##suffix(T x) { return log2_real(x); }                                           \
    INLINE T tanh_##suffix(T x) { return tanh_real(x); }                                           \
    INLINE T sigmoid_##suffix(T x) { return 1 / (1 + exp_real(-x)); }                              \
    INLINE T recip0_##suffix(T x) { return x == 0 ? 0 : 1 / x; }                                   \
    INLINE T finite_or_zero_##suffix(T x) { return x == (T)NEG_INF ? 0 : x; }                      \
    ORDERED_FUNCTIONS(T, suffix)
#define ORDERED_FUNCTIONS(T, suffix)                                                               \
    INLINE T max_##suffix(T a, T b) { return a > b ? a : b; }                                      \
    INLINE T min_##suffix(T a, T b) { return a < b ? a : b; }

REAL_FUNCTIONS(float, f32)
REAL_FUNCTIONS(double, f64)
ORDERED_FUNCTIONS(int, i32)

INLINE float abs_f32(float x) { return __builtin_fabsf(x); }
INLINE double abs_f64(double x) { return __builtin_fabs(x); }
INLINE int abs_i32(int x) { return x < 0 ? -x : x; }
INLINE float erf_f32(float x) { return __builtin_erff(x); }
INLINE double erf_f64(double x) { return __builtin_erf(x); }
INLINE float sqrt_f32(float x) { return __builtin_sqrtf(x); }
INLINE double sqrt_f64(double x) { return __builtin_sqrt(x); }
INLINE float floordiv_f32(float a, float b) { return __builtin_floorf(a / b); }
INLINE double floordiv_f64(double a, double b) { return __builtin_floor(a / b); }
INLINE float mod_f32(float a, float b) { return a - floordiv_f32(a, b) * b; }
INLINE double mod_f64(double a, double b) { return a - floordiv_f64(a, b) * b; }

// Quotient rounded down, and the remainder that goes with it (same sign as b); both 0 for b = 0,
// which an element read outside of its tensor is. A divisor known to the compiler becomes a
// product; for others no machine divides vectors of integers, but the quotient of two int32 in
// double precision has an exact floor.
INLINE int floordiv_i32(int a, int b) {
    if (!__builtin_constant_p(b)) return b == 0 ? 0 : (int)__builtin_floor((double)a / b);
    const int q = a / b, rest = a - q * b;
    return q - (int)((rest != 0) & ((rest ^ b) < 0));
}
INLINE int mod_i32(int a, int b) { return b == 0 ? 0 : a - floordiv_i32(a, b) * b; }

INLINE int ceil_div(int a, int b) { return (a + b - 1) / b; }  // a >= 0, b > 0
