"""Kernels of later work go through the stages as they are: what docs/stages.md claims, run."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from backward_graphs import dkdv, dq, partials
from documented import blocks, check_block
from golden_fixture import Golden
from ir_problem import DTYPE, ROOMY, Array, Problem, assert_same, only, schedule

from attngen import reference
from attngen.compiler import Lowered, Options, make_plan
from attngen.ir import eval_tensor, eval_tile
from attngen.ir.eval_tensor import interpret_tensors
from attngen.ir.eval_tile import interpret_tiles
from attngen.ir.fuse import fuse
from attngen.ir.graph import Graph
from attngen.ir.lower import tile
from attngen.ir.passes import canonicalise, rebase
from attngen.ir.place import place
from attngen.ir.show import graph_text, kernel_text
from attngen.ir.stmt import Schedule, Value
from attngen.ir.verify import verify
from attngen.runtime.launch import Buffer, Executable
from attngen.runtime.operands import span_bytes
from attngen.spec import AttentionSpec

SPECS = {
    "causal": AttentionSpec(heads=2, head_dim=16, head_dim_v=24, causal=True),
    "window": AttentionSpec(heads=2, head_dim=16, window=(20, 9)),
    "everything": AttentionSpec(heads=1, head_dim=8),
}
CALLS = ((37, 53, (16, -4), (0, 3), (53, 40)), (20, 20, None, (0,), None),
         (33, 5, None, (0,), None))


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (eval_tile, eval_tensor):
        monkeypatch.setattr(module, "round_to", lambda x, dtype: x)


def gradients(problem: Problem) -> tuple[dict[str, Array], dict[str, Array]]:
    """Everything the backward kernels read, and what autograd makes of the oracle."""
    p = {n: torch.from_numpy(np.array(a)) for n, a in problem.params.items()
         if not isinstance(a, int)}
    q, k, v = (torch.from_numpy(problem.inputs[n]).requires_grad_() for n in "qkv")
    o, lse = reference.attention(problem.spec, q, k, v, q_offset=p["q_offset"],
                                 kv_offset=p["kv_offset"], seqlens_k=p["kv_len"])
    do = torch.from_numpy(np.random.default_rng(9).normal(size=tuple(o.shape)))
    o.backward(do)
    given = {**problem.inputs, "dout": do.numpy(), "lse": lse.detach().numpy(),
             "delta": (do * o).sum(-1).detach().numpy()}
    expected = {f"d{n}": torch.nan_to_num(x.grad).numpy()
                for n, x in (("q", q), ("k", k), ("v", v)) if x.grad is not None}
    return given, expected


@pytest.mark.parametrize("engine", DTYPE)
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(("build", "keep", "loop"), [(dkdv, "j", "i"), (dq, "i", "j")],
                         ids=["dkdv", "dq"])
def test_backward_kernels_at_every_stage(build, keep: str, loop: str,  # type: ignore[no-untyped-def]
                                         name: str, engine: str) -> None:
    graph: Graph = verify(build(SPECS[name], DTYPE[engine]))
    for step in (canonicalise, lambda g: fuse(g, keep=keep, loop=loop), rebase,
                 lambda g: tile(g, schedule(engine), keep, loop), lambda g: place(g, ROOMY)):
        graph = verify(step(graph))
        for call in CALLS:
            problem = Problem(SPECS[name], *call)
            given, expected = gradients(problem)
            run = interpret_tensors if graph.stage in ("math", "fused") else (
                lambda *a: interpret_tiles(*a)[0])
            got = run(graph, given, problem.params, problem.extents)
            wanted = {t.name: expected[t.name] for t in graph.tensors if t.role == "output"}
            assert_same(got, wanted, 1e-10, f"{engine} {graph.stage} {call}")


@pytest.mark.parametrize(("target", "dtype", "tolerance"), [
    ("cpu", "float32", 1e-5), ("sm_80", "float32", 1e-5), ("sm_80", "bfloat16", 1e-2)])
@pytest.mark.parametrize(("build", "keep", "loop"), [(dkdv, "j", "i"), (dq, "i", "j")],
                         ids=["dkdv", "dq"])
def test_backward_kernels_run(build, keep: str, loop: str,  # type: ignore[no-untyped-def]
                              target: str, dtype: str, tolerance: float) -> None:
    """The templates render the transposed kernel as it is: the CPU's C++ runs, and the CUDA text is
    executed by the emulator, race detector and all. ``tolerance`` is of the largest gradient."""
    problem = Problem(SPECS["causal"], 37, 53, (11, 11), (-2,), (40,))
    given, expected = gradients(problem)
    engine = "cpu" if target == "cpu" else "simt" if dtype == "float32" else "mma"
    plan_of = schedule(engine, 32, 32, (2, 1), warps=2)
    fused = rebase(fuse(build(SPECS["causal"], dtype), keep=keep, loop=loop))
    placed = place(tile(fused, plan_of, keep, loop), ROOMY)
    plan = make_plan(None, Options(target, dtype), Lowered(fused, fused, fused, placed))
    memory = {}
    for t in plan.tensors:
        shape = [problem.extents[a] for a in t.axes]
        memory[t.name] = torch.full(shape, math.nan, dtype=getattr(torch, t.dtype))
        if t.name in given:
            memory[t.name].copy_(torch.from_numpy(given[t.name]))
    buffers = {n: Buffer(t.data_ptr(), t.stride(), span_bytes(t)) for n, t in memory.items()}
    n = problem.extents
    sizes = {"batch": n["b"], "heads": n["h"], "groups": n["g"], "seqlen_q": n["i"],
             "seqlen_k": n["j"], "head_dim": n["d"], "head_dim_v": n["e"]}
    numbers = {name: int(a[0]) for name, a in problem.params.items() if not isinstance(a, int)}
    Executable(plan, emulate=target != "cpu").run(buffers, sizes, numbers, threads=1)
    for t in plan.tensors:
        if t.role == "output":
            got, want = memory[t.name].double().numpy(), expected[t.name]
            np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


def test_transposed_tiles_and_row_numbers_as_columns() -> None:
    graph = place(tile(rebase(fuse(dkdv(SPECS["causal"], "bfloat16"), keep="j", loop="i")),
                       schedule("mma"), "j", "i"), ROOMY)
    values: dict[str, Value] = {v.name: v for v in only(graph).values}
    assert values["s"].axes == values["dp"].axes == ("j", "i")
    assert values["lse_tile"].space == values["delta_tile"].space == "column"
    assert values["dout_tile"].space == values["q_tile"].space == "shared"


@pytest.mark.parametrize("splits", [1, 2, 5])
@pytest.mark.parametrize("engine", DTYPE)
def test_partials_of_key_ranges_combine_to_the_oracle(engine: str, splits: int) -> None:
    """The kernel of a split is the forward without its last step; joining them is one more
    streaming sum, here in NumPy."""
    spec = SPECS["causal"]
    problem = Problem(spec, 9, 61, (52, 30), (0, 4), (61, 50))
    graph = verify(partials(spec, DTYPE[engine]))
    graph = verify(place(verify(tile(graph, schedule(engine))), ROOMY))
    x, p, tiles = problem.inputs, problem.params, math.ceil(61 / 16)
    span = 16 * math.ceil(tiles / splits)
    parts = []
    for n in range(splits):
        begin, end = min(n * span, 61), min((n + 1) * span, 61)
        part = {**x, "k": x["k"][:, :, begin:end], "v": x["v"][:, :, begin:end]}
        params = {**p, "kv_offset": p["kv_offset"] + begin, "seqlen_k": end - begin,
                  "kv_len": np.clip(p["kv_len"] - begin, 0, end - begin)}
        parts.append(interpret_tiles(graph, part, params, {**problem.extents, "j": end - begin})[0])
    c = spec.softmax_scale  # m is the maximum of the unscaled scores
    m = np.stack([part["m"] for part in parts]).max(0)
    with np.errstate(invalid="ignore"):
        weights = [np.where(np.isneginf(part["m"]), 0, np.exp((part["m"] - m) * c))
                   for part in parts]
        total = sum(w * part["l"] for w, part in zip(weights, parts, strict=True))
        acc = sum(w[..., None] * part["acc"] for w, part in zip(weights, parts, strict=True))
    o = acc / np.where(total == 0, 1, total)[..., None]
    assert_same({"o": o}, {"o": problem.oracle()["o"]}, 1e-10)


def body_of(graph: Graph) -> str:
    lines = kernel_text(only(graph)).splitlines()
    return "\n".join(line for line in lines
                     if not line.startswith(("  tensor", "  param", "  value"))) + "\n"


def placed_dkdv() -> Graph:
    spec = AttentionSpec(heads=8, head_dim=64, causal=True)
    return place(tile(rebase(fuse(canonicalise(dkdv(spec, "bfloat16")), keep="j", loop="i")),
                      Schedule(64, 64, 4, (2, 1)), "j", "i"), ROOMY)


def placed_partials() -> Graph:
    spec = AttentionSpec(heads=8, head_dim=64, causal=True)
    return place(tile(partials(spec, "bfloat16"), Schedule(16, 64, 1, (2, 2))), ROOMY)


def test_placed_dkdv(golden: Golden) -> None:
    assert graph_text(placed_dkdv()) == golden


SHOWN = {"dkdv": placed_dkdv, "partials": placed_partials}


@pytest.mark.parametrize("name", SHOWN)
def test_the_page_shows_what_the_stages_make(name: str, pytestconfig: pytest.Config) -> None:
    check_block("stages.md", name, body_of(SHOWN[name]()),
                pytestconfig.getoption("--update-golden"))


def test_every_block_of_the_page_is_made_by_the_stages() -> None:
    assert blocks("stages.md") == set(SHOWN)
