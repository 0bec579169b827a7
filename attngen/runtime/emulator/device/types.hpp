// The device layer once more, for the emulator. Same names and meanings as the CUDA one; where a
// function touches threads or memory it asks the runtime, and passes the line it was called from.

static const emu::Runtime* emu_runtime;
extern "C" __attribute__((visibility("default"))) void emu_bind(const emu::Runtime* runtime) {
    emu_runtime = runtime;
}

// How the runtime enters a kernel: it has the bytes of Params, only the compiler knows the type.
template <typename P> void emu_enter(void (*kernel)(P), const void* params) {
    P p;
    __builtin_memcpy(&p, params, sizeof p);
    kernel(p);
}
template <typename P> constexpr int emu_params_size(void (*)(P)) { return sizeof(P); }

#define DEVICE_FN __attribute__((unused)) inline
#define SYNC_FN __attribute__((unused)) inline
#define KERNEL(threads, min_blocks) extern "C" __attribute__((visibility("default"))) void
// CUDA's own words in kernel text.
#define __device__
#define __forceinline__
#define __grid_constant__

// The caller's line in the emitted text.
#define CALLED_FROM int line = __builtin_LINE()

typedef unsigned int u32;
typedef long long i64;

struct bf16_t { unsigned short bits; };
struct f16_t { unsigned short bits; };

#define NEG_INF __builtin_bit_cast(float, 0xff800000u)

DEVICE_FN u32 align_up(u32 address, u32 step) { return (address + step - 1u) & ~(step - 1u); }
