// Bank conflicts. Shared memory has 32 banks of 4 bytes; one access of a warp is served in phases
// of 128 bytes (32 lanes of up to 4 bytes, 8 lanes of 16), and a phase takes one more turn for each
// further distinct word wanted from the same bank. The count is of those extra turns.
#pragma once
#include "machine.hpp"

namespace emu {

// Extra turns of one phase: n addresses, each of `bytes`.
inline u32 phase_conflicts(const u32* address, int n, u32 bytes) {
    if (bytes == 16) {
        // Four neighbouring banks at a time: rows of 16 bytes collide whole or not at all.
        u32 taken = 0;
        for (int i = 0; i < n; ++i) taken |= 1u << ((address[i] >> 4) & 7u);
        if (__builtin_popcount(taken) == n) return 0;
    }
    const u32 shift = bytes == 16 ? 4 : 2, banks = bytes == 16 ? 8 : 32;
    u32 worst = 1, turns[32] = {};
    for (int i = 0; i < n; ++i) {
        const u32 unit = address[i] >> shift;
        bool seen = false;
        for (int j = 0; j < i && !seen; ++j) seen = address[j] >> shift == unit;
        if (seen) continue;
        const u32 count = ++turns[unit % banks];
        if (count > worst) worst = count;
    }
    return worst - 1;
}

inline u32 access_conflicts(const BankSlot& slot) {
    u32 extra = 0, address[32];
    const int lanes_per_phase = slot.bytes == 16 ? 8 : 32;
    for (int first = 0; first < 32; first += lanes_per_phase) {
        int n = 0;
        for (int lane = first; lane < first + lanes_per_phase; ++lane)
            if (slot.lanes >> lane & 1u) address[n++] = slot.address[lane];
        if (n > 1) extra += phase_conflicts(address, n, slot.bytes);
    }
    return extra;
}

inline void flush_bank_log(Worker& m, Warp& w) {
    for (u32 i = 0; i < w.bank_used; ++i) {
        const BankSlot& slot = w.bank_log[i];
        (slot.async ? m.counters.conflicts_async : m.counters.conflicts_shared) +=
            access_conflicts(slot);
    }
    w.bank_used = 0;
    for (int lane = 0; lane < 32; ++lane) w.threads[lane].log_position = 0;
}

// Lanes run one after another here, so an instruction's 32 addresses arrive one at a time: the
// k-th access of each lane belongs together as long as the lines agree; a lane that skipped some
// moves on to the next slot of its line.
inline void log_access(Worker&, Thread& t, u32 address, u8 bytes, bool async, int line) {
    Warp& w = *t.warp;
    u32 i = t.log_position;
    while (i < w.bank_used && (w.bank_log[i].line != line || w.bank_log[i].bytes != bytes)) ++i;
    if (i == w.bank_used) {
        if (i == w.bank_log.size()) w.bank_log.resize(i ? 2 * i : 64);
        BankSlot& fresh = w.bank_log[w.bank_used++];
        fresh.line = line;
        fresh.bytes = bytes;
        fresh.async = async;
        fresh.lanes = 0;
    }
    BankSlot& slot = w.bank_log[i];
    slot.lanes |= 1u << t.lane;
    slot.address[t.lane] = address;
    t.log_position = i + 1;
}

}  // namespace emu
