"""No attribute is decoration: change any one on a placed graph, and either the verifier objects or
the emitted source is another."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from ir_problem import DTYPE, placed, schedule
from perturbation import changed

from attngen.errors import AttngenError
from attngen.ir.graph import Graph
from attngen.ir.stmt import Kernel
from attngen.ir.verify import verify
from attngen.spec import AttentionSpec
from attngen.templates.render import RenderedKernel, render_cuda
from attngen.templates.render_cpu import render_cpu

SPEC = AttentionSpec(heads=4, groups=2, head_dim=8, head_dim_v=24, causal=True, window=(40, 0))

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)


@cache
def subject(engine: str, fused: bool) -> Graph:
    plan = schedule(engine, 32, 16, (2, 1), warps=2)
    return placed(SPEC, engine, fused, dtype="float32" if engine == "cpu" else None, plan=plan)


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
    return tuple((t.name, t.axes, t.dtype, t.role) for t in graph.tensors), graph.sizes


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
    for n, tensor in enumerate(graph.tensors):
        for where, other in changed(tensor):
            table = {tensor: other}
            tensors = (*graph.tensors[:n], other, *graph.tensors[n + 1:])
            yield f"tensor {tensor.name}{where} everywhere", replace(
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
    graph = subject(engine, fused)
    texts: dict[Kernel, Any] = {k: emitted(k) for k in graph.tiles}
    found: Counter[str] = Counter()
    idle = []
    for where, after in variants(graph):
        if after == graph:
            continue
        result = verdict(graph, after, texts)
        found[result] += 1
        if result not in ("text", "VerifyError"):
            idle.append(f"{where}: {result}")
    assert idle == []
    assert found["VerifyError"] > 100 and found["text"] > 20, found
