// Global (device) memory. Every access is aligned to its size.

// One element: float, bf16_t, f16_t, int or unsigned short.
template <typename T> DEVICE_FN T load_global(const T* p) {
    __builtin_assume(__isGlobal(p));
    return *p;
}

// One element.
template <typename T> DEVICE_FN void store_global(T* p, T x) {
    __builtin_assume(__isGlobal(p));
    *p = x;
}

// Sixteen bytes.
DEVICE_FN void load_global_b128(u32 (&x)[4], const void* p) {
    __builtin_assume(__isGlobal(p));
    const uint4 v = *static_cast<const uint4*>(p);
    x[0] = v.x; x[1] = v.y; x[2] = v.z; x[3] = v.w;
}

// Four bytes.
DEVICE_FN void store_global_b32(void* p, u32 x) {
    __builtin_assume(__isGlobal(p));
    *static_cast<u32*>(p) = x;
}

// Sixteen bytes in one instruction: a plain assignment may be taken apart again.
DEVICE_FN void store_global_b128(void* p, const u32 (&x)[4]) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
                 :: "l"(p), "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]) : "memory");
}
