"""The emitted CUDA text, executed on the CPU: right, free of races, and as frugal as predicted."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from typing import Any

import forward_cases as cases
import pytest
import torch
from forward_cases import Case
from helpers import only_ours

import attngen as ag
from attngen import knobs, reference
from attngen.compiler import Options, lower
from attngen.describe import lengths
from attngen.ir.cost import KernelCost, predict
from attngen.runtime.emulator import Counters

DTYPES = ("bfloat16", "float16", "float32")  # tensor cores twice, CUDA cores


@cache
def attention_of(spec: ag.AttentionSpec, target: str = "sm_80", fuse: bool = True,
                 schedule: tuple[tuple[str, Any], ...] = ()) -> Any:
    return ag.compile(spec, target=target, emulate=True, fuse=fuse, schedule=dict(schedule))


def _complaints(chosen: Iterable[Case], target: str = "sm_80", *, fuse: bool = True, seed: int = 0,
                **changes: Any) -> list[str]:
    """Run and judge; a race, a stray access or a deadlock raises."""
    found = []
    for case in (replace(c, **changes) for c in chosen):
        attn = attention_of(case.spec, target, fuse)
        with knobs.scope(seed=seed):
            found += cases.check(case, attn)
        # Without tensor cores, an odd number of eights leaves single columns that do conflict.
        whole = case.dtype != "float32" or case.head_dim % 16 == (case.head_dim_v or 0) % 16 == 0
        if case.batch and case.seqlen_q and whole:
            conflicts = sum(c.bank_conflicts for c in attn.counters)
            found += [f"{case}: {conflicts} bank conflicts"] if conflicts else []
    return found


@pytest.mark.parametrize("feature", cases.NAMED)
def test_feature(feature: str) -> None:
    assert _complaints(cases.of_few_specs(feature, 2), dtype="bfloat16") == []


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("feature", ["lengths", "layouts", "head_dim"])
def test_dtypes(feature: str, dtype: str) -> None:
    assert _complaints(cases.NAMED[feature][-4:], dtype=dtype) == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("feature", ["causal offsets", "blind rows", "head_dim_v"])
def test_unfused(feature: str, dtype: str) -> None:
    assert _complaints(cases.of_few_specs(feature, 2), fuse=False, dtype=dtype) == []


@pytest.mark.parametrize("target", ["sm_86", "sm_90"])
def test_other_targets_texts(target: str) -> None:
    chosen = [Case(heads=1, batch=1, head_dim=dim, causal=True, seqlen_q=197, seqlen_k=300)
              for dim in (128, 256)]
    assert _complaints(chosen, target, dtype="bfloat16") == []


@pytest.mark.full
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("feature", cases.NAMED)
@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "unfused"])
def test_feature_in_every_dtype(feature: str, dtype: str, fuse: bool) -> None:
    for seed in (1, 2):
        assert _complaints(cases.NAMED[feature], fuse=fuse, seed=seed, dtype=dtype) == []


def _random(seed: int, calls: int, fuse: bool = True) -> list[str]:
    rng = random.Random(seed)
    spec = cases.random_spec(rng, DTYPES)
    drawn = [cases.random_call(rng, spec, most=300) for _ in range(calls)]
    return _complaints(drawn, rng.choice(("sm_80", "sm_86", "sm_90")), fuse=fuse, seed=seed)


@pytest.mark.parametrize("seed", range(5))
def test_random(seed: int) -> None:
    assert _random(seed, 3) == []


@pytest.mark.full
@pytest.mark.parametrize("seed", range(100, 250))
def test_many_random(seed: int) -> None:
    assert _random(seed, 6, fuse=seed % 3 > 0) == []


# -- any schedule of the threads gives the same bits ----------------------------------------------

REPEATED = Case(heads=3, groups=1, batch=1, head_dim=64, causal=True, seqlen_q=197, seqlen_k=420)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "unfused"])
def test_bits_do_not_depend_on_the_order_of_threads(dtype: str, fuse: bool) -> None:
    case = replace(REPEATED, dtype=dtype)
    attn, data = attention_of(case.spec, "sm_80", fuse), cases.inputs(case)
    results = []
    for seed in (0, 1, 2, 3):
        with knobs.scope(seed=seed):
            results.append(attn(data.q, data.k, data.v, return_lse=True))
    assert all(o.equal(results[0][0]) and lse.equal(results[0][1]) for o, lse in results)


def test_only_our_kernels_run() -> None:
    data = cases.inputs(replace(REPEATED, dtype="bfloat16"))
    with only_ours():
        o, lse = attention_of(REPEATED.spec)(data.q, data.k, data.v, return_lse=True)
    assert cases.complaints(REPEATED, data, o, lse) == []


def test_keys_behind_the_visible_length_may_be_nan() -> None:
    case = replace(REPEATED, seqlens_k=(130,), causal=False, dtype="bfloat16")
    clean, data = cases.inputs(case), cases.inputs(case)
    data.k[:, :, 130:] = float("nan")
    o, lse = attention_of(case.spec)(data.q, data.k, data.v, return_lse=True, **data.where)
    assert cases.complaints(case, clean, o, lse) == []


# -- counts ---------------------------------------------------------------------------------------

COUNTED = {
    "causal": Case(heads=2, head_dim=64, causal=True, seqlen_q=420, seqlen_k=420),
    "grouped": Case(heads=6, groups=2, head_dim=128, causal=True, seqlen_q=197, seqlen_k=420,
                    batch=1),
    "window": Case(heads=2, head_dim=64, window=(100, 20), seqlen_q=420, seqlen_k=420,
                   dtype="float16"),
    "uneven": Case(heads=2, groups=1, head_dim=72, head_dim_v=40, seqlen_q=420, seqlen_k=197),
    "lengths": Case(heads=2, head_dim=64, seqlen_q=65, seqlen_k=420, seqlens_k=(70, 300)),
    "scalar cores": Case(heads=2, head_dim=64, causal=True, seqlen_q=420, seqlen_k=420,
                         dtype="float32"),
}


def _measured(case: Case, fuse: bool) -> tuple[tuple[KernelCost, ...], tuple[Counters, ...]]:
    """What the cost model predicts for each kernel of a call, and what the emulator counts."""
    data = cases.inputs(case)
    attn = attention_of(case.spec, "sm_80", fuse)
    attn(data.q, data.k, data.v, **data.where)
    placed = lower(case.spec, Options("sm_80", case.dtype, fuse=fuse)).placed
    extents, params = lengths(dict(placed.sizes), case.batch, case.seqlen_q, case.seqlen_k)
    if case.seqlens_k is not None:
        params["kv_len"] = data.where["seqlens_k"].numpy()
    return predict(placed, extents, params), attn.counters


def _tensor_core(case: Case) -> Case:
    return replace(case, dtype="bfloat16") if case.dtype == "float32" else case


@pytest.mark.parametrize("name", [n for n, c in COUNTED.items() if n != "scalar cores"])
def test_matrix_instructions_are_those_of_the_tiles_that_hold_something(name: str) -> None:
    """Counted against every pair of positions, tile by tile: nothing empty is ever computed."""
    case = _tensor_core(COUNTED[name])
    cost, counted = (both[0] for both in _measured(case, True))
    schedule = lower(case.spec, Options("sm_80", case.dtype)).placed.tiles[0].schedule
    rows, columns = schedule.block_m, schedule.block_n
    where = cases.inputs(case).where
    seen = reference.visible(case.spec, case.batch, case.seqlen_q, case.seqlen_k, **where)
    pad = (0, -case.seqlen_k % columns, 0, -case.seqlen_q % rows)
    tiles = torch.nn.functional.pad(seen, pad).unflatten(3, (-1, columns)).unflatten(2, (-1, rows))
    visited = int(tiles.any(-1).any(3).sum())
    d, e = (-(-dim // 16) for dim in (case.head_dim, case.spec.head_dim_v or 0))
    one = rows // 16 * (columns // 8 * d + 2 * e * (columns // 16))
    assert visited < tiles.shape[2] * tiles.shape[4] * case.batch * case.heads or name == "uneven"
    assert counted.mma == visited * one
    assert cost.matrix_instructions == counted.mma and cost.tiles == visited


@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "unfused"])
@pytest.mark.parametrize("name", COUNTED)
def test_traffic_is_what_the_cost_model_predicts(name: str, fuse: bool) -> None:
    case = _tensor_core(COUNTED[name]) if name != "scalar cores" else COUNTED[name]
    predicted, counted = _measured(case, fuse)
    assert len(predicted) == len(counted) == (1 if fuse else 3)
    for cost, counts in zip(predicted, counted, strict=True):
        for tensor, count in cost.read.items():
            assert count == pytest.approx(counts.read_by[tensor], rel=0.05), (cost.name, tensor)
        for tensor, count in cost.written.items():
            assert count == pytest.approx(counts.written_by[tensor], rel=0.05), (cost.name, tensor)
        assert cost.bytes == pytest.approx(counts.global_read + counts.global_written, rel=0.05)
        assert cost.matrix_instructions == counts.mma
        assert counts.bank_conflicts == 0


def test_unfused_moves_the_square_of_the_length_and_fused_does_not() -> None:
    moved = {}
    for fuse in (True, False):
        for n in (256, 512):
            case = Case(heads=1, batch=1, seqlen_q=n, seqlen_k=n, dtype="bfloat16")
            counted = _measured(case, fuse)[1]
            moved[fuse, n] = sum(c.global_read + c.global_written for c in counted)
    for n in (256, 512):
        # s is written once and read twice as float32, p is written and read as bfloat16.
        squares = n * n * (4 + 2 * 4 + 2 + 2)
        assert 0.6 * squares < moved[False, n] < 1.5 * squares
        assert moved[True, n] < moved[False, n] / 3
