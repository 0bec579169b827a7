"""Attention over a cache: what a call of ``Attention.decode`` becomes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .call import Ready
from .errors import HeadsError, ShapeError
from .runtime import operands, splits
from .runtime.positions import Positions
from .runtime.variant import Problem

if TYPE_CHECKING:
    from torch import Tensor

    from .attention import Attention
    from .kv.cache import Cache
    from .kv.rope import Rope


def ready(attn: Attention, q: Tensor, cache: Cache, sinks: Tensor | None, num_splits: int | None,
          params: dict[str, Any] | None, rope: Rope | None) -> tuple[Ready, Tensor]:
    """The kernels and numbers of a call whose queries are the newest tokens of ``cache``, and the
    queries as kernels read them, turned by ``rope``; everything is checked. Raises as
    ``Attention.decode`` does."""
    seqlen_q = _check(attn, q, cache)
    cache.check_rope(rope)
    where = Positions(cache.lengths - seqlen_q, 0, cache.lengths)
    queries, cached, zones = q, cache.cached, cache.zones
    if rope is not None:
        queries = cache.rotate(attn, q, rope, where.numbers())
        cached = rope.of(cached) if cached.inside else cached
    size = q.element_size()
    vectorized = all([operands.is_vectorized(queries, size, "q"), cache.vectorized()])
    rows = splits.tile_rows(seqlen_q, attn.group)
    parts = zones * attn.parts(num_splits, rows, cache.batch * zones, seqlen_q, cache.seqlen_k, q)
    kind = q.dtype, vectorized, False, False, rows, parts > 1, cached
    variant = attn.variant(kind)
    arguments = {**attn.arguments(q, sinks), **cache.tables()}
    tables, values = variant.captured.bind(q, params or {}, cache.batch, None, arguments)
    numbers = {**where.numbers(), **cache.numbers(), **values}
    problem = Problem(cache.batch, seqlen_q, cache.seqlen_k, numbers, tables, None, where, parts)
    return Ready(kind, variant, problem), queries


def _check(attn: Attention, q: Tensor, cache: Cache) -> int:
    """The number of queries."""
    spec, own = attn.spec, cache.attn.spec
    if (spec.kv_heads, spec.head_dim, spec.head_dim_v) != (own.kv_heads, own.head_dim,
                                                           own.head_dim_v):
        raise HeadsError(
            "the cache was made for another spec",
            numbers=f"{own.kv_heads} groups of head_dim {own.head_dim}, {own.head_dim_v}, here "
                    f"{spec.kv_heads} of {spec.head_dim}, {spec.head_dim_v}",
            remedy="Make it with this attention.")
    if q.dim() != 4 or q.shape[0] != cache.batch or q.shape[3] != spec.head_dim:
        raise ShapeError(f"q has shape {tuple(q.shape)}", numbers=f"expected ({cache.batch}, "
                         f"{spec.heads}, n, {spec.head_dim})",
                         remedy="One row of queries for each sequence of the cache.")
    if q.shape[1] != spec.heads:
        raise HeadsError(f"q has {q.shape[1]} heads, the spec has {spec.heads}")
    cache.check_kind("q", q)
    cache.check_queries(q.shape[2])
    return int(q.shape[2])
