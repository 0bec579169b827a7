"""docs/ir.md: its graphs are printed by the passes, its code runs, its recipe works."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documented import blocks, check_block
from helpers import ROOT
from ir_problem import DTYPE, Problem, assert_same, lowered, only, pipeline, placed, schedule

from attngen import masks, scores
from attngen.compiler import Options, lower
from attngen.ir import ops
from attngen.ir.eval_tile import interpret_tiles
from attngen.ir.graph import Graph
from attngen.ir.node import make
from attngen.ir.ops import LEAF_OPS, SCALAR_OPS, TENSOR_OPS
from attngen.ir.show import graph_text, statement_text
from attngen.ir.stmt import Loop, Stmt
from attngen.spec import AttentionSpec
from attngen.templates import expressions
from attngen.templates.render import render_cuda
from attngen.templates.render_cpu import render_cpu

PAGE = "ir.md"
SPEC = AttentionSpec(heads=4, groups=2, head_dim=64, causal=True, score=scores.softcap(30))


def stage(step: str) -> Callable[[], str]:
    def text() -> str:
        plan = schedule("mma", 64, 64, (2, 1), warps=4)
        lines = graph_text(lowered(SPEC, "mma", plan=plan)[step]).splitlines()
        return "\n".join(line for line in lines if not line.startswith(("  tensor", "  param")))
    return text


def operations() -> str:
    lines = ["leaves   " + " ".join(LEAF_OPS), "tensors  " + " ".join(TENSOR_OPS), "scalars"]
    for row in SCALAR_OPS.values():
        meaning = getattr(row.evaluate, "__name__", "") if row.evaluate else "by type"
        notes = [n for n, on in (("commutative", row.commutative), ("cheap", row.cheap)) if on]
        arity = "n" if row.arity < 0 else str(row.arity)
        lines.append(f"  {row.name:<15}{arity}  {row.result:<6}"
                     f"{meaning.strip('_').replace('<lambda>', 'formula'):<17}"
                     f"{' '.join(notes)}".rstrip())
    return "\n".join(lines)


def ranges() -> str:
    specs = {"causal": AttentionSpec(heads=1, head_dim=8, causal=True),
             "causal, the last 128": AttentionSpec(heads=1, head_dim=8, causal=True, window=128),
             "causal, or one of the first 100 keys": AttentionSpec(
                 heads=1, head_dim=8, mask=masks.prefix_lm(100))}
    lines = []
    for name, spec in specs.items():
        body = only(lowered(spec, "cpu")["tile"]).body
        first = statement_text(body[0])
        lines += [f"# {name}", *(f"  {part}" for part in first.removeprefix("map[] ").split("; "))]
        lines += [f"  {statement_text(s)}" for s in body if isinstance(s, Loop)]
    return "\n".join(lines)


def split() -> str:
    spec = AttentionSpec(heads=4, groups=2, head_dim=64, causal=True)
    options = Options("sm_80", "bfloat16", rows=16, split=True)
    return graph_text(lower(spec, options).fused).rstrip()


BLOCKS = {"operations": operations, "math": stage("canonicalise"), "split": split,
          "fused": stage("fuse"),
          "rebased": stage("rebase"), "ranges": ranges, "tiled": stage("tile"),
          "placed": stage("place")}


@pytest.mark.parametrize("name", BLOCKS)
def test_the_page_shows_what_the_passes_make(name: str, pytestconfig: pytest.Config) -> None:
    check_block(PAGE, name, BLOCKS[name](), pytestconfig.getoption("--update-golden"))


def test_every_block_is_made_by_the_program() -> None:
    assert blocks(PAGE) == set(BLOCKS)


def test_the_page_names_every_file_and_every_statement() -> None:
    page = (ROOT / "docs" / PAGE).read_text()
    files = {p.name for p in Path(ROOT / "attngen" / "ir").glob("*.py")} - {"__init__.py"}
    assert files <= set(re.findall(r"`(\w+\.py)`", page))
    statements = {s.__name__ for s in Stmt.__subclasses__()}
    assert statements <= set(re.findall(r"^\| `(\w+)[`(]", page, re.MULTILINE))
    spaces = set(re.findall(r"`(\w+)`", page[page.index("| space |"):page.index("In order, for")]))
    from attngen.ir.verify_placed import _HOLDS
    assert set(_HOLDS) <= spaces


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / PAGE).read_text(), re.DOTALL)


def test_the_pages_python_runs() -> None:
    nodes, by_hand = python_blocks()
    made: dict[str, Any] = {}
    exec(nodes, made)
    assert made["s"].axes == ("b", "h", "i", "j") and made["m"].axes == ("b", "h", "i")
    assert made["p"].axes == made["s"].axes
    exec(by_hand, made)
    graph: Graph = made["graph"]
    rng = np.random.default_rng(0)
    x = {n: rng.normal(size=(1, 2, 20, 64)) for n in "qkv"}
    extents = {"b": 1, "h": 2, "g": 2, "i": 20, "j": 20, "d": 64, "e": 64}
    *_, (_, last) = pipeline(graph, schedule("cpu"))
    out = interpret_tiles(last, x, {}, extents)[0]["o"]
    s = np.tril(x["q"] @ x["k"].swapaxes(2, 3))
    np.testing.assert_allclose(out, s @ x["v"], atol=1e-4)


def test_the_recipe_for_a_scalar_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps 1 and 3 of the page; step 2 is replaced by making the node here."""
    row = ops.OpInfo("sin", 1, "float", np.sin, cheap=False)
    monkeypatch.setitem(ops.SCALAR_OPS, "sin", row)
    monkeypatch.setitem(ops.OPS, "sin", row)
    monkeypatch.setattr(expressions, "_FUNCTIONS", {*expressions._FUNCTIONS, "sin"})

    def wave(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        return type(s)(make("sin", s.node)) if hasattr(s, "node") else s.sin()
    spec = AttentionSpec(heads=1, head_dim=8, causal=True, score=wave)
    problem = Problem(spec, 20, 20)
    for graph in lowered(spec, "cpu").values():
        assert_same(problem.run(graph), problem.oracle(), 1e-12)
    for engine in DTYPE:
        kernel = only(placed(spec, engine, dtype="float32" if engine == "cpu" else None))
        text = (render_cpu(kernel) if engine == "cpu" else render_cuda(kernel, "sm_80")).text
        assert "sin_f32(" in text
