// Elements of captured tensors, by position. A position outside the tensor gives 0: what a score
// or a mask reads need not be as long as the sequence.

typedef int64_t i64;

// What arithmetic takes of a stored element.
template <class T> INLINE T plain(T x) { return x; }
INLINE float plain(bf16_t x) { return to_real(x); }
INLINE float plain(f16_t x) { return to_real(x); }

// gather<R>(table, index, size, stride, ...): one triple per dimension, from the first on.
template <class R, class T> INLINE R gather(const T* table) { return (R)plain(*table); }
template <class R, class T, class I, class... Rest>
INLINE R gather(const T* table, I index, int size, i64 stride, Rest... rest) {
    return index >= 0 && index < size ? gather<R>(table + index * stride, rest...) : R(0);
}

// What math.h has for int, for the 64-bit integers that tables may hold.
ORDERED_FUNCTIONS(i64, i64)
INLINE i64 abs_i64(i64 x) { return x < 0 ? -x : x; }
INLINE i64 floordiv_i64(i64 a, i64 b) {
    const i64 q = b == 0 ? 0 : a / b, rest = a - q * b;
    return q - (i64)((b != 0) & (rest != 0) & ((rest ^ b) < 0));
}
INLINE i64 mod_i64(i64 a, i64 b) { return b == 0 ? 0 : a - floordiv_i64(a, b) * b; }

// Least and greatest of table[..., low ... high], at most, from `blocks` with those of every 64
// elements: table_min(low, high, length, blocks, index, size, stride, ...), a triple per leading
// dimension of `blocks`. What would take more than 4 blocks, or a block with numbers that sums
// might overflow with, may hold anything.
template <bool GREATEST> INLINE i64 in_range(i64 low, i64 high, int length, const i64* blocks) {
    const i64 last = max_i64(length - 1, 0);
    const i64 begin = min_i64(max_i64(low, 0), last) / 64, end = min_i64(max_i64(high, 0), last) / 64;
    if (end - begin >= 4) return GREATEST ? 1LL << 50 : -(1LL << 50);
    i64 found = blocks[2 * begin + GREATEST];
    for (i64 n = begin + 1; n <= end; ++n) {
        const i64 x = blocks[2 * n + GREATEST];
        found = GREATEST ? max_i64(found, x) : min_i64(found, x);
    }
    if (low < 0 || high >= length) found = GREATEST ? max_i64(found, 0) : min_i64(found, 0);
    return found;
}
template <bool GREATEST, class I, class... Rest>
INLINE i64 in_range(i64 low, i64 high, int length, const i64* blocks, I index, int size,
                       i64 stride, Rest... rest) {
    if (index < 0 || index >= size) return 0;
    return in_range<GREATEST>(low, high, length, blocks + index * stride, rest...);
}
template <class... Rest> INLINE i64 table_min(i64 low, i64 high, Rest... rest) {
    return in_range<false>(low, high, rest...);
}
template <class... Rest> INLINE i64 table_max(i64 low, i64 high, Rest... rest) {
    return in_range<true>(low, high, rest...);
}
