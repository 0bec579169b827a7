"""No attribute is decoration: change any one on a placed graph, and either the verifier objects or
the emitted source is another."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from ir_problem import DTYPE, placed, schedule
from perturbation import changed

from attngen import masks
from attngen.errors import AttngenError, VerifyError
from attngen.ir.build import graph_of
from attngen.ir.graph import Graph
from attngen.ir.node import Node, contract, first, idx, make, reduce, tensor, value
from attngen.ir.pack import pack
from attngen.ir.stmt import (
    Barrier,
    Fill,
    Kernel,
    LaneReduce,
    Map,
    Stmt,
    Store,
    rewrite_body,
    statements,
)
from attngen.ir.tensor import Param, Tensor
from attngen.ir.verify import verify
from attngen.spec import AttentionSpec
from attngen.templates.render import RenderedKernel, render_cuda
from attngen.templates.render_cpu import render_cpu

SPEC = AttentionSpec(heads=4, groups=2, head_dim=8, head_dim_v=24, causal=True, window=(40, 0))
ASKED = AttentionSpec(heads=4, head_dim=8, mask=masks.chunked(24))  # of each tile

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)


@cache
def subject(engine: str, fused: bool, spec: AttentionSpec = SPEC) -> Graph:
    plan = schedule(engine, 32, 16, (2, 1), warps=2)
    return placed(spec, engine, fused, dtype="float32" if engine == "cpu" else None, plan=plan)


def emitted(kernel: Kernel) -> tuple[Any, ...]:
    """What the kernel becomes: its source without comments and without the entry's key (a hash of
    all attributes, which would make this test pass by itself), and how it is launched."""
    rendered: RenderedKernel = (render_cpu(kernel) if kernel.schedule.engine == "cpu"
                                else render_cuda(kernel, "sm_80"))
    source = _COMMENT.sub("", rendered.text).replace(rendered.entry, "ENTRY")
    stem = rendered.entry.rpartition("_")[0]
    return stem, source, rendered.fields, rendered.grid, rendered.threads, rendered.shared_bytes


def interface(graph: Graph) -> tuple[Any, ...]:
    """What the runtime is told of the graph beside its kernels, in launch order."""
    return tuple((t.name, t.axes, t.dtype, t.role, t.begin) for t in graph.tensors), graph.sizes


def variants(graph: Graph) -> Iterator[tuple[str, Graph]]:
    """The graph with one attribute changed. What kernels repeat of the graph (tensors, sizes,
    stage) is changed in one place, and also everywhere at once."""
    for where, new in changed(replace(graph, kernels=())):
        if new.kernels == ():
            yield f"graph{where}", replace(new, kernels=graph.kernels)
    for n, kernel in enumerate(graph.tiles):
        names = tuple(v.name for v in kernel.values[:3]) + tuple(t.name for t in kernel.tensors[:1])
        for where, other in changed(kernel, names):
            yield f"{kernel.name}{where}", replace(
                graph, kernels=(*graph.kernels[:n], other, *graph.kernels[n + 1:]))
    yield "kernels reversed", replace(graph, kernels=graph.kernels[::-1])
    for n, old in enumerate(graph.tensors):
        for where, other in changed(old):
            table = {old: other}
            tensors = (*graph.tensors[:n], other, *graph.tensors[n + 1:])
            yield f"tensor {old.name}{where} everywhere", replace(
                graph, tensors=tensors, kernels=tuple(replace(k, tensors=tuple(
                    table.get(t, t) for t in k.tensors)) for k in graph.tiles))
    for field in ("sizes", "stage"):
        for where, other in changed(getattr(graph, field)):
            yield f"{field}{where} everywhere", replace(graph, **{field: other}, kernels=tuple(
                replace(k, **{field: other}) for k in graph.tiles))


def verdict(before: Graph, after: Graph, texts: dict[Kernel, Any]) -> str:
    try:
        verify(after)
        for kernel in after.tiles:
            if kernel not in texts:
                texts[kernel] = emitted(kernel)
    except AttngenError as error:
        return type(error).__name__
    except Exception as error:  # a crash explains nothing to anyone
        return f"crash: {type(error).__name__}: {error}"
    same = [texts[k] for k in before.tiles] == [texts[k] for k in after.tiles]
    return "nothing" if same and interface(before) == interface(after) else "text"


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "unfused"])
@pytest.mark.parametrize("engine", DTYPE)
def test_every_attribute_matters(engine: str, fused: bool) -> None:
    check_attributes(subject(engine, fused))


@pytest.mark.parametrize("engine", DTYPE)
def test_every_condition_on_tiles_matters(engine: str) -> None:
    check_attributes(subject(engine, True, ASKED), lambda where: ".visible" in where
                     or ".full " in where)


@pytest.mark.parametrize("engine", DTYPE)
def test_every_attribute_of_packed_kernels_matters(engine: str) -> None:
    check_attributes(pack(subject(engine, True)))


def check_attributes(graph: Graph, chosen: Callable[[str], bool] = lambda where: True) -> None:
    texts: dict[Kernel, Any] = {k: emitted(k) for k in graph.tiles}
    found: Counter[str] = Counter()
    idle = []
    for where, after in variants(graph):
        if after == graph or not chosen(where):
            continue
        result = verdict(graph, after, texts)
        found[result] += 1
        if result not in ("text", "VerifyError"):
            idle.append(f"{where}: {result}")
    assert idle == []
    assert found["text"] > 10 and set(found) <= {"text", "VerifyError"}, found


# -- what the verifier says ---------------------------------------------------------------------


def edited(graph: Graph, **changes: Any) -> Graph:
    """The graph with its (last) kernel changed."""
    return replace(graph, kernels=(*graph.kernels[:-1], replace(graph.tiles[-1], **changes)))


def without(graph: Graph, kind: type[Stmt], which: int = 0) -> Graph:
    """The graph's kernel less one statement."""
    found = [s for s in statements(graph.tiles[-1].body) if isinstance(s, kind)]

    def change(stmt: Stmt) -> tuple[Stmt, ...]:
        return () if stmt == found[which] else (stmt,)
    return edited(graph, body=rewrite_body(graph.tiles[-1].body, change))


def values(graph: Graph, name: str, **changes: Any) -> Graph:
    return edited(graph, values=tuple(replace(v, **changes) if v.name == name else v
                                      for v in graph.tiles[-1].values))


def read_after_loop(graph: Graph) -> Graph:
    alpha = graph.tiles[-1].value("alpha")
    late = Map(("lse_out",), (value("alpha", alpha.axes, alpha.dtype),), alpha.axes)
    return edited(graph, body=(*graph.tiles[-1].body, late))


MISTAKES: dict[str, tuple[Callable[[Graph], Graph], str]] = {
    "stage": (lambda g: replace(g, stage="packed"), "unknown stage 'packed'; stages are math, "),
    "early stage": (lambda g: replace(g, stage="math"), "a math graph has Regions, not Kernels"),
    "sizes": (lambda g: replace(g, sizes=g.sizes[:3]), "it needs heads, groups, head_dim, head_"),
    "tensor twice": (lambda g: replace(g, tensors=(*g.tensors, g.tensors[0])), "share a name"),
    "head map": (lambda g: replace(g, tensors=tuple(
        replace(t, by_head=(0, 0, 0, 5)) if t.name == "k" else t for t in g.tensors)),
        "tensor k: its head map (0, 0, 0, 5) leaves the 2 groups"),
    "unwritten output": (lambda g: without(g, Store), "is written by 0 kernels"),
    "uninitialised": (lambda g: without(g, Fill, 1), "reads l before it is written"),
    "loop's value outside": (read_after_loop, "Map reads alpha before it is written"),
    "undeclared": (lambda g: edited(g, values=g.tiles[-1].values[1:]),
                   "written ['m'] without declaring"),
    "unused parameter": (lambda g: edited(g, params=(*g.tiles[-1].params, Param("w", False))),
                         "uses parameters"),
    "space": (lambda g: values(g, "m", space="fragment"), "a fragment value has no axes ['i']"),
    "transposed tile": (lambda g: values(g, "s", axes=("j", "i")), "tiles have i, j, d or e"),
    "shape": (lambda g: values(g, "s", shape=(32, 8)), "value s: shape (32, 8)"),
    "half in registers": (lambda g: values(g, "m", dtype="float16"),
                          "map m_prev over ('i',) reads m float16"),
    "panel": (lambda g: values(g, "v_tile", panel=8), "panel 8 of 32 columns"),
    "overlap": (lambda g: values(g, "v_tile", offset=0), "shared value v_tile: offset 0 (tiles "),
    "ring": (lambda g: edited(g, schedule=replace(g.tiles[-1].schedule, stages=(3, 1))),
             "ring operands k_tile, v_tile have (2, 1) stages, the schedule has (3, 1)"),
    "lanes": (lambda g: without(g, LaneReduce), "reductions ['l'] are put off across lanes, [] "),
    "registers": (lambda g: edited(g, registers=7), "7 registers stated"),
    "barrier": (lambda g: without(g, Barrier), "is read while"),
    "grid": (lambda g: edited(g, grid=g.tiles[-1].grid[::-1]), "grid [('b', 1)"),
    "name": (lambda g: edited(g, name="a b"), "name or sizes differ"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_verifier_names_what_is_wrong(mistake: str) -> None:
    change, said = MISTAKES[mistake]
    with pytest.raises(VerifyError) as caught:
        verify(change(subject("mma", True)))
    assert said in str(caught.value)


def test_a_sum_is_not_read_before_its_lanes_are_joined() -> None:
    graph = subject("mma", True)
    body = graph.tiles[0].body
    join = next(s for s in body if isinstance(s, LaneReduce))
    late = (*(s for s in body if s is not join), join)
    with pytest.raises(VerifyError, match="l is read before its lanes are joined"):
        verify(edited(graph, body=late))


def test_kernels_run_in_an_order_that_writes_before_it_reads() -> None:
    graph = subject("cpu", False)
    with pytest.raises(VerifyError, match="kernel forward_o reads w_p before forward_p_lse writ"):
        verify(replace(graph, kernels=graph.kernels[::-1]))
    with pytest.raises(VerifyError, match="two kernels share a name"):
        verify(edited(graph, name=graph.kernels[0].name))


X, Y = tensor("q", "bhid", "float32"), tensor("k", "bhjd", "float32")
S = contract(X, Y, "d")
BAD_NODES: dict[str, tuple[Node, str]] = {
    "a tile value": (make("add", S, value("x", "i", "float32")), "value does not belong in a math"),
    "a tile's first index": (make("add", S, first("i")), "first does not belong"),
    "streaming before fusion": (make("stream_sum", S, reduce("max", S, "j"), axes="bhi",
                                     dtype="float32", over="j"), "stream_sum before fusion"),
    "a sum over an axis kept": (make("reduce", S, axes="bhij", kind="sum", over="j"),
                                "reduce over j"),
    "a sum over an axis nobody has": (make("reduce", S, axes="bhij", kind="sum", over="e"),
                                      "reduce over e"),
    "axes that are not the operands'": (make("neg", S, axes="bh"), "neg has axes ['b', 'h']"),
    "a number as a condition": (make("where", idx("i"), S, S),
                                "where (q) needs a condition, got int32"),
    "another tensor's type": (tensor("q", "bhid", "float16"), "input q is float16"),
    "an unknown tensor": (tensor("w", "bhid", "float32"), "the graph has no tensor 'w'"),
}


@pytest.mark.parametrize("mistake", BAD_NODES)
def test_nodes_that_fit_no_math_graph(mistake: str) -> None:
    node, said = BAD_NODES[mistake]
    out = Tensor("out", tuple("bhijde"), "float32", "output")
    given = tuple(Tensor(n, tuple(a), "float32", "input") for n, a in (("q", "bhid"),
                                                                       ("k", "bhjd")))
    graph = graph_of("bad", {out: node}, given, subject("mma", True).sizes)
    with pytest.raises(VerifyError) as caught:
        verify(graph)
    assert said in str(caught.value)


def test_an_output_holds_the_axes_of_its_node() -> None:
    out = Tensor("out", ("b", "h", "i"), "float32", "output")
    given = (Tensor("q", tuple("bhid"), "float32", "input"),
             Tensor("k", tuple("bhjd"), "float32", "input"))
    with pytest.raises(VerifyError, match=r"output out\['b', 'h', 'i'\] cannot hold"):
        verify(graph_of("bad", {out: S}, given, subject("mma", True).sizes))
