// Shared and global memory as a thread reads and writes it.
#pragma once
#include "schedule.hpp"

namespace emu {

constexpr int TAG_SHIFT = 48;  // of pointers to global memory, see global_access
constexpr int POISON = 0xff;  // a NaN in float32, bfloat16 and float16 alike

// ---- shared --------------------------------------------------------------------------------------

// Offset of `address` in the block's shared memory, if `bytes` may be accessed there.
inline u32 shared_offset(const Thread& t, u32 address, u32 bytes, int line, const char* verb) {
    const Worker& m = *worker;
    heed_cancel(m);
    const u32 offset = address - m.shared_base;
    if (address % bytes)
        fail({MISALIGNED, line, 0, t.index}, Text("address %u of the shared window", address).s,
             "thread %d %s %u bytes of shared memory at an address that %u does not divide",
             t.index, verb, bytes, bytes);
    if (address < m.shared_base || offset > m.spec->shared_bytes ||
        m.spec->shared_bytes - offset < bytes)
        fail({OUT_OF_BOUNDS, line, 0, t.index},
             Text("%u bytes at offset %d, the block has %u bytes from address %u on", bytes,
                  static_cast<int>(offset), m.spec->shared_bytes, m.shared_base).s,
             "thread %d %s shared memory outside its block's", t.index, verb);
    return offset;
}

inline void shared_load(void* to, u32 address, u32 bytes, int line) {
    Worker& m = *worker;
    Thread& t = *m.running;
    const u32 offset = shared_offset(t, address, bytes, line, "reads");
    if (m.shadow) m.shadow->read(t, offset, bytes, line);
    log_access(m, t, address, static_cast<u8>(bytes), false, line);
    m.counters.shared_loads++;
    memcpy(to, m.shared + offset, bytes);
}

inline void shared_store(u32 address, const void* from, u32 bytes, int line) {
    Worker& m = *worker;
    Thread& t = *m.running;
    const u32 offset = shared_offset(t, address, bytes, line, "writes");
    if (m.shadow) m.shadow->write(t, offset, bytes, line);
    log_access(m, t, address, static_cast<u8>(bytes), false, line);
    m.counters.shared_stores++;
    memcpy(m.shared + offset, from, bytes);
}

// ---- global --------------------------------------------------------------------------------------

[[noreturn, gnu::cold, gnu::noinline]]
inline void bad_global(const Thread& t, int meant, u64 at, u32 bytes, bool write, int line) {
    const Spec& spec = *worker->spec;
    const Region* near = nullptr;
    u64 distance = ~u64{0};
    for (int i = 0; i < spec.region_count; ++i) {
        if (meant >= 0 && i != meant) continue;
        const Region& r = spec.regions[i];
        const u64 d = at < r.begin ? r.begin - at : at - r.begin < r.bytes ? 0 : at - r.begin - r.bytes;
        if (d <= distance) distance = d, near = &r;
    }
    const char* verb = write ? "writes" : "reads";
    const Report where{OUT_OF_BOUNDS, line, 0, t.index};
    if (!near) fail(where, "", "thread %d %s global memory, and no tensor was given", t.index, verb);
    const Text numbers("%u bytes at %s %+lld, %s has %llu bytes", bytes, near->name,
                       static_cast<long long>(at - near->begin), near->name,
                       static_cast<unsigned long long>(near->bytes));
    if (write && distance == 0 && !near->writable && at - near->begin + bytes <= near->bytes)
        fail(where, numbers.s, "thread %d writes %s, which is read-only", t.index, near->name);
    if (meant >= 0)
        fail(where, numbers.s, "thread %d %s global memory outside %s, by a pointer to it", t.index,
             verb, near->name);
    fail(where, numbers.s, "thread %d %s global memory outside every tensor; the nearest is %s",
         t.index, verb, near->name);
}

// Which block wrote each two bytes of the writable tensors. Nothing orders the blocks of a launch,
// so no other block may write them again, or read them.
class Owners {
  public:
    explicit Owners(const Spec& spec) : of_region_(static_cast<size_t>(spec.region_count)) {
        for (int i = 0; i < spec.region_count; ++i)
            if (spec.regions[i].writable) of_region_[static_cast<size_t>(i)].reserve(spec.regions[i]);
    }

    void access(const Worker& m, const Thread& t, int region, u64 offset, u32 bytes, bool write,
                int line) {
        std::atomic<u32>* owner = of_region_[static_cast<size_t>(region)].cells;
        if (!owner) return;
        for (u64 i = offset / 2; i < (offset + bytes + 1) / 2; ++i) {
            const u32 other = owner[i].load(std::memory_order_relaxed);
            if (other && other != m.block_number) conflict(m, t, region, offset, other, write, line);
            if (write) owner[i].store(m.block_number, std::memory_order_relaxed);
        }
    }

  private:
    struct Cells {
        std::atomic<u32>* cells = nullptr;
        u64 bytes = 0;
        // Fresh pages are zero, and cost nothing until they are touched.
        void reserve(const Region& r) {
            bytes = (r.bytes / 2 + 2) * sizeof(u32);
            void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (p != MAP_FAILED) cells = static_cast<std::atomic<u32>*>(p);
        }
        Cells() = default;
        Cells(const Cells&) = delete;
        Cells& operator=(const Cells&) = delete;
        ~Cells() { if (cells) munmap(cells, bytes); }
    };

    [[noreturn, gnu::cold, gnu::noinline]]
    static void conflict(const Worker& m, const Thread& t, int region, u64 offset, u32 other,
                         bool write, int line) {
        const Spec& s = *m.spec;
        const u32 x = static_cast<u32>(s.grid[0]), y = static_cast<u32>(s.grid[1]), n = other - 1;
        fail({RACE, line, 0, t.index},
             Text("at %s + %llu", s.regions[region].name, static_cast<unsigned long long>(offset)).s,
             "thread %d %s global memory that block (%u, %u, %u) of the same launch wrote", t.index,
             write ? "writes" : "reads", n % x, n / x % y, n / x / y);
    }

    std::vector<Cells> of_region_;
};

// Check an access and count its bytes to the tensor it falls into. The upper 16 bits of a pointer
// say which tensor it was made for, counted from 1, so that no index leads from one into another; 0
// is any of them. Returns the address without.
inline void* global_access(const void* p, u32 bytes, u32 alignment, bool write, int line) {
    Worker& m = *worker;
    const Thread& t = *m.running;
    heed_cancel(m);
    const Spec& spec = *m.spec;
    const u64 tagged = reinterpret_cast<uintptr_t>(p), at = tagged & ((u64{1} << TAG_SHIFT) - 1);
    const int meant = static_cast<int>(tagged >> TAG_SHIFT) - 1;
    if (at % alignment)
        fail({MISALIGNED, line, 0, t.index}, Text("address %#llx", static_cast<unsigned long long>(at)).s,
             "thread %d %s %u bytes of global memory at an address that %u does not divide", t.index,
             write ? "writes" : "reads", alignment, alignment);
    const int tries = meant < 0 ? spec.region_count : meant < spec.region_count ? 1 : 0;
    for (int tried = 0, i = meant < 0 ? m.last_region : meant; tried < tries;
         ++tried, i = i + 1 == spec.region_count ? 0 : i + 1) {
        const Region& r = spec.regions[i];
        if (at - r.begin >= r.bytes || r.bytes - (at - r.begin) < bytes) continue;
        if (write && !r.writable) continue;
        if (m.owners) m.owners->access(m, t, i, at - r.begin, bytes, write, line);
        m.last_region = i;
        (write ? m.region_written : m.region_read)[static_cast<size_t>(i)] += bytes;
        (write ? m.counters.global_written : m.counters.global_read) += bytes;
        return reinterpret_cast<void*>(at);
    }
    bad_global(t, tries ? meant : -1, at, bytes, write, line);
}

// ---- cp.async -------------------------------------------------------------------------------------

inline void deliver(Worker& m, const Copy& c) {
    u8* to = m.shared + c.offset;
    if (c.bytes) memcpy(to, c.from, c.bytes);
    memset(to + c.bytes, 0, 16u - c.bytes);
}

// The hardware may move the bytes at any time between here and the wait. Either extreme is chosen
// by lot for each copy: at once (which hurts those still reading the old data), or as late as is
// legal, with poison in the meantime (which hurts those who do not wait).
inline void cp_async(u32 address, const void* from, int valid_bytes, int line) {
    Worker& m = *worker;
    Thread& t = *m.running;
    if (valid_bytes < 0 || valid_bytes > 16)
        fail({OUT_OF_BOUNDS, line, 0, t.index}, Text("valid_bytes = %d", valid_bytes).s,
             "thread %d copies a number of bytes outside 0..16", t.index);
    const u32 offset = shared_offset(t, address, 16, line, "copies to");
    const auto bytes = static_cast<u8>(valid_bytes);
    if (bytes) from = global_access(from, bytes, 16, false, line);
    if (m.shadow) m.shadow->begin_copy(t, offset, line);
    log_access(m, t, address, 16, true, line);
    m.counters.async_bytes += bytes;
    const Copy copy{static_cast<const u8*>(from), offset, t.groups, line, bytes, m.rng.coin()};
    if (copy.landed) deliver(m, copy);
    else memset(m.shared + offset, POISON, 16);
    t.copies.push_back(copy);
}

inline void cp_async_commit() { self().groups++; }

inline void cp_async_wait(u32 pending) {
    Worker& m = *worker;
    Thread& t = *m.running;
    if (t.groups <= pending) return;
    const u32 finished = t.groups - pending;  // groups with a smaller number are waited for
    size_t n = 0;
    for (; n < t.copies.size() && t.copies[n].group < finished; ++n) {
        const Copy& c = t.copies[n];
        if (!c.landed) deliver(m, c);
        if (m.shadow) m.shadow->end_copy(t, c.offset, c.line);
    }
    t.copies.erase(t.copies.begin(), t.copies.begin() + static_cast<std::ptrdiff_t>(n));
}

}  // namespace emu
