// Who am I, who are my neighbours, and how do we wait for each other.

// Index of this thread in its block (blocks are one-dimensional).
DEVICE_FN int thread_id() { return static_cast<int>(threadIdx.x); }

// Index of this thread in its warp, 0..31.
DEVICE_FN int lane_id() { return static_cast<int>(threadIdx.x & 31u); }

// Index of this warp in its block. The shuffle tells the compiler that all lanes agree on it.
DEVICE_FN int warp_id() {
    return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x >> 5), 0);
}

// Index of this block in the grid.
DEVICE_FN int block_x() { return static_cast<int>(blockIdx.x); }
DEVICE_FN int block_y() { return static_cast<int>(blockIdx.y); }
DEVICE_FN int block_z() { return static_cast<int>(blockIdx.z); }

// `x`, but computed from here on only: the compiler may not prepare results of it ahead of time and
// keep them in registers. For what is needed rarely.
DEVICE_FN int recompute(int x) {
    asm volatile("" : "+r"(x));
    return x;
}
DEVICE_FN u32 recompute(u32 x) {
    asm volatile("" : "+r"(x));
    return x;
}

// `x`, without what the compiler knows of it; still one value, computed once.
DEVICE_FN u32 opaque(u32 x) {
    asm("" : "+r"(x));
    return x;
}

// All threads of the block wait here, then see each other's earlier shared-memory accesses.
SYNC_FN void sync_block() { __syncthreads(); }

// All lanes of the warp wait here, then see each other's earlier shared-memory accesses.
SYNC_FN void sync_warp() { __syncwarp(); }

// The value `x` of lane (my lane XOR lane_mask). Orders no memory access.
DEVICE_FN float shfl_xor(float x, int lane_mask) {
    return __shfl_xor_sync(0xffffffffu, x, lane_mask);
}

// Bit n: what lane n of this warp says.
DEVICE_FN u32 ballot(bool x) { return __ballot_sync(0xffffffffu, x); }

// Number of the lowest bit that is set; x is not 0.
DEVICE_FN int lowest_bit(u32 x) { return __ffs(static_cast<int>(x)) - 1; }
