"""Decoding from every kind of cache, against the float64 oracle, and what a device alone shows:
pages give the bits of a contiguous cache, and a captured graph appends and decodes at each replay.

32 query heads of 8 groups, head_dim 128. ``attn`` is the attention of SPEC.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from functools import cache as once
from functools import partial
from typing import Any, NamedTuple

import torch

import attngen as ag
from attngen import kv, masks, reference

from . import record

sys.path.insert(0, str(record.ROOT / "tests"))  # no package: others install one of that name

from streaming_cases import LIMIT, RINGS, Stream

HEADS, GROUPS, DIM, PAGE = 32, 8, 128, 16
SPEC = ag.AttentionSpec(heads=HEADS, groups=GROUPS, head_dim=DIM, causal=True)
LENGTHS, CAPACITY = (530, 17, 301), 608  # tokens of each sequence, and room for so many
WINDOW, SINKS, CHUNK = 100, 3, 8
KINDS = ("contiguous", "paged", "int8", "float8_e4m3", "rolling")
QUERIES, PARTS = (1, 4, 2), (None, 1, 7)
STEPS, START = 6, 2 * WINDOW + 5  # of one token; a ring has turned before, pages run out between


class Case(NamedTuple):
    """One decoding from a filled cache."""

    kind: str
    dtype: str
    queries: int
    parts: int | None

    def __str__(self) -> str:
        return f"{self.kind} {self.dtype}, queries {self.queries}, parts {self.parts or 'chosen'}"


def cases() -> Iterator[Case]:
    """All of them, bfloat16 first."""
    for dtype in ("bfloat16", "float32", "float16"):
        for kind, queries, parts in itertools.product(KINDS, QUERIES, PARTS):
            yield Case(kind, dtype, queries, parts)


@once
def tokens(dtype: str, device: str) -> tuple[torch.Tensor, ...]:
    """q, k and v of CAPACITY tokens, the same on every device."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(len(LENGTHS), heads, CAPACITY, DIM, generator=generator)
               .to(getattr(torch, dtype)).to(device) for heads in (HEADS, GROUPS, GROUPS))
    return q, k, v


def empty(attn: Any, kind: str, dtype: str, device: str) -> Any:
    """A cache for sequences of LENGTHS."""
    batch = len(LENGTHS)
    how: dict[str, Any] = {"dtype": getattr(torch, dtype), "device": device}
    if kind == "paged":
        return kv.PagedKVCache(attn, batch, batch * CAPACITY // PAGE, page_size=PAGE,
                               capacity=CAPACITY, **how)
    if kind == "rolling":
        return kv.RollingKVCache(attn, batch, WINDOW, sinks=SINKS, chunk=CHUNK, **how)
    return kv.KVCache(attn, batch, CAPACITY, quantize=None if kind == "contiguous" else kind,
                      **how)


@once
def filled(attn: Any, kind: str, dtype: str, device: str) -> Any:
    """With LENGTHS tokens, which came in turns."""
    cache = empty(attn, kind, dtype, device)
    _, k, v = tokens(dtype, device)
    longest, step = max(LENGTHS), 2 * PAGE
    for at in range(0, longest, step):
        new = [x[:, :, at:min(at + step, longest)] for x in (k, v)]
        cache.append(*new, counts=[min(max(n - at, 0), new[0].shape[2]) for n in LENGTHS])
    return cache


def newest_queries(dtype: str, count: int, device: str) -> torch.Tensor:
    """Those of the last tokens of each sequence."""
    q = tokens(dtype, device)[0]
    return torch.stack([q[b, :, n - count:n] for b, n in enumerate(LENGTHS)])


def attended(attn: Any, case: Case, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """o and lse of a case."""
    o, lse = attn.decode(newest_queries(case.dtype, case.queries, device),
                         filled(attn, case.kind, case.dtype, device), num_splits=case.parts,
                         return_lse=True)
    return o, lse


@once
def expected(attn: Any, kind: str, dtype: str, queries: int,
             device: str) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """o and lse of the oracle, and of plain attention in the same dtype, computed on the CPU. Of
    caches in eight bits, from the elements they hold."""
    q, (_, k, v) = newest_queries(dtype, queries, "cpu"), tokens(dtype, "cpu")
    spec, oracle_k, oracle_v = SPEC, k, v
    cache = filled(attn, kind, dtype, device)
    if cache.scales:
        oracle_k, oracle_v = (x.cpu().double() * cache.scales[name].cpu().double()[..., None]
                              for x, name in ((cache.k, "k_scale"), (cache.v, "v_scale")))
        k, v = oracle_k.to(q.dtype), oracle_v.to(q.dtype)
    if kind == "rolling":
        spec = ag.AttentionSpec(heads=HEADS, groups=GROUPS, head_dim=DIM, causal=True,
                                mask=masks.sliding_window(WINDOW) | masks.attention_sinks(SINKS))
    lengths = torch.tensor(LENGTHS, dtype=torch.int32)
    where: dict[str, Any] = {"q_offset": lengths - queries, "seqlens_k": lengths}
    return (reference.attention(spec, q, oracle_k, oracle_v, **where),
            reference.naive(spec, q, k, v, **where))


def check(attn: Any, case: Case, device: str = "cuda") -> list[str]:
    """What is wrong with a result."""
    want, same = expected(attn, case.kind, case.dtype, case.queries, device)
    verdicts = [reference.compare(x, w, s, factor=2.0, name=name) for x, w, s, name in zip(
        attended(attn, case, device), want, same, ("o", "lse"), strict=True)]
    return [f"{case}: {verdict.report}" for verdict in verdicts if not verdict.ok]


def pages_give_the_same_bits(attn: Any, device: str = "cuda") -> list[str]:
    """A paged cache and a contiguous one, in every number of parts, twice."""
    wrong = []
    for queries, parts in itertools.product(QUERIES, PARTS):
        found = [attended(attn, Case(kind, "bfloat16", queries, parts), device)
                 for kind in ("contiguous", "paged") * 2]
        if not all(a.equal(b) for other in found[1:] for a, b in
                   zip(found[0], other, strict=True)):
            wrong.append(f"queries {queries}, parts {parts}: other bits")
    return wrong


def started(attn: Any, kind: str, device: str) -> Any:
    """A cache of START tokens, with pages for STEPS more and those before a graph."""
    _, k, v = tokens("bfloat16", device)
    cache = empty(attn, kind, "bfloat16", device)
    cache.append(k[:, :, :START], v[:, :, :START])
    if isinstance(cache, kv.PagedKVCache):
        cache.reserve(STEPS + 2)
    return cache


def newest(n: int, device: str) -> list[torch.Tensor]:
    """q, k and v of token n."""
    return [x[:, :, n:n + 1].clone() for x in tokens("bfloat16", device)]


def step(attn: Any, cache: Any, token: list[torch.Tensor]) -> torch.Tensor:
    """Append a token and decode its query."""
    q, k, v = token
    cache.append(k, v)
    o: torch.Tensor = attn.decode(q, cache)
    return o


def in_a_graph(kind: str, attn: Any) -> list[str]:
    """A captured step, replayed, gives the bits of a cache that is used without a graph, and leaves
    the same lengths."""
    caches = captured, plain = started(attn, kind, "cuda"), started(attn, kind, "cuda")
    token = newest(START, "cuda")
    for cache in caches:  # compiles what the graph is to hold
        step(attn, cache, token)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        o = step(attn, captured, token)
    wrong = []
    for n in range(START + 1, START + 1 + STEPS):
        for held, x in zip(token, newest(n, "cuda"), strict=True):
            held.copy_(x)
        graph.replay()
        captured.advance(1)
        if not o.equal(step(attn, plain, token)):
            wrong.append(f"{kind}: token {n} has other bits in a replayed graph")
    if not captured.lengths.equal(plain.lengths):
        wrong.append(f"{kind}: lengths {captured.lengths.tolist()}, not {plain.lengths.tolist()}")
    return wrong


def streams(dtype: str) -> list[Stream]:
    return [Stream(*ring, dtype) for ring in RINGS]


def places_in_a_ring(attn: Any, device: str = "cuda") -> list[str]:
    """Streams whose keys and queries are turned by their places in a ring."""
    wrong = []
    for dtype, limit in LIMIT.items():
        for stream in streams(dtype):
            off = stream.error(stream.decoded(attn, device), attn.spec)
            wrong += [f"{stream}: off by {off:.3g}"] if not off < limit else []
    return wrong


SPECIAL: dict[str, Callable[[Any], list[str]]] = {
    "pages give the same bits": pages_give_the_same_bits,
    "places in a ring": places_in_a_ring,
    **{f"{kind} in a graph": partial(in_a_graph, kind) for kind in KINDS}}
