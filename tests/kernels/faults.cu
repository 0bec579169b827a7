// Small kernels with one mistake each. The comment above a kernel names the error it must end in, and
// HERE the line that the error must point to. A missing barrier shows as either of two, by who comes
// first. "none" is a correct kernel that looks like a wrong one.

struct Params {
    const bf16_t* in;   // 4096 elements, read-only
    float* out;         // 256 elements
    int n;              // 0
};

// ---- shared memory without order -----------------------------------------------------------------

// RaceError or UninitialisedError: read after write, between warps
KERNEL(64, 1) read_after_write(const __grid_constant__ Params p) {
    const u32 s = shared_base();
    sts_f32(s + 4 * thread_id(), 1.0f);
    sync_warp();
    store_global(p.out + thread_id(), lds_f32(s + 4 * (63 - thread_id())));  // HERE
}

// RaceError: write after read, between warps
KERNEL(64, 1) write_after_read(const __grid_constant__ Params p) {
    const u32 s = shared_base();
    sts_f32(s + 4 * thread_id(), 1.0f);
    sync_block();
    const float x = lds_f32(s + 4 * (63 - thread_id()));
    sts_f32(s + 4 * thread_id(), x + 1.0f);
    store_global(p.out + thread_id(), x);
}

// RaceError: write after write, between warps
KERNEL(64, 1) write_after_write(const __grid_constant__ Params p) {
    sts_f32(shared_base() + 4 * lane_id(), 1.0f);  // HERE
}

// RaceError or UninitialisedError: read after write, between the lanes of a warp
KERNEL(32, 1) lanes_read_after_write(const __grid_constant__ Params p) {
    const u32 s = shared_base();
    sts_f32(s + 4 * thread_id(), 1.0f);
    store_global(p.out + thread_id(), lds_f32(s + 4 * (31 - thread_id())));  // HERE
}

// RaceError: write after read, between the lanes of a warp
KERNEL(32, 1) lanes_write_after_read(const __grid_constant__ Params p) {
    const u32 s = shared_base();
    sts_f32(s + 4 * thread_id(), 1.0f);
    sync_warp();
    const float x = lds_f32(s + 4 * (31 - thread_id()));
    sts_f32(s + 4 * thread_id(), x);
}

// RaceError or UninitialisedError: a shuffle orders no memory
KERNEL(32, 1) shuffle_is_no_fence(const __grid_constant__ Params p) {
    const u32 s = shared_base();
    sts_f32(s + 4 * thread_id(), 1.0f);
    const float x = shfl_xor(1.0f, 1);
    store_global(p.out + thread_id(), x + lds_f32(s + 4 * (31 - thread_id())));  // HERE
}

// RaceError or UninitialisedError: ldmatrix reads what other lanes wrote
KERNEL(32, 1) ldmatrix_after_store(const __grid_constant__ Params p) {
    const u32 s = shared_base();
    u32 r[4] = {0, 0, 0, 0};
    sts_b128(s + 16 * thread_id(), r);
    ldmatrix_x4(r, s + 16 * thread_id());  // HERE
    store_global(p.out + thread_id(), __builtin_bit_cast(float, r[0] ^ r[1] ^ r[2] ^ r[3]));
}

// RaceError: a store of four bytes into a row that a matrix load of another warp has read
KERNEL(64, 1) store_after_ldmatrix(const __grid_constant__ Params p) {
    const u32 s = shared_base();
    u32 r[4] = {0, 0, 0, 0};
    if (warp_id() == 0) sts_b128(s + 16 * lane_id(), r);
    sync_block();
    ldmatrix_x4(r, s + 16 * lane_id());
    if (warp_id() == 1) sts_b32(s + 16 * lane_id() + 4, r[0]);
    if (warp_id() == 0) sync_warp();
}

// UninitialisedError: shared memory starts with no value
KERNEL(32, 1) never_written(const __grid_constant__ Params p) {
    const u32 s = shared_base();
    if (lane_id() < 31) sts_f32(s + 4 * lane_id(), 1.0f);
    sync_warp();
    store_global(p.out + thread_id(), lds_f32(s + 4 * lane_id()));  // HERE
}

// none: two halves of a word by two lanes, ordered by sync_warp; then all in one order, by sync_block
KERNEL(64, 1) ordered(const __grid_constant__ Params p) {
    const u32 s = shared_base();
    sts_b16(s + 2 * thread_id(), static_cast<unsigned short>(thread_id()));
    sync_warp();
    const u32 word = lds_b32(s + (thread_id() & ~1) * 2);
    sync_block();
    sts_f32(s + 4 * (63 - thread_id()), static_cast<float>(word >> 16));
    sync_block();
    store_global(p.out + thread_id(), lds_f32(s + 4 * thread_id()));
}

// ---- asynchronous copies --------------------------------------------------------------------------

// UninitialisedError: waits for all groups but the one it needs
KERNEL(32, 1) wait_too_little(const __grid_constant__ Params p) {
    const u32 s = shared_base() + 16 * thread_id();
    cp_async_16(s, p.in + 8 * thread_id(), 16);
    cp_async_commit();
    cp_async_wait<1>();
    store_global(p.out + thread_id(), lds_f32(s));  // HERE
}

// UninitialisedError: copies that were never committed belong to no group
KERNEL(32, 1) no_commit(const __grid_constant__ Params p) {
    const u32 s = shared_base() + 16 * thread_id();
    cp_async_16(s, p.in + 8 * thread_id(), 16);
    cp_async_wait<0>();
    store_global(p.out + thread_id(), lds_f32(s));  // HERE
}

// RaceError or UninitialisedError: what a thread waited for is not yet visible to others
KERNEL(64, 1) wait_without_barrier(const __grid_constant__ Params p) {
    const u32 s = shared_base();
    cp_async_16(s + 16 * thread_id(), p.in + 8 * thread_id(), 16);
    cp_async_commit();
    cp_async_wait<0>();
    store_global(p.out + thread_id(), lds_f32(s + 16 * (63 - thread_id())));  // HERE
}

// RaceError: a store into the destination of a copy that is under way
KERNEL(32, 1) store_into_copy(const __grid_constant__ Params p) {
    const u32 s = shared_base() + 16 * thread_id();
    cp_async_16(s, p.in + 8 * thread_id(), 16);
    cp_async_commit();
    sts_f32(s + 4, 1.0f);  // HERE
    cp_async_wait<0>();
}

// RaceError: two copies into one place
KERNEL(32, 1) copy_into_copy(const __grid_constant__ Params p) {
    const u32 s = shared_base() + 16 * thread_id();
    cp_async_16(s, p.in + 8 * thread_id(), 16);
    cp_async_commit();
    cp_async_16(s, p.in + 8 * thread_id(), 16);  // HERE
    cp_async_commit();
    cp_async_wait<0>();
}

// RaceError: a copy into what another warp may still be reading
KERNEL(64, 1) copy_after_read(const __grid_constant__ Params p) {
    const u32 s = shared_base();
    sts_f32(s + 16 * thread_id(), 1.0f);
    sync_block();
    const float x = lds_f32(s + 16 * (63 - thread_id()));
    cp_async_16(s + 16 * thread_id(), p.in + 8 * thread_id(), 16);
    cp_async_commit();
    cp_async_wait<0>();
    store_global(p.out + thread_id(), x);
}

// RaceError: the kernel ends with a copy under way
KERNEL(32, 1) copy_outlives_kernel(const __grid_constant__ Params p) {
    cp_async_16(shared_base() + 16 * thread_id(), p.in + 8 * thread_id(), 16);  // HERE
    cp_async_commit();
}

// none: an empty copy may be under way at the end; a partial one fills up with zeros
KERNEL(32, 1) copies(const __grid_constant__ Params p) {
    const u32 s = shared_base() + 16 * thread_id();
    cp_async_16(s, p.in + 8 * thread_id(), 4);
    cp_async_commit();
    cp_async_16(s + 512, nullptr, 0);
    cp_async_commit();
    cp_async_wait<1>();
    store_global(p.out + thread_id(), lds_f32(s + 12));
}

// ---- addresses ------------------------------------------------------------------------------------

// OutOfBoundsError: the block has 2048 bytes of shared memory
KERNEL(32, 1) shared_end(const __grid_constant__ Params p) {
    sts_f32(shared_base() + 2048 - 4 * lane_id(), 1.0f);  // HERE
}

// OutOfBoundsError: below the start
KERNEL(32, 1) shared_start(const __grid_constant__ Params p) {
    sts_f32(shared_base() - 4, 1.0f);  // HERE
}

// OutOfBoundsError: in has 4096 elements
KERNEL(32, 1) global_read(const __grid_constant__ Params p) {
    const bf16_t x = load_global(p.in + 4065 + lane_id());  // HERE
    store_global(p.out + lane_id(), to_float(x));
}

// OutOfBoundsError: out has 256 elements
KERNEL(32, 1) global_write(const __grid_constant__ Params p) {
    store_global(p.out + 256 + lane_id(), 1.0f);  // HERE
}

// OutOfBoundsError: in is read-only
KERNEL(32, 1) read_only(const __grid_constant__ Params p) {
    store_global(const_cast<bf16_t*>(p.in) + lane_id(), bf16_t{0});  // HERE
}

// OutOfBoundsError: a copy that reads past the end of its tensor
KERNEL(32, 1) copy_source(const __grid_constant__ Params p) {
    cp_async_16(shared_base() + 16 * lane_id(), p.in + 4096 + 8 * lane_id(), 16);  // HERE
}

// OutOfBoundsError: a pointer that no device function has checked
KERNEL(32, 1) wild_pointer(const __grid_constant__ Params p) {
    const float* nowhere = p.out + (1ll << 44);
    store_global(p.out + lane_id(), *nowhere);
}

// OutOfBoundsError: an index beyond a local array
KERNEL(32, 1) local_index(const __grid_constant__ Params p) {
    float x[4] = {0.0f, 1.0f, 2.0f, 3.0f};
    store_global(p.out + lane_id(), x[p.n + 4]);  // HERE
}

// MisalignedError
KERNEL(32, 1) shared_alignment(const __grid_constant__ Params p) {
    sts_f32(shared_base() + 2, 1.0f);  // HERE
}

// MisalignedError: rows of a matrix are 16-byte aligned
KERNEL(32, 1) ldmatrix_alignment(const __grid_constant__ Params p) {
    u32 r[4];
    ldmatrix_x4(r, shared_base() + 8);  // HERE
}

// MisalignedError: so is the source of a copy
KERNEL(32, 1) copy_source_alignment(const __grid_constant__ Params p) {
    cp_async_16(shared_base() + 16 * lane_id(), p.in + 4, 8);  // HERE
}

// MisalignedError: and its destination
KERNEL(32, 1) copy_destination_alignment(const __grid_constant__ Params p) {
    cp_async_16(shared_base() + 8, p.in, 16);  // HERE
}

// MisalignedError
KERNEL(32, 1) global_alignment(const __grid_constant__ Params p) {
    u32 x[4];
    load_global_b128(x, p.in + 4);  // HERE
}

// ---- threads that part ----------------------------------------------------------------------------

// DivergenceError: some lanes shuffle, others do something else
KERNEL(32, 1) shuffle_in_branch(const __grid_constant__ Params p) {
    float x = 1.0f;
    if (lane_id() < 16) x = shfl_xor(x, 1);
    sync_warp();
    store_global(p.out + lane_id(), x);
}

// DivergenceError: some lanes leave
KERNEL(32, 1) early_return(const __grid_constant__ Params p) {
    if (lane_id() == 5) return;
    store_global(p.out + lane_id(), shfl_xor(1.0f, 1));  // HERE
}

// DivergenceError: two barriers in the two arms of a branch
KERNEL(64, 1) two_barriers(const __grid_constant__ Params p) {
    if (warp_id() == 0) {
        sync_block();
    } else {
        sync_block();
    }
}

// DeadlockError: a barrier that one warp never reaches
KERNEL(96, 1) warp_leaves(const __grid_constant__ Params p) {
    if (warp_id() == 1) return;
    sync_block();  // HERE
}

// ---- arithmetic, blocks ---------------------------------------------------------------------------

// EmulatorError: signed overflow means nothing
KERNEL(32, 1) overflow(const __grid_constant__ Params p) {
    const int x = 2147483647 - p.n;
    store_global(p.out + lane_id(), static_cast<float>(x + 1));  // HERE
}

// EmulatorError: division by zero
KERNEL(32, 1) division(const __grid_constant__ Params p) {
    store_global(p.out + lane_id(), static_cast<float>(7 / p.n));  // HERE
}

// RaceError: both blocks write the same place
KERNEL(32, 1) blocks_overlap(const __grid_constant__ Params p) {
    store_global(p.out + lane_id(), static_cast<float>(block_x()));  // HERE
}
