// ---- uninitialised variables -----------------------------------------------------------------------
// -ftrivial-auto-var-init fills them with bytes 0xfe, a huge number that times 0 is 0. The loader
// turns that pattern into a NaN wherever it stands in the code; where the compiler calls memset
// instead, this one is called.

extern "C" __attribute__((visibility("hidden"), optimize("no-tree-loop-distribute-patterns")))
void* memset(void* to, int value, unsigned long bytes) {
    const auto fill = static_cast<unsigned char>(value == 0xfe ? 0xff : value);
    for (unsigned long i = 0; i < bytes; ++i) static_cast<volatile unsigned char*>(to)[i] = fill;
    return to;
}

// ---- checks ------------------------------------------------------------------------------------------
// The kernel is compiled with the compiler's checks of array indices and integer arithmetic. These
// functions are what a failed check calls; they stand in for the sanitizer's own library.

namespace emu_checks {

struct Location { const char* file; unsigned line, column; };
struct Type { unsigned short kind, info; char name[1]; };
struct IndexFault { Location at; const Type *array, *index; };
struct ArithmeticFault { Location at; const Type* type; };  // of a shift: of what is shifted

#define EMU_CHECK(name) asm("__ubsan_handle_" #name "_abort") __attribute__((used))

void bad_index(const IndexFault* fault, unsigned long index) EMU_CHECK(out_of_bounds);
void bad_index(const IndexFault* fault, unsigned long index) {
    emu_runtime->bad_index(static_cast<int>(index), fault->array->name,
                           static_cast<int>(fault->at.line));
}

#define EMU_ARITHMETIC_CHECK(CHECK, WHAT)                                                    \
    void CHECK(const ArithmeticFault* fault, unsigned long, unsigned long) EMU_CHECK(CHECK); \
    void CHECK(const ArithmeticFault* fault, unsigned long, unsigned long) {                 \
        emu_runtime->bad_arithmetic(WHAT, fault->type->name, static_cast<int>(fault->at.line)); \
    }
EMU_ARITHMETIC_CHECK(add_overflow, "a signed addition overflows")
EMU_ARITHMETIC_CHECK(sub_overflow, "a signed subtraction overflows")
EMU_ARITHMETIC_CHECK(mul_overflow, "a signed multiplication overflows")
EMU_ARITHMETIC_CHECK(negate_overflow, "a signed negation overflows")
EMU_ARITHMETIC_CHECK(divrem_overflow, "an integer division is by zero or overflows")
EMU_ARITHMETIC_CHECK(shift_out_of_bounds, "a shift is too wide or loses the sign")

}  // namespace emu_checks
