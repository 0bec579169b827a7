// The one-instruction forms flush results below 2^-126 to zero, here as there.
DEVICE_FN float fast_exp2(float x) {
    const float y = __builtin_exp2f(x);
    return y < 0x1p-126f ? 0.0f : y;
}
DEVICE_FN float fast_log2(float x) {
    return __builtin_log2f(__builtin_fabsf(x) < 0x1p-126f ? 0.0f : x);
}

DEVICE_FN float exp_f32(float x) { return __builtin_expf(x); }
DEVICE_FN float log_f32(float x) { return __builtin_logf(x); }
DEVICE_FN float log2_f32(float x) { return __builtin_log2f(x); }
DEVICE_FN float tanh_f32(float x) { return __builtin_tanhf(x); }
DEVICE_FN float erf_f32(float x) { return __builtin_erff(x); }
DEVICE_FN float sqrt_f32(float x) { return __builtin_sqrtf(x); }
DEVICE_FN float recip(float x) { return 1.0f / x; }
DEVICE_FN float fma_f32(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

DEVICE_FN float max_f32(float a, float b) { return __builtin_fmaxf(a, b); }
DEVICE_FN float min_f32(float a, float b) { return __builtin_fminf(a, b); }
DEVICE_FN float abs_f32(float x) { return __builtin_fabsf(x); }
DEVICE_FN float floor_f32(float x) { return __builtin_floorf(x); }

DEVICE_FN int max_i32(int a, int b) { return a > b ? a : b; }
DEVICE_FN int min_i32(int a, int b) { return a < b ? a : b; }
DEVICE_FN int abs_i32(int a) { return a < 0 ? -a : a; }
DEVICE_FN int floor_div(int a, int b) {
    const int q = a / b;
    return q - static_cast<int>(q * b != a && (a < 0) != (b < 0));
}
DEVICE_FN int floor_mod(int a, int b) { return a - floor_div(a, b) * b; }
DEVICE_FN int ceil_div(int a, int b) { return (a + b - 1) / b; }
