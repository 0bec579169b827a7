"""What of the GPU suite's part for decoding can be judged without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import attngen as ag
from attngen import knobs
from attngen.errors import NotCachedError
from attngen.runtime import timing
from attngen.runtime.device_kernel import DeviceKernel
from attngen.runtime.variant import Kind
from benchmarks import gpu_compile, gpu_decode, gpu_environment, gpu_part
from benchmarks import gpu_decode_cases as cases
from benchmarks import gpu_decode_speed as speed
from benchmarks.gpu_decode_cases import Case
from benchmarks.gpu_decode_speed import Shape

# -- right ----------------------------------------------------------------------------------------


def test_cases_are_those_promised() -> None:
    listed = list(cases.cases())
    assert {case[0] for case in listed} == set(cases.KINDS)
    assert {case[2:] for case in listed} == {(q, p) for q in (1, 2, 4) for p in (None, 1, 7)}


@pytest.mark.parametrize(("kind", "queries", "parts"), [
    ("contiguous", 1, None), ("paged", 4, 7), ("rolling", 2, 1), ("int8", 1, 7),
    ("float8_e4m3", 4, 1)])
def test_a_decoding_is_told_right_from_wrong(kind: str, queries: int, parts: int | None,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(kind, "bfloat16", queries, parts)
    attn = ag.compile(cases.SPEC, target="sm_90", emulate=True)
    assert cases.check(attn, case, "cpu") == []

    def shifted(*given: Any, **options: Any) -> tuple[Tensor, Tensor]:
        o, lse = decode(*given, **options)
        return o, lse + 0.1
    decode = attn.decode
    monkeypatch.setattr(attn, "decode", shifted)
    assert "lse" in cases.check(attn, case, "cpu")[0]


# -- compiled ahead -------------------------------------------------------------------------------


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache; kernels get no further than their machine code."""
    monkeypatch.setenv("ATTNGEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(gpu_compile, "_TARGET", "sm_90")
    monkeypatch.setattr(DeviceKernel, "launch", lambda kernel, *call: kernel.compiled())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: None)


def _compiled(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    jobs = gpu_compile.jobs(("decode",))
    monkeypatch.setattr(gpu_compile, "_JOBS", jobs)
    return [gpu_compile.compiled(n) for n in range(len(jobs))]


def test_everything_decoding_runs_is_compiled_ahead(ahead: None) -> None:
    kinds = [(job.phase, job.kind) for job in gpu_compile.jobs(("decode",))]
    assert len(set(kinds)) == len(kinds)
    assert {phase for phase, _ in kinds} == {"forward", "append", "rotate"}
    kinds, turned = ([x for x in kinds if bool(x[1].cached.rope) is some] for some in (False, True))
    assert {(kind.dtype, kind.cached.rope) for _, kind in turned} == {
        (dtype, rope) for dtype in ("bfloat16", "float32", "float16")
        for rope in ("half", "interleaved")}
    for dtype in ("bfloat16", "float32", "float16"):
        of = [(phase, kind) for phase, kind in kinds if kind.dtype == dtype]
        assert {(kind.rows, kind.split) for phase, kind in of if phase == "forward"} == {
            (rows, split) for rows in (8, 16) for split in (True, False)}
        assert len({kind.cached for _, kind in of}) == len(cases.KINDS)
    assert {kind.rows for phase, kind in kinds if phase == "append"} == {8, 32}


def _check_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _compiled(monkeypatch)
    assert all(row["ok"] for row in rows) and sum(row["new"] for row in rows) > 2
    assert sum(row["new"] for row in _compiled(monkeypatch)) == 0
    with knobs.scope(assert_cached=True):
        gpu_decode.rehearse(ag.compile(cases.SPEC, "sm_90"))
        with pytest.raises(NotCachedError):
            ag.compile(cases.SPEC, "sm_90").variant(("float32", False, *Kind("float32")[2:]))


def test_what_was_compiled_is_found_at_run_time(ahead: None,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "KINDS", ("paged",))
    monkeypatch.setattr(cases, "cases", lambda: [Case("paged", "bfloat16", 4, 7)])
    monkeypatch.setattr(speed, "shapes", lambda: [])
    _check_ahead(monkeypatch)


@pytest.mark.full
def test_all_that_was_compiled_is_found_at_run_time(ahead: None,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    _check_ahead(monkeypatch)


# -- fast -----------------------------------------------------------------------------------------


def test_shapes_are_those_promised() -> None:
    todo = list(speed.shapes())
    assert {(s.batch, s.keys, s.queries) for s in todo} == {
        (b, 1024 * k, q) for b in (1, 8, 32, 128) for k in (2, 8, 32, 128) for q in (1, 2, 4)}
    for free in (80e9, 150e9):  # of an H100, of an H200
        assert {(s.batch, s.keys) for s in todo if not s.fits(int(free))} == {(128, 131072)}
    assert todo[0].flex and todo[0].bytes == 2 * 8 * 8192 * 8 * 128 * 2


@pytest.fixture
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes, tensors and clocks of a CPU."""
    operands, compare = speed.operands, timing.compare
    monkeypatch.setattr(speed, "SIZES", ((2, 64), (1, 32), (1, 1 << 20)))
    monkeypatch.setattr(speed, "operands", lambda attn, shape, _: operands(attn, shape, "cpu"))
    monkeypatch.setattr(timing, "compare",
                        lambda runs, cuda=False, rounds=0: compare(runs, rounds=2))
    monkeypatch.setattr(gpu_environment, "ceilings", lambda: {"bytes_per_s": 1e10})
    monkeypatch.setattr(torch, "compile", lambda function, **how: function)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10**9, 10**9))
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)


def test_every_shape_that_fits_is_measured_beside_the_others(
        no_device: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress = gpu_part.Progress(tmp_path / "part.json", 1000.0)
    speed.part(progress, ag.compile(cases.SPEC, target="cpu"))
    assert progress.state["failures"] == []
    data = progress.state["data"]
    assert [row["name"] for row in data["speed"]] == [
        f"B{b} K{n} Q{q}" for q in (1, 4, 2) for b, n in ((2, 64), (1, 32))] + [
        f"B{b} K{n} Q{q}" for q in (4, 2) for b, n in ((2, 64), (1, 32))]
    for row in data["speed"]:
        assert {"contiguous", "paged", "sdpa"} <= set(row["of_copy"]) and not row["refused"]
        assert set(row["no_graph"]) == set(row["times"])  # there is no device to capture on
    assert "B1 K1048576" in data["notes"][0] and set(data["call_overhead_us"]) == {
        "contiguous", "paged", "sdpa"}
    assert capsys.readouterr().out.count("\nB") == 6


def test_what_is_refused_has_a_reason(no_device: None, tmp_path: Path,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    attn = ag.compile(cases.SPEC, target="cpu")
    runs = speed.candidates(attn, Shape(1, 32), flex=False)

    def refusing() -> Tensor:
        raise RuntimeError("no such kernel")
    monkeypatch.setattr(speed, "candidates", lambda *given: {**runs, "paged": refusing})
    row = speed.measure(attn, Shape(1, 32), False, 1e10)
    assert row["refused"] == {"paged": "RuntimeError: no such kernel"} and not row["ok"]

    def too_large(*given: Any) -> Any:
        raise torch.OutOfMemoryError("no room\nat all")
    monkeypatch.setattr(speed, "candidates", too_large)
    monkeypatch.setattr(speed, "call_overhead", lambda attn: {})
    progress = gpu_part.Progress(tmp_path / "part.json", 1000.0)
    speed.part(progress, attn)
    assert "B2 K64 Q1: no room" in progress.state["data"]["notes"]


def test_table_shows_who_refused() -> None:
    row = {"name": "B1 K2048 Q1", "of_copy": {"contiguous": 0.9, "sdpa": 0.3},
           "times": {"contiguous": {"median": 1.0}, "sdpa": {"median": 3.0}}}
    assert speed.table([{**row, "of_copy": {}}, row]).splitlines()[-1].split() == [
        "B1", "K2048", "Q1", "90%", "-", "30%", "-", "3.00x"]
