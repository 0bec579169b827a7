// The matrix product of the CPU: lanes times broadcast numbers.

// How a product is blocked in registers: VECTORS vectors of lanes by COLUMNS columns of results,
// 2 x 4 where there are 16 vector registers and 3 x 8 or 2 x 12 where there are 32. That is at
// least one result for each cycle a fused multiply-add takes, twice, and at most 0.75 loads each.
template <class T, int LANES> struct Blocking {
    static constexpr int WIDTH = vector_width<T>(LANES);
    static constexpr int STRIPS = LANES / WIDTH;
    static constexpr bool MANY = VECTOR_REGISTERS >= 32;
    static constexpr int VECTORS = MANY && STRIPS % 3 == 0 ? 3 : STRIPS % 2 == 0 ? 2 : 1;
    static constexpr int COLUMNS = !MANY ? 4 * (3 - VECTORS) : VECTORS == 2 ? 12 : 8 * (3 - VECTORS / 2);
};

// The fewest lanes, in whole blocks, that hold `rows` rows.
template <class T, int LANES> INLINE int whole_vectors(int rows) {
    constexpr int STEP = Blocking<T, LANES>::VECTORS * Blocking<T, LANES>::WIDTH;
    return (rows + STEP - 1) / STEP * STEP;
}

// Terms summed one after the other. Longer sums are sums of sums of so many, as the rounding of one
// chain grows with its length: a score of head_dim 256 is then right to half the error.
static constexpr int CHAIN = 64;

// One block: dst[n][lane] (+)= sum over k of a[k][lane] b[n stride_n + k stride_k] for the WIDTH x
// VECTORS lanes from `dst` and `a` on and for COLUMNS columns.
template <bool ACCUMULATE, int VECTORS, int COLUMNS, int WIDTH, int LANES, class T>
INLINE void mma_block(T* dst, const T* a, const T* b, int64_t stride_n, int64_t stride_k,
                      int depth) {
    typedef typename Vector<T, WIDTH>::type V;
    for (int first = 0; first == 0 || first < depth; first += CHAIN) {
        const int end = depth - first < CHAIN ? depth : first + CHAIN;
        V sum[COLUMNS][VECTORS] = {};
        for (int k = first; k < end; ++k) {
            V lanes[VECTORS];
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) {
                lanes[v] = *(const V*)(a + (int64_t)k * LANES + v * WIDTH);
                IN_REGISTER(lanes[v]);
            }
#pragma GCC unroll 16
            for (int n = 0; n < COLUMNS; ++n)
#pragma GCC unroll 4
                for (int v = 0; v < VECTORS; ++v)
                    sum[n][v] += lanes[v] * b[n * stride_n + k * stride_k];
        }
        const bool add = ACCUMULATE || first > 0;
#pragma GCC unroll 16
        for (int n = 0; n < COLUMNS; ++n)
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) {
                V* place = (V*)(dst + n * LANES + v * WIDTH);
                *place = add ? *place + sum[n][v] : sum[n][v];
            }
    }
}

// COLUMNS columns from n on for every lane, while they fit; then the rest by halves.
template <bool ACCUMULATE, int COLUMNS, int LANES, class T>
INLINE void mma_columns(T (*dst)[LANES], const T (*a)[LANES], const T* b, int64_t stride_n,
                        int64_t stride_k, int n, int columns, int depth, int lanes) {
    typedef Blocking<T, LANES> K;
    for (; n + COLUMNS <= columns; n += COLUMNS)
        for (int lane = 0; lane < lanes; lane += K::VECTORS * K::WIDTH)
            mma_block<ACCUMULATE, K::VECTORS, COLUMNS, K::WIDTH, LANES>(
                dst[n] + lane, a[0] + lane, b + n * stride_n, stride_n, stride_k, depth);
    if constexpr (COLUMNS > 1)
        mma_columns<ACCUMULATE, COLUMNS / 2>(dst, a, b, stride_n, stride_k, n, columns, depth,
                                             lanes);
}

// dst[n][lane] (+)= sum over k < depth of a[k][lane] b[n stride_n + k stride_k], n < columns.
template <bool ACCUMULATE, int LANES, class T>
INLINE void mma(T (*dst)[LANES], const T (*a)[LANES], const T* b, int64_t stride_n,
                int64_t stride_k, int columns, int depth, int lanes) {
    mma_columns<ACCUMULATE, Blocking<T, LANES>::COLUMNS>(dst, a, b, stride_n, stride_k, 0, columns,
                                                         depth, lanes);
}
