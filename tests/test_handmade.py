"""Graphs no spec can describe, built node by node: they compile and run like any other.

The graph's float64 meaning is written here a second time, in torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from helpers import assert_close, only_ours
from torch import Tensor

from attngen.compiler import compile_graph
from attngen.ir.build import graph_of
from attngen.ir.graph import Graph
from attngen.ir.node import Node, by_head, cast, const, contract, idx, make, param, reduce, tensor
from attngen.ir.tensor import Tensor as DeviceTensor
from attngen.runtime.launch import Buffer, Executable
from attngen.runtime.operands import span_bytes

BATCH, HEADS, GROUPS, DIM = 2, 4, 2, 64
SEQLEN_Q, SEQLEN_K = 197, 230
SIZES = {"batch": BATCH, "heads": HEADS, "groups": GROUPS, "seqlen_q": SEQLEN_Q,
         "seqlen_k": SEQLEN_K, "head_dim": DIM, "head_dim_v": DIM}
NUMBERS = {"q_offset": SEQLEN_K - SEQLEN_Q, "kv_offset": 0, "kv_len": SEQLEN_K}
TARGETS = [("cpu", "float32"), ("cpu", "bfloat16"), ("sm_80", "bfloat16"), ("sm_80", "float16"),
           ("sm_80", "float32")]

TensorFn = Callable[[Tensor, Tensor], Tensor]  # of a value and of q_idx - kv_idx


@dataclass(frozen=True)
class Variation:
    """What happens to the scores before the mask and to the probabilities after the softmax, as
    nodes (of a value and the distance q_idx - kv_idx) and in torch; ``gated`` multiplies a tensor
    [batch, heads, seqlen_q, seqlen_k] into the probabilities as well."""

    score: Callable[[Node, Node], Node] = lambda s, d: s
    gate: Callable[[Node, Node], Node] = lambda p, d: p
    torch_score: TensorFn = lambda s, d: s
    torch_gate: TensorFn = lambda p, d: p
    gated: bool = False


def _sigmoid_gate(p: Node, d: Node) -> Node:
    scaled = make("mul", cast(d, "float32"), const(0.05, "float32"))
    return make("mul", p, make("sigmoid", scaled))


def _every_third(p: Node, d: Node) -> Node:
    return make("where", make("eq", make("mod", d, const(3)), const(0)), p, const(0.0, p.dtype))


def _polynomial(s: Node, d: Node) -> Node:
    """s (1 + s (0.2 - 0.05 s)) - 0.01 |q_idx - kv_idx|"""
    inner = make("sub", const(0.2, s.dtype), make("mul", s, const(0.05, s.dtype)))
    bent = make("mul", s, make("add", make("mul", s, inner), const(1.0, s.dtype)))
    distance = make("mul", cast(make("abs", d), "float32"), const(0.01, "float32"))
    return make("sub", bent, distance)


VARIATIONS = {
    "sigmoid gate": Variation(gate=_sigmoid_gate,
                              torch_gate=lambda p, d: p * torch.sigmoid(d * 0.05)),
    "every third": Variation(gate=_every_third,
                             torch_gate=lambda p, d: torch.where(d % 3 == 0, p, 0.0)),
    "polynomial": Variation(score=_polynomial,
                            torch_score=lambda s, d: s * (1 + s * (0.2 - 0.05 * s))
                            - 0.01 * d.abs()),
    "gate tensor": Variation(gated=True),
    "all": Variation(_polynomial, _sigmoid_gate, lambda s, d: s * (1 + s * (0.2 - 0.05 * s))
                     - 0.01 * d.abs(), lambda p, d: p * torch.sigmoid(d * 0.05), gated=True),
}


def build(variation: Variation, dtype: str) -> Graph:
    """o = (gate(softmax(mask(score(q kᵀ / 8)))) · g) v, and the softmax's lse."""
    heads = tuple(h * GROUPS // HEADS for h in range(HEADS))
    inputs = {"q": "bhid", "k": "bgjd", "v": "bgje"} | ({"w": "bhij"} if variation.gated else {})
    devices = tuple(DeviceTensor(name, tuple(axes), dtype, "input", heads if "g" in axes else None)
                    for name, axes in inputs.items())
    node = {t.name: tensor(t.name, t.axes, t.dtype) for t in devices}
    node |= {t.name: by_head(node[t.name], heads) for t in devices if t.by_head}
    q_idx = make("add", idx("i"), param("q_offset", "b"))
    kv_idx = make("add", idx("j"), param("kv_offset", "b"))
    distance = make("sub", q_idx, kv_idx)

    s = contract(node["q"], node["k"], "d", "float32")
    s = make("mul", s, const(0.125, "float32"))
    s = variation.score(s, distance)
    s = make("where", make("visible", make("le", kv_idx, q_idx)), s, const(float("-inf"),
                                                                           "float32"))
    lse = reduce("lse", s, "j")
    p = make("exp", make("sub", s, make("finite_or_zero", lse)))
    p = variation.gate(p, distance)
    if variation.gated:
        p = make("mul", p, cast(node["w"], "float32"))
    o = contract(cast(p, dtype), node["v"], "j", "float32")
    outputs = {DeviceTensor("o", tuple("bhie"), dtype, "output"): o,
               DeviceTensor("lse", tuple("bhi"), "float32", "output"): lse}
    sizes = (("heads", HEADS), ("groups", GROUPS), ("head_dim", DIM), ("head_dim_v", DIM))
    return graph_of("handmade", outputs, devices, sizes)


def expected(variation: Variation, data: dict[str, Tensor],
             dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The same in torch, every step in ``dtype``: float64 is right, others are the yardstick."""
    q, k, v, w = (data[name].to(dtype) for name in "qkvw")
    k, v = (t.repeat_interleave(HEADS // GROUPS, dim=1) for t in (k, v))
    d = (torch.arange(SEQLEN_Q)[:, None] + SEQLEN_K - SEQLEN_Q) - torch.arange(SEQLEN_K)
    s = variation.torch_score(q @ k.transpose(-1, -2) * 0.125, d.to(dtype))
    s = torch.where(d >= 0, s, float("-inf"))
    p = variation.torch_gate(torch.softmax(s, -1), d.to(dtype))
    o = (p * w if variation.gated else p) @ v
    wide = dtype if dtype == torch.float64 else torch.float32
    return o, torch.logsumexp(s.to(wide), -1)


@pytest.mark.parametrize(("target", "dtype"), TARGETS, ids=lambda x: x)
@pytest.mark.parametrize("name", VARIATIONS)
def test_graph_by_hand(name: str, target: str, dtype: str) -> None:
    _check(VARIATIONS[name], target, dtype, fuse=True)


@pytest.mark.parametrize(("target", "dtype"), TARGETS, ids=lambda x: x)
@pytest.mark.parametrize("name", [
    n if n == "all" else pytest.param(n, marks=pytest.mark.full) for n in VARIATIONS])
def test_graph_by_hand_as_separate_kernels(name: str, target: str, dtype: str) -> None:
    _check(VARIATIONS[name], target, dtype, fuse=False)


def _check(variation: Variation, target: str, dtype: str, fuse: bool) -> None:
    kind = getattr(torch, dtype)
    plan = compile_graph(build(variation, dtype), target, dtype, fuse=fuse)
    generator = torch.Generator().manual_seed(1)
    shapes = {"q": (HEADS, SEQLEN_Q, DIM), "k": (GROUPS, SEQLEN_K, DIM),
              "v": (GROUPS, SEQLEN_K, DIM), "w": (HEADS, SEQLEN_Q, SEQLEN_K)}
    data = {n: torch.randn(BATCH, *shape, generator=generator).to(kind)
            for n, shape in shapes.items()}
    memory = {t.name: _memory(t.axes, getattr(torch, t.dtype)) for t in plan.tensors}
    for n, x in data.items():
        if n in memory:
            memory[n].copy_(x)
    buffers = {n: Buffer(t.data_ptr(), t.stride(), span_bytes(t)) for n, t in memory.items()}
    with only_ours():
        Executable(plan, emulate=target != "cpu").run(buffers, SIZES, NUMBERS, threads=2)
    ref, naive = expected(variation, data, torch.float64), expected(variation, data, kind)
    assert_close(memory["o"], ref[0], naive[0], name="o")
    assert_close(memory["lse"], ref[1], naive[1], name="lse")


def _memory(axes: tuple[str, ...], dtype: torch.dtype) -> Tensor:
    """A NaN-filled tensor with rows padded to 16 bytes."""
    extent = {"b": BATCH, "h": HEADS, "g": GROUPS, "i": SEQLEN_Q, "j": SEQLEN_K, "d": DIM,
              "e": DIM}
    *outer, last = (extent[a] for a in axes)
    wide = 16 // dtype.itemsize
    padded = -(-last // wide) * wide if len(axes) > 3 else last
    return torch.full((*outer, padded), float("nan"), dtype=dtype)[..., :last]


def test_variations_differ_from_plain_attention() -> None:
    """So that a compiler which ignored the extra nodes would fail above."""
    generator = torch.Generator().manual_seed(1)
    data = {"q": (HEADS, SEQLEN_Q, DIM), "k": (GROUPS, SEQLEN_K, DIM),
            "v": (GROUPS, SEQLEN_K, DIM), "w": (HEADS, SEQLEN_Q, SEQLEN_K)}
    tensors = {n: torch.randn(BATCH, *s, generator=generator) for n, s in data.items()}
    plain = expected(Variation(), tensors, torch.float64)[0]
    for name, variation in VARIATIONS.items():
        assert (expected(variation, tensors, torch.float64)[0] - plain).abs().max() > 0.1, name
