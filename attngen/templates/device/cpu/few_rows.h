// Products of few rows, whose columns are the lanes of vectors: a tile is row-major, T x[row][PITCH].
// row(n) is the address of row n of the second operand, in whatever type it is stored.

#if defined(__clang__)
template <class V, class I> INLINE V shuffled(V a, V b, I order) {
    constexpr int WIDTH = sizeof(V) / sizeof(a[0]);
    V x;
    for (int n = 0; n < WIDTH; ++n)
        x[n] = order[n] < WIDTH ? a[order[n] % WIDTH] : b[order[n] % WIDTH];
    return x;
}
#else
template <class V, class I> INLINE V shuffled(V a, V b, I order) {
    return __builtin_shuffle(a, b, order);
}
#endif

// Rows that are asked for before they are used: what the machine fetches by itself comes too late for
// the little that is done with a row.
static constexpr int ROWS_AHEAD = 12;

// Rows from here on are read after those before. Compilers would mix them, and what the machine
// fetches by itself follows from the order.
template <class S> INLINE void in_order(const S*& row, const S*& next) {
    asm volatile("" : "+r"(row), "+r"(next));
}

// The addresses of `count` rows and of those asked for ahead, where finding one takes a look into a
// table: each is looked up once.
template <int COUNT, class Address> struct Addresses { Address at[COUNT + 2 * ROWS_AHEAD]; };
template <int COUNT, class Row> INLINE auto addresses(Row row, int count) {
    Addresses<COUNT, decltype(row(0))> found;
    for (int r = 0; r < count + 2 * ROWS_AHEAD; ++r) found.at[r] = row(r);
    return found;
}

// WIDTH elements from p on, in the type of arithmetic: as to_real has them, but all at once. Whole
// numbers grow by twice their width at a time: compilers take larger steps element by element.
template <class T, int WIDTH> struct Wide {
    typedef typename Vector<T, WIDTH>::type V;
    template <class S> using Stored = typename Vector<S, WIDTH>::type;

    template <class S> INLINE Stored<S> load(const void* p) {
        Stored<S> x;
        __builtin_memcpy(&x, p, sizeof x);
        return x;
    }
    INLINE V from(const T* p) { return load<T>(p); }
    INLINE V from(const int8_t* p) {
        const auto some = __builtin_convertvector(load<int8_t>(p), Stored<int16_t>);
        return __builtin_convertvector(__builtin_convertvector(some, Stored<int32_t>), V);
    }
    INLINE V from(const bf16_t* p) {
        return (V)(__builtin_convertvector(load<uint16_t>(p), Stored<uint32_t>) << 16);
    }
    INLINE V from(const f16_t* p) {
        const auto bits = __builtin_convertvector(load<uint16_t>(p), Stored<uint32_t>);
        const auto magnitude = (bits & 0x7fffu) << 13;
        const auto finite = (Stored<uint32_t>)((V)magnitude * 0x1p112f);
        return (V)((bits & 0x8000u) << 16 | (magnitude < 0x0f800000u ? finite
                                                                     : magnitude | 0x7f800000u));
    }
    INLINE V from(const e4m3_t* p) {
        const auto some = __builtin_convertvector(load<uint8_t>(p), Stored<uint16_t>);
        const auto bits = __builtin_convertvector(some, Stored<uint32_t>);
        const auto magnitude = (bits & 0x7fu) << 20;
        const auto finite = (Stored<uint32_t>)((V)magnitude * 0x1p120f);
        return (V)((bits & 0x80u) << 24 | (magnitude < 0x7f00000u ? finite
                                                                  : magnitude | 0x7fc00000u));
    }
};

// Sums of WIDTH vectors at once: element n of the result is the sum over vector n. Neighbours are
// added, first elements, then pairs of them, and so on; results come to lie in order.
template <class T, int WIDTH, int GROUP = 1, int COUNT>
INLINE typename Vector<T, WIDTH>::type sums(typename Vector<T, WIDTH>::type (&x)[COUNT]) {
    if constexpr (COUNT == 1) {
        return x[0];
    } else {
        typedef typename Vector<decltype(bit_cast<Bits<T>>(T())), WIDTH>::type Order;
        Order low = {};
#pragma GCC unroll 16
        for (int n = 0; n < WIDTH; ++n) {
            const int start = n / (2 * GROUP) * (2 * GROUP), within = n % (2 * GROUP);
            low[n] = within < GROUP ? start + within : WIDTH + start + within - GROUP;
        }
        const Order high = low + GROUP;
        typename Vector<T, WIDTH>::type half[COUNT / 2];
#pragma GCC unroll 8
        for (int n = 0; n < COUNT / 2; ++n)
            half[n] = shuffled(x[2 * n], x[2 * n + 1], low) + shuffled(x[2 * n], x[2 * n + 1], high);
        return sums<T, WIDTH, 2 * GROUP>(half);
    }
}

// dst[r][n] (+)= sum over k < DEPTH of a[r][k] row(n)[k] for ROWS rows and for n up to `end`, at most
// WIDTH / ROWS of them.
template <bool ACCUMULATE, int ROWS, int WIDTH, int DEPTH, class T, int PITCH, class Row>
INLINE void dot_block(T (*dst)[PITCH], const T (*a)[DEPTH], Row row, int n, int end) {
    typedef typename Vector<T, WIDTH>::type V;
    constexpr int COLUMNS = WIDTH / ROWS;
    V sum[WIDTH];
#pragma GCC unroll 16
    for (int c = 0; c < COLUMNS; ++c) {
        const auto *b = row(n + c < end ? n + c : end - 1), *next = row(n + c + ROWS_AHEAD);
        in_order(b, next);
        V own[ROWS] = {};
#pragma GCC unroll 16
        for (int k = 0; k < DEPTH; k += WIDTH) {
            __builtin_prefetch(next + k);
            const V x = Wide<T, WIDTH>::from(b + k);
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; ++r) own[r] += *(const V*)(a[r] + k) * x;
        }
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r) sum[r * COLUMNS + c] = own[r];
    }
    const V total = sums<T, WIDTH>(sum);
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r)
        for (int c = 0; c < COLUMNS && n + c < end; ++c) {
            const T found = total[r * COLUMNS + c];
            dst[r][n + c] = ACCUMULATE ? dst[r][n + c] + found : found;
        }
}

// The same for the columns n ... end - 1.
template <bool ACCUMULATE, int ROWS, int WIDTH, int DEPTH, class T, int PITCH, class Row>
INLINE void dot_columns(T (*dst)[PITCH], const T (*a)[DEPTH], Row row, int n, int end) {
    for (; n < end; n += WIDTH / ROWS) dot_block<ACCUMULATE, ROWS, WIDTH>(dst, a, row, n, end);
}

// dst[r][n] (+)= sum over k < DEPTH of a[r][k] row(n)[k], r < rows, n < columns.
template <bool ACCUMULATE, int DEPTH, class T, int PITCH, class Row>
INLINE void dot_rows(T (*dst)[PITCH], const T (*a)[DEPTH], Row row, int rows, int columns) {
    constexpr int WIDTH = vector_width<T>(DEPTH);
    constexpr int MANY = WIDTH < 4 ? WIDTH : 4;
    for (int n = 0; n < columns; n += WIDTH) {  // so many rows stay in the nearest cache
        const int end = columns - n < WIDTH ? columns : n + WIDTH;
        int r = 0;
        for (; r + MANY <= rows; r += MANY)
            dot_columns<ACCUMULATE, MANY, WIDTH>(dst + r, a + r, row, n, end);
        for (; MANY > 2 && r + 2 <= rows; r += 2)
            dot_columns<ACCUMULATE, 2, WIDTH>(dst + r, a + r, row, n, end);
        for (; r < rows; ++r) dot_columns<ACCUMULATE, 1, WIDTH>(dst + r, a + r, row, n, end);
    }
}

// dst[r][e ...] (+)= sum over k < depth of a[r][k] row(k)[e ...] for ROWS rows and VECTORS vectors. The
// sum is made apart before it joins what there is: the rounding of one chain grows with its length.
template <bool ACCUMULATE, int ROWS, int VECTORS, int WIDTH, class T, int PITCH, int DEPTH, class Row>
INLINE void weigh_block(T (*dst)[PITCH], const T (*a)[DEPTH], Row row, int e, int depth) {
    typedef typename Vector<T, WIDTH>::type V;
    V sum[ROWS][VECTORS] = {};
    for (int k = 0; k < depth; ++k) {
        const auto *b = row(k) + e, *next = row(k + ROWS_AHEAD) + e;
        V x[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) {
            __builtin_prefetch(next + v * WIDTH);
            x[v] = Wide<T, WIDTH>::from(b + v * WIDTH);
        }
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; ++v) sum[r][v] += a[r][k] * x[v];
    }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) {
            V* place = (V*)(dst[r] + e + v * WIDTH);
            *place = ACCUMULATE ? *place + sum[r][v] : sum[r][v];
        }
}

// Columns from e on, VECTORS vectors at a time, while they fit; then the rest by halves.
template <bool ACCUMULATE, int VECTORS, int WIDTH, class T, int PITCH, int DEPTH, class Row>
INLINE void weigh_columns(T (*dst)[PITCH], const T (*a)[DEPTH], Row row, int e, int rows, int depth) {
    for (; e + VECTORS * WIDTH <= PITCH; e += VECTORS * WIDTH) {
        int r = 0;
        for (; r + 4 <= rows; r += 4)
            weigh_block<ACCUMULATE, 4, VECTORS, WIDTH>(dst + r, a + r, row, e, depth);
        for (; r + 2 <= rows; r += 2)
            weigh_block<ACCUMULATE, 2, VECTORS, WIDTH>(dst + r, a + r, row, e, depth);
        for (; r < rows; ++r)
            weigh_block<ACCUMULATE, 1, VECTORS, WIDTH>(dst + r, a + r, row, e, depth);
    }
    if constexpr (VECTORS > 1)
        weigh_columns<ACCUMULATE, VECTORS / 2, WIDTH>(dst, a, row, e, rows, depth);
}

// dst[r][e] (+)= sum over k < depth of a[r][k] row(k)[e], r < rows, e < PITCH.
template <bool ACCUMULATE, class T, int PITCH, int DEPTH, class Row>
INLINE void weigh_rows(T (*dst)[PITCH], const T (*a)[DEPTH], Row row, int rows, int depth) {
    constexpr int VECTORS = VECTOR_REGISTERS >= 32 ? 8 : 4;  // rows of usual length in one piece
    weigh_columns<ACCUMULATE, VECTORS, vector_width<T>(PITCH)>(dst, a, row, 0, rows, depth);
}

// Over the first n elements of a row.
template <class T> INLINE T sum_row(const T* x, int n) {
    T total = 0;
#pragma omp simd reduction(+ : total)
    for (int i = 0; i < n; ++i) total += x[i];
    return total;
}
template <class T> INLINE T max_row(const T* x, int n) {
    T top = (T)NEG_INF;
#pragma omp simd reduction(max : top)
    for (int i = 0; i < n; ++i) top = x[i] > top ? x[i] : top;
    return top;
}

// row(r)[c] = src[r][c] for r < rows, c < columns; rows without an address are not stored.
template <int PITCH, class T, class Row>
INLINE void store_rows(Row row, const T (*src)[PITCH], int rows, int columns) {
    for (int r = 0; r < rows; ++r)
        if (auto* to = row(r))
            for (int c = 0; c < columns; ++c) put(to[c], src[r][c]);
}
template <int PITCH, class T, class S>
INLINE void store_rows(S* dst, int64_t stride, const T (*src)[PITCH], int rows, int columns) {
    store_rows([=](int r) { return dst + r * stride; }, src, rows, columns);
}
