DEVICE_FN int thread_id() { return emu_runtime->thread_id(); }
DEVICE_FN int lane_id() { return emu_runtime->thread_id() & 31; }
DEVICE_FN int warp_id(CALLED_FROM) { return emu_runtime->warp_id(line); }
DEVICE_FN int block_x() { return emu_runtime->block(0); }
DEVICE_FN int block_y() { return emu_runtime->block(1); }
DEVICE_FN int block_z() { return emu_runtime->block(2); }
DEVICE_FN int recompute(int x) { return x; }
DEVICE_FN u32 recompute(u32 x) { return x; }
DEVICE_FN u32 opaque(u32 x) { return x; }
SYNC_FN void sync_block(CALLED_FROM) { emu_runtime->sync_block(line); }
SYNC_FN void sync_warp(CALLED_FROM) { emu_runtime->sync_warp(line); }
DEVICE_FN float shfl_xor(float x, int lane_mask, CALLED_FROM) {
    return emu_runtime->shfl_xor(x, lane_mask, line);
}
DEVICE_FN u32 ballot(bool x, CALLED_FROM) { return emu_runtime->ballot(x, line); }
DEVICE_FN int lowest_bit(u32 x) { return __builtin_ctz(x); }
