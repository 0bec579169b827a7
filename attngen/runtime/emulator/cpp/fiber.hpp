// A CUDA thread is a fiber: a stack of its own and a saved stack pointer. Switching between two
// costs a few nanoseconds on x86-64; elsewhere (or with EMU_PORTABLE_FIBERS) ucontext does it.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <vector>

#if !defined(__x86_64__) && !defined(EMU_PORTABLE_FIBERS)
#define EMU_PORTABLE_FIBERS
#endif
#ifdef EMU_PORTABLE_FIBERS
#include <ucontext.h>
#endif

namespace emu {

#ifdef EMU_PORTABLE_FIBERS

struct Fiber {
    ucontext_t context;
    const void* stack() const { return &context; }
};

inline void fiber_start(Fiber& f, char* low, char* top, void (*entry)()) {
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = low;
    f.context.uc_stack.ss_size = static_cast<size_t>(top - low);
    f.context.uc_link = nullptr;
    makecontext(&f.context, entry, 0);
}

inline void fiber_switch(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }

#else

struct Fiber {
    void *sp, *resume, *frame;
    const void* stack() const { return sp; }
};

inline void fiber_start(Fiber& f, char*, char* top, void (*entry)()) {
    // `entry` must find the stack as after a call: 8 below a multiple of 16.
    f.sp = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(top) & ~uintptr_t{15}) - 8);
    f.resume = reinterpret_cast<void*>(entry);
    f.frame = nullptr;
}

// Leave the stack pointer, the frame pointer and where to go on in `from`, take them from `to`. The
// compiler keeps what else it needs, as all other registers are declared lost. Inline, with no
// call and no push: the time of a switch is the time to fetch cold stack lines.
inline __attribute__((always_inline)) void fiber_switch(Fiber& from, Fiber& to) {
    Fiber *leave = &from, *enter = &to;
    asm volatile(
        "leaq 1f(%%rip), %%rax\n\t"
        "movq %%rsp, 0(%0)\n\t"
        "movq %%rax, 8(%0)\n\t"
        "movq %%rbp, 16(%0)\n\t"
        "movq 0(%1), %%rsp\n\t"
        "movq 16(%1), %%rbp\n\t"
        "jmpq *8(%1)\n"
        "1:\n"
        : "+D"(leave), "+S"(enter)
        :
        : "rax", "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
          "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
          "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "memory", "cc");
}

#endif

// Stacks for the threads of one block, each with a page below that faults when it overflows.
// Handed back to a pool, because mapping and touching them anew costs more than a small launch.
class Stacks {
  public:
    static constexpr size_t SIZE = 128 * 1024;
    Stacks() = default;

    static Stacks take(int count) {
        std::lock_guard<std::mutex> hold(pool_lock());
        auto& pool = pool_list();
        for (size_t i = 0; i < pool.size(); ++i)
            if (pool[i].count_ >= count) {
                Stacks s = pool[i];
                pool.erase(pool.begin() + static_cast<ptrdiff_t>(i));
                return s;
            }
        return Stacks(count);
    }

    void give_back() {
        std::lock_guard<std::mutex> hold(pool_lock());
        pool_list().push_back(*this);
        // Keep what a few workers need; drop the smallest beyond that.
        if (auto& pool = pool_list(); pool.size() > 16) {
            munmap(pool.front().base_, SIZE * static_cast<size_t>(pool.front().count_));
            pool.erase(pool.begin());
        }
    }

    bool good() const { return base_ != nullptr; }
    char* low(int i) const { return base_ + SIZE * static_cast<size_t>(i) + page(); }
    // Tops are staggered: equally spaced stacks would all fall into the same cache sets.
    char* top(int i) const {
        return base_ + SIZE * static_cast<size_t>(i + 1) - (static_cast<size_t>(i) * 1088) % 24576;
    }

    bool is_guard(const void* address) const {
        const auto offset = static_cast<size_t>(static_cast<const char*>(address) - base_);
        return offset < SIZE * static_cast<size_t>(count_) && offset % SIZE < page();
    }

  private:
    explicit Stacks(int count) : count_(count) {
        const size_t bytes = SIZE * static_cast<size_t>(count);
        void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) return;
        base_ = static_cast<char*>(p);
        for (int i = 0; i < count; ++i)
            mprotect(base_ + SIZE * static_cast<size_t>(i), page(), PROT_NONE);
    }
    static size_t page() {
        static const auto size = static_cast<size_t>(sysconf(_SC_PAGESIZE));
        return size;
    }
    static std::mutex& pool_lock() { static std::mutex lock; return lock; }
    static std::vector<Stacks>& pool_list() { static std::vector<Stacks> pool; return pool; }

    char* base_ = nullptr;
    int count_ = 0;
};

}  // namespace emu
