DEVICE_FN void cp_async_16(u32 dst, const void* src, int valid_bytes, CALLED_FROM) {
    emu_runtime->cp_async(dst, src, valid_bytes, line);
}
SYNC_FN void cp_async_commit() { emu_runtime->cp_async_commit(); }
template <int PENDING> SYNC_FN void cp_async_wait() { emu_runtime->cp_async_wait(PENDING); }
