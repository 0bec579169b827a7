"""Sequences end to end: the packed graph computes for each what the graph computes for it alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from ir_problem import DTYPE, placed, schedule

from attngen import masks, scores
from attngen.errors import VerifyError
from attngen.ir.graph import Graph
from attngen.ir.pack import pack
from attngen.ir.show import graph_text
from attngen.ir.tensor import Param, Tensor
from attngen.ir.validate import check_same
from attngen.ir.verify import verify
from attngen.spec import AttentionSpec


def spec(**fields: Any) -> AttentionSpec:
    return AttentionSpec(heads=4, groups=2, head_dim=8, head_dim_v=24, **fields)


def by_entry(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return (kv_idx - q_idx) % 7 != b


IDS = torch.arange(29) // 5
SPECS: dict[str, Callable[[], AttentionSpec]] = {
    "full": spec,
    "causal window": lambda: spec(causal=True, window=(40, 0)),
    "asked of each tile": lambda: spec(mask=masks.chunked(24)),
    "by batch entry": lambda: spec(mask=by_entry),
    "captured": lambda: spec(mask=lambda b, h, q_idx, kv_idx: IDS[q_idx % 29] == IDS[kv_idx % 29]),
    "score": lambda: spec(causal=True, score=[scores.softcap(5.0), scores.alibi()]),
}


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "unfused"])
@pytest.mark.parametrize("engine", DTYPE)
@pytest.mark.parametrize("name", SPECS)
def test_packing_changes_no_sequence(name: str, engine: str, fused: bool) -> None:
    graph = placed(SPECS[name](), engine, fused)
    packed = verify(pack(graph))
    check_same("pack", graph, packed)
    assert all(k.packed for k in packed.tiles)


def changed(graph: Graph, change: Callable[[Tensor], Tensor]) -> Graph:
    """The graph with other tensors, everywhere."""
    table = {t: change(t) for t in graph.tensors}
    return replace(graph, tensors=tuple(table.values()), kernels=tuple(
        replace(k, tensors=tuple(table[t] for t in k.tensors)) for k in graph.tiles))


def test_validation_sees_a_wrong_beginning() -> None:
    """Keys that begin where queries do are other keys."""
    graph = placed(spec())
    wrong = changed(pack(graph), lambda t: replace(t, begin="q_begin"))
    with pytest.raises(VerifyError, match=r"pass pack changed (o|lse)"):
        check_same("pack", graph, wrong)


@pytest.mark.parametrize(("change", "said"), [
    (lambda t: replace(t, begin=""), r"q.*begins at ''"),
    (lambda t: replace(t, begin="k_begin"), r"q.*begins at 'k_begin'"),
    (lambda t: replace(t, begin="q_begin"), r"k.*begins at 'q_begin'"),
    (lambda t: replace(t, axes=("b", *t.axes)), r"has an axis b")])
def test_the_verifier_knows_where_tensors_begin(change: Callable[[Tensor], Tensor],
                                                said: str) -> None:
    graph = pack(placed(spec()))
    with pytest.raises(VerifyError, match=said):
        verify(changed(graph, lambda t: change(t) if t.name in ("q", "k") else t))


@pytest.mark.parametrize("name", ["seqlen_q", "seqlen_k", "q_begin"])
def test_the_verifier_wants_lengths_per_sequence(name: str) -> None:
    graph = pack(placed(spec()))
    (kernel,) = graph.tiles
    params = tuple(Param(p.name, False) if p.name == name else p for p in kernel.params)
    with pytest.raises(VerifyError, match="parameters"):
        verify(replace(graph, kernels=(replace(kernel, params=params),)))


def test_expressions_and_parameters_agree_on_lengths() -> None:
    graph = placed(spec(causal=True))
    packed = pack(graph)
    mixed = replace(packed, kernels=(replace(packed.tiles[0], body=graph.tiles[0].body),))
    with pytest.raises(VerifyError, match="differs per batch entry"):
        verify(mixed)


def test_workspaces_keep_their_axis() -> None:
    graph = pack(placed(spec(), fused=False))
    kept = [t for t in graph.tensors if t.role == "workspace"]
    assert kept
    assert all(t.axes[0] == "b" and not t.begin for t in kept)
    assert {t.name: " ".join(t.axes) for t in graph.tensors if t.role != "workspace"} == {
        "q": "h i d", "k": "g j d", "v": "g j e", "o": "h i e", "lse": "h i"}


def test_what_has_no_sequence_axis_cannot_be_packed() -> None:
    graph = placed(spec())
    wrong = changed(graph, lambda t: replace(t, axes=("b", "h", "d")) if t.name == "q" else t)
    with pytest.raises(VerifyError, match="q has axes b h d"):
        pack(wrong)


def test_text() -> None:
    text = graph_text(pack(placed(spec(), plan=schedule("mma", 32, 16))))
    assert "tensor q[h i d] bfloat16 input from q_begin[b]" in text
    assert "param seqlen_q int32 per batch" in text
