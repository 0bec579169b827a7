"""The interpreters define the IR: what they compute for each statement, and what they catch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ir_problem import DTYPE, ROOMY, Problem, assert_same, lowered, only, placed, schedule

from attngen import masks
from attngen.errors import VerifyError
from attngen.ir import eval_tensor, eval_tile
from attngen.ir.build import build_forward, graph_of
from attngen.ir.eval_tensor import interpret_tensors, round_to
from attngen.ir.eval_tile import TileInterpreter, interpret_tiles
from attngen.ir.fuse import fuse
from attngen.ir.graph import Graph
from attngen.ir.lower import tile
from attngen.ir.node import by_head, cast, const, contract, idx, make, param, reduce, tensor
from attngen.ir.place import place
from attngen.ir.stmt import Barrier, Issue, Kernel, Stmt, Store, Wait, rewrite_body, statements
from attngen.ir.tensor import Tensor
from attngen.ir.validate import check_same, run_graph, small_problem
from attngen.ir.verify import verify
from attngen.spec import AttentionSpec

SPEC = AttentionSpec(heads=2, groups=1, head_dim=16, causal=True)
SIZES = (("heads", 3), ("groups", 2), ("head_dim", 4), ("head_dim_v", 4))


# -- whole tensors ------------------------------------------------------------------------------


def tensors(node, axes: str, **extents: int):  # type: ignore[no-untyped-def]
    """A node over x [b h i j] and g [b g j d], evaluated."""
    rng = np.random.default_rng(0)
    n = {"b": 2, "h": 3, "g": 2, "i": 5, "j": 6, "d": 4, "e": 4, **extents}
    inputs = {name: rng.normal(size=[n[a] for a in kept])
              for name, kept in (("x", "bhij"), ("g", "bgjd"))}
    given = tuple(Tensor(k, tuple(a), "float64", "input", (0, 1, 1) if "g" in a else None)
                  for k, a in (("x", "bhij"), ("g", "bgjd")))
    graph = graph_of("t", {Tensor("out", tuple(axes), "float64", "output"): node}, given, SIZES)
    params = {"n": 7, "m": np.array([10, 20])}
    return inputs, interpret_tensors(graph, inputs, params, n)["out"]


X, G = tensor("x", "bhij", "float64"), tensor("g", "bgjd", "float64")


def test_tensor_operations_in_numpys_terms() -> None:
    inputs, out = tensors(reduce("sum", X, "j"), "bhi")
    np.testing.assert_allclose(out, inputs["x"].sum(-1))
    inputs, out = tensors(reduce("max", X, "i"), "bhj")
    np.testing.assert_allclose(out, inputs["x"].max(2))
    inputs, out = tensors(reduce("lse", X, "j"), "bhi")
    np.testing.assert_allclose(out, np.log(np.exp(inputs["x"]).sum(-1)))
    inputs, out = tensors(by_head(G, (0, 1, 1)), "bhjd")
    np.testing.assert_array_equal(out, inputs["g"][:, [0, 1, 1]])
    inputs, out = tensors(contract(X, by_head(G, (0, 1, 1)), "j"), "bhid")
    np.testing.assert_allclose(out, inputs["x"] @ inputs["g"][:, [0, 1, 1]])
    inputs, out = tensors(contract(X, X, "i"), "bhj")
    np.testing.assert_allclose(out, (inputs["x"] ** 2).sum(2))


def test_indices_and_parameters() -> None:
    _, out = tensors(make("add", make("mul", idx("i"), param("n")), idx("j")), "ij")
    np.testing.assert_array_equal(out, np.arange(5)[:, None] * 7 + np.arange(6))
    _, out = tensors(make("add", param("m", "b"), idx("h")), "bh")
    np.testing.assert_array_equal(out, np.array([10, 20])[:, None] + np.arange(3))


def test_sums_of_what_does_not_vary_count_every_index() -> None:
    _, out = tensors(contract(idx("i"), param("n"), "j"), "i", j=6)
    np.testing.assert_array_equal(out, np.arange(5) * 7 * 6)
    _, out = tensors(reduce("sum", idx("i"), "j"), "i", j=6)
    np.testing.assert_array_equal(out, np.arange(5) * 6)


def test_reductions_of_nothing() -> None:
    for kind, expected in (("sum", 0.0), ("max", -np.inf), ("lse", -np.inf)):
        _, out = tensors(reduce(kind, X, "j"), "bhi", j=0)
        assert (out == expected).all() and out.shape == (2, 3, 5)


def test_an_output_that_does_not_vary_along_an_axis_is_repeated() -> None:
    _, out = tensors(reduce("sum", X, "j"), "bhi")
    _, wide = tensors(reduce("sum", X, "j"), "bhij")
    np.testing.assert_array_equal(wide, np.repeat(out[..., None], 6, -1))


# -- rounding -----------------------------------------------------------------------------------


def test_rounding_is_to_nearest_even() -> None:
    import torch
    x = np.concatenate([np.random.default_rng(0).normal(size=1000) * 10.0 ** np.arange(-30, 20, 2)
                        .repeat(40), [0.0, -0.0, np.inf, -np.inf, 1.00390625, 1.01171875]])
    for dtype in ("float16", "bfloat16", "float32"):
        # by way of float32, as a kernel does
        expected = torch.from_numpy(x).float().to(getattr(torch, dtype)).double().numpy()
        np.testing.assert_array_equal(round_to(x.astype(np.float32).astype(float), dtype), expected)
    assert np.isnan(round_to(np.array([np.nan]), "bfloat16")).all()
    np.testing.assert_array_equal(round_to(x, "float64"), x)


@pytest.mark.parametrize("engine", DTYPE)
def test_precision_is_that_of_the_storage_types(engine: str) -> None:
    problem = Problem(SPEC, 40, 70)
    got, expected = problem.run(placed(SPEC, engine)), problem.oracle()
    error = np.abs(got["o"] - expected["o"]).max()
    low, high = {"mma": (1e-5, 2e-2), "simt": (1e-10, 1e-6), "cpu": (0, 1e-12)}[engine]
    assert low <= error < high


# -- tiles --------------------------------------------------------------------------------------


def test_tiles_visited_and_bytes_moved() -> None:
    problem = Problem(SPEC, 64, 64, batch_of(1))
    _, counts = problem.run_counted(placed(SPEC, "mma"))
    assert counts["tiles"] == 2 * (1 + 2 + 3 + 4) and counts["full_tiles"] == 2 * (0 + 1 + 2 + 3)
    assert counts["read q"] == counts["write o"] == 2 * 64 * 16 * 2
    assert counts["read k"] == counts["read v"] == counts["tiles"] * 16 * 16 * 2
    assert counts["write lse"] == 2 * 64 * 4
    assert counts["mma"] == 2 * counts["tiles"]
    assert counts["flops"] == counts["tiles"] * 2 * (2 * 16 * 16 * 16)


def batch_of(n: int) -> tuple[int, ...]:
    return (0,) * n


def test_the_last_tile_reads_what_is_there() -> None:
    problem = Problem(SPEC, 17, 19, (2,))
    _, counts = problem.run_counted(placed(SPEC, "mma"))
    assert counts["read q"] == 2 * 17 * 16 * 2
    assert counts["read k"] == 2 * (19 + 19) * 16 * 2  # two row tiles, both visit all keys


def test_unwritten_memory_is_nan_and_stays_outside_the_result() -> None:
    problem = Problem(SPEC, 33, 5, (-3,))
    out = problem.run(placed(SPEC, "mma"))
    assert np.isfinite(out["o"]).all() and (out["o"][:, :, :3] == 0).all()
    assert np.isneginf(out["lse"][:, :, :3]).all()


def changed(kernel: Kernel, old: type[Stmt], new: tuple[Stmt, ...], which: int = 0) -> Kernel:
    """The kernel with the ``which``-th statement of a kind replaced."""
    seen = [0]

    def change(stmt: Stmt) -> tuple[Stmt, ...]:
        if isinstance(stmt, old):
            seen[0] += 1
            if seen[0] == which + 1:
                return new
        return (stmt,)
    return replace(kernel, body=rewrite_body(kernel.body, change))


@pytest.mark.parametrize("stages", [(1, 1), (2, 1), (2, 2), (3, 2)])
@pytest.mark.parametrize("kind", [Wait, Barrier])
def test_reading_before_a_copy_has_landed_gives_nan(kind: type[Stmt],
                                                    stages: tuple[int, int]) -> None:
    """Copies land as late as waits allow and are seen after barriers only."""
    graph = placed(SPEC, "mma", plan=schedule("mma", 16, 16, stages))
    kernel, problem = only(graph), Problem(SPEC, 20, 90)
    sites = sum(isinstance(s, kind) for s in statements(kernel.body))
    caught = [np.isnan(problem.run(replace(graph, kernels=(changed(kernel, kind, (), n),)))["o"])
              .any() for n in range(sites)]
    assert caught[0] and sites >= 1


def test_an_issue_of_the_wrong_tile_gives_wrong_numbers() -> None:
    graph = placed(SPEC, "mma")
    kernel, problem = only(graph), Problem(SPEC, 20, 90)
    late = next(s for s in statements(kernel.body) if isinstance(s, Issue) and s.ahead == 2)
    wrong = changed(kernel, Issue, (replace(late, ahead=1),), which=4)
    out = problem.run(replace(graph, kernels=(wrong,)))
    assert not np.allclose(out["o"], problem.oracle()["o"], atol=0.1, equal_nan=False)


def test_a_store_that_is_missing_leaves_nan() -> None:
    graph = placed(SPEC, "cpu")
    out = Problem(SPEC, 20, 20).run(replace(graph, kernels=(changed(only(graph), Store, ()),)))
    assert np.isnan(out["o"]).all() and np.isfinite(out["lse"]).all()


def test_statements_without_a_meaning_are_refused() -> None:
    graph = placed(SPEC, "cpu")
    odd = replace(only(graph), body=(Stmt(), *only(graph).body))
    with pytest.raises(VerifyError, match="no meaning for statement"):
        Problem(SPEC, 5, 5).run(replace(graph, kernels=(odd,)))


def transposed(dtype: str) -> Graph:
    """dk[j, d] = Σ_i (q·k)[i, j]·q[i, d] over the queries that see key j: keep=j, loop=i."""
    q, k = tensor("q", "bhid", dtype), tensor("k", "bhjd", dtype)
    compute = "float64" if dtype == "float64" else "float32"
    seen = make("visible", make("le", idx("j"), idx("i")))
    w = make("where", seen, contract(q, k, "d", compute, origin="w"), const(0.0, compute))
    dk = contract(cast(w, dtype), q, "i", compute, origin="dk")
    inputs = (Tensor("q", tuple("bhid"), dtype, "input"),
              Tensor("k", tuple("bhjd"), dtype, "input"))
    sizes = (("heads", 2), ("groups", 1), ("head_dim", 8), ("head_dim_v", 8))
    return graph_of("dk", {Tensor("dk", tuple("bhjd"), dtype, "output"): dk}, inputs, sizes)


@pytest.mark.parametrize("engine", DTYPE)
def test_transposed_loops_are_the_same_statements(
        engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (eval_tensor, eval_tile):
        monkeypatch.setattr(module, "round_to", lambda x, dtype: x)
    rng = np.random.default_rng(0)
    extents = {"b": 1, "h": 2, "g": 1, "i": 37, "j": 53, "d": 8, "e": 8}
    x = {"q": rng.normal(size=(1, 2, 37, 8)), "k": rng.normal(size=(1, 2, 53, 8))}
    w = np.where(np.arange(53) <= np.arange(37)[:, None], x["q"] @ x["k"].swapaxes(2, 3), 0)
    expected = w.swapaxes(2, 3) @ x["q"]
    graph = fuse(transposed(DTYPE[engine]), keep="j", loop="i")
    tiled = verify(tile(graph, schedule(engine), keep="j", loop="i"))
    for after in (tiled, verify(place(tiled, ROOMY))):
        out, counts = interpret_tiles(after, x, {}, extents)
        np.testing.assert_allclose(out["dk"], expected, rtol=1e-12, atol=1e-12)
        # Key tile n is seen by queries from 16·n on: by 3, 2, 1 tiles of 3; the last by none.
        assert counts["tiles"] == 2 * (3 + 2 + 1)


# -- translation validation ---------------------------------------------------------------------


def test_small_problems_fit_any_graph() -> None:
    graph = build_forward(AttentionSpec(heads=6, groups=2, head_dim=8, mask=masks.chunked(5)),
                          "float64")
    inputs, params, extents = small_problem(graph)
    assert inputs["k"].shape == (2, 2, 53, 8) and extents["h"] == 6
    assert set(run_graph(graph, inputs, params, extents)) == {"o", "lse"}


def test_the_same_graph_is_the_same_and_another_is_not() -> None:
    stages = lowered(SPEC, "cpu")
    for graph in stages.values():
        check_same("nothing", stages["build"], graph)
    other = build_forward(AttentionSpec(heads=2, groups=1, head_dim=16), "float64")
    with pytest.raises(VerifyError, match="pass causal changed o"):
        check_same("causal", stages["build"], other)


def test_interpreting_one_kernel_by_itself() -> None:
    graph: Graph = placed(SPEC, "cpu", fused=False)
    problem = Problem(SPEC, 9, 11)
    memory = {name: np.asarray(a) for name, a in problem.inputs.items()}
    for t in graph.tensors:
        if t.role != "input":
            memory[t.name] = np.full([problem.extents[a] for a in t.axes], np.nan)
    for kernel in graph.tiles:
        TileInterpreter(kernel, memory, problem.params, problem.extents).run()
    assert_same({k: memory[k] for k in ("o", "lse")}, problem.oracle(), 1e-12)
