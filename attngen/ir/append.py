"""New keys and values into a cache, as a math graph: one kernel, no loop.

    k[b, g, slot(b, i), d] = k_new[b, g, i, d]      for i < new_len, slot by the kind of cache
"""

from __future__ import annotations

from ..spec import AttentionSpec
from .build import graph_of, graph_tables
from .cache import Cache
from .capture import Captures
from .graph import Graph
from .node import Node, interning, param, tensor
from .tensor import Tensor


def build_append(spec: AttentionSpec, dtype: str, cache: Cache, captures: Captures) -> Graph:
    """The graph that writes ``k_new`` [b g i d] and ``v_new`` [b g i e] behind the first
    ``kv_start`` tokens of each sequence, the first ``new_len`` of them."""
    assert spec.head_dim_v is not None
    with interning():
        start, count = param("kv_start", "b"), param("new_len", "b")
        outputs: dict[Tensor, Node] = {}
        inputs = []
        for name, column in (("k", "d"), ("v", "e")):
            new = Tensor(f"{name}_new", ("b", "g", "i", column), dtype, "input")
            kept = Tensor(name, ("b", "g", "j", column), cache.stored or dtype, "output")
            outputs[cache.write(kept, start, count, captures)] = tensor(new.name, new.axes, dtype)
            inputs.append(new)
        sizes = (("heads", spec.heads), ("groups", spec.kv_heads), ("head_dim", spec.head_dim),
                 ("head_dim_v", spec.head_dim_v))
        return graph_of("append", outputs, tuple(inputs), sizes, graph_tables(captures))
