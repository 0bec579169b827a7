"""The benchmarks' own logic; what they measure is not judged here."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from benchmarks import cpu_forward, decode, latency, record, traffic, training
from benchmarks.latency import Row
from benchmarks.traffic import Count


def test_traffic_page_holds_what_is_counted_now() -> None:
    first, *others = traffic.SPECS
    now = [traffic.count(first, 256, True), traffic.count(first, 256, False),
           *(traffic.count(name, 512, True) for name in others)]
    text = traffic.PAGE.read_text()
    row = next(line for line in text.splitlines() if line.startswith("| 256 |"))
    assert f"| {now[0].counted / 1e3:.1f} |" in row and f"| {now[1].counted / 1e3:.1f} |" in row, \
        "run `python -m benchmarks traffic` and commit docs/traffic.md"
    for c in now:
        assert abs(c.error) <= 0.05, c
        if c.spec != first:
            assert f"| {c.spec} | fused | {c.counted / 1e3:.1f} |" in text


def test_traffic_page_shows_growth() -> None:
    first = next(iter(traffic.SPECS))
    counts = [Count(first, n, fused, n * n * size, n * n * size, 128)
              for n in (256, 512) for fused, size in ((True, 2), (False, 18))]
    lines = traffic.page(counts).splitlines()
    assert "| 512 | 524.3 | +0.00 % | 2.00 | 4718.6 | +0.00 % | 18.00 | 9.0 |" in lines


@pytest.mark.parametrize("code", [latency._TEXT, latency._CUBIN, latency._HIT, latency._CALL,
                                  latency._FLEX, latency._FIRST])
def test_programs_for_new_processes_parse(code: str) -> None:
    ast.parse(code.replace("TARGET", "'cpu'").replace("DTYPE", "'float32'"))


def test_limits_are_told() -> None:
    rows = [Row("a", 50.0, "ms", 60.0), Row("b", 70.0, "ms", 60.0), Row("c", 1.0, "us")]
    assert [r.holds for r in rows] == [True, False, True]
    _, _, _, _, a, b, c = latency.report(rows).splitlines()[:7]
    assert "ok" in a and "MISSED" in b and "at most" not in c


def test_results_are_written_whole_with_the_machine(tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    file = record.save("test", {"rows": [1]})
    data = json.loads(file.read_text())
    assert data["rows"] == [1] and data["machine"]["cores"] >= 1
    assert {"torch", "numpy"} <= set(data["machine"]["versions"])
    with pytest.raises(TypeError):
        record.write(file, {"bad": object()})
    assert json.loads(file.read_text()) == data
    assert [f.name for f in tmp_path.iterdir()] == [file.name]


def test_a_new_process_reports_its_failure() -> None:
    assert record.in_new_process("print('noise'); print('[1, 2]')") == [1, 2]
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        record.in_new_process("1 / 0")


def test_table() -> None:
    text = record.table("T", ("name", "n"), [("a", 1), ("long one", 22)])
    assert text.splitlines() == ["T", "", "name       n", "--------  --", "a          1",
                                 "long one  22"]


def test_cpu_shapes_count_their_work() -> None:
    shape = cpu_forward.Shape(2, 4, 2, 16, 8, True, "float32")
    assert shape.flops == 4 * 2 * 4 * 16 * 16 * 8 / 2
    assert str(shape) == "float32 B2 H4/2 S16 D8 causal"


def test_a_training_step_is_measured_in_a_process_of_its_own() -> None:
    found = record.in_new_process(training._STEP.format(heads=1, dim=8, seqlen=4096, window=64))
    assert found["seconds"] > 0 and 4 * 4096 * 8 * 4 <= found["bytes"] < 2**30
    text = training.report({"speed": [], "memory": [
        {"seqlen": 4096, "window": 64, "tensor_bytes": 2**20, "matrix_bytes": 2**30, **found}]})
    assert "1,024" in text and "4096" in text


def test_decoding_is_measured_beside_a_plain_read() -> None:
    shape = decode.Shape(2, layers=3, heads=4, groups=2, keys=64, head_dim=16)
    rows = decode.measure(shape, "float32", (1,), rounds=2)
    size = 3 * 2 * 2 * 2 * 64 * 16 * 4
    assert rows[0]["bytes"]["paged"] == rows[0]["bytes"]["read"] == size
    assert rows[0]["bytes"]["int8"] == size // 4 + 3 * 2 * 2 * 2 * 64 * 4
    assert set(rows[0]["times"]) == set(decode.NAMES) and rows[0]["of_read"]["read"] == 1.0
    rows[0]["of_read"]["contiguous"], rows[0]["times"]["contiguous"]["ratio"] = 0.5, 2.0
    goals = decode.goals(rows)
    assert [(g["goal"], g["holds"]) for g in goals] == [("of_read", False), ("ratio", True)]
    text = decode.report({"decode": rows, "append": decode.append(shape, (1,), rounds=2),
                          "goals": goals})
    *_, of_read, ratio = text.splitlines()
    assert of_read.endswith("MISSED") and ratio.endswith("ok") and "float8_e4m3" in text


def test_decoding_results_are_compared() -> None:
    shape = decode.Shape(1, layers=2, heads=4, groups=2, keys=16, head_dim=16)
    runs = decode.candidates(shape, "float32")
    right = runs["paged"]
    runs["paged"] = right._replace(run=lambda: right.run() * 1.01)
    with pytest.raises(RuntimeError, match="float32, paged: results differ by 0.01"):
        decode.differences(runs, "float32")
