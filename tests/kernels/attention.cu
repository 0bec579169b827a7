// Attention forward, written by hand for the emulator's tests: 64 queries a block, 4 warps of 16 rows,
// 64 keys a tile, head_dim 64, K and V double-buffered by cp.async, output staged through shared memory.
// Tensors are [heads, seqlen, 64], contiguous.

typedef bf16_t T;
constexpr int BLOCK = 64, D = 64, WARPS = 4;
constexpr u32 ROW = D * 2, TILE = BLOCK * ROW;

struct Params {
    const T* q;
    const T* k;
    const T* v;
    T* o;
    float* lse;
    int seqlen_q, seqlen_k, causal;
    float scale_log2;
};

// Byte address of 16-byte chunk `chunk` of row `row`: chunks are permuted within a row, so that eight
// rows of the same column lie in different banks.
DEVICE_FN u32 at(u32 tile, int row, int chunk) {
    return tile + static_cast<u32>(row) * ROW + static_cast<u32>(chunk ^ (row & 7)) * 16u;
}

// Start copying rows first..first+63 of x[rows, 64]; rows beyond the end become zero.
DEVICE_FN void copy_tile(u32 tile, const T* x, int first, int rows) {
    for (int i = thread_id(); i < BLOCK * 8; i += WARPS * 32) {
        const int row = i / 8, chunk = i % 8;
        const int valid = first + row < rows ? 16 : 0;
        cp_async_16(at(tile, row, chunk), x + static_cast<i64>(first + row) * D + chunk * 8, valid);
    }
}

KERNEL(128, 2) attention(const __grid_constant__ Params p) {
    const int warp = warp_id(), lane = lane_id(), g = lane / 4, t = lane % 4;
    const int head = block_y(), q_first = block_x() * BLOCK, row0 = warp * 16;
    const i64 kv = static_cast<i64>(head) * p.seqlen_k * D;
    const i64 qo = static_cast<i64>(head) * p.seqlen_q * D;

    const u32 s_q = align_up(shared_base(), 128);
    const u32 s_k = s_q + TILE, s_v = s_k + 2 * TILE;

    const int offset = p.seqlen_k - p.seqlen_q;
    int tiles = ceil_div(p.seqlen_k, BLOCK);
    if (p.causal) tiles = max_i32(min_i32(tiles, ceil_div(q_first + BLOCK + offset, BLOCK)), 0);

    copy_tile(s_q, p.q + qo, q_first, p.seqlen_q);
    copy_tile(s_k, p.k + kv, 0, p.seqlen_k);
    cp_async_commit();
    copy_tile(s_v, p.v + kv, 0, p.seqlen_k);
    cp_async_commit();

    float acc[8][4], m[2] = {NEG_INF, NEG_INF}, l[2] = {0.0f, 0.0f};
    for (int n = 0; n < 8; ++n)
        for (int i = 0; i < 4; ++i) acc[n][i] = 0.0f;

    for (int tile = 0; tile < tiles; ++tile) {
        const u32 buffer = static_cast<u32>(tile & 1) * TILE, other = TILE - buffer;
        cp_async_wait<1>();
        sync_block();
        copy_tile(s_k + other, p.k + kv, (tile + 1) * BLOCK, p.seqlen_k);
        cp_async_commit();

        float s[8][4];
        for (int n = 0; n < 8; ++n)
            for (int i = 0; i < 4; ++i) s[n][i] = 0.0f;
        for (int k = 0; k < D / 16; ++k) {
            u32 a[4], b[4];
            ldmatrix_x4(a, at(s_q, row0 + lane % 16, 2 * k + lane / 16));
            for (int n = 0; n < 8; n += 2) {
                ldmatrix_x4(b, at(s_k + buffer, n * 8 + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
                mma_m16n8k16(s[n][0], s[n][1], s[n][2], s[n][3], a, b[0], b[1], T{});
                mma_m16n8k16(s[n + 1][0], s[n + 1][1], s[n + 1][2], s[n + 1][3], a, b[2], b[3], T{});
            }
        }

        // Online softmax in base 2, of rows g and g + 8.
        float alpha[2];
        for (int half = 0; half < 2; ++half) {
            const int row = q_first + row0 + g + 8 * half;
            float top = m[half];
            for (int n = 0; n < 8; ++n)
                for (int i = 0; i < 2; ++i) {
                    float& x = s[n][2 * half + i];
                    const int column = tile * BLOCK + n * 8 + 2 * t + i;
                    const bool visible = column < p.seqlen_k && (!p.causal || column <= row + offset);
                    x = visible ? x : NEG_INF;
                    top = max_f32(top, x);
                }
            top = max_f32(top, shfl_xor(top, 1));
            top = max_f32(top, shfl_xor(top, 2));
            const float base = top == NEG_INF ? 0.0f : top * p.scale_log2;
            alpha[half] = fast_exp2(m[half] * p.scale_log2 - base);
            m[half] = top;
            l[half] *= alpha[half];
            for (int n = 0; n < 8; ++n)
                for (int i = 0; i < 2; ++i) {
                    float& x = s[n][2 * half + i];
                    x = fast_exp2(x * p.scale_log2 - base);
                    l[half] += x;
                }
        }
        for (int n = 0; n < 8; ++n)
            for (int i = 0; i < 4; ++i) acc[n][i] *= alpha[i / 2];

        cp_async_wait<1>();
        sync_block();
        copy_tile(s_v + other, p.v + kv, (tile + 1) * BLOCK, p.seqlen_k);
        cp_async_commit();
        for (int k = 0; k < BLOCK / 16; ++k) {
            u32 a[4], b[4];
            a[0] = pack(s[2 * k][0], s[2 * k][1], T{});
            a[1] = pack(s[2 * k][2], s[2 * k][3], T{});
            a[2] = pack(s[2 * k + 1][0], s[2 * k + 1][1], T{});
            a[3] = pack(s[2 * k + 1][2], s[2 * k + 1][3], T{});
            for (int n = 0; n < 8; n += 2) {
                ldmatrix_x4_trans(b, at(s_v + buffer, k * 16 + lane % 16, n + lane / 16));
                mma_m16n8k16(acc[n][0], acc[n][1], acc[n][2], acc[n][3], a, b[0], b[1], T{});
                mma_m16n8k16(acc[n + 1][0], acc[n + 1][1], acc[n + 1][2], acc[n + 1][3], a, b[2], b[3], T{});
            }
        }
    }

    cp_async_wait<0>();
    sync_block();
    for (int half = 0; half < 2; ++half) {
        float sum = l[half];
        sum += shfl_xor(sum, 1);
        sum += shfl_xor(sum, 2);
        const float inverse = sum == 0.0f ? 0.0f : recip(sum);
        const int row = row0 + g + 8 * half;
        for (int n = 0; n < 8; ++n)
            sts_b32(at(s_q, row, n) + 4u * static_cast<u32>(t),
                    pack(acc[n][2 * half] * inverse, acc[n][2 * half + 1] * inverse, T{}));
        if (t == 0 && q_first + row < p.seqlen_q)
            store_global(p.lse + static_cast<i64>(head) * p.seqlen_q + q_first + row,
                         sum == 0.0f ? NEG_INF : (m[half] * p.scale_log2 + log2_f32(sum)) * 0.6931471806f);
    }
    sync_warp();
    for (int i = lane; i < 16 * 8; i += 32) {
        const int row = row0 + i / 8, chunk = i % 8;
        u32 x[4];
        lds_b128(x, at(s_q, row, chunk));
        if (q_first + row < p.seqlen_q)
            store_global_b128(p.o + qo + static_cast<i64>(q_first + row) * D + chunk * 8, x);
    }
}
