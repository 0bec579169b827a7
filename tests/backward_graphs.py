"""Kernels of later work as math graphs: what the backward pass and split decoding will be made of.

They are written by hand here; differentiation and the split pass will derive them. ``spec`` gives
the mask, one key/value head per query head.
"""

from __future__ import annotations

from attngen.ir.build import build_forward, graph_of
from attngen.ir.fuse import fuse
from attngen.ir.graph import Graph, Region
from attngen.ir.node import Node, cast, const, contract, make, tensor, walk
from attngen.ir.passes import canonicalise, rebase
from attngen.ir.tensor import Tensor
from attngen.spec import AttentionSpec


class _Backward:
    """p and ds of a spec, recomputed from q, k and the saved lse and delta."""

    def __init__(self, spec: AttentionSpec, dtype: str) -> None:
        assert spec.kv_heads == spec.heads
        self.dtype = dtype
        self.compute = "float64" if dtype == "float64" else "float32"
        forward = build_forward(spec, dtype)
        self.sizes = forward.sizes
        mask = next(n for n in walk(*forward.regions[0].roots) if n.op == "visible")
        self.q, self.k = tensor("q", "bhid", dtype), tensor("k", "bhjd", dtype)
        self.v, self.do = tensor("v", "bhje", dtype), tensor("dout", "bhie", dtype)
        self.lse, self.delta = (tensor(n, "bhi", self.compute) for n in ("lse", "delta"))
        self.scale = const(spec.softmax_scale, self.compute)
        s = make("mul", self.product(self.q, self.k, "d", "s"), self.scale)
        s = make("where", mask, s, const(float("-inf"), self.compute), origin="s")
        self.p = make("exp", make("sub", s, make("finite_or_zero", self.lse)), origin="p")
        dp = self.product(self.do, self.v, "e", "dp")
        self.ds = make("mul", self.p, make("sub", dp, self.delta), origin="ds")

    def product(self, a: Node, b: Node, over: str, origin: str) -> Node:
        return contract(a, b, over, self.compute, origin=origin)

    def stored(self, x: Node) -> Node:
        return cast(x, self.dtype)

    def graph(self, name: str, **outputs: tuple[str, Node]) -> Graph:
        made = {Tensor(n, tuple(axes), self.dtype, "output"): node
                for n, (axes, node) in outputs.items()}
        given = tuple(Tensor(n.attr("name"), n.axes, n.dtype, "input")
                      for n in (self.q, self.k, self.v, self.do, self.lse, self.delta)
                      if any(n in walk(root) for _, root in outputs.values()))
        return graph_of(name, made, given, self.sizes)


def dkdv(spec: AttentionSpec, dtype: str) -> Graph:
    """dv = pᵀ·dout and dk = dsᵀ·q, summed over queries: keep=j, loop=i."""
    x = _Backward(spec, dtype)
    dk = x.product(x.stored(x.ds), x.q, "i", "dk")
    return x.graph("dkdv", dk=("bhjd", make("mul", dk, x.scale, origin="dk")),
                   dv=("bhje", x.product(x.stored(x.p), x.do, "i", "dv")))


def dq(spec: AttentionSpec, dtype: str) -> Graph:
    """dq = ds·k, summed over keys: keep=i, loop=j."""
    x = _Backward(spec, dtype)
    return x.graph("dq", dq=("bhid", make(
        "mul", x.product(x.stored(x.ds), x.k, "j", "dq"), x.scale, origin="dq")))


def partials(spec: AttentionSpec, dtype: str) -> Graph:
    """The fused forward without its last step: m, l and acc are stored, for ``combine`` to join."""
    graph = rebase(fuse(canonicalise(build_forward(spec, dtype))))
    nodes = {n.op: n for n in walk(*graph.regions[0].roots)
             if n.op in ("stream_sum", "stream_contract")}
    compute = nodes["stream_sum"].dtype
    m = nodes["stream_sum"].args[-1]
    outputs = ((Tensor("m", tuple("bhi"), compute, "output"), m),
               (Tensor("l", tuple("bhi"), compute, "output"), nodes["stream_sum"]),
               (Tensor("acc", tuple("bhie"), compute, "output"), nodes["stream_contract"]))
    given = tuple(t for t in graph.tensors if t.role == "input")
    return Graph("fused", (Region("partials", outputs),), (*given, *(t for t, _ in outputs)),
                 graph.sizes)
