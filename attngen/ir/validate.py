"""Translation validation: the graph before and after a pass computes the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import VerifyError
from .bounds import EXTENTS, SEQUENCES
from .eval_tensor import interpret_tensors
from .eval_tile import interpret_tiles
from .graph import Graph
from .node import AXES, walk
from .ops import FLOATS
from .pack import BEGINS

Array = np.ndarray[Any, Any]


def small_problem(graph: Graph, seed: int = 0, seqlen_q: int = 37, seqlen_k: int = 53,
                  ) -> tuple[dict[str, Array], dict[str, Any], dict[str, int]]:
    """Random inputs, run-time numbers and axis lengths for a graph's compile-time sizes."""
    rng = np.random.default_rng(seed)
    sizes = dict(graph.sizes)
    extents = {"b": 2, "h": sizes["heads"], "g": sizes["groups"], "i": seqlen_q, "j": seqlen_k,
               "d": sizes["head_dim"], "e": sizes["head_dim_v"], "split": 3,
               "row": seqlen_q * max(1, sizes["heads"] // sizes["groups"])}
    inputs = {t.name: rng.normal(size=[extents[a] for a in t.axes])
              for t in graph.tensors if t.role == "input"}
    for table in graph.tables:
        values = rng.normal(size=[29] * table.ndim) * 3
        inputs[table.name] = values if table.dtype in FLOATS else values.astype(
            bool if table.dtype == "bool" else np.int64)
    params = {**{name: extents[axis] for axis, name in EXTENTS.items()},
              "q_offset": np.array([seqlen_k - seqlen_q, 5]), "kv_offset": np.array([0, -3]),
              "kv_len": np.array([seqlen_k, max(seqlen_k - 9, 0)]),
              "dropout_p": np.array([0.25, 0.5]), "dropout_scale": np.array([1 / 0.75, 2.0])}
    for name in _params(graph):
        params.setdefault(name, np.array([3, 5]))
    assert set(extents) == set(AXES)
    return inputs, params, extents


def _params(graph: Graph) -> set[str]:
    if graph.stage in ("math", "fused"):
        return {n.attr("name") for r in graph.regions for n in walk(*r.roots) if n.op == "param"}
    return {p.name for k in graph.tiles for p in k.params}


def run_graph(graph: Graph, inputs: dict[str, Array], params: dict[str, Any],
              extents: dict[str, int]) -> dict[str, Array]:
    """Interpret a graph of any stage in float64; returns its outputs."""
    if graph.stage in ("math", "fused"):
        out = interpret_tensors(graph, inputs, params, extents, rounding=True)
    else:
        out, _ = interpret_tiles(graph, inputs, params, extents)
    return {t.name: out[t.name] for t in graph.tensors if t.role == "output"}


def packed_problem(graph: Graph) -> tuple[tuple[dict[str, Array], dict[str, Any], dict[str, int]],
                                          dict[str, Array]]:
    """A small problem for a packed graph of two sequences, and its answers: ``graph``, not packed,
    run on each of them alone."""
    problems = [small_problem(graph, 0, 37, 53), small_problem(graph, 1, 21, 70)]
    tables = {t.name: problems[0][0][t.name] for t in graph.tables if not t.of}
    answers = [run_graph(graph, {**inputs, **tables}, params, extents)
               for inputs, params, extents in problems]

    def end_to_end(name: str, parts: list[dict[str, Array]]) -> Array:
        axes = [a for a in graph.tensor(name).axes if a != "b"]
        return np.concatenate([p[name][n] for n, p in enumerate(parts)],
                              next(n for n, a in enumerate(axes) if a in BEGINS))

    params = {name: np.array([np.broadcast_to(p[name], 2)[n] for n, (_, p, _) in
                              enumerate(problems)]) for name in problems[0][1]}
    params |= {begin: np.cumsum(params[SEQUENCES[a]]) - params[SEQUENCES[a]]
               for a, begin in BEGINS.items()}
    inputs = {t.name: end_to_end(t.name, [p[0] for p in problems])
              for t in graph.tensors if t.role == "input"}
    extents = {**problems[0][2], **{a: int(max(params[n])) for a, n in SEQUENCES.items()}}
    return ({**inputs, **tables}, params, extents), {
        name: end_to_end(name, answers) for name in answers[0]}


def check_same(name: str, before: Graph, after: Graph) -> None:
    """Compare both graphs on one small problem. Raises VerifyError with the largest difference.

    Where values are rounded to a storage type differs between formulations, so graphs that round
    agree to that type's precision only.
    """
    packs = any(t.begin for t in after.tensors) and not any(t.begin for t in before.tensors)
    problem, first = packed_problem(before) if packs else (small_problem(before), {})
    first = first or run_graph(before, *problem)
    second = run_graph(after, *problem)
    dtypes = {t.dtype for t in before.tensors}
    tolerance = 4e-2 if "bfloat16" in dtypes else 5e-3 if "float16" in dtypes else 1e-5 \
        if "float32" in dtypes else 1e-10
    for key, expected in first.items():
        got = second[key]
        same = np.isclose(got, expected, rtol=tolerance, atol=tolerance, equal_nan=False)
        if not np.all(same):
            worst = np.unravel_index(np.argmax(~same), same.shape)
            raise VerifyError(f"pass {name} changed {key}: {expected[worst]} before, "
                              f"{got[worst]} after, at {tuple(int(n) for n in worst)}")
