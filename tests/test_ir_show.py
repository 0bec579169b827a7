"""Graphs as text: golden files of every stage, differences, and the same bytes everywhere."""

from __future__ import annotations

import re

import pytest
from golden_fixture import Golden
from helpers import run_python
from ir_problem import DTYPE, lowered, only, placed, schedule

from attngen import compile, masks, scores
from attngen.ir.build import build_forward
from attngen.ir.fuse import fuse
from attngen.ir.lower import tile
from attngen.ir.node import cast, const, idx, make, param, value
from attngen.ir.passes import PassRecord, canonicalise, rebase, run_pass
from attngen.ir.show import diff, formula, graph_text, statement_text
from attngen.ir.stmt import Issue, Load, Loop, Wait
from attngen.spec import AttentionSpec

SMALL = AttentionSpec(heads=4, groups=2, head_dim=32, causal=True, score=scores.softcap(30))


@pytest.mark.parametrize("step", ["canonicalise", "fuse", "rebase", "tile", "place"])
def test_stages_of_a_fused_forward(step: str, golden: Golden) -> None:
    plan = schedule("mma", 64, 32, (2, 1), warps=4)
    assert graph_text(lowered(SMALL, "mma", plan=plan)[step]) == golden


@pytest.mark.parametrize("engine", DTYPE)
def test_placed_unfused(engine: str, golden: Golden) -> None:
    spec = AttentionSpec(heads=3, groups=(0, 1, 1), head_dim=8, head_dim_v=16)
    assert graph_text(placed(spec, engine, fused=False)) == golden


@pytest.mark.parametrize("engine", ["simt", "cpu"])
def test_placed_fused(engine: str, golden: Golden) -> None:
    spec = AttentionSpec(heads=2, head_dim=8, causal=True, window=100)
    assert graph_text(placed(spec, engine)) == golden


def test_ranges_of_masks(golden: Golden) -> None:
    """The first statement of kernels that differ in their mask alone: the tile ranges."""
    specs = {
        "everything": AttentionSpec(heads=2, head_dim=8),
        "causal": AttentionSpec(heads=2, head_dim=8, causal=True),
        "causal, last 128": AttentionSpec(heads=2, head_dim=8, causal=True, window=128),
        "within 64 and 32": AttentionSpec(heads=2, head_dim=8, window=(64, 32)),
        "prefix": AttentionSpec(heads=2, head_dim=8, mask=masks.prefix_lm(100)),
        "by head": AttentionSpec(heads=2, head_dim=8, mask=lambda b, h, i, j: i - j < 16 * (h + 1)),
    }
    lines = []
    for name, spec in specs.items():
        body = only(lowered(spec, "cpu")["tile"]).body
        first = statement_text(body[0])
        lines += [f"# {name}", *first.replace("; ", "\n  ").split("\n")]
        lines += [f"  {statement_text(s)}" for s in body if isinstance(s, Loop)]
    assert "\n".join(lines) == golden


def test_what_each_pass_changed(golden: Golden) -> None:
    """Unified diffs between passes, as the command line shows them."""
    trace: list[PassRecord] = []
    graph = build_forward(SMALL, "bfloat16")
    plan = schedule("mma", 64, 32, (2, 1), warps=4)
    for name, step in (("canonicalise", canonicalise), ("fuse", fuse), ("rebase", rebase),
                       ("tile", lambda g: tile(g, plan))):
        graph = run_pass(name, step, graph, trace=trace)
    assert [r.name for r in trace] == ["canonicalise", "fuse", "rebase", "tile"]
    assert all(r.milliseconds > 0 for r in trace)
    assert "\n".join(f"== {r.name}\n{r.changes}" for r in trace[:3]) == golden


def test_a_diff_of_equal_texts_is_empty() -> None:
    text = graph_text(placed(SMALL))
    assert diff(text, text) == ""
    changed = diff(text, text.replace("alpha", "beta"))
    assert changed.startswith("--- before\n+++ after\n") and "+" in changed


def test_formulas() -> None:
    i, x = idx("i"), value("x", "ij", "float32")
    cases = {
        "i + 1": make("add", i, const(1)),
        "(i - 3) // 16": make("floordiv", make("add", i, const(-3)), const(16)),
        "i - (n - 3)": make("sub", i, make("sub", param("n"), const(3))),
        "x * 0.5": make("mul", x, const(0.5)),
        "exp2((x * 0.5) - x)": make("exp2", make("sub", make("mul", x, const(0.5)), x)),
        "where(i < 3, x, -inf)": make("where", make("lt", i, const(3)), x, const(float("-inf"))),
        "cast(i, float32)": cast(i, "float32"),
        "not(i == 3)": make("not", make("eq", i, const(3))),
    }
    assert {formula(n) for n in cases.values()} == set(cases)


def test_numbers_are_exact_in_their_type() -> None:
    """A key is made of this text: what differs in the emitted source must differ here."""
    near = [AttentionSpec(heads=1, head_dim=8, scale=s) for s in (0.125, 0.12500001, 0.125 + 1e-15)]
    single, double = ([placed(s, "cpu", dtype=d).key() for s in near]
                      for d in ("float32", "float64"))
    assert single[0] != single[1] and single[0] == single[2]
    assert len(set(double)) == 3


def test_statements_on_a_line() -> None:
    assert statement_text(Load("k_tile", "k")) == "k_tile = load k"
    assert statement_text(Issue("k_tile", "k", 2)) == "issue k_tile = k ahead 2"
    assert statement_text(Issue("q_tile", "q", None)) == "issue q_tile = q"
    assert statement_text(Wait(1)) == "wait pending 1"


def test_origins_are_shown_but_do_not_count() -> None:
    one, other = (lowered(AttentionSpec(heads=1, head_dim=8, score=score))
                  for score in (named, lambda s, b, h, i, j: s.tanh()))
    assert one["rebase"].key() == other["rebase"].key()
    assert "# named" in graph_text(one["place"])
    assert "# " not in graph_text(one["place"], origins=False).removeprefix("# placed")


def named(s, b, h, i, j):  # type: ignore[no-untyped-def]
    return s.tanh()


# Prints every text and key of some graphs, after lowering others first when asked to.
PROGRAM = """
import sys
sys.path.insert(0, "tests")
from attngen import masks, scores
from attngen.ir.show import graph_text
from attngen.spec import AttentionSpec
from ir_problem import DTYPE, lowered
A = AttentionSpec(heads=2, head_dim=8, causal=True, window=9, score=scores.softcap(3))
B = AttentionSpec(heads=2, head_dim=8, mask=masks.sliding_window((8, 0)) & masks.causal(),
                  score=[scores.alibi(), lambda s, b, h, i, j: s * 0.5])
C = AttentionSpec(heads=2, head_dim=8, mask=lambda b, h, q, k: (k <= q) & (q - k < 9),
                  score=lambda s, b, h, i, j: 3.0 * (s / 3.0).tanh())
kept = [lowered(x, e, f) for x in {before} for e in DTYPE for f in (True, False)]
for engine in DTYPE:
    for fused in (True, False):
        for graph in lowered(A, engine, fused).values():
            print(graph.key())
            print(graph_text(graph))
"""


def test_the_same_bytes_in_every_process_whatever_was_lowered_before() -> None:
    """Neither the hash seed nor other graphs alive in the process leave a trace."""
    texts = {run_python(PROGRAM.replace("{before}", before), PYTHONHASHSEED=seed)
             for before, seed in (("()", "0"), ("()", "4711"), ("(C, B, A)", "17"))}
    assert len(texts) == 1 and len(texts.pop()) > 10_000


def test_explain_prints_the_formulas_with_shared_parts_named_once() -> None:
    spec = AttentionSpec(heads=2, head_dim=64, score=scores.softcap(30.0), causal=True,
                         mask=masks.sliding_window(9) | masks.attention_sinks(2))
    text = str(compile(spec, "sm_80").explain())
    formulas = text[text.index("region forward"):text.index("kernel forward")]
    assert "tanh(" in formulas
    (line,) = [x for x in formulas.splitlines() if "kv_offset + j" in x]
    name = line.split(":")[0].strip()
    assert len(re.findall(rf"{name}\b", formulas)) > 2  # once where it is written, then used
