template <typename T> DEVICE_FN T load_global(const T* p, CALLED_FROM) {
    return *static_cast<const T*>(emu_runtime->global_access(p, sizeof(T), false, line));
}
template <typename T> DEVICE_FN void store_global(T* p, T x, CALLED_FROM) {
    *static_cast<T*>(emu_runtime->global_access(p, sizeof(T), true, line)) = x;
}
DEVICE_FN void load_global_b128(u32 (&x)[4], const void* p, CALLED_FROM) {
    __builtin_memcpy(x, emu_runtime->global_access(p, 16, false, line), 16);
}
DEVICE_FN void store_global_b32(void* p, u32 x, CALLED_FROM) {
    __builtin_memcpy(emu_runtime->global_access(p, 4, true, line), &x, 4);
}
DEVICE_FN void store_global_b128(void* p, const u32 (&x)[4], CALLED_FROM) {
    __builtin_memcpy(emu_runtime->global_access(p, 16, true, line), x, 16);
}
