// Numbers that follow from a position, for dropout: Philox4x32-7 (Salmon et al. 2011). Compositions
// only. Queries and keys 8 apart share a block of four words.

struct Philox { u32 word[4]; };

// One round: two products, crossed over.
DEVICE_FN void philox_round(Philox& x, u32 k0, u32 k1) {
    const unsigned long long a = 0xD2511F53ull * x.word[0], b = 0xCD9E8D57ull * x.word[2];
    x = Philox{{static_cast<u32>(b >> 32) ^ x.word[1] ^ k0, static_cast<u32>(b),
                static_cast<u32>(a >> 32) ^ x.word[3] ^ k1, static_cast<u32>(a)}};
}

// One word of a block as a number in [0, 1), a multiple of 2^-24.
DEVICE_FN float philox_word(const Philox& x, int i, int j) {
    const u32 upper = j & 8 ? x.word[3] : x.word[2], lower = j & 8 ? x.word[1] : x.word[0];
    return static_cast<float>((i & 8 ? upper : lower) >> 8) * 0x1p-24f;
}

// The number at query q_start + i and key k_start + j; the starts are multiples of 16. Rounds are a
// loop: unrolled, those of all elements of a thread together want more registers than there are, as
// does what could be prepared of the first one.
DEVICE_FN float uniform_f32(i64 seed, int b, int h, int q_start, int i, int k_start, int j) {
    Philox x{{static_cast<u32>(k_start) + static_cast<u32>(j & ~8),
              static_cast<u32>(q_start) + static_cast<u32>(i & ~8),
              static_cast<u32>(recompute(h)), static_cast<u32>(b)}};
    u32 k0 = static_cast<u32>(seed), k1 = static_cast<u32>(seed >> 32);
    #pragma unroll 1
    for (int round = 0; round < 7; ++round) {
        philox_round(x, k0, k1);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return philox_word(x, i, j);
}

// The same, where i_part and j_part have the 8 of i and j, and are constants once loops are unrolled:
// the compiler sees that four elements of a fragment are one block, and computes it once.
DEVICE_FN float uniform_f32(i64 seed, int b, int h, int q_start, int i, int k_start, int j,
                            int i_part, int j_part) {
    Philox x{{static_cast<u32>(k_start) + static_cast<u32>(j - (j_part & 8)),
              static_cast<u32>(q_start) + static_cast<u32>(i - (i_part & 8)),
              static_cast<u32>(h), static_cast<u32>(b)}};
    const u32 k0 = opaque(static_cast<u32>(seed)), k1 = opaque(static_cast<u32>(seed >> 32));
    #pragma unroll
    for (u32 round = 0; round < 7; ++round) {
        philox_round(x, k0 + round * 0x9E3779B9u, k1 + round * 0xBB67AE85u);
    }
    return philox_word(x, i_part, j_part);
}
