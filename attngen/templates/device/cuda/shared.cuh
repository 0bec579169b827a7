// Shared memory, addressed by byte within the block's shared window.
// lds = load shared, sts = store shared; b16/b32/b128 = that many bits of any type.

// First byte of dynamic shared memory: 16-byte aligned, nothing more is promised.
DEVICE_FN u32 shared_base() {
    extern __shared__ __align__(16) unsigned char dynamic_shared[];
    return static_cast<u32>(__cvta_generic_to_shared(dynamic_shared));
}

// One float.
DEVICE_FN float lds_f32(u32 address) {
    float x;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(address) : "memory");
    return x;
}

// One float.
DEVICE_FN void sts_f32(u32 address, float x) {
    asm volatile("st.shared.f32 [%0], %1;" :: "r"(address), "f"(x) : "memory");
}

// Four consecutive floats; 16-byte aligned.
DEVICE_FN void lds_f32x4(float (&x)[4], u32 address) {
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(x[0]), "=f"(x[1]), "=f"(x[2]), "=f"(x[3]) : "r"(address) : "memory");
}

// Four consecutive floats; 16-byte aligned.
DEVICE_FN void sts_f32x4(u32 address, const float (&x)[4]) {
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};"
                 :: "r"(address), "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3]) : "memory");
}

// Sixteen bytes; 16-byte aligned.
DEVICE_FN void lds_b128(u32 (&x)[4], u32 address) {
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(address) : "memory");
}

// Sixteen bytes; 16-byte aligned.
DEVICE_FN void sts_b128(u32 address, const u32 (&x)[4]) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};"
                 :: "r"(address), "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]) : "memory");
}

// Four bytes.
DEVICE_FN u32 lds_b32(u32 address) {
    u32 x;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(address) : "memory");
    return x;
}

// Four bytes.
DEVICE_FN void sts_b32(u32 address, u32 x) {
    asm volatile("st.shared.b32 [%0], %1;" :: "r"(address), "r"(x) : "memory");
}

// Two bytes.
DEVICE_FN unsigned short lds_b16(u32 address) {
    unsigned short x;
    asm volatile("ld.shared.b16 %0, [%1];" : "=h"(x) : "r"(address) : "memory");
    return x;
}

// Two bytes.
DEVICE_FN void sts_b16(u32 address, unsigned short x) {
    asm volatile("st.shared.b16 [%0], %1;" :: "r"(address), "h"(x) : "memory");
}
