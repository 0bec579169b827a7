"""Budgets that keep the project readable, and rooms that must stay ignorant of patterns."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers import ROOT

PYTHON_LINES, TEMPLATE_LINES = 350, 300
FOLDERS = ("attngen", "tests", "examples", "benchmarks")
TEMPLATE_SUFFIXES = {".jinja", ".cuh", ".cu", ".h", ".hpp", ".cpp", ".cc", ".c"}

# What users may write, and what no room that serves every pattern may know by name. ("Shared
# window" is CUDA's word for the address range of shared memory.)
PATTERN = re.compile(
    r"(?<![a-z])(?<!shared )(?i:alibi|softcap|sliding|longformer|dilated|causal|window)(?![a-z])")
IGNORANT = ("attngen/ir", "attngen/templates", "attngen/runtime", "attngen/compiler.py")


def files(*roots: str) -> list[Path]:
    """All files below the roots that are not caches."""
    found = [p for root in roots for p in ([ROOT / root] if (ROOT / root).is_file()
                                           else sorted((ROOT / root).rglob("*")))]
    return [p for p in found if p.is_file() and "__pycache__" not in p.parts]


def test_files_keep_to_their_line_budget() -> None:
    over = []
    for path in files(*FOLDERS):
        budget = (PYTHON_LINES if path.suffix == ".py"
                  else TEMPLATE_LINES if path.suffix in TEMPLATE_SUFFIXES else None)
        if budget is not None:
            lines = len(path.read_text().splitlines())
            if lines > budget:
                over.append(f"{path.relative_to(ROOT)}: {lines} lines, at most {budget}")
    assert over == []


@pytest.mark.parametrize("root", IGNORANT)
def test_no_pattern_name_appears_where_every_pattern_is_served(root: str) -> None:
    named = [f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
             for path in files(root) if path.suffix == ".py" or path.suffix in TEMPLATE_SUFFIXES
             for number, line in enumerate(path.read_text().splitlines(), 1)
             if PATTERN.search(line)]
    assert named == []


def test_the_search_sees_names_inside_identifiers_but_not_inside_words() -> None:
    for named in ("is_causal = 1", "struct SlidingTile", "WINDOW_LEFT", "the alibi's slope"):
        assert PATTERN.search(named), named
    for free in ("on Windows", "the block's shared window", "noncausality", "sidling"):
        assert not PATTERN.search(free), free


def test_no_unfinished_places() -> None:
    marks = re.compile(r"raise NotImplementedError|\b(TODO|FIXME|XXX)\b")
    found = [f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
             for path in files("attngen") if path.suffix == ".py" or path.suffix
             in TEMPLATE_SUFFIXES for number, line in enumerate(path.read_text().splitlines(), 1)
             if marks.search(line)]
    assert found == []
