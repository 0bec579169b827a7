// The functions that printed expressions call, <op>_<type>, where they are not in math.cuh already.
// Compositions only: no PTX, no built-in, no memory. Needs math.cuh.

// Probabilities go through this one: the hardware's 2^x is as accurate as they need.
DEVICE_FN float exp2_f32(float x) { return fast_exp2(x); }

// 1 / (1 + e^-x): 0 and 1 at the infinities.
DEVICE_FN float sigmoid_f32(float x) { return recip(1.0f + exp_f32(-x)); }

// 1/x, and 0 at x = 0: the normaliser of a row that saw nothing.
DEVICE_FN float recip0_f32(float x) { return x == 0.0f ? 0.0f : recip(x); }

// x, and 0 at x = -inf: the maximum of a row that saw nothing, safe to subtract.
DEVICE_FN float finite_or_zero_f32(float x) { return x == NEG_INF ? 0.0f : x; }

// Rounded down, and what that leaves (same sign as b). Of b = 0, which an element read outside of
// its tensor is: 0.
DEVICE_FN int floordiv_i32(int a, int b) { return b == 0 ? 0 : floor_div(a, b); }
DEVICE_FN int mod_i32(int a, int b) { return b == 0 ? 0 : floor_mod(a, b); }

// The same of numbers with a fraction.
DEVICE_FN float floordiv_f32(float a, float b) { return floor_f32(a / b); }
DEVICE_FN float mod_f32(float a, float b) { return fma_f32(-floordiv_f32(a, b), b, a); }
