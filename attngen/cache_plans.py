"""The plans of kernels around a cache: what writes new keys and values, what turns queries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from .compiler import Options, lower_graph, make_plan

if TYPE_CHECKING:
    from .ir.cache import Cache
    from .ir.capture import Captures
    from .ir.graph import Graph
    from .runtime.plan import Plan
    from .spec import AttentionSpec

    Builder = Callable[[AttentionSpec, str, Cache, Captures], Graph]


def append_plan(spec: AttentionSpec, options: Options) -> Plan:
    """The kernel that writes new keys and values into a cache."""
    from .ir.append import build_append

    return _plan("append", build_append, spec, options)


def rotate_plan(spec: AttentionSpec, options: Options) -> Plan:
    """The kernel that turns queries by their positions, in the style ``options.cached`` names."""
    from .ir.rotate import build_rotate

    return _plan("rotate", build_rotate, spec, options)


def _plan(kind: str, build: Builder, spec: AttentionSpec, options: Options) -> Plan:
    from .ir.cache import Cache
    from .ir.capture import Captures

    options = replace(options, fuse=True, schedule=())
    cached = options.cached._replace(rotary=options.cached.rotary or spec.head_dim)
    graph = build(spec, options.dtype, Cache(*cached), Captures())
    return make_plan(None, options, lower_graph(graph, options), kind)
