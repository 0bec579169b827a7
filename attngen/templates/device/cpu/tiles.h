// Tiles between memory and local arrays. An array of lanes is T x[column][LANES]: the rows of the
// tile are the lanes. Rows in memory lie `stride` elements apart, columns next to each other.

// Unused elements at the end of each row of a copy: rows a power of two apart would share a few
// sets of the cache, and a product that walks down a column would lose what it has just read.
static constexpr int ROW_PAD = 16;

// dst[c][r] = src[r][c] for r < rows, c < columns; lanes from `rows` up to `lanes` become 0.
template <int LANES, class T, class S>
INLINE void load_lanes(T (*dst)[LANES], const S* src, int64_t stride, int rows, int columns,
                       int lanes) {
    for (int r = 0; r < rows; ++r)
        for (int c = 0; c < columns; ++c) dst[c][r] = to_real(src[r * stride + c]);
    for (int c = 0; c < columns; ++c)
        for (int r = rows; r < lanes; ++r) dst[c][r] = 0;
}

// dst[r][c] = src[c][r] for r < rows, c < columns.
template <int LANES, class T, class S>
INLINE void store_lanes(S* dst, int64_t stride, const T (*src)[LANES], int rows, int columns) {
    for (int r = 0; r < rows; ++r)
        for (int c = 0; c < columns; ++c) put(dst[r * stride + c], src[c][r]);
}

// dst[r][c] = src[r][c] for r < rows, c < columns: a copy in the type arithmetic happens in.
template <int PITCH, class T, class S>
INLINE void load_rows(T (*dst)[PITCH], const S* src, int64_t stride, int rows, int columns) {
    for (int r = 0; r < rows; ++r)
        for (int c = 0; c < columns; ++c) dst[r][c] = to_real(src[r * stride + c]);
}

// One number per lane, or per column, next to each other in memory.
template <class T, class S> INLINE void load_row(T* dst, const S* src, int rows, int lanes) {
    for (int r = 0; r < rows; ++r) dst[r] = to_real(src[r]);
    for (int r = rows; r < lanes; ++r) dst[r] = 0;
}
template <class T, class S> INLINE void load_column(T* dst, const S* src, int columns) {
    for (int c = 0; c < columns; ++c) dst[c] = to_real(src[c]);
}
template <class T, class S> INLINE void store_row(S* dst, const T* src, int rows) {
    for (int r = 0; r < rows; ++r) put(dst[r], src[r]);
}
