"""From a spec to the math graph: scores, visibility, softmax and output, over whole tensors."""

from __future__ import annotations

from ..spec import AttentionSpec
from .graph import Graph, Region
from .node import Node, by_head, cast, const, contract, idx, interning, make, param, reduce, tensor
from .stmt import Tensor
from .trace import trace


def build_forward(spec: AttentionSpec, dtype: str) -> Graph:
    """The forward graph of ``spec`` for tensors of ``dtype``.

    s = scale·q·kᵀ, scores in order, −inf where not visible, p = softmax(s), o = p·v; ``lse`` is
    the natural log-sum-exp of a row. Arithmetic is float32 (float64 for float64 tensors).

    Raises TraceError when a user's callable cannot be traced.
    """
    with interning():
        return _build_forward(spec, dtype)


def _build_forward(spec: AttentionSpec, dtype: str) -> Graph:
    compute = "float64" if dtype == "float64" else "float32"
    heads = tuple(spec.kv_head(h) for h in range(spec.heads))
    b, h = idx("b"), idx("h")
    q_idx = make("add", idx("i"), param("q_offset", "b"), origin="q_idx")
    kv_idx = make("add", idx("j"), param("kv_offset", "b"), origin="kv_idx")

    q = tensor("q", "bhid", dtype)
    k = by_head(tensor("k", "bgjd", dtype), heads)
    v = by_head(tensor("v", "bgje", dtype), heads)

    s = contract(q, k, "d", compute, origin="s")
    s = make("mul", s, const(spec.softmax_scale, compute), origin="scale")
    for name, score_mod in spec.score_mods():
        s = cast(trace(score_mod, (s, b, h, q_idx, kv_idx), name, compute), compute)
    mask = make("lt", idx("j"), param("kv_len", "b"), origin="kv_len")
    for name, mask_mod in spec.mask_mods():
        mask = make("and", mask, trace(mask_mod, (b, h, q_idx, kv_idx), name, "bool"))
    s = make("where", make("visible", mask), s, const(float("-inf"), compute), origin="s")

    lse = reduce("lse", s, "j", origin="lse")
    p = make("exp", make("sub", s, make("finite_or_zero", lse)), origin="p")
    o = contract(cast(p, dtype), v, "j", compute, origin="o")

    outputs = (Tensor("o", tuple("bhie"), dtype, "output"),
               Tensor("lse", tuple("bhi"), compute, "output"))
    inputs = (Tensor("q", tuple("bhid"), dtype, "input"),
              Tensor("k", tuple("bgjd"), dtype, "input", heads),
              Tensor("v", tuple("bgje"), dtype, "input", heads))
    sizes = (("heads", spec.heads), ("groups", max(heads) + 1 if spec.heads else 0),
             ("head_dim", spec.head_dim), ("head_dim_v", spec.head_dim_v or spec.head_dim))
    return graph_of("forward", {outputs[0]: o, outputs[1]: lse}, inputs, sizes)


def graph_of(name: str, outputs: dict[Tensor, Node], inputs: tuple[Tensor, ...],
             sizes: tuple[tuple[str, int], ...]) -> Graph:
    """A math graph of one region. This is also the door for graphs built by hand."""
    region = Region(name, tuple(outputs.items()))
    return Graph("math", (region,), (*inputs, *outputs), sizes)
