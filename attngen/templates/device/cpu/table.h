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
