"""What each verb of the command line prints and does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import attngen, output, refusal

import attngen as ag

SPEC = "--heads 4 --groups 2 --head-dim 16".split()


# -- the verbs ------------------------------------------------------------------------------------


def test_show_prints_the_stage_asked_for() -> None:
    for stage in ("math", "fused", "tiled", "placed"):
        assert output("show", *SPEC, "--stage", stage).startswith(f"# {stage}\n")
    assert output("show", *SPEC) == output("show", *SPEC, "--stage", "fused")
    unfused = output("show", *SPEC, "--stage", "tiled", "--no-fuse")
    assert unfused.count("kernel ") > output("show", *SPEC, "--stage", "tiled").count("kernel ")


def test_show_diff_by_pass_and_by_stage() -> None:
    every = output("show", *SPEC, "--diff")
    assert [line.split()[1] for line in every.splitlines() if line.startswith("== ")] \
        == ["canonicalise", "fuse", "rebase", "tile", "place"]
    one = output("show", *SPEC, "--diff", "fuse")
    assert one.splitlines()[1:] == _section(every, "fuse")
    stages = output("show", *SPEC, "--diff", "math:fused")
    assert "-# math" in stages and "+# fused" in stages
    assert output("show", *SPEC, "--diff", "math:math") == "no change\n"


def _section(text: str, name: str) -> list[str]:
    part = text.split(f"== {name} ", 1)[1].split("\n== ")[0]
    return part.splitlines()[1:]


def test_emit_prints_what_the_compiled_attention_holds(tmp_path: Path) -> None:
    for target in ("cpu", "sm_80"):
        spec = ag.AttentionSpec(heads=4, groups=2, head_dim=16)
        assert output("emit", *SPEC, "--target", target) == ag.compile(spec, target).source()
    file = tmp_path / "k.cu"
    assert output("emit", *SPEC, "--target", "sm_80", "-o", str(file)) == ""
    assert file.read_text() == output("emit", *SPEC, "--target", "sm_80")
    assert os.listdir(tmp_path) == ["k.cu"]


def test_emit_writes_unfused_kernels_to_a_file_each(tmp_path: Path) -> None:
    status, out, err = attngen("emit", *SPEC, "--target", "sm_80", "--no-fuse", "-o",
                               str(tmp_path / "k.cu"))
    assert (status, out) == (0, "")
    files = sorted(os.listdir(tmp_path))
    assert len(files) == 3 == len(err.splitlines())
    assert all(f.startswith("k.forward_") and f.endswith(".cu") for f in files)


def test_emit_honours_an_explicit_schedule() -> None:
    text = output("emit", *SPEC, "--target", "sm_80", "--schedule", "block_n=32",
                  "--schedule", "stages=1,1")
    assert "BLOCK_N = 32" in text


def test_a_schedule_too_big_is_refused_with_the_arithmetic() -> None:
    text = refusal("emit", "--heads", "4", "--head-dim", "128", "--target", "sm_86", "--schedule",
                   "block_n=256", "--schedule", "stages=3,3")
    assert "ScheduleError" in text and "101376" in text


def test_explain_predicts_and_compiles() -> None:
    text = output("explain", *SPEC, "--causal", "--target", "sm_80", "--seqlen", "256")
    for word in ("shared memory", "FLOPs", "device memory", "roofline", "n_end",
                 "as compiled by NVRTC 13", "registers", "spills"):
        assert word in text
    predicted = output("explain", *SPEC, "--causal", "--target", "sm_80", "--seqlen", "256",
                       "--no-compile")
    assert text.startswith(predicted) and "NVRTC" not in predicted
    assert "NVRTC" not in output("explain", *SPEC, "--target", "cpu")


def test_explain_says_why_nothing_was_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    from attngen.errors import NoCompilerError
    from attngen.runtime import nvrtc

    def missing(*args: object, **kwargs: object) -> None:
        raise NoCompilerError("NVRTC 13 is not installed", remedy="Run: pip install it.")
    monkeypatch.setattr(nvrtc, "compile_cubin", missing)
    text = output("explain", *SPEC, "--target", "sm_80")
    assert "not compiled: NVRTC 13 is not installed\n  Run: pip install it." in text


def test_run_checks_against_the_oracle() -> None:
    text = output("run", *SPEC, "--causal", "--seqlen", "5,65", "--batch", "3", "--seqlens-k",
                  "65,3,0", "--q-offset", "7", "--kv-offset", "-2", "--target", "cpu")
    assert "batch 3, seqlen_q 5, seqlen_k 65" in text
    assert [line.split()[-1] for line in text.splitlines()[-2:]] == ["ok", "ok"]


def test_run_fails_when_the_result_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    from attngen.compiler import Attention
    right = Attention.__call__

    def shifted(*args: Any, **kwargs: Any) -> Any:
        result = right(*args, **kwargs)
        return (result[0] + 1, result[1]) if isinstance(result, tuple) else result
    monkeypatch.setattr(Attention, "__call__", shifted)
    status, out, _ = attngen("run", *SPEC, "--seqlen", "8", "--target", "cpu")
    assert status == 1 and "WRONG" in out and "elements are off by more than" in out


def test_run_emulated_counts_matrix_instructions() -> None:
    text = output("run", *SPEC, "--target", "sm_80", "--emulate", "--seqlen", "40")
    rows = {line[:22].strip(): line[22:].split() for line in text.splitlines()}
    counted, predicted = rows["mma.m16n8k16"]
    assert int(counted) == int(predicted) > 0
    assert rows["read k"][:2] == rows["read k"][2:] and rows["bank conflicts"] == ["0"]
    moved = output("run", *SPEC, "--target", "sm_80", "--emulate", "--seqlen", "40",
                   "--seqlens-k", "7")
    assert "emulated, with no race" in moved  # predictions are for whole sequences only


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_run_on_a_gpu_that_is_not_there_says_how_to_go_on() -> None:
    text = refusal("run", *SPEC, "--target", "sm_80")
    assert "NoDeviceError: target sm_80 needs a GPU" in text and "--emulate" in text


def test_cache_ls_verify_clear_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNGEN_CACHE_DIR", str(tmp_path / "c"))
    assert output("cache", "path").strip() == str(tmp_path / "c")
    assert "0 entries" in output("cache", "ls")
    output("emit", *SPEC, "--target", "sm_80")
    assert "plan sm_80 bfloat16" in output("cache", "ls")
    assert "1 entries good, 0 bad" in output("cache", "verify")
    entry = next(p for p in (tmp_path / "c").iterdir() if p.name.startswith("plan-")
                 and not p.name.endswith(".lock"))
    entry.write_bytes(entry.read_bytes()[:-3])
    status, out, _ = attngen("cache", "verify")
    assert status == 1 and "damaged" in out and "0 entries good, 1 bad" in out
    status, _, err = attngen("cache", "clear", "--kind", "cubn")
    assert status == 2 and "unknown kind of cache entry 'cubn'" in err
    assert "removed 0 files" in output("cache", "clear", "--older-than", "1")
    assert "removed 1 files" in output("cache", "clear")
    assert "0 entries" in output("cache", "ls")


def test_env_says_what_each_setting_is_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNGEN_THREADS", "3")
    monkeypatch.setenv("ATTNGEN_VERIFY", "9")
    monkeypatch.setenv("ATTNGEN_DEBGU", "1")
    text = output("env")
    lines = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line}
    assert lines["ATTNGEN_THREADS"] == ["3", "environment"]
    assert lines["ATTNGEN_DUMP"] == ["unset", "default"]
    assert "bad: ATTNGEN_VERIFY='9' is not a value of this setting" in text
    assert "ATTNGEN_DEBGU is set, and no setting has that name. Did you mean 'ATTNGEN_DEBUG'?" \
        in text
    for word in ("C++ compiler:", "NVRTC 13.", "default target:", "sm_120", "torch 2."):
        assert word in text


# -- the terminal ---------------------------------------------------------------------------------


def test_output_is_plain_when_piped_and_framed_on_a_terminal(
        monkeypatch: pytest.MonkeyPatch) -> None:
    plain = output("cache", "ls")
    assert "\x1b[" not in plain and "│" not in plain
    assert "│" in output("cache", "ls", terminal=True)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[3" not in output("cache", "ls", terminal=True)
