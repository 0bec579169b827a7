"""The cost model against the interpreter, which counts what it does."""

from __future__ import annotations

from collections import Counter

import pytest
from ir_problem import DTYPE, Problem, placed

from attngen import masks, per_head
from attngen.ir.cost import predict
from attngen.spec import AttentionSpec

SPECS = {
    "plain": AttentionSpec(heads=2, head_dim=8),
    "causal": AttentionSpec(heads=4, groups=2, head_dim=8, head_dim_v=24, causal=True),
    "last": AttentionSpec(heads=2, head_dim=8, causal=True, window=20),
    "pair": AttentionSpec(heads=2, head_dim=16, window=(30, 9)),
    "prefix": AttentionSpec(heads=2, head_dim=8, mask=masks.prefix_lm(20)),
    "by_head": AttentionSpec(heads=3, head_dim=8, mask=lambda b, h, i, j: j + 16 * h <= i),
    "by_batch": AttentionSpec(heads=2, head_dim=8, mask=lambda b, h, i, j: j <= i - 24 * b),
    "chunked": AttentionSpec(heads=2, head_dim=8, causal=True, mask=masks.chunked(40)),
    "apart": AttentionSpec(heads=2, head_dim=8, causal=True,
                           mask=masks.sliding_window(9) | masks.attention_sinks(3)),
    "every": AttentionSpec(heads=2, head_dim=8, mask=masks.dilated_window(2, 20)),
    "each": AttentionSpec(heads=3, head_dim=8, mask=per_head(
        [masks.strided(24), masks.chunked(19), None])),
    "by_both": AttentionSpec(heads=2, head_dim=8, mask=lambda b, h, i, j: j < 20 * b + 16 * h + 5),
}
CALLS = ((50, 71, None, (0, 0), (71, 30)), (33, 33, (5, -40, 20), (0, 3, 1), None),
         (1, 40, None, (0,), None), (17, 0, None, (0,), None), (0, 5, None, (0,), None))


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "unfused"])
@pytest.mark.parametrize("engine", DTYPE)
@pytest.mark.parametrize("name", SPECS)
def test_what_is_predicted_is_what_happens(name: str, engine: str, fused: bool) -> None:
    graph = placed(SPECS[name], engine, fused)
    for call in CALLS:
        problem = Problem(SPECS[name], *call)
        _, counted = problem.run_counted(graph)
        costs = predict(graph, problem.extents, problem.params)
        moved: Counter[str] = Counter()
        for cost in costs:
            moved.update({f"read {t}": n for t, n in cost.read.items()})
            moved.update({f"write {t}": n for t, n in cost.written.items()})
        happened = {k: n for k, n in counted.items() if k.startswith(("read ", "write ")) and n}
        assert {k: n for k, n in moved.items() if n} == happened, call
        for what in ("tiles", "full_tiles"):
            assert sum(getattr(c, what) for c in costs) == counted.get(what, 0), (what, call)
