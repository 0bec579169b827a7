"""GPU suite, part 10: decoding from every kind of cache: against the float64 oracle, then the speed
beside SDPA with ``enable_gqa`` and compiled FlexAttention.

What is asked of the device alone: pages give the bits of a contiguous cache, and a captured graph
appends and decodes at each replay. Speeds are bytes of keys and values a second, beside a copy from
device to device; 32 query heads of 8 groups, head_dim 128, bfloat16. With several queries SDPA and
FlexAttention let each see all keys, which is as many to read.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache as once
from functools import partial
from typing import Any, NamedTuple

import torch

import attngen as ag
from attngen import kv, masks, reference

from . import gpu_environment, gpu_forward, gpu_part, record
from .gpu_part import Progress

HEADS, GROUPS, DIM, PAGE = 32, 8, 128, 16
SPEC = ag.AttentionSpec(heads=HEADS, groups=GROUPS, head_dim=DIM, causal=True)
LENGTHS, CAPACITY = (530, 17, 301), 608  # tokens of each sequence, and room for so many
WINDOW, SINKS, CHUNK = 100, 3, 8
KINDS = ("contiguous", "paged", "int8", "float8_e4m3", "rolling")
QUERIES, PARTS = (1, 4, 2), (None, 1, 7)
# (batch, keys), the most telling first
SIZES = ((8, 8192), (1, 32768), (32, 8192), (1, 131072), (128, 2048), (8, 32768), (128, 8192),
         (32, 32768), (1, 8192), (8, 2048), (32, 2048), (8, 131072), (1, 2048), (32, 131072),
         (128, 32768), (128, 131072))
MOST_MEMORY = 40e9  # bytes of all caches at once
_FOR_SPEED, _PER_CASE, _FLEX_SECONDS = 20.0, 2.0, 10.0


# -- right ----------------------------------------------------------------------------------------


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


def empty(kind: str, dtype: str, device: str) -> Any:
    """A cache for sequences of LENGTHS."""
    attn, batch = gpu_forward.compiled(SPEC, True), len(LENGTHS)
    how: dict[str, Any] = {"dtype": getattr(torch, dtype), "device": device}
    if kind == "paged":
        return kv.PagedKVCache(attn, batch, batch * CAPACITY // PAGE, page_size=PAGE,
                               capacity=CAPACITY, **how)
    if kind == "rolling":
        return kv.RollingKVCache(attn, batch, WINDOW, sinks=SINKS, chunk=CHUNK, **how)
    return kv.KVCache(attn, batch, CAPACITY, quantize=None if kind == "contiguous" else kind,
                      **how)


@once
def filled(kind: str, dtype: str, device: str) -> Any:
    """With LENGTHS tokens, which came in turns."""
    cache = empty(kind, dtype, device)
    _, k, v = tokens(dtype, device)
    longest, step = max(LENGTHS), 2 * PAGE
    for at in range(0, longest, step):
        new = [x[:, :, at:min(at + step, longest)] for x in (k, v)]
        cache.append(*new, counts=[min(max(n - at, 0), new[0].shape[2]) for n in LENGTHS])
    return cache


def attended(case: Case, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The queries of a case, which are the newest tokens of each sequence; o and lse."""
    q = tokens(case.dtype, device)[0]
    q = torch.stack([q[b, :, n - case.queries:n] for b, n in enumerate(LENGTHS)])
    o, lse = gpu_forward.compiled(SPEC, True).decode(
        q, filled(case.kind, case.dtype, device), num_splits=case.parts, return_lse=True)
    return q, o, lse


def check(case: Case, device: str = "cuda") -> list[str]:
    """What is wrong with a result, judged on the CPU. Of caches in eight bits it is judged by the
    elements they hold."""
    q, o, lse = attended(case, device)
    _, k, v = tokens(case.dtype, "cpu")
    spec, dtype = SPEC, getattr(torch, case.dtype)
    oracle_k, oracle_v = k, v
    cache = filled(case.kind, case.dtype, device)
    if cache.scales:
        oracle_k, oracle_v = (x.cpu().double() * cache.scales[name].cpu().double()[..., None]
                              for x, name in ((cache.k, "k_scale"), (cache.v, "v_scale")))
        k, v = oracle_k.to(dtype), oracle_v.to(dtype)
    if case.kind == "rolling":
        spec = ag.AttentionSpec(heads=HEADS, groups=GROUPS, head_dim=DIM, causal=True,
                                mask=masks.sliding_window(WINDOW) | masks.attention_sinks(SINKS))
    lengths = torch.tensor(LENGTHS, dtype=torch.int32)
    where: dict[str, Any] = {"q_offset": lengths - case.queries, "seqlens_k": lengths}
    want = reference.attention(spec, q.cpu(), oracle_k, oracle_v, **where)
    same = reference.naive(spec, q.cpu(), k, v, **where)
    verdicts = [reference.compare(x, w, s, factor=2.0, name=name)
                for x, w, s, name in zip((o, lse), want, same, ("o", "lse"), strict=True)]
    return [f"{case}: {verdict.report}" for verdict in verdicts if not verdict.ok]


def pages_give_the_same_bits(device: str = "cuda") -> list[str]:
    """A paged cache and a contiguous one, in every number of parts, twice."""
    wrong = []
    for queries, parts in itertools.product(QUERIES, PARTS):
        found = [attended(Case(kind, "bfloat16", queries, parts), device)[1:]
                 for kind in ("contiguous", "paged") * 2]
        if not all(a.equal(b) for other in found[1:] for a, b in
                   zip(found[0], other, strict=True)):
            wrong.append(f"queries {queries}, parts {parts}: other bits")
    return wrong


def in_a_graph(kind: str) -> list[str]:
    """A captured step appends a token and decodes. Replayed, it gives the bits of a cache that is
    used without a graph, and leaves the same lengths."""
    q, k, v = (x.contiguous() for x in tokens("bfloat16", "cuda"))
    attn, steps = gpu_forward.compiled(SPEC, True), 6
    start = 2 * WINDOW + 5  # a ring has turned; the steps need a page more
    caches = captured, plain = empty(kind, "bfloat16", "cuda"), empty(kind, "bfloat16", "cuda")
    now = [x[:, :, start:start + 1].clone() for x in (q, k, v)]
    for cache in caches:
        cache.append(k[:, :, :start], v[:, :, :start])
        if isinstance(cache, kv.PagedKVCache):
            cache.reserve(steps + 2)

    def step(cache: Any) -> torch.Tensor:
        cache.append(now[1], now[2])
        o: torch.Tensor = attn.decode(now[0], cache)
        return o

    for cache in caches:  # compiles what the graph is to hold
        step(cache)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        o = step(captured)
    wrong = []
    for n in range(start + 1, start + 1 + steps):
        for held, x in zip(now, (q, k, v), strict=True):
            held.copy_(x[:, :, n:n + 1])
        graph.replay()
        captured.advance(1)
        if not o.equal(step(plain)):
            wrong.append(f"{kind}: token {n} has other bits in a replayed graph")
    if not captured.lengths.equal(plain.lengths):
        wrong.append(f"{kind}: lengths {captured.lengths.tolist()}, not {plain.lengths.tolist()}")
    return wrong


SPECIAL: dict[str, Callable[[], list[str]]] = {
    "pages give the same bits": pages_give_the_same_bits,
    **{f"{kind} in a graph": partial(in_a_graph, kind) for kind in KINDS}}


# -- fast -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """``queries`` for each of ``batch`` sequences of ``keys`` keys, in bfloat16."""

    batch: int
    keys: int
    queries: int = 1
    flex: bool = False  # compile FlexAttention for it

    def __str__(self) -> str:
        return f"B{self.batch} K{self.keys} Q{self.queries}"

    @property
    def bytes(self) -> int:
        """Of all keys and values."""
        return 2 * self.batch * self.keys * GROUPS * DIM * 2

    @property
    def fits(self) -> bool:
        """A contiguous and a paged cache."""
        return 2 * self.bytes <= MOST_MEMORY


def shapes() -> Iterator[Shape]:
    """All of them, those most asked about first."""
    for queries in QUERIES:
        for n, (batch, keys) in enumerate(SIZES):
            yield Shape(batch, keys, queries, flex=n < 3 and queries == 1)


def candidates(shape: Shape, flex: bool) -> dict[str, Callable[[], torch.Tensor]]:
    """What to time, ours first; SDPA and FlexAttention read the contiguous cache."""
    import torch.nn.functional as F

    attn, batch, pages = gpu_forward.compiled(SPEC, True), shape.batch, shape.keys // PAGE
    how: dict[str, Any] = {"dtype": torch.bfloat16, "device": "cuda"}
    contiguous = kv.KVCache(attn, batch, shape.keys, **how)
    paged = kv.PagedKVCache(attn, batch, batch * pages, page_size=PAGE, capacity=shape.keys, **how)
    paged.page_table.copy_(1 + torch.randperm(batch * pages).view(batch, pages))
    for cache in (contiguous, paged):  # as full as they get
        cache.lengths.fill_(shape.keys)
        cache.k.normal_()
        cache.v.normal_()
    q = torch.randn(batch, HEADS, shape.queries, DIM, **how)
    k, v = contiguous.k, contiguous.v
    runs: dict[str, Callable[[], torch.Tensor]] = {
        "contiguous": partial(attn.decode, q, contiguous), "paged": partial(attn.decode, q, paged),
        "sdpa": partial(F.scaled_dot_product_attention, q, k, v, enable_gqa=True)}
    if flex:
        from torch.nn.attention.flex_attention import flex_attention

        torch._dynamo.reset()  # it compiles one function a limited number of times, then gives up
        runs["flex"] = partial(torch.compile(flex_attention, dynamic=False), q, k, v,
                               enable_gqa=True)
    return runs


def measure(shape: Shape, flex: bool, copy: float, rounds: int = 11) -> dict[str, Any]:
    """Times of one shape, and shares of ``copy`` bytes a second. The newest query sees the same
    keys for everybody: there results are compared, as a share of the largest element."""
    from attngen.runtime import timing

    row: dict[str, Any] = {"name": str(shape), **vars(shape), "bytes": shape.bytes, "refused": {},
                           "difference": {}}
    usable, newest = {}, {}
    for name, run in candidates(shape, flex).items():
        try:
            newest[name] = run()[:, :, -1].float()
            torch.cuda.synchronize()
        except Exception as reason:  # each has its own way to say no
            row["refused"][name] = f"{type(reason).__name__}: {reason}"[:300]
            continue
        usable[name] = run
        if name not in ("contiguous", "paged") and "contiguous" in newest:
            off = (newest["contiguous"] - newest[name]).abs().max() / newest[name].abs().max()
            row["difference"][name] = off.item()
    times = timing.compare(usable, cuda=True, rounds=rounds) if usable else {}
    row["times"] = {n: t.to_dict() for n, t in times.items()}
    row["of_copy"] = {n: shape.bytes / t.median / copy for n, t in times.items()}
    row["ok"] = {"contiguous", "paged"} <= set(usable) and all(
        off < 0.05 for off in row["difference"].values())
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Shares of the copy's speed, and how much faster than SDPA a contiguous cache is."""
    names = ("contiguous", "paged", "sdpa", "flex")

    def ratio(row: dict[str, Any]) -> str:
        times = row["times"]
        return f"{times['sdpa']['median'] / times['contiguous']['median']:.2f}x" \
            if {"sdpa", "contiguous"} <= set(times) else "-"

    return record.table(
        "Decoding, bf16, bytes of keys and values a second as shares of a copy's",
        ("batch, keys, queries", *names, "vs sdpa"),
        [(r["name"], *(f"{r['of_copy'][n]:.0%}" if n in r["of_copy"] else "-" for n in names),
          ratio(r)) for r in rows])


def speeds(progress: Progress) -> None:
    """Every shape that fits, and FlexAttention for some, while time is left."""
    copy = gpu_environment.ceilings()["bytes_per_s"]
    progress.put("copy_bytes_per_s", copy)
    too_large = [f"B{b} K{n}" for b, n in SIZES if not Shape(b, n).fits]
    progress.note(f"more than {MOST_MEMORY / 1e9:.0f} GB, not measured: {', '.join(too_large)}")
    todo = [shape for shape in shapes() if shape.fits]
    for n, shape in enumerate(todo):
        if progress.left() < _PER_CASE:
            progress.note(f"out of time: {', '.join(map(str, todo[n:]))} not measured")
            break
        flex = shape.flex and progress.left() > _FLEX_SECONDS
        if shape.flex and not flex:
            progress.note(f"{shape}: no time to compile FlexAttention")
        progress.add("speed", measure(shape, flex, copy))
        torch.cuda.empty_cache()
    print(table(progress.state["data"].get("speed", [])), flush=True)


def part(progress: Progress) -> None:
    """Right first, then fast, while time is left."""
    with torch.no_grad():
        for name, run in SPECIAL.items():
            found = gpu_forward.guarded(run)
            progress.add("device", {"name": name, "ok": not found, "complaints": found})
        gpu_forward.judge_all(progress, ((case, case) for case in cases()),
                              lambda here, there: check(there), _FOR_SPEED)
        speeds(progress)


if __name__ == "__main__":
    gpu_part.main(part)
