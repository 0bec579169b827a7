// Tensor-core operands and products. With g = lane / 4 and t = lane % 4, an 8 x 8 matrix of
// 16-bit elements lies in a warp as one register a lane: row g, columns 2t and 2t + 1.

// Load four 8 x 8 matrices: lanes 8i..8i+7 give the addresses of the eight 16-byte rows of matrix i,
// which arrives in r[i]. Each address is 16-byte aligned.
DEVICE_FN void ldmatrix_x4(u32 (&r)[4], u32 row_address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row_address) : "memory");
}

// The same, each matrix transposed on its way: a lane receives rows 2t, 2t + 1 of column g.
DEVICE_FN void ldmatrix_x4_trans(u32 (&r)[4], u32 row_address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row_address) : "memory");
}

// Load two 8 x 8 matrices, from the addresses that lanes 0..15 give.
DEVICE_FN void ldmatrix_x2(u32 (&r)[2], u32 row_address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(row_address) : "memory");
}

// The same, each matrix transposed on its way.
DEVICE_FN void ldmatrix_x2_trans(u32 (&r)[2], u32 row_address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(row_address) : "memory");
}

// C[16 x 8] += A[16 x 16] B[16 x 8], float32 sums of bfloat16 products; the tag picks the type.
//   c0 c1: row g,     columns 2t, 2t + 1        c2 c3: row g + 8, the same columns
//   a[0] a[1]: rows g, g + 8, columns 2t, 2t + 1   a[2] a[3]: the same rows, columns 2t + 8, 2t + 9
//   b0 b1: column g, rows 2t, 2t + 1 and 2t + 8, 2t + 9
DEVICE_FN void mma_m16n8k16(float& c0, float& c1, float& c2, float& c3,
                            const u32 (&a)[4], u32 b0, u32 b1, bf16_t) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same with float16 operands.
DEVICE_FN void mma_m16n8k16(float& c0, float& c1, float& c2, float& c3,
                            const u32 (&a)[4], u32 b0, u32 b1, f16_t) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
