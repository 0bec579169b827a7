// Elements of captured tensors, by position. A position outside the tensor gives 0: what a score
// or a mask reads need not be as long as the sequence. Compositions only. Needs global.cuh, math.cuh
// and convert.cuh.

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

// Least and greatest of table[..., low ... high], at most, from `blocks` with those of every 64
// elements: table_min(low, high, length, blocks, index, size, stride, ...), a triple per leading
// dimension of `blocks`, of which none is empty. What would take more than 4 blocks, or a block with
// numbers that sums might overflow with, may hold anything. All 4 are loaded, some twice, as loads
// that wait for no branch overlap.
template <bool GREATEST> DEVICE_FN i64 in_range(i64 low, i64 high, int length, const i64* blocks) {
    const int last = max_i32(length - 1, 0);
    const int begin = static_cast<int>(min_i64(max_i64(low, 0), last)) / 64;
    const int end = static_cast<int>(min_i64(max_i64(high, 0), last)) / 64;
    i64 found = load_global(blocks + 2 * begin + GREATEST);
    #pragma unroll
    for (int n = 1; n < 4; ++n) {
        const i64 x = load_global(blocks + 2 * max_i32(begin, min_i32(begin + n, end)) + GREATEST);
        found = GREATEST ? max_i64(found, x) : min_i64(found, x);
    }
    const i64 zero = low < 0 || high >= length ? 0 : found;
    const i64 both = GREATEST ? max_i64(found, zero) : min_i64(found, zero);
    return end - begin < 4 ? both : GREATEST ? 1LL << 50 : -(1LL << 50);
}
template <bool GREATEST, typename I, typename... Rest>
DEVICE_FN i64 in_range(i64 low, i64 high, int length, const i64* blocks, I index, int size,
                       i64 stride, Rest... rest) {
    const bool inside = index >= 0 && index < size;
    const i64 found = in_range<GREATEST>(low, high, length, blocks + (inside ? index : I(0)) * stride,
                                         rest...);
    return inside ? found : 0;
}
template <typename... Rest> DEVICE_FN i64 table_min(i64 low, i64 high, Rest... rest) {
    return in_range<false>(low, high, rest...);
}
template <typename... Rest> DEVICE_FN i64 table_max(i64 low, i64 high, Rest... rest) {
    return in_range<true>(low, high, rest...);
}
