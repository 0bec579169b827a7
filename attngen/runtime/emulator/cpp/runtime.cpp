// The emulator's runtime library: launching, and the C functions that device headers call.
#include "faults.hpp"
#include "matrix.hpp"
#include "../device/runtime.hpp"

#include <condition_variable>
#include <chrono>
#include <memory>
#include <thread>

namespace emu {

// ---- one block ----------------------------------------------------------------------------------

static void prepare_block(Worker& m, long long block) {
    const Spec& s = *m.spec;
    m.block[0] = static_cast<int>(block % s.grid[0]);
    m.block[1] = static_cast<int>(block / s.grid[0] % s.grid[1]);
    m.block[2] = static_cast<int>(block / s.grid[0] / s.grid[1]);
    m.block_number = static_cast<u32>(block + 1);
    m.rng.seed(s.seed, static_cast<u64>(block));
    // Dynamic shared memory starts anywhere that 16 divides.
    m.shared_base = 16 * (m.rng.next() % 64);
    memset(m.shared, POISON, s.shared_bytes);
    if (m.shadow) m.shadow->reset();
    m.live = s.threads;
    m.barrier_arrivals = 0;
    for (Warp& w : m.warps) {
        w.ready = ALL_LANES;
        w.exited = w.arrived = 0;
        w.line = 0;
        w.at_barrier = false;
        w.priority = m.rng.next();
        w.stride = m.rng.next() | 1u;
        w.epoch = 1;
        memset(w.seen, 0, sizeof w.seen);
        w.bank_used = 0;
    }
    for (int i = 0; i < s.threads; ++i) {
        Thread& t = m.threads[static_cast<size_t>(i)];
        t.log_position = t.groups = 0;
        t.copies.clear();
        fiber_start(t.fiber, m.stacks.low(i), m.stacks.top(i), thread_entry);
    }
}

static bool run_block(Worker& m, long long block) {
    prepare_block(m, block);
    m.error.kind = NO_ERROR;
    if (sigsetjmp(m.escape, 1) == 0) {
        Warp* first = best_warp(m);
        m.running = &first->threads[any_lane(first->ready, m.rng)];
        m.in_fiber = true;
        fiber_switch(m.main, m.running->fiber);
    }
    return m.error.kind == NO_ERROR;
}

// ---- one launch ---------------------------------------------------------------------------------

class Launch {
  public:
    explicit Launch(const Spec& s) : spec_(s), blocks_(1LL * s.grid[0] * s.grid[1] * s.grid[2]) {
        read_.resize(static_cast<size_t>(s.region_count));
        written_.resize(static_cast<size_t>(s.region_count));
        if (s.detect_races) owners_ = std::make_unique<Owners>(s);
        const auto wanted = std::min<long long>(std::max(s.workers, 1), blocks_);
        unfinished_ = static_cast<int>(wanted);
        for (int i = 0; i < wanted; ++i) threads_.emplace_back([this] { work(); });
    }

    bool wait(int milliseconds) {
        std::unique_lock<std::mutex> hold(lock_);
        return done_.wait_for(hold, std::chrono::milliseconds(milliseconds),
                              [this] { return unfinished_ == 0; });
    }
    void cancel() { cancel_ = true; }

    void finish(Error* error, Counters* counters, u64* read, u64* written) {
        for (std::thread& t : threads_) t.join();
        *error = error_;
        *counters = counters_;
        memcpy(read, read_.data(), read_.size() * sizeof(u64));
        memcpy(written, written_.data(), written_.size() * sizeof(u64));
    }

  private:
    void work() {
        auto owner = std::make_unique<Worker>();
        Worker& m = *owner;
        m.spec = &spec_;
        m.cancel = &cancel_;
        m.stacks = Stacks::take(spec_.threads);
        m.threads.resize(static_cast<size_t>(spec_.threads));
        m.warps.resize(static_cast<size_t>(spec_.threads / 32));
        for (int i = 0; i < spec_.threads; ++i) {
            Thread& t = m.threads[static_cast<size_t>(i)];
            t.index = i;
            t.lane = i % 32;
            t.warp = &m.warps[static_cast<size_t>(i / 32)];
        }
        for (size_t i = 0; i < m.warps.size(); ++i) {
            m.warps[i].index = static_cast<int>(i);
            m.warps[i].threads = &m.threads[32 * i];
        }
        std::vector<u8> shared(spec_.shared_bytes + 16);
        m.shared = shared.data() + (-reinterpret_cast<uintptr_t>(shared.data()) & 15u);
        std::unique_ptr<Shadow> shadow;
        if (spec_.detect_races)
            shadow = std::make_unique<Shadow>(spec_.shared_bytes, spec_.threads / 32);
        m.shadow = shadow.get();
        m.owners = owners_.get();
        m.region_read.resize(read_.size());
        m.region_written.resize(read_.size());
        worker = &m;
        SignalStack stack;
        const bool memory = m.stacks.good() && (!shadow || shadow->good());
        if (!memory) failed(out_of_memory(), next_++);
        // Blocks are handed out in order, so every block before a failed one is run to its end:
        // the first error of the launch is the same whatever the number of workers.
        for (long long block; memory && (block = next_++) < blocks_ && !stop_ && !cancel_;)
            if (!run_block(m, block)) failed(m.error, block);
        worker = nullptr;
        if (m.stacks.good()) m.stacks.give_back();
        merge(m);
    }

    static Error out_of_memory() {
        Error e = {};
        e.kind = FAULT;
        e.thread = -1;
        snprintf(e.what, sizeof e.what, "this machine has no memory left for the emulated threads");
        return e;
    }

    void failed(const Error& e, long long block) {
        std::lock_guard<std::mutex> hold(lock_);
        stop_ = true;
        if (error_.kind != NO_ERROR && block > error_block_) return;
        error_ = e;
        error_block_ = block;
    }

    void merge(const Worker& m) {
        std::lock_guard<std::mutex> hold(lock_);
        const auto* from = reinterpret_cast<const u64*>(&m.counters);
        auto* to = reinterpret_cast<u64*>(&counters_);
        for (size_t i = 0; i < sizeof(Counters) / sizeof(u64); ++i) to[i] += from[i];
        for (size_t i = 0; i < read_.size(); ++i) {
            read_[i] += m.region_read[i];
            written_[i] += m.region_written[i];
        }
        if (--unfinished_ == 0) done_.notify_all();
    }

    const Spec spec_;
    const long long blocks_;
    SignalGuard signals_;
    std::unique_ptr<Owners> owners_;
    std::vector<std::thread> threads_;
    std::atomic<long long> next_{0};
    std::atomic<bool> stop_{false}, cancel_{false};
    std::mutex lock_;
    std::condition_variable done_;
    int unfinished_ = 0;
    Error error_ = {};
    long long error_block_ = 0;
    Counters counters_ = {};
    std::vector<u64> read_, written_;
};

// ---- for device headers ---------------------------------------------------------------------------

static const Runtime RUNTIME = {
    [] { return self().index; },
    warp_id,
    [](int axis) { return worker->block[axis]; },
    sync_block,
    sync_warp,
    shfl_xor,
    ballot,
    [] { return worker->shared_base; },
    shared_load,
    shared_store,
    cp_async,
    cp_async_commit,
    cp_async_wait,
    ldmatrix<2, false>,
    ldmatrix<4, false>,
    ldmatrix<2, true>,
    ldmatrix<4, true>,
    mma<Op::MMA_BF16, widen_bf16>,
    mma<Op::MMA_F16, widen_f16>,
    [](const void* p, u32 bytes, bool write, int line) {
        return global_access(p, bytes, bytes, write, line);
    },
    bad_index,
    bad_arithmetic,
};

}  // namespace emu

// ---- for Python ---------------------------------------------------------------------------------

#define EMU_EXPORT extern "C" __attribute__((visibility("default")))

EMU_EXPORT const emu::Runtime* emu_runtime() { return &emu::RUNTIME; }
EMU_EXPORT emu::Launch* emu_start(const emu::Spec* spec) { return new emu::Launch(*spec); }
EMU_EXPORT int emu_wait(emu::Launch* launch, int milliseconds) { return launch->wait(milliseconds); }
EMU_EXPORT void emu_cancel(emu::Launch* launch) { launch->cancel(); }
EMU_EXPORT void emu_finish(emu::Launch* launch, emu::Error* error, emu::Counters* counters,
                           emu::u64* read, emu::u64* written) {
    launch->finish(error, counters, read, written);
    delete launch;
}
