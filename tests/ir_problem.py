"""What tests of the IR share: the passes in a row, random problems, and the oracle's answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from attngen import reference
from attngen.ir.build import build_forward
from attngen.ir.eval_tensor import interpret_tensors
from attngen.ir.eval_tile import interpret_tiles
from attngen.ir.fuse import fuse
from attngen.ir.graph import Graph
from attngen.ir.lower import tile
from attngen.ir.passes import canonicalise, rebase
from attngen.ir.place import place
from attngen.ir.schedule import Limits
from attngen.ir.stmt import Kernel, Schedule
from attngen.ir.verify import verify
from attngen.spec import AttentionSpec

Array = np.ndarray[Any, Any]
ROOMY = Limits(10**7, 10**7)  # a target on which every tile fits
DTYPE = {"mma": "bfloat16", "simt": "float32", "cpu": "float64"}


def schedule(engine: str, block_m: int = 16, block_n: int = 16, stages: tuple[int, ...] = (2, 1),
             warps: int = 1, vector_bytes: int = 16) -> Schedule:
    """A small schedule that is legal for the engine."""
    if engine == "cpu":
        return Schedule(block_m, block_n, 1, (1,), engine="cpu")
    return Schedule(block_m, block_n, warps, stages, vector_bytes, engine=engine)


def pipeline(graph: Graph, plan: Schedule, fused: bool = True, limits: Limits = ROOMY,
             check: bool = True) -> Iterator[tuple[str, Graph]]:
    """Every stage of a math graph with the name of the pass that made it, each one verified."""
    steps: list[tuple[str, Callable[[Graph], Graph]]] = [
        ("build", lambda g: g), ("canonicalise", canonicalise),
        ("fuse", lambda g: fuse(g, fused)), ("rebase", rebase),
        ("tile", lambda g: tile(g, plan)), ("place", lambda g: place(g, limits))]
    for name, step in steps:
        graph = step(graph)
        if check:
            verify(graph)
        yield name, graph


def lowered(spec: AttentionSpec, engine: str = "mma", fused: bool = True,
            dtype: str | None = None, plan: Schedule | None = None) -> dict[str, Graph]:
    """The graph of a spec after every pass, by the pass's name."""
    graph = build_forward(spec, dtype or DTYPE[engine])
    return dict(pipeline(graph, plan or schedule(engine), fused))


def placed(spec: AttentionSpec, engine: str = "mma", fused: bool = True,
           dtype: str | None = None, plan: Schedule | None = None) -> Graph:
    """The placed graph of a spec."""
    return lowered(spec, engine, fused, dtype, plan)["place"]


def only(graph: Graph) -> Kernel:
    """The single kernel of a fused graph."""
    (kernel,) = graph.tiles
    return kernel


@dataclass(frozen=True)
class Problem:
    """One call of a spec: lengths, and per batch entry where the queries and keys sit. ``kv_len``
    hides the keys from there on."""

    spec: AttentionSpec
    seqlen_q: int
    seqlen_k: int
    q_offset: tuple[int, ...] | None = None  # default: bottom right, as at the public API
    kv_offset: tuple[int, ...] = (0,)
    kv_len: tuple[int, ...] | None = None
    seed: int = 0
    scale: float = field(default=1.0)  # of q

    @property
    def batch(self) -> int:
        return max(len(self.kv_offset), len(self.kv_len or ()), len(self.q_offset or ()))

    def _each(self, values: tuple[int, ...]) -> Array:
        return np.broadcast_to(np.asarray(values, np.int64), (self.batch,))

    @property
    def params(self) -> dict[str, Any]:
        """Run-time numbers as the interpreters take them."""
        shift = self._each(self.kv_offset)
        return {"seqlen_q": self.seqlen_q, "seqlen_k": self.seqlen_k,
                "q_offset": (shift + self.seqlen_k - self.seqlen_q if self.q_offset is None
                             else self._each(self.q_offset)),
                "kv_offset": shift, "kv_len": self._each(self.kv_len or (self.seqlen_k,))}

    @property
    def extents(self) -> dict[str, int]:
        """The length of every axis."""
        s = self.spec
        assert s.head_dim_v is not None
        return {"b": self.batch, "h": s.heads, "g": s.kv_heads, "i": self.seqlen_q,
                "j": self.seqlen_k, "d": s.head_dim, "e": s.head_dim_v}

    @property
    def inputs(self) -> dict[str, Array]:
        """Normal random q, k, v."""
        rng, n = np.random.default_rng(self.seed), self.extents
        shapes = {"q": "bhid", "k": "bgjd", "v": "bgje"}
        made = {name: rng.normal(size=[n[a] for a in axes]) for name, axes in shapes.items()}
        return {**made, "q": made["q"] * self.scale}

    def oracle(self) -> dict[str, Array]:
        """o and lse by ``attngen.reference`` in float64."""
        x = {name: torch.from_numpy(a) for name, a in self.inputs.items()}
        p = {name: torch.from_numpy(np.array(a)) for name, a in self.params.items()
             if not isinstance(a, int)}
        o, lse = reference.attention(self.spec, x["q"], x["k"], x["v"], q_offset=p["q_offset"],
                                     kv_offset=p["kv_offset"], seqlens_k=p["kv_len"])
        return {"o": o.numpy(), "lse": lse.numpy()}

    def run(self, graph: Graph) -> dict[str, Array]:
        """Interpret a graph of any stage."""
        return self.run_counted(graph)[0]

    def run_counted(self, graph: Graph) -> tuple[dict[str, Array], dict[str, int]]:
        """The same with the interpreter's counts, which whole tensors do not have."""
        if graph.stage in ("math", "fused"):
            return interpret_tensors(graph, self.inputs, self.params, self.extents), {}
        out, counts = interpret_tiles(graph, self.inputs, self.params, self.extents)
        return out, dict(counts)


def assert_same(got: dict[str, Array], expected: dict[str, Array], tolerance: float,
                name: str = "") -> None:
    """Every expected tensor is there and agrees; infinities must be equal, NaN never passes."""
    for key, want in expected.items():
        have = got[key]
        assert have.shape == want.shape, f"{name} {key}: {have.shape}, expected {want.shape}"
        np.testing.assert_allclose(have, want, rtol=tolerance, atol=tolerance, equal_nan=False,
                                   err_msg=f"{name}: {key}")
