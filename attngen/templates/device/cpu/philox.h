// Numbers that follow from a position, for dropout: Philox4x32-7 (Salmon et al. 2011). Of every
// block of four words a lane takes one, as positions 8 apart share it.

// In [0, 1), a multiple of 2^-24.
INLINE float uniform_f32(i64 seed, int b, int h, int q_start, int i, int k_start, int j) {
    const uint32_t q = (uint32_t)q_start + (uint32_t)i, k = (uint32_t)k_start + (uint32_t)j;
    uint32_t c0 = k & ~8u, c1 = q & ~8u, c2 = (uint32_t)h, c3 = (uint32_t)b;
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
#pragma GCC unroll 7
    for (int round = 0; round < 7; ++round) {
        const uint64_t x = 0xD2511F53ull * c0, y = 0xCD9E8D57ull * c2;
        c0 = (uint32_t)(y >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(x >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)y;
        c3 = (uint32_t)x;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    const uint32_t upper = k & 8 ? c3 : c2, lower = k & 8 ? c1 : c0;
    return (float)(int)((q & 8 ? upper : lower) >> 8) * 0x1p-24f;
}
