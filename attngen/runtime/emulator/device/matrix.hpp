DEVICE_FN void ldmatrix_x2(u32 (&r)[2], u32 row_address, CALLED_FROM) {
    emu_runtime->ldmatrix_x2(r, row_address, line);
}
DEVICE_FN void ldmatrix_x4(u32 (&r)[4], u32 row_address, CALLED_FROM) {
    emu_runtime->ldmatrix_x4(r, row_address, line);
}
DEVICE_FN void ldmatrix_x2_trans(u32 (&r)[2], u32 row_address, CALLED_FROM) {
    emu_runtime->ldmatrix_x2_trans(r, row_address, line);
}
DEVICE_FN void ldmatrix_x4_trans(u32 (&r)[4], u32 row_address, CALLED_FROM) {
    emu_runtime->ldmatrix_x4_trans(r, row_address, line);
}
DEVICE_FN void mma_m16n8k16(float& c0, float& c1, float& c2, float& c3, const u32 (&a)[4], u32 b0,
                            u32 b1, bf16_t, CALLED_FROM) {
    emu_runtime->mma_bf16(&c0, &c1, &c2, &c3, a, b0 | static_cast<unsigned long>(b1) << 32, line);
}
DEVICE_FN void mma_m16n8k16(float& c0, float& c1, float& c2, float& c3, const u32 (&a)[4], u32 b0,
                            u32 b1, f16_t, CALLED_FROM) {
    emu_runtime->mma_f16(&c0, &c1, &c2, &c3, a, b0 | static_cast<unsigned long>(b1) << 32, line);
}
