"""The machine code of the tensor-core forward kernel does what its source promises, no more.

The expected counts are written here from the shape of the tiles alone: with BLOCK_M rows over W
warps a warp owns MI = BLOCK_M / 16W row blocks, and one step of the loop multiplies
MI x (BLOCK_N / 8) x (D / 16) times for the scores and MI x (E / 8) x (BLOCK_N / 16) times for the
output. Operands come by ``ldmatrix``, four 8 x 8 matrices at a time: MI for q and BLOCK_N / 16 for
k at each of D / 16 depths, then E / 16 for v at each of BLOCK_N / 16 depths.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest
from sass import Sass, count, disassemble

from attngen import AttentionSpec
from attngen.compiler import Options, lower, make_plan
from attngen.ir.stmt import Schedule
from attngen.runtime.nvrtc import compile_cubin

HEAD_DIMS = (64, 128, 256)
# The tiles of a good kernel on an A100, queries x keys and warps: FlashAttention-2's table.
TILES = {64: (128, 128, 4), 96: (128, 64, 4), 128: (128, 64, 4), 192: (128, 64, 8),
         256: (128, 64, 8)}
VISIBLE = {"all": {}, "causal": {"causal": True}}


@dataclass(frozen=True)
class Built:
    """A kernel's schedule and its machine code."""

    schedule: Schedule
    sass: Sass


@cache
def built(head_dim: int, visible: str, target: str = "sm_80", dtype: str = "bfloat16") -> Built:
    spec = AttentionSpec(heads=8, groups=2, head_dim=head_dim,
                         **VISIBLE[visible])  # type: ignore[arg-type]
    options = Options(target, dtype)
    lowered = lower(spec, options)
    kernel = make_plan(spec, options, lowered).kernels[0]
    cubin = compile_cubin(kernel.text, target, kernel.flags, name=kernel.name)
    return Built(lowered.placed.tiles[0].schedule, disassemble(cubin.code))


@pytest.fixture(params=[(d, v) for d in HEAD_DIMS for v in VISIBLE],
                ids=lambda p: f"d{p[0]}-{p[1]}")
def kernel(request: pytest.FixtureRequest) -> tuple[int, Built]:
    head_dim, visible = request.param
    return head_dim, built(head_dim, visible)


def test_matrix_instructions_of_the_loop(kernel: tuple[int, Built]) -> None:
    dim, it = kernel
    m, n, warps = it.schedule.block_m, it.schedule.block_n, it.schedule.warps
    blocks = m // (16 * warps)
    products = blocks * (n // 8) * (dim // 16) + blocks * (dim // 8) * (n // 16)
    loads = (dim // 16) * (blocks + n // 16) + (n // 16) * (dim // 16)
    loop = it.sass.main_loop()
    assert count(loop)["HMMA"] == products
    assert count(loop)["LDSM"] == loads
    assert {i.name for i in loop if i.base == "HMMA"} == {"HMMA.16816.F32.BF16"}
    assert all(i.name.endswith(".4") for i in loop if i.base == "LDSM")
    assert count(it.sass.code)["HMMA"] == products, "matrix instructions outside the loop"


def test_copies_are_asynchronous_and_sixteen_bytes_wide(kernel: tuple[int, Built]) -> None:
    dim, it = kernel
    n, threads = it.schedule.block_n, 32 * it.schedule.warps
    copies = [i for i in it.sass.main_loop() if i.base == "LDGSTS"]
    assert len(copies) == 2 * n * dim * 2 // 16 // threads  # one tile of k and one of v
    assert all(i.name.startswith("LDGSTS.E.") and i.name.endswith(".128") for i in copies)
    assert not [i for i in it.sass.main_loop() if i.base == "LDG"]


def test_no_operand_goes_through_scalar_shared_memory(kernel: tuple[int, Built]) -> None:
    _, it = kernel
    # A load to RZ moves nothing: the assembler waits with it for a barrier's shared memory.
    assert not [i for i in it.sass.main_loop()
                if i.base in ("LDS", "STS") and not i.operands.startswith("RZ")]


def test_no_local_memory_anywhere(kernel: tuple[int, Built]) -> None:
    _, it = kernel
    assert not [i for i in it.sass.code if i.base in ("LDL", "STL")]


def test_outputs_are_stored_sixteen_bytes_at_a_time(kernel: tuple[int, Built]) -> None:
    dim, it = kernel
    rows = it.schedule.block_m // (8 * it.schedule.warps)  # of a thread
    stores = [i.name for i in it.sass.code if i.base == "STG"]
    assert sum(name.endswith(".128") for name in stores) == rows * dim // 32
    assert len(stores) <= rows * dim // 32 + rows  # and one of lse per row


@pytest.mark.parametrize("head_dim", TILES)
def test_tiles_are_those_of_a_fast_kernel(head_dim: int) -> None:
    spec = AttentionSpec(heads=8, head_dim=head_dim, causal=True)
    schedule = lower(spec, Options("sm_80", "bfloat16")).placed.tiles[0].schedule
    rows, columns, _ = TILES[head_dim]
    assert schedule.block_m >= rows and schedule.block_n >= columns


def test_the_loop_is_found_in_code_known_by_heart() -> None:
    lines = ["HMMA.16816.F32 R0, R1", "@P0 BRA `(.L_x_0)", "HMMA.16816.F32 R0, R1",
             "LDSM.16.M88.4 R0, [R1]", "@!P1 BRA `(.L_x_1)", "EXIT"]
    from sass import _CODE, Instruction

    code = []
    for n, line in enumerate(lines):
        found = _CODE.search(f"        /*{16 * n:04x}*/   {line} ;")
        assert found
        code.append(Instruction(found[1], found[2]))
    sass = Sass(tuple(code), {".L_x_0": 1, ".L_x_1": 2})
    assert [i.base for i in sass.main_loop()] == ["HMMA", "LDSM", "BRA"]
