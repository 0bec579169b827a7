// Elementary functions of float32, and the integer arithmetic of positions.

// 2^x in one instruction: relative error below 2^-22, results below 2^-126 become 0.
DEVICE_FN float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// log2(x) in one instruction: absolute error below 2^-22 near 1, relative elsewhere.
DEVICE_FN float fast_log2(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Within 2 units in the last place, subnormal numbers included.
DEVICE_FN float exp_f32(float x) { return expf(x); }
DEVICE_FN float log_f32(float x) { return logf(x); }
DEVICE_FN float log2_f32(float x) { return log2f(x); }
DEVICE_FN float tanh_f32(float x) { return tanhf(x); }
DEVICE_FN float erf_f32(float x) { return erff(x); }

// Correctly rounded.
DEVICE_FN float sqrt_f32(float x) { return __fsqrt_rn(x); }
DEVICE_FN float recip(float x) { return __frcp_rn(x); }
DEVICE_FN float fma_f32(float a, float b, float c) { return __fmaf_rn(a, b, c); }

// A NaN operand loses against a number, as the instruction has it.
DEVICE_FN float max_f32(float a, float b) { return fmaxf(a, b); }
DEVICE_FN float min_f32(float a, float b) { return fminf(a, b); }
DEVICE_FN float abs_f32(float x) { return fabsf(x); }
DEVICE_FN float floor_f32(float x) { return floorf(x); }

// The same of integers.
DEVICE_FN int max_i32(int a, int b) { return a > b ? a : b; }
DEVICE_FN int min_i32(int a, int b) { return a < b ? a : b; }
DEVICE_FN int abs_i32(int a) { return a < 0 ? -a : a; }

// Quotient rounded down, and the remainder that goes with it (same sign as b). b is not 0.
DEVICE_FN int floor_div(int a, int b) {
    const int q = a / b;
    return q - static_cast<int>(q * b != a && (a < 0) != (b < 0));
}
DEVICE_FN int floor_mod(int a, int b) { return a - floor_div(a, b) * b; }

// Quotient rounded up; a >= 0, b > 0.
DEVICE_FN int ceil_div(int a, int b) { return (a + b - 1) / b; }
