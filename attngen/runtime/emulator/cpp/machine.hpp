// The emulated machine: what a launch asks for, and the state of one block while it runs.
#pragma once
#include <setjmp.h>

#include <atomic>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "fiber.hpp"

namespace emu {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;

constexpr u32 ALL_LANES = 0xffffffffu;
constexpr int MAX_WARPS = 32;

// ---- what crosses the border to Python (mirrored in abi.py) --------------------------------

enum Kind : int {
    NO_ERROR, RACE, OUT_OF_BOUNDS, DEADLOCK, DIVERGENCE, UNINITIALISED, MISALIGNED, FAULT, CANCELLED
};

struct Error {
    int kind;
    int line;        // of the emitted text; 0 when unknown
    int other_line;  // the access it collides with, or 0
    int thread;      // -1 when it is not one thread's
    int block[3];
    char what[700];
    char numbers[300];
};

struct Region {
    u64 begin, bytes;
    int writable;
    char name[60];
};

struct Counters {
    u64 global_read, global_written, async_bytes;
    u64 mma, ldmatrix, shared_loads, shared_stores, shuffles;
    u64 conflicts_ldmatrix, conflicts_shared, conflicts_async;
    u64 block_syncs, warp_syncs, switches;
};

struct Spec {
    void (*invoke)(const void* params);
    const void* params;
    int grid[3];
    int threads;
    u32 shared_bytes;
    int workers;
    int detect_races;
    int region_count;
    u64 seed;
    const Region* regions;
};

// ---- one block --------------------------------------------------------------------------------

// Small, fast, and the same sequence on every machine.
struct Rng {
    u64 state = 1;
    void seed(u64 a, u64 b) { state = mix(mix(a) + b) | 1; }
    u32 next() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        return static_cast<u32>(state >> 24);
    }
    bool one_in_16() { return (next() & 15u) == 0; }
    bool coin() { return (next() & 1u) != 0; }

  private:
    static u64 mix(u64 z) {
        z += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }
};

// Instructions that all lanes of a warp execute together.
enum class Op : u8 {
    NONE, SYNC_BLOCK, SYNC_WARP, WARP_ID, SHFL_XOR, BALLOT, LDMATRIX_X2, LDMATRIX_X4,
    LDMATRIX_X2_TRANS, LDMATRIX_X4_TRANS, MMA_BF16, MMA_F16
};
inline const char* name_of(Op op) {
    static const char* const names[] = {
        "nothing", "sync_block", "sync_warp", "warp_id", "shfl_xor", "ballot", "ldmatrix_x2",
        "ldmatrix_x4", "ldmatrix_x2_trans", "ldmatrix_x4_trans",
        "mma_m16n8k16 (bf16)", "mma_m16n8k16 (f16)"};
    return names[static_cast<int>(op)];
}

// One cp.async on its way.
struct Copy {
    const u8* from;
    u32 offset;  // destination, in bytes from the start of the block's shared memory
    u32 group;
    int line;
    u8 bytes;
    bool landed;  // the bytes are there already; whether they may be looked at is another matter
};

struct Warp;

struct Thread {
    Fiber fiber;
    Warp* warp;
    int index, lane;
    u32 log_position;  // next slot of the warp's bank log
    u32 groups;        // committed so far; copies not yet committed carry this number
    std::vector<Copy> copies;
};

// Lanes' shared-memory accesses since their last common instruction, to find bank conflicts.
struct BankSlot {
    int line;
    u8 bytes;
    bool async;
    u32 lanes;
    u32 address[32];
};

// C += A B of one mma, as numbers, in rows and columns.
struct MmaOperands {
    alignas(32) float a[16][16], b[16][8], c[16][8];
};

struct Warp {
    Thread* threads;  // 32 of them
    int index;
    u32 ready, exited;     // lanes that can run; lanes that are done
    u32 arrived;           // lanes waiting at `op` in line `line`
    Op op;
    int line;
    bool at_barrier;
    u32 priority;
    u32 stride;  // odd: from one lane to the next
    // Happens-before: events of warp w up to epoch seen[w] come before what this warp does now.
    // Its own entry is epoch - 1: lanes are ordered among themselves by synchronisation only.
    u32 epoch;
    u32 seen[MAX_WARPS];
    std::vector<BankSlot> bank_log;
    u32 bank_used;
    // Operands and results on their way between lanes.
    u32 row_address[32];
    u16 rows[32][8];
    float offered[32], received[32];
    MmaOperands mma;
};

class Shadow;
class Owners;

// One OS thread's workplace: runs blocks one after another.
struct Worker {
    const Spec* spec;
    std::atomic<bool>* cancel;
    Fiber main;
    Stacks stacks;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    Thread* running;
    int live;  // threads that have not exited
    int block[3];
    Rng rng;
    u8* shared;
    u32 shared_base;
    int barrier_arrivals, barrier_line;
    Shadow* shadow;  // null: races are not looked for
    Owners* owners;
    u32 block_number;  // from 1
    Counters counters;
    std::vector<u64> region_read, region_written;
    int last_region;
    Error error;
    sigjmp_buf escape;
    bool in_fiber;
};

inline thread_local Worker* worker = nullptr;

inline Thread& self() { return *worker->running; }

// End the block with an error. The fibers are simply abandoned: their frames own nothing.
struct Report {
    Kind kind;
    int line;
    int other_line = 0;
    int thread = -1;
};

[[noreturn]] inline void leave_block() {
    Worker& w = *worker;
    w.in_fiber = false;
    fiber_switch(w.running->fiber, w.main);
    __builtin_unreachable();
}

inline void record(const Report& r, const char* numbers, const char* format, va_list values) {
    Error& e = worker->error;
    e.kind = r.kind;
    e.line = r.line;
    e.other_line = r.other_line;
    e.thread = r.thread;
    for (int i = 0; i < 3; ++i) e.block[i] = worker->block[i];
    vsnprintf(e.what, sizeof e.what, format, values);
    snprintf(e.numbers, sizeof e.numbers, "%s", numbers);
}

[[noreturn, gnu::format(printf, 3, 4), gnu::cold, gnu::noinline]]
inline void fail(const Report& r, const char* numbers, const char* format, ...) {
    va_list values;
    va_start(values, format);
    record(r, numbers, format, values);
    va_end(values);
    leave_block();
}

// Called wherever a thread reaches the runtime often: a launch that is given up ends there.
inline void heed_cancel(const Worker& m) {
    if (m.cancel->load(std::memory_order_relaxed)) [[unlikely]]
        fail({CANCELLED, 0}, "", "the launch was cancelled");
}

// "offset 64 of 4096 bytes of shared memory", and similar: text for an error's numbers.
struct Text {
    char s[300];
    [[gnu::format(printf, 2, 3)]] explicit Text(const char* format, ...) {
        va_list values;
        va_start(values, format);
        vsnprintf(s, sizeof s, format, values);
        va_end(values);
    }
};

}  // namespace emu
