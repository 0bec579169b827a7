// Words every other file of the device layer uses. No header is included anywhere: NVRTC's
// built-ins and the typedefs below are all there is.

#define DEVICE_FN __device__ __forceinline__
// Same qualifiers. The mark says "threads order their memory accesses through this function";
// the mutation tests delete calls of marked functions, one at a time.
#define SYNC_FN __device__ __forceinline__
// Head of a kernel: extern "C" keeps its name readable in the binary.
#define KERNEL(threads, min_blocks) \
    extern "C" __global__ void __launch_bounds__(threads, min_blocks)

typedef unsigned int u32;
typedef long long i64;

// Sixteen-bit storage. Arithmetic happens in float; these only carry bits to and from memory.
struct bf16_t { unsigned short bits; };
struct f16_t { unsigned short bits; };

#define NEG_INF __builtin_bit_cast(float, 0xff800000u)

// Smallest multiple of `step` (a power of two) that is not below `address`.
DEVICE_FN u32 align_up(u32 address, u32 step) { return (address + step - 1u) & ~(step - 1u); }
