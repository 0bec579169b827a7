// The race detector: what is known about each byte of a block's shared memory.
//
// Two accesses of the same byte, at least one of them a write, race unless something orders them:
// the same thread's program order, sync_warp inside a warp, sync_block between warps. Time is an
// epoch per warp (it advances at those two), and each warp knows up to which epoch of every other
// warp things happened before its own next step (a vector clock).
//
// A cell holds the last write and, per warp, the last read. Cells cover 16 bytes while all accesses
// of those are 16 bytes wide (matrix rows, asynchronous copies), and 2 bytes otherwise.
#pragma once
#include <sys/mman.h>

#include "machine.hpp"

namespace emu {

class Shadow {
  public:
    Shadow(u32 bytes, int warps)
        : granules_((bytes + 15u) / 16u), warps_(warps),
          stride_((sizeof(Cell) + sizeof(Mark) * static_cast<u32>(warps) + 15u) & ~15u),
          split_(granules_),
          // Nine cells a granule: the whole, then its eight pieces. Untouched pages cost nothing.
          size_(size_t{stride_} * granules_ * 9 + 16),
          cells_(static_cast<u8*>(mmap(nullptr, size_, PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))) {}
    ~Shadow() { if (good()) munmap(cells_, size_); }
    Shadow(const Shadow&) = delete;
    Shadow& operator=(const Shadow&) = delete;

    bool good() const { return cells_ != MAP_FAILED; }

    void reset() {
        memset(cells_, 0, size_t{stride_} * granules_);
        memset(split_.data(), 0, split_.size());
    }

    void read(const Thread& t, u32 offset, u32 bytes, int line, bool whole_warp = false) {
        const u32 lane = whole_warp ? SEVERAL : static_cast<u32>(t.lane);
        each(offset, bytes, [&](Cell& c) {
            const bool mine = c.writer == t.index && !whole_warp;
            if (c.state != WRITTEN || !(mine || written_before(t, c)))
                bad_read(t, c, offset, bytes, line);
            Mark& mark = c.marks()[t.warp->index];
            const bool shared = mark.epoch == t.warp->epoch && mark.lane != lane;
            mark.epoch = t.warp->epoch;
            mark.lane = (shared ? SEVERAL : lane) & 63u;
            mark.line = static_cast<u32>(line) & LINE_MASK;
        });
    }

    void write(const Thread& t, u32 offset, u32 bytes, int line) {
        each(offset, bytes, [&](Cell& c) {
            check_write(t, c, offset, bytes, line);
            set(c, t, WRITTEN, line);
        }, true);
    }

    // An asynchronous copy is a write whose time is unknown until its thread has waited for it.
    void begin_copy(const Thread& t, u32 offset, int line) {
        each(offset, 16, [&](Cell& c) {
            check_write(t, c, offset, 16, line);
            set(c, t, IN_FLIGHT, line);
        }, true);
    }
    void end_copy(const Thread& t, u32 offset, int line) {
        each(offset, 16, [&](Cell& c) { set(c, t, WRITTEN, line); }, true);
    }

  private:
    enum State : u8 { NEVER, WRITTEN, IN_FLIGHT };
    static constexpr u32 SEVERAL = 32;
    static constexpr u32 LINE_MASK = (1u << 26) - 1;
    struct Mark {
        u32 epoch;
        u32 lane : 6;
        u32 line : 26;
    };
    struct Cell {
        u32 epoch;
        u16 writer;
        State state;
        int line;
        Mark* marks() { return reinterpret_cast<Mark*>(this + 1); }
    };

    // Call f on every cell under [offset, offset + bytes). A write of a whole granule makes it one
    // cell again (afterwards all its pieces say the same).
    template <typename F> void each(u32 offset, u32 bytes, F f, bool write = false) {
        const u32 g = offset >> 4;
        if (bytes == 16 && !split_[g]) {
            f(cell(g, 0));
            return;
        }
        if (!split_[g]) split(g);
        for (u32 piece = (offset & 15u) / 2, end = piece + (bytes + 1) / 2; piece < end; ++piece)
            f(cell(g, 1 + piece));
        if (write && bytes == 16) {
            // Reads before this write need no mark: what is ordered after it is after them too.
            memset(&cell(g, 0), 0, stride_);
            cell(g, 0) = cell(g, 1);
            split_[g] = 0;
        }
    }

    Cell& cell(u32 granule, u32 piece) {
        // All whole cells first, densely: reset touches those alone.
        const size_t i = piece == 0 ? granule : granules_ + size_t{granule} * 8 + piece - 1;
        return *reinterpret_cast<Cell*>(cells_ + i * stride_);
    }

    void split(u32 g) {
        for (u32 piece = 1; piece <= 8; ++piece) memcpy(&cell(g, piece), &cell(g, 0), stride_);
        split_[g] = 1;
    }

    static bool written_before(const Thread& t, const Cell& c) {
        return c.epoch <= t.warp->seen[c.writer >> 5];
    }

    void set(Cell& c, const Thread& t, State state, int line) {
        c.epoch = t.warp->epoch;
        c.writer = static_cast<u16>(t.index);
        c.state = state;
        c.line = line;
    }

    void check_write(const Thread& t, Cell& c, u32 offset, u32 bytes, int line) {
        if (c.state == IN_FLIGHT ||
            (c.state == WRITTEN && c.writer != t.index && !written_before(t, c)))
            bad_write(t, c, offset, bytes, line);
        const Warp& w = *t.warp;
        const Mark* mark = c.marks();
        for (int i = 0; i < warps_; ++i)
            if (mark[i].epoch > w.seen[i] &&
                !(i == w.index && mark[i].lane == static_cast<u32>(t.lane)))
                bad_overwrite(t, i, mark[i], offset, bytes, line);
    }

    [[noreturn, gnu::cold, gnu::noinline]]
    void bad_read(const Thread& t, const Cell& c, u32 offset, u32 bytes, int line) {
        const Text where("%u bytes at offset %u of the block's shared memory", bytes, offset);
        if (c.state == NEVER)
            fail({UNINITIALISED, line, 0, t.index}, where.s,
                 "thread %d reads shared memory that nothing has written", t.index);
        if (c.state == IN_FLIGHT)
            fail({UNINITIALISED, line, c.line, t.index}, where.s,
                 "thread %d reads shared memory while an asynchronous copy into it, started by "
                 "thread %d in line %d, has not been waited for", t.index, c.writer, c.line);
        fail({RACE, line, c.line, t.index}, where.s,
             "thread %d reads shared memory that thread %d wrote in line %d, with %s between "
             "(read after write)", t.index, c.writer, c.line, missing(t, c.writer >> 5));
    }

    [[noreturn, gnu::cold, gnu::noinline]]
    void bad_write(const Thread& t, const Cell& c, u32 offset, u32 bytes, int line) {
        const Text where("%u bytes at offset %u of the block's shared memory", bytes, offset);
        if (c.state == IN_FLIGHT)
            fail({RACE, line, c.line, t.index}, where.s,
                 "thread %d writes shared memory while an asynchronous copy into it, started by "
                 "thread %d in line %d, is in flight", t.index, c.writer, c.line);
        fail({RACE, line, c.line, t.index}, where.s,
             "thread %d writes shared memory that thread %d wrote in line %d, with %s between "
             "(write after write)", t.index, c.writer, c.line, missing(t, c.writer >> 5));
    }

    [[noreturn, gnu::cold, gnu::noinline]]
    void bad_overwrite(const Thread& t, int reader_warp, Mark mark, u32 offset, u32 bytes, int line) {
        const Text where("%u bytes at offset %u of the block's shared memory", bytes, offset);
        const Text reader(mark.lane == SEVERAL ? "lanes of warp %d" : "thread %d",
                          mark.lane == SEVERAL ? reader_warp
                                               : reader_warp * 32 + static_cast<int>(mark.lane));
        fail({RACE, line, static_cast<int>(mark.line), t.index}, where.s,
             "thread %d writes shared memory that %s read in line %d, with %s between "
             "(write after read)", t.index, reader.s, static_cast<int>(mark.line),
             missing(t, reader_warp));
    }

    static const char* missing(const Thread& t, int other_warp) {
        return other_warp == t.warp->index ? "neither sync_warp nor sync_block" : "no sync_block";
    }

    u32 granules_;
    int warps_;
    u32 stride_;
    std::vector<u8> split_;
    size_t size_;
    u8* cells_;
};

}  // namespace emu
