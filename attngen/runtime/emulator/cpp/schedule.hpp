// Which thread runs next. The order is random but a function of the seed and the block alone.
//
// A thread runs until it must wait. Inside a warp lanes follow each other by a stride that changes
// with every instruction they execute together; between warps the highest priority wins, and priorities are reshuffled now and then, which drives some warps
// far ahead of others (orders that a fair schedule would never show).
#pragma once
#include "banks.hpp"
#include "shadow.hpp"

namespace emu {

inline int any_lane(u32 ready, Rng& rng) {
    const u32 shift = rng.next() & 31u;
    const u32 turned = shift ? (ready >> shift) | (ready << (32u - shift)) : ready;
    return static_cast<int>((static_cast<u32>(__builtin_ctz(turned)) + shift) & 31u);
}

inline Warp* best_warp(Worker& w) {
    Warp* best = nullptr;
    for (Warp& candidate : w.warps)
        if (candidate.ready && (!best || candidate.priority > best->priority)) best = &candidate;
    return best;
}

inline void switch_to(Worker& w, Thread& from, Thread& to) {
    if (&from == &to) return;
    w.counters.switches++;
    w.running = &to;
    fiber_switch(from.fiber, to.fiber);
}

// ---- nobody can run ----------------------------------------------------------------------------

[[noreturn, gnu::cold, gnu::noinline]] inline void stuck(Worker& w) {
    char list[300];
    size_t used = 0;
    int waiting = 0, line = 0;
    for (const Warp& x : w.warps) {
        if (x.exited != ALL_LANES && !line) line = x.line;
        waiting += x.at_barrier ? 32 : 0;
        if (used >= sizeof list - 1) continue;
        used += static_cast<size_t>(snprintf(
            list + used, sizeof list - used, "%swarp %d %s line %d", used ? "; " : "", x.index,
            x.exited == ALL_LANES ? "has exited after" : "waits at sync_block", x.line));
    }
    fail({DEADLOCK, line}, list, "%d of %d threads wait at a barrier that the others never reach",
         waiting, w.spec->threads);
}

[[noreturn, gnu::cold, gnu::noinline]]
inline void diverged(const Thread& t, Op op, int line) {
    const Warp& w = *t.warp;
    const int other = w.arrived ? __builtin_ctz(w.arrived) : __builtin_ctz(w.exited | 1u << 31);
    const Report where{DIVERGENCE, line, w.arrived ? w.line : 0, t.index};
    if (!w.arrived)
        fail(where, "", "warp %d: lane %d is at %s in line %d, lane %d has left the kernel", w.index,
             t.lane, name_of(op), line, other);
    fail(where, "", "warp %d: lane %d is at %s in line %d, lane %d at %s in line %d", w.index,
         t.lane, name_of(op), line, other, name_of(w.op), w.line);
}

// ---- waiting -----------------------------------------------------------------------------------

[[gnu::noinline]] inline void leave_lane(Worker& m, Thread& t) {
    Warp* next = t.warp->ready ? t.warp : best_warp(m);
    if (!next) stuck(m);
    switch_to(m, t, next->threads[any_lane(next->ready, m.rng)]);
}

// The running thread cannot go on: run another. Returns when this one has been made ready.
inline __attribute__((always_inline)) void wait_here(Worker& m, Thread& t) {
    const Warp& w = *t.warp;
    const u32 lane = (static_cast<u32>(t.lane) + w.stride) & 31u;
    if (!(w.ready >> lane & 1u)) [[unlikely]] return leave_lane(m, t);
    // The lane after the next one: its stack can be on its way while the next one runs.
    const auto* stack = static_cast<const char*>(w.threads[(lane + w.stride) & 31u].fiber.stack());
    for (int line = 0; line < 5; ++line) __builtin_prefetch(stack + 64 * line);
    switch_to(m, t, w.threads[lane]);
}

// The running thread could go on: perhaps let another warp run first.
inline void maybe_preempt(Worker& m, Thread& t) {
    if (!m.rng.one_in_16()) return;
    heed_cancel(m);
    t.warp->priority = m.rng.next();
    Warp* next = best_warp(m);
    if (next != t.warp) switch_to(m, t, next->threads[any_lane(next->ready, m.rng)]);
}

using Execute = void (*)(Worker&, Warp&);

[[gnu::noinline]] inline void last_lane(Worker& m, Thread& t, Execute execute) {
    Warp& w = *t.warp;
    w.arrived = 0;
    w.ready = ALL_LANES;
    w.stride = m.rng.next() | 1u;
    if (w.bank_used) flush_bank_log(m, w);
    execute(m, w);
    maybe_preempt(m, t);
}

// One lane reaches an instruction of the whole warp. The last to come executes it for all and goes
// on; the others were waiting and become ready.
inline __attribute__((always_inline)) void warp_instruction(Op op, int line, Execute execute) {
    Worker& m = *worker;
    Thread& t = *m.running;
    Warp& w = *t.warp;
    if (w.arrived == 0) {
        if (w.exited) [[unlikely]] diverged(t, op, line);
        w.op = op;
        w.line = line;
    } else if (w.op != op || w.line != line) [[unlikely]] {
        diverged(t, op, line);
    }
    const u32 bit = 1u << t.lane;
    w.arrived |= bit;
    if (w.arrived == ALL_LANES) [[unlikely]] {
        last_lane(m, t, execute);
    } else {
        w.ready &= ~bit;
        wait_here(m, t);
    }
}

// ---- synchronisation ---------------------------------------------------------------------------

inline void next_epoch(Warp& w) { w.seen[w.index] = w.epoch++; }

inline void sync_warp(int line) {
    warp_instruction(Op::SYNC_WARP, line, [](Worker& m, Warp& w) {
        m.counters.warp_syncs++;
        next_epoch(w);
    });
}

inline void release_barrier(Worker& m) {
    for (Warp& w : m.warps) {
        for (const Warp& other : m.warps) w.seen[other.index] = other.epoch;
        w.ready = ALL_LANES;
        w.at_barrier = false;
        w.priority = m.rng.next();
    }
    for (Warp& w : m.warps) next_epoch(w);
    m.barrier_arrivals = 0;
    m.counters.block_syncs++;
}

inline void sync_block(int line) {
    warp_instruction(Op::SYNC_BLOCK, line, [](Worker& m, Warp& w) {
        Thread& t = *m.running;
        const int line = w.line;
        if (m.barrier_arrivals++ == 0) m.barrier_line = line;
        if (m.barrier_line != line)
            fail({DIVERGENCE, line, m.barrier_line, t.index}, "",
                 "warp %d is at sync_block in line %d, others wait at sync_block in line %d",
                 w.index, line, m.barrier_line);
        w.at_barrier = true;
        w.ready = 0;
        if (m.barrier_arrivals == static_cast<int>(m.warps.size())) {
            release_barrier(m);
            Warp& next = *best_warp(m);
            switch_to(m, t, next.threads[any_lane(next.ready, m.rng)]);
        } else {
            wait_here(m, t);
        }
    });
}

// ---- the beginning and the end of a thread ------------------------------------------------------

void thread_exit();

inline void thread_entry() {
    worker->spec->invoke(worker->spec->params);
    thread_exit();
}

inline void thread_exit() {
    Worker& m = *worker;
    Thread& t = *m.running;
    Warp& w = *t.warp;
    for (const Copy& c : t.copies)
        if (c.bytes)
            fail({RACE, c.line, 0, t.index}, Text("%zu copies unfinished", t.copies.size()).s,
                 "an asynchronous copy is still in flight when its thread leaves the kernel");
    if (w.arrived) {
        fail({DIVERGENCE, w.line, 0, t.index}, "",
             "warp %d: lane %d left the kernel while lane %d is at %s in line %d", w.index, t.lane,
             __builtin_ctz(w.arrived), name_of(w.op), w.line);
    }
    const u32 bit = 1u << t.lane;
    w.exited |= bit;
    w.ready &= ~bit;
    if (w.exited == ALL_LANES && w.bank_used) flush_bank_log(m, w);
    if (--m.live == 0) {
        m.in_fiber = false;
        fiber_switch(t.fiber, m.main);
    }
    wait_here(m, t);
    __builtin_unreachable();
}

}  // namespace emu
