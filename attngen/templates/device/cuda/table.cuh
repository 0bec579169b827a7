// Elements of captured tensors, by position. A position outside the tensor gives 0: what a score
// or a mask reads need not be as long as the sequence. Compositions only. Needs global.cuh and
// convert.cuh.

// What arithmetic takes of a stored element.
template <typename T> DEVICE_FN T plain(T x) { return x; }
DEVICE_FN float plain(bf16_t x) { return to_float(x); }
DEVICE_FN float plain(f16_t x) { return to_float(x); }

// gather<R>(table, index, size, stride, ...): one triple per dimension, from the first on.
template <typename R, typename T> DEVICE_FN R gather(const T* table) {
    return static_cast<R>(plain(load_global(table)));
}
template <typename R, typename T, typename I, typename... Rest>
DEVICE_FN R gather(const T* table, I index, int size, i64 stride, Rest... rest) {
    return index >= 0 && index < size ? gather<R>(table + index * stride, rest...) : R(0);
}

// What ops.cuh and math.cuh have for int, for the 64-bit integers that tables may hold.
DEVICE_FN i64 max_i64(i64 a, i64 b) { return a > b ? a : b; }
DEVICE_FN i64 min_i64(i64 a, i64 b) { return a < b ? a : b; }
DEVICE_FN i64 abs_i64(i64 a) { return a < 0 ? -a : a; }
DEVICE_FN i64 floordiv_i64(i64 a, i64 b) {
    const i64 q = b == 0 ? 0 : a / b;
    return q - static_cast<i64>(b != 0 && q * b != a && (a < 0) != (b < 0));
}
DEVICE_FN i64 mod_i64(i64 a, i64 b) { return b == 0 ? 0 : a - floordiv_i64(a, b) * b; }
