// What the emulator's device layer asks of its runtime: a table of functions, filled by the runtime
// and handed to a kernel when it is loaded, so that neither needs to find the other's symbols.
// `line` is where the emitted text made the call.
#pragma once

namespace emu {

struct Runtime {
    int (*thread_id)();
    int (*warp_id)(int line);
    int (*block)(int axis);
    void (*sync_block)(int line);
    void (*sync_warp)(int line);
    float (*shfl_xor)(float x, int lane_mask, int line);
    unsigned (*ballot)(bool x, int line);

    unsigned (*shared_base)();
    void (*shared_load)(void* to, unsigned address, unsigned bytes, int line);
    void (*shared_store)(unsigned address, const void* from, unsigned bytes, int line);

    void (*cp_async)(unsigned to, const void* from, int valid_bytes, int line);
    void (*cp_async_commit)();
    void (*cp_async_wait)(unsigned pending);

    void (*ldmatrix_x2)(unsigned* r, unsigned address, int line);
    void (*ldmatrix_x4)(unsigned* r, unsigned address, int line);
    void (*ldmatrix_x2_trans)(unsigned* r, unsigned address, int line);
    void (*ldmatrix_x4_trans)(unsigned* r, unsigned address, int line);
    // b0 in the lower half of b, b1 in the upper.
    using Mma = void (*)(float* c0, float* c1, float* c2, float* c3, const unsigned* a,
                         unsigned long b, int line);
    Mma mma_bf16, mma_f16;

    // Checks an access; gives where in this process the bytes are.
    void* (*global_access)(const void* p, unsigned bytes, bool write, int line);

    // A check that the compiler put into the kernel has failed.
    void (*bad_index)(long long index, const char* array, int line);
    void (*bad_arithmetic)(const char* what, const char* type, int line);
};

}  // namespace emu
