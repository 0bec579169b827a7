"""A whole kernel in the emulator: right results, the same bits on every schedule, exact counts."""

from __future__ import annotations

import numpy as np
import pytest
from hand_attention import BLOCK, Case, D

from attngen.runtime.emulator import module as loader

CASES = [(64, 64, 0), (1, 1, 1), (197, 197, 1), (130, 70, 1), (65, 420, 0), (17, 63, 1)]


@pytest.mark.parametrize(("seqlen_q", "seqlen_k", "causal"), CASES)
def test_result(seqlen_q: int, seqlen_k: int, causal: int) -> None:
    case = Case(seqlen_q, seqlen_k, causal, heads=2)
    case.run()
    case.check()


def test_every_schedule_gives_the_same_bits() -> None:
    case = Case(197, 197, 1)
    case.run()
    o, lse = case.o, case.lse
    for seed in range(1, 9):
        case.run(seed=seed, detect_races=seed % 2 == 0, workers=seed)
        assert np.array_equal(case.o, o) and np.array_equal(case.lse, lse)


@pytest.mark.parametrize("causal", [0, 1])
def test_counts(causal: int) -> None:
    heads, n = 2, 256
    case = Case(n, n, causal, heads)
    counters = case.run()
    tiles = [b + 1 if causal else n // BLOCK for b in range(n // BLOCK)]
    steps = heads * sum(tiles)
    warps, row, blocks = 4, D * 2, heads * n // BLOCK
    assert counters.mma == steps * warps * 2 * (D // 16) * (BLOCK // 8)
    loads = D // 16 * (1 + BLOCK // 16) + BLOCK // 16 * (D // 16)
    assert counters.ldmatrix == steps * warps * loads
    # Every step also starts copying the following tile, as long as there is one.
    fetched = heads * sum(min(t + 1, n // BLOCK) for t in tiles) * BLOCK * row
    assert counters.read_by == {"q": heads * n * row, "k": fetched, "v": fetched, "o": 0, "lse": 0}
    assert counters.written_by["o"] == heads * n * row
    assert counters.written_by["lse"] == heads * n * 4
    assert counters.global_read == sum(counters.read_by.values()) == counters.async_bytes
    assert counters.global_written == sum(counters.written_by.values())
    assert counters.block_syncs == 2 * steps + blocks
    assert counters.warp_syncs == warps * blocks
    assert counters.bank_conflicts == 0


def test_counters_add_up() -> None:
    one = Case(64, 64).run()
    both = one + one
    assert both.mma == 2 * one.mma and both.read_by["k"] == 2 * one.read_by["k"]


def test_portable_fibers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no assembly for the processor, ucontext switches between threads."""
    portable = loader.build_runtime("-DEMU_PORTABLE_FIBERS")
    case = Case(70, 70, 1)
    plain = case.run()
    monkeypatch.setattr(loader, "_runtime", lambda: portable)
    from hand_attention import text

    from attngen.runtime import emulator
    assert case.run(emulator.load(text())) == plain
    case.check()
