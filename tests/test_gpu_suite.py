"""What of the GPU suite can be judged without a GPU: its cases, its packing, its file."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, run_python

from attngen.runtime.nvrtc import compile_cubin
from attngen.templates import device
from attngen.templates.device import ORDER
from benchmarks import (
    gpu_forward,
    gpu_part,
    gpu_primitives,
    gpu_speed,
    gpu_suite,
    primitives,
)
from benchmarks.gpu_suite import Part
from benchmarks.primitives import PRIMITIVES, Primitive

# -- primitives -----------------------------------------------------------------------------------


def test_every_device_function_has_a_kernel() -> None:
    folder = Path(device.__file__).parent / "cuda"
    declared = {name for file in ORDER for name in re.findall(
        r"\b(?:DEVICE_FN|SYNC_FN)\s+[\w<>]+\s+(\w+)\s*(?:<\w+>)?\s*\(",
        (folder / f"{file}.cuh").read_text())}
    kernels = primitives.text().split(device.END)[1]
    missing = {name for name in declared if not re.search(rf"\b{name}\b\s*[(<]", kernels)}
    assert len(declared) > 50 and missing == set()


def test_kernels_assemble_without_spills() -> None:
    cubin = compile_cubin(primitives.text(), "sm_90")
    assert set(cubin.resources) == {f"check_{name}" for name in PRIMITIVES}
    assert not cubin.remarks
    assert not [n for n, r in cubin.resources.items() if r.spill_loads or r.spill_stores]


def test_every_kernel_writes_all_its_answers_whatever_the_schedule() -> None:
    for primitive in PRIMITIVES.values():
        given = primitive.inputs()
        first, second = (primitives.emulated(primitive, given, seed) for seed in (0, 7))
        assert not primitives.differences(primitive, first, second), primitive.name
        assert not (first == primitives.outputs(primitive)).any(), primitive.name
        assert (first != first.reshape(-1)[0]).any(), f"{primitive.name}: every answer is the same"


def test_inputs_are_the_same_on_every_machine() -> None:
    primitive = PRIMITIVES["fma_f32"]
    assert np.array_equal(primitive.inputs(3), primitive.inputs(3))
    assert not np.array_equal(primitive.inputs(3), primitive.inputs(4))


def test_params_are_laid_out_as_the_kernels_read_them() -> None:
    packed = primitives.params(PRIMITIVES["block_x"], 11, 22)
    assert struct.unpack("<QQiii", packed[:28]) == (11, 22, primitives.ROUNDS, 3, 2)
    assert len(packed) == 32  # what C makes of two pointers and three ints; the emulator checks it


def test_golden_answers_come_back_and_a_wrong_bit_is_found(tmp_path: Path) -> None:
    names = ("mma_m16n8k16_bf16", "fast_exp2", "floor_div", "ldmatrix_x2_trans")
    answers = {n: (PRIMITIVES[n].inputs(), primitives.emulated(PRIMITIVES[n], PRIMITIVES[n].inputs(
        ))) for n in names}
    gpu_primitives.save_golden(tmp_path / "golden.npz", answers)
    assert gpu_primitives.replay(tmp_path / "golden.npz") == dict.fromkeys(sorted(names), "")
    for _, answer in answers.values():
        answer[3, 5, 0] ^= 1 << 20
    gpu_primitives.save_golden(tmp_path / "golden.npz", answers)
    assert all("1 of" in line and "(3, 5, 0)" in line
               for line in gpu_primitives.replay(tmp_path / "golden.npz").values())


def test_emulator_answers_as_devices_did() -> None:
    """Against every file of device answers on record (none before the suite first ran on one)."""
    for file in sorted((ROOT / "benchmarks" / "results").glob("*.npz")):
        assert {n: d for n, d in gpu_primitives.replay(file).items() if d} == {}, file.name


@pytest.mark.parametrize(("ours", "theirs", "units", "same"), [
    (1.0, 1.0, 0.0, True), (1.0, np.nextafter(np.float32(1), np.float32(2)), 0.0, False),
    (1.0, np.nextafter(np.float32(1), np.float32(2)), 2.0, True), (1.0, 1.001, 4.0, False),
    (np.nan, -np.nan, 0.0, True), (np.nan, 1.0, 4.0, False), (np.inf, np.inf, 4.0, True),
    (np.inf, 3e38, 4.0, False), (0.0, -0.0, 0.0, False), (0.0, -0.0, 1.0, True)])
def test_comparison(ours: float, theirs: float, units: float, same: bool) -> None:
    primitive = replace(PRIMITIVES["recip"], units=units)
    a, b = (np.array([[[x]]], np.float32).view(np.uint32) for x in (ours, theirs))
    assert (not primitives.differences(primitive, a, b)) == same


# -- forward and speed ----------------------------------------------------------------------------


def test_forward_cases_cover_every_feature_in_every_dtype() -> None:
    listed = list(gpu_forward.named())
    for dtype in gpu_forward.DTYPES:
        features = {name.rsplit(" ", 1)[0] for name, case, fuse in listed
                    if case.dtype == dtype and fuse}
        assert features >= set(gpu_forward.cases.NAMED)
    assert {case.dtype for _, case, fuse in listed if not fuse} == {"bfloat16", "float32"}
    assert all(case.spec.heads for _, case, _ in listed)


def test_a_forward_row_tells_right_from_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    import attngen as ag

    case = gpu_forward.cases.Case(causal=True)
    right = ag.compile(case.spec, target="cpu")
    monkeypatch.setattr(gpu_forward, "compiled", lambda spec, fuse: right)
    assert gpu_forward.judge("x", case, True, "cpu")["ok"]

    def wrong(q: torch.Tensor, *rest: torch.Tensor, **options: object) -> object:
        o, lse = right(q, *rest, **options)  # type: ignore[misc]
        return o.mul_(1.01), lse
    monkeypatch.setattr(gpu_forward, "compiled", lambda spec, fuse: wrong)
    row = gpu_forward.judge("x", case, True, "cpu")
    assert not row["ok"] and "off by" in row["complaints"][0]

    def raising(*arguments: object, **options: object) -> object:
        raise ValueError("broken")
    monkeypatch.setattr(gpu_forward, "compiled", lambda spec, fuse: raising)
    assert gpu_forward.judge("x", case, True, "cpu")["complaints"] == ["ValueError: broken"]


def test_cases_are_judged_in_pairs_while_time_is_left(tmp_path: Path) -> None:
    progress = gpu_part.Progress(tmp_path / "part.json", 100.0)
    gpu_forward.judge_all(progress, [(1, 1), (2, 3), (4, 4)],
                          lambda here, there: [] if here == there else [f"{here} is not {there}"])
    assert progress.state["data"]["passed"] == 2
    assert progress.state["data"]["cases"] == [
        {"name": "3", "ok": False, "complaints": ["2 is not 3"]}]
    assert progress.state["failures"] == ["cases: 3"]
    late = gpu_part.Progress(tmp_path / "late.json", 1.0)
    gpu_forward.judge_all(late, [(1, 2)], lambda here, there: ["wrong"])
    assert late.state["data"]["passed"] == 0 and "out of time" in late.state["data"]["notes"][0]


def test_speed_problems_are_those_promised() -> None:
    todo = gpu_speed.problems()
    assert len(set(map(str, todo))) == len(todo)
    assert {p.batch * p.seqlen for p in todo} == {16384}
    squares = [p for p in todo if not p.window and p.groups == p.heads]
    assert {(p.head_dim, p.seqlen, p.causal) for p in squares} == {
        (d, s, c) for d in (64, 128, 256) for s in (512, 1024, 2048, 4096, 8192, 16384)
        for c in (True, False)}
    assert any((p.heads, p.groups) == (64, 8) for p in todo)
    assert {p.window for p in todo if p.seqlen == 16384} >= {128, 1024}
    for problem in todo:
        assert problem.spec().head_dim == problem.head_dim


@pytest.mark.parametrize(("causal", "window", "pairs"), [(False, 0, 64), (True, 0, 32),
                                                         (True, 3, 3 * 8 - 3), (True, 99, 36)])
def test_speed_counts_pairs(causal: bool, window: int, pairs: int) -> None:
    problem = gpu_speed.Problem(64, 8, causal, 2, 2, 3, window)
    assert problem.pairs == pairs
    assert problem.flops == 4 * 3 * 2 * pairs * 64


def test_speed_table_shows_who_refused() -> None:
    row = {"name": "D64", "tflops": {"attngen": 300.4, "flex": 150.0}, "of_best": 2.0}
    assert gpu_speed.table([row]).splitlines()[-1].split() == [
        "D64", "300", "-", "-", "-", "150", "2.00"]


# -- the suite ------------------------------------------------------------------------------------

FAKES = {
    "fake_ok": "p.add('rows', {'name': 'a', 'ok': True})",
    "fake_failing": "p.add('rows', {'name': 'a', 'ok': False}); p.add('rows', {'ok': True})",
    "fake_raising": "p.put('before', 1); raise ValueError('no such thing')",
    "fake_hanging": "p.put('before', 1); import time; time.sleep(60)",
    "fake_dying": "p.put('before', 1); import os; os._exit(9)",
    "fake_asking": "p.put('parts', p.parts)",
}


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, body in FAKES.items():
        (tmp_path / f"{name}.py").write_text(
            f"from benchmarks import gpu_part\ndef part(p):\n    {body}\ngpu_part.main(part)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    yield


@pytest.mark.parametrize(("name", "status", "reason", "data"), [
    ("fake_ok", "ok", "", {"rows": [{"name": "a", "ok": True}]}),
    ("fake_failing", "failed", "1 rows failed", None),
    ("fake_raising", "failed", "ValueError: no such thing", {"before": 1}),
    ("fake_hanging", "timeout", "stopped after 6 s", {"before": 1}),
    ("fake_dying", "crashed", "exit status 9", {"before": 1}),
    ("no_such_module", "crashed", "exit status 1", {})])
def test_parts_end_in_every_way(fakes: None, tmp_path: Path, name: str, status: str, reason: str,
                                data: dict[str, object] | None) -> None:
    result = gpu_suite.run_part(Part(name, name, 6.0), 6.0, tmp_path)
    assert (result["status"], result["reason"]) == (status, reason)
    assert data is None or result["data"] == data


def test_suite_skips_with_a_reason_and_keeps_its_budget(fakes: None) -> None:
    parts = (Part("a", "fake_ok", 30.0), Part("b", "fake_ok", 30.0))
    result = gpu_suite.suite(parts, budget=10.0)
    assert [p["status"] for p in result["parts"].values()] == ["skipped", "skipped"]
    assert "10 s are used up" in result["parts"]["a"]["reason"]
    assert gpu_suite.problems(result) == []
    assert gpu_suite.summary(result)


def test_the_whole_suite_fits_its_budget() -> None:
    assert sum(part.seconds for part in gpu_suite.PARTS) <= gpu_suite.BUDGET < 8 * 60


def test_a_few_parts_have_all_the_time() -> None:
    parts = (Part("a", "fake_ok", 10.0), Part("b", "fake_ok", 30.0))
    assert [p.seconds for p in gpu_suite.shared_out(parts, 100.0)] == [25.0, 75.0]
    assert gpu_suite.shared_out(parts, 20.0) == parts


def test_parts_know_which_others_run(fakes: None) -> None:
    result = gpu_suite.suite((Part("a", "fake_asking", 20.0), Part("b", "fake_asking", 20.0)))
    assert [p["data"] for p in result["parts"].values()] == [{"parts": ["a", "b"]}] * 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is visible: `make gpu` runs it")
def test_without_a_gpu_it_says_why_and_succeeds(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu_suite", "--out", str(out)],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Nothing was run on a GPU: torch" in done.stdout
    result = json.loads(out.read_text())
    assert gpu_suite.problems(result) == []
    assert result["gpu"] is None and "CUDA" in result["why_no_gpu"]
    assert [p["status"] for p in result["parts"].values()] == [
        "ok", *["skipped"] * (len(gpu_suite.PARTS) - 1)]


def test_it_needs_no_library_that_torch_does_not_bring(tmp_path: Path) -> None:
    code = """
import sys
for name in ("pytest", "hypothesis", "rich", "platformdirs", "transformers", "matplotlib"):
    sys.modules[name] = None  # importing it now fails
import attngen as ag
from benchmarks import gpu_compile, gpu_decode, gpu_environment, gpu_forward
from benchmarks import gpu_primitives, gpu_speed, gpu_suite
gpu_forward.compiled = lambda spec, fuse: ag.compile(spec, target="sm_90", emulate=True)
case = gpu_forward.cases.Case(dtype="bfloat16")
print(gpu_forward.judge("x", case, True, "cpu")["complaints"])"""
    assert run_python(code, ATTNGEN_CACHE_DIR=str(tmp_path)).strip() == "[]"


@pytest.mark.parametrize(("change", "complaint"), [
    ({"schema": "1"}, "schema: str"), ({"parts": {"a": {}}}, "parts.a.status"),
    ({"date": None}, "date: NoneType")])
def test_schema_is_checked(change: dict[str, object], complaint: str) -> None:
    good = gpu_suite.suite((), 100.0)
    assert gpu_suite.problems(good) == []
    assert complaint in gpu_suite.problems({**good, **change})


def test_progress_is_on_disk_after_every_row(tmp_path: Path) -> None:
    progress = gpu_part.Progress(tmp_path / "part.json", 5.0)
    progress.add("rows", {"name": "x", "ok": False})
    state = json.loads(progress.file.read_text())
    assert state["status"] == "running" and state["failures"] == ["rows: x"]
    assert 0 < progress.left() <= 5.0


def test_primitives_are_named_after_what_they_call() -> None:
    for name, primitive in PRIMITIVES.items():
        assert isinstance(primitive, Primitive)
        kinds = r"(_(rounded|bf16|f16|s8|e4m3|float))+$"
        assert name in primitive.body or re.sub(kinds, "", name) in primitive.body
