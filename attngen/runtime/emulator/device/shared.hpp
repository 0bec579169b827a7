DEVICE_FN u32 shared_base() { return emu_runtime->shared_base(); }

DEVICE_FN float lds_f32(u32 address, CALLED_FROM) {
    float x;
    emu_runtime->shared_load(&x, address, 4, line);
    return x;
}
DEVICE_FN u32 lds_b32(u32 address, CALLED_FROM) {
    u32 x;
    emu_runtime->shared_load(&x, address, 4, line);
    return x;
}
DEVICE_FN unsigned short lds_b16(u32 address, CALLED_FROM) {
    unsigned short x;
    emu_runtime->shared_load(&x, address, 2, line);
    return x;
}
DEVICE_FN void lds_f32x4(float (&x)[4], u32 address, CALLED_FROM) {
    emu_runtime->shared_load(x, address, 16, line);
}
DEVICE_FN void lds_b128(u32 (&x)[4], u32 address, CALLED_FROM) {
    emu_runtime->shared_load(x, address, 16, line);
}

DEVICE_FN void sts_f32(u32 address, float x, CALLED_FROM) {
    emu_runtime->shared_store(address, &x, 4, line);
}
DEVICE_FN void sts_b32(u32 address, u32 x, CALLED_FROM) { emu_runtime->shared_store(address, &x, 4, line); }
DEVICE_FN void sts_b16(u32 address, unsigned short x, CALLED_FROM) {
    emu_runtime->shared_store(address, &x, 2, line);
}
DEVICE_FN void sts_f32x4(u32 address, const float (&x)[4], CALLED_FROM) {
    emu_runtime->shared_store(address, x, 16, line);
}
DEVICE_FN void sts_b128(u32 address, const u32 (&x)[4], CALLED_FROM) {
    emu_runtime->shared_store(address, x, 16, line);
}
