"""Loops visit the tiles that hold a visible pair and no others: counted by the emulator, against
every pair of positions."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from forward_cases import check
from pattern_cases import PatternCase as Case

import attngen as ag
from attngen import masks, reference
from attngen.compiler import Options, lower
from attngen.describe import lengths
from attngen.ir.cost import KernelCost, predict
from attngen.ir.summary import bound, summary
from attngen.runtime.summary import per_64

N = 420
IDS = torch.arange(N) // 90
BATCHED = torch.stack([IDS, torch.arange(N) // 150]).to(torch.int32)
MASKS: dict[str, Any] = {
    "window_or_first": masks.sliding_window((40, 0)) | masks.attention_sinks(5),
    "prefix": masks.prefix_lm(70), "chunked": masks.chunked(60), "global": masks.global_tokens(9),
    "dilated": masks.dilated_window(2, 70), "strided": masks.strided(130),
    "fixed": masks.fixed(140, 9), "grid": masks.neighborhood((21, 20), 3),
    "document": masks.document(IDS), "document_batch": masks.document(BATCHED),
    "marks": masks.global_tokens(IDS == 3), "causal_document": masks.causal() & masks.document(IDS),
    "heads": ag.per_head([masks.sliding_window(30), masks.chunked(100)])}


@dataclass(frozen=True)
class Counted:
    """A call under the emulator: what it counted and what the cost model predicts, and the truth
    about its tiles, bool [batch, heads, row tiles, key tiles]."""

    spec: ag.AttentionSpec
    schedule: Any = field(repr=False)
    mma: int
    cost: KernelCost
    some: Any = field(repr=False)
    every: Any = field(repr=False)

    @property
    def one(self) -> int:
        """Matrix instructions of one tile."""
        d = -(-self.spec.head_dim // 16)
        return self.schedule.block_m // 16 * (self.schedule.block_n // 8 * d * 2)


def counted(mask: Any, seqlen_q: int = N, seqlen_k: int = N, **schedule: Any) -> Counted:
    case = Case(heads=2, head_dim=32, batch=2, seqlen_q=seqlen_q, seqlen_k=seqlen_k, mask=mask,
                dtype="bfloat16")
    attn = ag.compile(case.spec, "sm_80", emulate=True, schedule=schedule)
    assert check(case, attn) == []
    placed = lower(case.spec, Options("sm_80", "bfloat16", schedule=tuple(schedule.items()))).placed
    kernel = placed.tiles[0]
    extents, params = lengths(dict(placed.sizes), 2, seqlen_q, seqlen_k)
    (cost,) = predict(placed, extents, {**params, **tables(case.spec)})
    m, n = kernel.schedule.block_m, kernel.schedule.block_n
    seen = reference.visible(case.spec, 2, seqlen_q, seqlen_k).expand(2, 2, -1, -1)
    pad = (0, -seqlen_k % n, 0, -seqlen_q % m)

    def of_tiles(pairs: torch.Tensor, beyond: bool) -> torch.Tensor:
        whole = torch.nn.functional.pad(pairs, pad, value=beyond)
        return whole.unflatten(3, (-1, n)).unflatten(2, (-1, m)).permute(0, 1, 2, 4, 3, 5)

    some = of_tiles(seen, False).flatten(-2).any(-1)
    # A last tile that ends past the keys masks those; rows past the queries do not matter.
    rows = torch.nn.functional.pad(seen, (0, -seqlen_k % n), value=False)
    pad = (0, 0, 0, -seqlen_q % m)
    every = of_tiles(rows, True).flatten(-2).all(-1)
    return Counted(case.spec, kernel.schedule, attn.counters[0].mma, cost, some, every)


def tables(spec: ag.AttentionSpec) -> dict[str, Any]:
    captured = lower(spec, Options("sm_80", "bfloat16")).captured
    return {t.name: t.source.numpy() for t in captured.tensors}


@pytest.mark.parametrize("name", MASKS)
def test_what_is_computed_is_what_holds_something(name: str) -> None:
    run = counted(MASKS[name], block_m=64, block_n=64, warps=4)
    assert run.mma == int(run.some.sum()) * run.one == run.cost.matrix_instructions
    assert run.cost.tiles == int(run.some.sum()) < run.some.numel()
    assert run.cost.full_tiles == int((run.every & run.some).sum())


@pytest.mark.parametrize("name", ["window_or_first", "strided", "chunked"])
@pytest.mark.parametrize("stages", [(1, 1), (2, 2), (3, 2)])
def test_copies_are_issued_for_visited_tiles_only(name: str, stages: tuple[int, int]) -> None:
    run = counted(MASKS[name], 197, 333, block_m=64, block_n=32, warps=4,
                  stages=stages)
    assert run.mma == int(run.some.sum()) * run.one == run.cost.matrix_instructions


@pytest.mark.parametrize("target", ["cpu", "sm_80"])
def test_values_decide_at_the_call(target: str) -> None:
    """One kernel: which tiles are visited follows what the captured tensor holds by then."""
    ids = torch.zeros(N, dtype=torch.int64)
    case = Case(heads=1, head_dim=16, batch=1, seqlen_q=N, seqlen_k=N, mask=masks.document(ids),
                dtype="float32" if target == "cpu" else "bfloat16")
    attn = ag.compile(case.spec, target, emulate=target != "cpu", schedule={
        "block_m": 64, "block_n": 64, "warps": 4} if target != "cpu" else {})
    work = []
    for count in (1, 3, 7):
        ids.copy_(torch.arange(N) * count // N)
        assert check(case, attn) == []
        work.append(attn.counters[0].mma if target != "cpu" else 0)
    assert target == "cpu" or work[0] > work[1] > work[2]


HUGE = torch.tensor([2**62, -2**62, 2**41, -2**41, 2**31 - 1, -2**31, 2**33, 0, -2**63, 2**63 - 1])


@pytest.mark.parametrize("target", ["cpu", "sm_80"])
@pytest.mark.parametrize("mask", [
    lambda b, h, i, j: LARGE[i] == LARGE[j], lambda b, h, i, j: LARGE[j] == BASE[h],
    lambda b, h, i, j: LARGE[j] >= BASE[2] - BASE[1],
    lambda b, h, i, j: LARGE32[i] - 2**30 <= LARGE32[j],
    lambda b, h, i, j: (LARGE[j] // 3) % 2 == 0, lambda b, h, i, j: ~(LARGE32[i] != LARGE32[j]),
    lambda b, h, i, j: LARGE[j] > LARGE[i]])
def test_entries_of_any_size_hide_nothing_by_mistake(mask: Any, target: str) -> None:
    case = Case(heads=1, head_dim=16, batch=1, seqlen_q=200, seqlen_k=640, mask=mask,
                dtype="float32" if target == "cpu" else "bfloat16", q_offset=100)
    attn = ag.compile(case.spec, target, emulate=target != "cpu", schedule={
        "block_m": 64, "block_n": 32, "warps": 4} if target != "cpu" else {})
    assert check(case, attn) == []


BASE = torch.tensor([2**33, -2**61, 2**62])
LARGE = HUGE.repeat_interleave(64)
LARGE32 = torch.tensor([2**30, -2**30 + 7, 2**29, 5, 0, 9, 8, 7, 6, 1], dtype=torch.int32
                       ).repeat_interleave(64)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "int32", "int64"])
@pytest.mark.parametrize("shape", [(0,), (1,), (64,), (65,), (3, 200), (2, 0), (0, 70)])
def test_the_summary_a_call_makes_is_the_one_that_is_defined(shape: tuple[int, ...],
                                                             dtype: str) -> None:
    rng = np.random.default_rng(len(shape))
    table = torch.from_numpy(rng.integers(-2**45, 2**45, shape)).to(getattr(torch, dtype))
    np.testing.assert_array_equal(per_64(table).numpy(), summary(table.numpy()))


def test_bounds_of_ranges_hold_every_entry() -> None:
    rng = np.random.default_rng(1)
    table = rng.integers(-50, 50, (3, 700))
    row, low = rng.integers(-1, 4, 4000), rng.integers(-70, 770, 4000)
    high = low + rng.integers(0, 650, 4000)
    least, greatest = (bound(op, summary(table), 700, [row], low, high)
                       for op in ("table_min", "table_max"))
    tight = 0
    for n in range(4000):
        inside = [table[row[n], x] if 0 <= row[n] < 3 and 0 <= x < 700 else 0
                  for x in range(low[n], high[n] + 1)]
        assert least[n] <= min(inside) and max(inside) <= greatest[n]
        tight += int(least[n] == min(inside) and greatest[n] == max(inside))
    assert tight > 1000


def test_full_tiles_look_nothing_up() -> None:
    """Which document a key belongs to matters on partial tiles only; each lane asks about one."""
    ids = torch.arange(512) // 100
    spec = ag.AttentionSpec(heads=1, head_dim=64, mask=masks.document(ids))
    for target in ("sm_80", "cpu"):
        text = ag.compile(spec, target).source()
        assert len(re.findall(r"// ids_\d+.j.*\n +if \(partial\) {", text)) == 1, target
    assert "ballot(mine < n_end && j_visible(mine))" in ag.compile(spec, "sm_80").source()
