"""Queries turned by their positions, as a math graph: one kernel, no loop.

    q_turned[b, h, i, d] = rotated(q[b, h, i, :], position(b, i))[d]

once for each zone of a cache, the nth as the output ``q_n`` (``Cache.query_angles``).
"""

from __future__ import annotations

from ..spec import AttentionSpec
from .build import graph_of, graph_tables, sizes_of
from .cache import Cache
from .capture import Captures
from .graph import Graph
from .node import cast, idx, interning, make, param, tensor
from .rotary import exchanged, rotated
from .tensor import Tensor


def build_rotate(spec: AttentionSpec, dtype: str, cache: Cache, captures: Captures) -> Graph:
    """The graph that turns ``q_new`` [b h i d], queries as they come."""
    axes = tuple("bhid")
    with interning():
        new = Tensor("q_new", axes, dtype, "input")
        pair = exchanged(new, cache.rope, cache.rotary, "q_pair")
        x = tensor(new.name, axes, dtype)
        q_idx = make("add", idx("i"), param("q_offset", "b"), origin="q_idx")
        outputs = {
            Tensor(f"q_{n}", axes, dtype, "output"): cast(rotated(
                x, pair, angle, cache.rope, cache.rotary, captures), dtype)
            for n, angle in enumerate(cache.query_angles(q_idx))}
        return graph_of("rotate", outputs, (new, pair), sizes_of(spec), graph_tables(captures))
