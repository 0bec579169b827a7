// Faults of the kernel text that the compiler's checks or the processor notice: an index outside a
// register array, integer overflow, a wild pointer, a stack that overflows.
#pragma once
#include <signal.h>

#include <mutex>

#include "machine.hpp"

namespace emu {

// ---- signals ------------------------------------------------------------------------------------

constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};

// While launches are under way our handler is installed; a fault that is not a fiber's goes to
// whoever had the signal before.
class SignalGuard {
  public:
    SignalGuard() {
        std::lock_guard<std::mutex> hold(lock());
        if (users()++) return;
        struct sigaction mine = {};
        mine.sa_sigaction = handle;
        mine.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigemptyset(&mine.sa_mask);
        for (int i = 0; i < 4; ++i) sigaction(SIGNALS[i], &mine, &previous()[i]);
    }
    ~SignalGuard() {
        std::lock_guard<std::mutex> hold(lock());
        if (--users()) return;
        for (int i = 0; i < 4; ++i) sigaction(SIGNALS[i], &previous()[i], nullptr);
    }

  private:
    static std::mutex& lock() { static std::mutex m; return m; }
    static int& users() { static int n = 0; return n; }
    static struct sigaction* previous() { static struct sigaction p[4]; return p; }

    static void describe(const Report& r, const char* numbers, const char* format, ...) {
        va_list values;
        va_start(values, format);
        record(r, numbers, format, values);
        va_end(values);
    }

    static void handle(int signal, siginfo_t* info, void*) {
        Worker* m = worker;
        if (!m || !m->in_fiber) {
            for (int i = 0; i < 4; ++i)
                if (SIGNALS[i] == signal) sigaction(signal, &previous()[i], nullptr);
            return;  // the instruction faults again, under the old handler
        }
        const Text address("address %p", info->si_addr);
        const Report where{signal == SIGSEGV || signal == SIGBUS ? OUT_OF_BOUNDS : FAULT, 0, 0,
                           m->running->index};
        if (signal == SIGSEGV && m->stacks.is_guard(info->si_addr))
            describe(where, "128 KiB a thread", "thread %d: local arrays overflow the stack",
                     m->running->index);
        else
            describe(where, address.s, "thread %d: %s", m->running->index,
                     signal == SIGFPE ? "integer division by zero or overflow"
                     : signal == SIGILL ? "the processor refused an instruction"
                                        : "a pointer was used that no device function checked");
        m->in_fiber = false;
        siglongjmp(m->escape, 1);
    }
};

// A handler for a full stack needs a stack of its own.
class SignalStack {
  public:
    SignalStack() : memory_(64 * 1024) {
        stack_t mine = {};
        mine.ss_sp = memory_.data();
        mine.ss_size = memory_.size();
        sigaltstack(&mine, &previous_);
    }
    ~SignalStack() { sigaltstack(&previous_, nullptr); }

  private:
    std::vector<char> memory_;
    stack_t previous_ = {};
};

// ---- the compiler's checks (device/checks.hpp) ----------------------------------------------------

inline void bad_index(long long index, const char* array, int line) {
    fail({OUT_OF_BOUNDS, line, 0, self().index}, Text("index %lld, the array is %s", index, array).s,
         "thread %d: index outside a local array", self().index);
}

inline void bad_arithmetic(const char* what, const char* type, int line) {
    fail({FAULT, line, 0, self().index}, Text("in %s", type).s, "thread %d: %s", self().index, what);
}

}  // namespace emu
