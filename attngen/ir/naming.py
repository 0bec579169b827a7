"""Names users give to callables, tensors and numbers, as names in kernels.

What a kernel's own text has taken (a test compares the two) and what the languages have gets a word
before it; what is no plain identifier is replaced by that word alone, so that nothing a user writes
can be more than a name.
"""

from __future__ import annotations

import re

_LONGEST = 40

# Of C++ up to 2023, CUDA and the compilers' own.
_LANGUAGE = frozenset("""
    alignas alignof and and_eq asm atomic_cancel auto bitand bitor bool break case catch char class
    compl concept const consteval constexpr constinit const_cast continue co_await co_return
    co_yield decltype default delete do double dynamic_cast else enum explicit export extern false
    float for friend goto half if inline int long mutable namespace new noexcept not not_eq nullptr
    operator or or_eq private protected public register reinterpret_cast requires restrict return
    short signed sizeof static static_assert static_cast struct switch synchronized template this
    thread_local throw true try typedef typeid typename typeof union unsigned using virtual void
    volatile wchar_t while xor xor_eq complex imaginary linux unix errno assert main std omp pragma
    define defined include stdin stdout stderr null eof dim3 threadidx blockidx blockdim griddim
    warpsize offsetof setjmp
    """.split())

# Functions and variables of the device layer and the templates whose names are plain words.
_KERNELS = frozenset("""
    addresses ahead align_up alone at at_the_ends ballot batch bf16_bits bit_cast bits block blocks
    byte_of bytes called_from ceil_div chain chunk chunks clamp code col col_of cols columns
    compute_tile copy_col copy_row count device_fn distance dot_block dot_columns dot_rows dynamic
    each element exchange_pair exchange_quad exp2_minus_1 f16_bits fast_exp2 fast_log2 first
    floor_div floor_mod found from full gather given half_power head_dim heads height high horner
    i64 in_order in_range in_register inside issue_rows issue_tile k_first kernel lanes left
    ln2_high ln_mantissa load log2_e low lowest_bit magnitude mantissa many max_row min_blocks mine
    mine_high mine_low mma mma_block mma_columns mma_m16n8k16 neg_inf normal num_splits num_threads
    opaque ordered_functions pack panel panels parallel part philox_round philox_word pitch plain
    put quad_col_of quads real_functions recip recompute ring round row row_at row_of row_pad rows
    scaled schedule seen shared_base shfl_xor shuffle shuffled sign simd slots split start step
    stride strips subnormal suffix sum_columns sum_row sums swizzle sync_fn table_max table_min
    taken threads tile tiles to transpose u32 unroll upper value vector_bytes vector_registers
    vector_width vectors visible weigh_block weigh_columns weigh_rows whole_blocks whole_vectors
    widen widen_rows widen_tile width within word work work_worth_waking Address Addresses
    ArithmeticFault Bits Blocking Eight Element From IndexFault Layout Location Mma Octet Order
    Params Philox ROW Row Runtime Stored Tile To Type Vector Wide
    """.split())

# Families of such names, and of those that kernels make for tensors, loop bounds and themselves.
_FAMILIES = re.compile(
    r"(n|v|cp|lds|sts|ldmatrix|load|store|sync|to|from|emu|attngen|block|lane|thread|warp|cuda"
    r"|omp|cpu|tma)_\w+|\w+_(per_64|t|f16|f32|f64|i32|i64|u32|real|stride_\w+|size_\w+|ptr)")


def kernel_name(spoken: str, fallback: str) -> str:
    """``spoken`` as a name in a kernel, behind ``fallback`` where it alone would mean something
    else; ``fallback`` alone where it is no short ASCII identifier. Constants lose their capitals:
    macros have those."""
    if not (spoken.isascii() and spoken.isidentifier() and len(spoken) <= _LONGEST):
        return fallback
    name = re.sub("_+", "_", spoken.lower() if spoken.isupper() else spoken).strip("_")
    if not name or name[0].isdigit():
        return fallback
    taken = name in _LANGUAGE or name in _KERNELS or _FAMILIES.fullmatch(name)
    return f"{fallback}_{name}" if taken else name
