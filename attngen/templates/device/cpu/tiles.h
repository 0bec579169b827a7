// Tiles between memory and local arrays. An array of lanes is T x[column][LANES]: the rows of the
// tile are the lanes. Rows in memory lie `stride` elements apart, columns next to each other.

// Unused elements at the end of each row of a copy: rows a power of two apart would share a few
// sets of the cache, and a product that walks down a column would lose what it has just read.
static constexpr int ROW_PAD = 16;

#if defined(__clang__)
#define SHUFFLE(I, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(I, a, b, ...) __builtin_shuffle(a, b, I{__VA_ARGS__})
#endif

// Eight vectors of eight: x[r][c] becomes x[c][r]. Quadrants change places, then those of each
// quadrant, then single elements.
template <class V, class I> INLINE void transpose(V (&x)[8]) {
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
        const V a = x[r], b = x[r + 4];
        x[r] = SHUFFLE(I, a, b, 0, 1, 2, 3, 8, 9, 10, 11);
        x[r + 4] = SHUFFLE(I, a, b, 4, 5, 6, 7, 12, 13, 14, 15);
    }
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n) {
        const int r = n / 2 * 4 + n % 2;
        const V a = x[r], b = x[r + 2];
        x[r] = SHUFFLE(I, a, b, 0, 1, 8, 9, 4, 5, 12, 13);
        x[r + 2] = SHUFFLE(I, a, b, 2, 3, 10, 11, 6, 7, 14, 15);
    }
#pragma GCC unroll 4
    for (int r = 0; r < 8; r += 2) {
        const V a = x[r], b = x[r + 1];
        x[r] = SHUFFLE(I, a, b, 0, 8, 2, 10, 4, 12, 6, 14);
        x[r + 1] = SHUFFLE(I, a, b, 1, 9, 3, 11, 5, 13, 7, 15);
    }
}

// Eight numbers of T as a vector, and the vector of indices that rearranges it.
template <class T> using Eight = typename Vector<T, 8>::type;
template <class T> using Order = typename Vector<decltype(bit_cast<Bits<T>>(T())), 8>::type;

// How many of `rows` rows are moved eight by eight. Doubles are not: eight of them are wider than
// most machines' vectors, and compilers take such apart element by element.
template <class T> INLINE int whole_blocks(int rows) {
    return sizeof(T) == sizeof(float) ? rows / 8 * 8 : 0;
}

// dst[c][r] = row(r)[c] for r < rows, c < columns; lanes from `rows` up to `lanes` become 0. row(r) is
// the address of a row.
template <int LANES, class T, class Row>
INLINE void load_lanes(T (*dst)[LANES], Row row, int rows, int columns, int lanes) {
    const int whole_rows = whole_blocks<T>(rows), whole_columns = columns / 8 * 8;
    for (int r = 0; r < whole_rows; r += 8)
        for (int c = 0; c < whole_columns; c += 8) {
            alignas(64) T part[8][8];
            for (int n = 0; n < 8; ++n)
                for (int k = 0; k < 8; ++k) part[n][k] = to_real(row(r + n)[c + k]);
            Eight<T> x[8];
#pragma GCC unroll 8
            for (int n = 0; n < 8; ++n) x[n] = *(const Eight<T>*)part[n];
            transpose<Eight<T>, Order<T>>(x);
#pragma GCC unroll 8
            for (int n = 0; n < 8; ++n) *(Eight<T>*)&dst[c + n][r] = x[n];
        }
    for (int r = 0; r < rows; ++r)
        for (int c = r < whole_rows ? whole_columns : 0; c < columns; ++c)
            dst[c][r] = to_real(row(r)[c]);
    for (int c = 0; c < columns; ++c)
        for (int r = rows; r < lanes; ++r) dst[c][r] = 0;
}

// The same for rows that lie `stride` elements apart.
template <int LANES, class T, class S>
INLINE void load_lanes(T (*dst)[LANES], const S* src, int64_t stride, int rows, int columns,
                       int lanes) {
    load_lanes(dst, [=](int r) { return src + r * stride; }, rows, columns, lanes);
}

// row(r)[c] = src[c][r] for r < rows, c < columns; rows without an address are not stored.
template <int LANES, class T, class Row>
INLINE void store_lanes(Row row, const T (*src)[LANES], int rows, int columns) {
    const int whole_rows = whole_blocks<T>(rows), whole_columns = columns / 8 * 8;
    for (int r = 0; r < whole_rows; r += 8)
        for (int c = 0; c < whole_columns; c += 8) {
            Eight<T> x[8];
#pragma GCC unroll 8
            for (int n = 0; n < 8; ++n) x[n] = *(const Eight<T>*)&src[c + n][r];
            transpose<Eight<T>, Order<T>>(x);
            alignas(64) T part[8][8];
#pragma GCC unroll 8
            for (int n = 0; n < 8; ++n) *(Eight<T>*)part[n] = x[n];
            for (int n = 0; n < 8; ++n)
                if (auto* to = row(r + n))
                    for (int k = 0; k < 8; ++k) put(to[c + k], part[n][k]);
        }
    for (int r = 0; r < rows; ++r)
        if (auto* to = row(r))
            for (int c = r < whole_rows ? whole_columns : 0; c < columns; ++c)
                put(to[c], src[c][r]);
}

template <int LANES, class T, class S>
INLINE void store_lanes(S* dst, int64_t stride, const T (*src)[LANES], int rows, int columns) {
    store_lanes([=](int r) { return dst + r * stride; }, src, rows, columns);
}

// dst[r][c] = row(r)[c] for r < rows, c < columns: a copy in the type arithmetic happens in.
template <int PITCH, class T, class Row>
INLINE void load_rows(T (*dst)[PITCH], Row row, int rows, int columns) {
    for (int r = 0; r < rows; ++r) {
        const auto* src = row(r);
        for (int c = 0; c < columns; ++c) dst[r][c] = to_real(src[c]);
    }
}
template <int PITCH, class T, class S>
INLINE void load_rows(T (*dst)[PITCH], const S* src, int64_t stride, int rows, int columns) {
    load_rows(dst, [=](int r) { return src + r * stride; }, rows, columns);
}

// One number per lane, or per column: next to each other in memory, or each where row(r) says.
template <class T, class S> INLINE void load_row(T* dst, const S* src, int rows, int lanes) {
    for (int r = 0; r < rows; ++r) dst[r] = to_real(src[r]);
    for (int r = rows; r < lanes; ++r) dst[r] = 0;
}
template <class T, class Row> INLINE void load_each(T* dst, Row row, int rows, int lanes) {
    for (int r = 0; r < rows; ++r) dst[r] = to_real(*row(r));
    for (int r = rows; r < lanes; ++r) dst[r] = 0;
}
template <class T, class S> INLINE void load_column(T* dst, const S* src, int columns) {
    for (int c = 0; c < columns; ++c) dst[c] = to_real(src[c]);
}
template <class T, class S> INLINE void store_row(S* dst, const T* src, int rows) {
    for (int r = 0; r < rows; ++r) put(dst[r], src[r]);
}
template <class T, class Row> INLINE void store_each(Row row, const T* src, int rows) {
    for (int r = 0; r < rows; ++r)
        if (auto* to = row(r)) put(*to, src[r]);
}

// dst[lane] += sum of src[n][lane] over columns n. The sum of a tile is made apart, from two chains,
// before it joins what longer ones have given: the rounding of one chain grows with its length.
template <class T, int LANES>
INLINE void sum_columns(T* dst, const T (*src)[LANES], int columns, int lanes) {
    constexpr int WIDTH = vector_width<T>(LANES);
    typedef typename Vector<T, WIDTH>::type V;
    for (int lane = 0; lane < lanes; lane += WIDTH) {
        V even = {}, odd = {};
        for (int n = 0; n + 1 < columns; n += 2) {
            even += *(const V*)(src[n] + lane);
            odd += *(const V*)(src[n + 1] + lane);
        }
        if (columns % 2) even += *(const V*)(src[columns - 1] + lane);
        *(V*)(dst + lane) += even + odd;
    }
}
