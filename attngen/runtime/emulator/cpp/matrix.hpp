// ldmatrix, mma and shuffles: what a warp does together.
//
// Each lane leaves its operands in the warp's hands before it waits, and picks up its results when
// it goes on. What it picks up stays: nothing is overwritten before all lanes have come back.
#pragma once
#include "memory.hpp"

namespace emu {

// ---- ldmatrix -----------------------------------------------------------------------------------

template <int MATRICES, bool TRANS> inline void ldmatrix(u32* r, u32 address, int line) {
    constexpr Op op = MATRICES == 4 ? (TRANS ? Op::LDMATRIX_X4_TRANS : Op::LDMATRIX_X4)
                                    : (TRANS ? Op::LDMATRIX_X2_TRANS : Op::LDMATRIX_X2);
    const Thread& self_ = self();
    Warp& warp = *self_.warp;
    const u32 g = static_cast<u32>(self_.lane) / 4, t = static_cast<u32>(self_.lane) % 4;
    warp.row_address[self_.lane] = address;
    warp_instruction(op, line, [](Worker& m, Warp& w) {
        const int line = w.line;
        m.counters.ldmatrix++;
        for (int row = 0; row < 8 * MATRICES; ++row) {
            const Thread& from = w.threads[row];
            const u32 offset = shared_offset(from, w.row_address[row], 16, line, "loads a matrix row of");
            if (m.shadow) m.shadow->read(from, offset, 16, line, true);
            memcpy(w.rows[row], m.shared + offset, 16);
        }
        for (int i = 0; i < MATRICES; ++i)
            m.counters.conflicts_ldmatrix += phase_conflicts(w.row_address + 8 * i, 8, 16);
    });
    for (int i = 0; i < MATRICES; ++i) {
        const u16(*matrix)[8] = warp.rows + 8 * i;
        r[i] = TRANS ? matrix[2 * t][g] | static_cast<u32>(matrix[2 * t + 1][g]) << 16
                     : matrix[g][2 * t] | static_cast<u32>(matrix[g][2 * t + 1]) << 16;
    }
}

// ---- mma ----------------------------------------------------------------------------------------

inline float bits_as_float(u32 bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

inline float widen_bf16(u32 x) { return bits_as_float(x << 16); }

inline float widen_f16(u32 x) {
    // Exponent and fraction moved to float's places, then the difference of the biases as a
    // factor, which makes subnormal numbers come out right too.
    const u32 magnitude = (x & 0x7fffu) << 13;
    u32 bits;
    const float scaled = bits_as_float(magnitude) * 0x1p112f;
    memcpy(&bits, &scaled, 4);
    if ((x & 0x7c00u) == 0x7c00u) bits = magnitude | 0x7f800000u;
    return bits_as_float(bits | (x & 0x8000u) << 16);
}

typedef float Vec8 __attribute__((vector_size(32)));

// Sums in float32, in order of k, starting from C; products of 16-bit numbers are exact in float32,
// so it does not matter whether they are fused into the sum.
[[gnu::noinline]] inline void multiply(MmaOperands& x) {
    for (int first = 0; first < 16; first += 8) {
        Vec8 sum[8];
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) memcpy(&sum[i], x.c[first + i], 32);
        for (int k = 0; k < 16; ++k) {
            Vec8 row;
            memcpy(&row, x.b[k], 32);
#pragma GCC unroll 8
            for (int i = 0; i < 8; ++i) sum[i] += x.a[first + i][k] * row;
        }
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) memcpy(x.c[first + i], &sum[i], 32);
    }
}

template <Op OP, float WIDEN(u32)>
void mma(float* c0, float* c1, float* c2, float* c3, const u32* a, u64 b, int line) {
    const Thread& self_ = self();
    MmaOperands& x = self_.warp->mma;
    const u32 g = static_cast<u32>(self_.lane) / 4, t = static_cast<u32>(self_.lane) % 4;
    for (u32 i = 0; i < 4; ++i) {
        float* pair = &x.a[g + 8 * (i & 1)][2 * t + 8 * (i >> 1)];
        pair[0] = WIDEN(a[i] & 0xffffu);
        pair[1] = WIDEN(a[i] >> 16);
    }
    for (u32 i = 0; i < 4; ++i)
        x.b[2 * t + (i & 1) + 8 * (i >> 1)][g] = WIDEN(static_cast<u32>(b >> 16 * i) & 0xffffu);
    float *const upper = &x.c[g][2 * t], *const lower = &x.c[g + 8][2 * t];
    upper[0] = *c0, upper[1] = *c1, lower[0] = *c2, lower[1] = *c3;
    warp_instruction(OP, line, [](Worker& m, Warp& w) {
        m.counters.mma++;
        multiply(w.mma);
    });
    *c0 = upper[0], *c1 = upper[1], *c2 = lower[0], *c3 = lower[1];
}

// ---- exchange between lanes -----------------------------------------------------------------------

inline float shfl_xor(float x, int lane_mask, int line) {
    const Thread& t = self();
    t.warp->offered[t.lane] = x;
    warp_instruction(Op::SHFL_XOR, line, [](Worker& m, Warp& w) {
        m.counters.shuffles++;
        memcpy(w.received, w.offered, sizeof w.received);
    });
    return t.warp->received[(t.lane ^ lane_mask) & 31];
}

inline u32 ballot(bool x, int line) {
    const Thread& t = self();
    t.warp->offered[t.lane] = x ? 1.0f : 0.0f;
    warp_instruction(Op::BALLOT, line, [](Worker& m, Warp& w) {
        m.counters.shuffles++;
        memcpy(w.received, w.offered, sizeof w.received);
    });
    u32 bits = 0;
    for (u32 lane = 0; lane < 32; ++lane) bits |= u32{t.warp->received[lane] != 0.0f} << lane;
    return bits;
}

inline int warp_id(int line) {
    warp_instruction(Op::WARP_ID, line, [](Worker&, Warp&) {});
    return self().warp->index;
}

}  // namespace emu
