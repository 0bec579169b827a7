"""New keys and values into a cache, as a math graph: one kernel, no loop.

    k[b, g, slot(b, i), d] = k_new[b, g, i, d]      for i < new_len, slot by the kind of cache

In eight bits: k = k_new / k_scale, k_scale = max_d |k_new| / 127 (448 for floats), rounded as it is
stored.
"""

from __future__ import annotations

from ..spec import AttentionSpec
from .build import graph_of, graph_tables, sizes_of
from .cache import Cache
from .capture import Captures
from .graph import Graph
from .node import Node, cast, const, idx, interning, make, param, reduce, tensor
from .rotary import exchanged, rotated
from .tensor import Tensor

_LARGEST = {"int8": 127.0, "float8_e4m3": 448.0}


def build_append(spec: AttentionSpec, dtype: str, cache: Cache, captures: Captures) -> Graph:
    """The graph that writes ``k_new`` [b g i d] and ``v_new`` [b g i e] behind the first
    ``kv_start`` tokens of each sequence, the first ``new_len`` of them."""
    with interning():
        start, count = param("kv_start", "b"), param("new_len", "b")
        found: dict[str, Node] = {}
        inputs: list[Tensor] = []
        for name, column in (("k", "d"), ("v", "e")):
            new = Tensor(f"{name}_new", ("b", "g", "i", column), dtype, "input")
            inputs.append(new)
            x = tensor(new.name, new.axes, dtype)
            if cache.rope and name == "k":
                inputs.append(exchanged(new, cache.rope, cache.rotary, "k_pair"))
                position = cache.key_angle(make("add", start, idx("i"), origin="kv_idx"))
                x = rotated(x, inputs[-1], position, cache.rope, cache.rotary, captures)
            found[name] = x if x.dtype == dtype else cast(x, dtype)
            if cache.stored:
                found[name], found[f"{name}_scale"] = _scaled(x, column, _LARGEST[cache.stored])
        outputs = {cache.write(Tensor(name, axes, kind, "output"), start, count, captures):
                   found[name] for name, axes, kind in cache.tensors(dtype)}
        return graph_of("append", outputs, tuple(inputs), sizes_of(spec), graph_tables(captures))


def _scaled(x: Node, over: str, largest: float) -> tuple[Node, Node]:
    """x as multiples of a scale whose largest are ``largest``, and the scale: a row's own."""
    wide = cast(x, "float32")
    scale = make("mul", reduce("max", make("abs", wide), over, origin="scale"),
                 const(1 / largest), origin="scale")
    return make("mul", wide, make("recip0", scale), origin=x.origin), scale
