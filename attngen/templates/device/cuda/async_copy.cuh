// cp.async: copies from global to shared memory that run while the thread goes on.
// A thread closes a group of its copies with commit, and waits for groups, oldest first. Waiting
// makes the data visible to the waiting thread alone: others need a sync_block after it.

// Start copying 16 bytes. The first valid_bytes (0..16) come from `src`, the rest become zero;
// with 0 `src` is not read and may point anywhere. Both addresses are 16-byte aligned.
DEVICE_FN void cp_async_16(u32 dst, const void* src, int valid_bytes) {
    asm volatile("{\n"
                 ".reg .u64 from;\n"
                 "cvta.to.global.u64 from, %1;\n"
                 "cp.async.cg.shared.global.L2::128B [%0], [from], 16, %2;\n"
                 "}" :: "r"(dst), "l"(src), "r"(valid_bytes) : "memory");
}

// Close the group of this thread's copies started since the last commit; it may be empty.
SYNC_FN void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Wait until at most PENDING of this thread's groups, the newest ones, are unfinished.
template <int PENDING>
SYNC_FN void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" :: "n"(PENDING) : "memory");
}
