"""How fast decoding is: bytes of keys and values a second, beside a copy from device to device,
SDPA with ``enable_gqa`` and compiled FlexAttention.

bfloat16. Everybody runs as a captured graph, as servers run them, so that times are the device's
own; what a call costs the host is a number of its own. With several queries SDPA and FlexAttention
let each see all keys, which is as many to read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from attngen import kv

from . import gpu_environment, record
from .gpu_decode_cases import DIM, GROUPS, HEADS, PAGE, QUERIES
from .gpu_part import Progress

# (batch, keys), the most telling first
SIZES = ((8, 8192), (1, 32768), (32, 8192), (1, 131072), (128, 2048), (8, 32768), (128, 8192),
         (32, 32768), (1, 8192), (8, 2048), (32, 2048), (8, 131072), (1, 2048), (32, 131072),
         (128, 32768), (128, 131072))
SHARE_OF_MEMORY = 0.8  # of what is free, for both caches of a shape
OURS, NAMES = ("contiguous", "paged"), ("contiguous", "paged", "sdpa", "flex")
_PER_CASE, _FLEX_SECONDS = 2.0, 10.0
Run = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Shape:
    """``queries`` for each of ``batch`` sequences of ``keys`` keys, in bfloat16."""

    batch: int
    keys: int
    queries: int = 1
    flex: bool = False  # compile FlexAttention for it before others are measured

    def __str__(self) -> str:
        return f"B{self.batch} K{self.keys} Q{self.queries}"

    @property
    def bytes(self) -> int:
        """Of all keys and values."""
        return 2 * self.batch * self.keys * GROUPS * DIM * 2

    def fits(self, free: int) -> bool:
        """Whether a contiguous and a paged cache do, in so many bytes."""
        return 2 * self.bytes <= SHARE_OF_MEMORY * free


def shapes() -> Iterator[Shape]:
    """All of them, those most asked about first."""
    for queries in QUERIES:
        for n, (batch, keys) in enumerate(SIZES):
            yield Shape(batch, keys, queries, flex=n < 3 and queries == 1)


def operands(attn: Any, shape: Shape, device: str) -> tuple[torch.Tensor, dict[str, Any]]:
    """The queries, and caches of both kinds, as full as they get."""
    batch, pages = shape.batch, shape.keys // PAGE
    how: dict[str, Any] = {"dtype": torch.bfloat16, "device": device}
    contiguous = kv.KVCache(attn, batch, shape.keys, **how)
    paged = kv.PagedKVCache(attn, batch, batch * pages, page_size=PAGE, capacity=shape.keys, **how)
    paged.page_table.copy_(1 + torch.randperm(batch * pages).view(batch, pages))
    for cache in (contiguous, paged):
        cache.lengths.fill_(shape.keys)
        cache.k.normal_()
        cache.v.normal_()
    q = torch.randn(batch, HEADS, shape.queries, DIM, **how)
    return q, {"contiguous": contiguous, "paged": paged}


def candidates(attn: Any, shape: Shape, flex: bool) -> dict[str, Run]:
    """What to time, ours first; SDPA and FlexAttention read the contiguous cache."""
    import torch.nn.functional as F

    q, caches = operands(attn, shape, "cuda")
    k, v = caches["contiguous"].k, caches["contiguous"].v
    runs: dict[str, Run] = {name: partial(attn.decode, q, cache) for name, cache in caches.items()}
    runs["sdpa"] = partial(F.scaled_dot_product_attention, q, k, v, enable_gqa=True)
    if flex:
        from torch.nn.attention.flex_attention import flex_attention

        torch._dynamo.reset()  # it compiles one function a limited number of times, then gives up
        runs["flex"] = partial(torch.compile(flex_attention, dynamic=False), q, k, v,
                               enable_gqa=True)
    return runs


def replayed(run: Run) -> Callable[[], None]:
    """A captured graph of a call, which was made before."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def measure(attn: Any, shape: Shape, flex: bool, copy: float, rounds: int = 11) -> dict[str, Any]:
    """Times of one shape, and shares of ``copy`` bytes a second. The newest query sees the same
    keys for everybody: there results are compared, as a share of the largest element. What no
    graph can hold is timed as it is."""
    from attngen.runtime import timing

    row: dict[str, Any] = {"name": str(shape), **vars(shape), "bytes": shape.bytes, "refused": {},
                           "no_graph": {}, "difference": {}}
    usable: dict[str, Callable[[], Any]] = {}
    newest = {}
    for name, run in candidates(attn, shape, flex).items():
        try:
            newest[name] = run()[:, :, -1].float()
            torch.cuda.synchronize()
        except Exception as reason:  # each has its own way to say no
            row["refused"][name] = f"{type(reason).__name__}: {reason}"[:300]
            continue
        try:
            usable[name] = replayed(run)
        except Exception as reason:
            usable[name] = run
            row["no_graph"][name] = f"{type(reason).__name__}: {reason}"[:300]
        if name not in OURS and "contiguous" in newest:
            off = (newest["contiguous"] - newest[name]).abs().max() / newest[name].abs().max()
            row["difference"][name] = off.item()
    times = timing.compare(usable, cuda=True, rounds=rounds) if usable else {}
    row["times"] = {n: t.to_dict() for n, t in times.items()}
    row["of_copy"] = {n: shape.bytes / t.median / copy for n, t in times.items()}
    row["ok"] = set(OURS) <= set(usable) and all(
        off < 0.05 for off in row["difference"].values())
    return row


def call_overhead(attn: Any) -> dict[str, float]:
    """Host time of a call on short sequences, in microseconds."""
    from attngen.runtime import timing

    runs = candidates(attn, Shape(1, 64), flex=False)
    times = timing.compare(runs, rounds=11)
    torch.cuda.synchronize()
    return {name: t.median * 1e6 for name, t in times.items()}


def table(rows: list[dict[str, Any]]) -> str:
    """Shares of the copy's speed, and how much faster than SDPA a contiguous cache is. Of a shape
    measured twice, the second time."""
    def ratio(row: dict[str, Any]) -> str:
        times = row["times"]
        return f"{times['sdpa']['median'] / times['contiguous']['median']:.2f}x" \
            if {"sdpa", "contiguous"} <= set(times) else "-"

    return record.table(
        "Decoding, bf16, bytes of keys and values a second as shares of a copy's",
        ("batch, keys, queries", *NAMES, "vs sdpa"),
        [(r["name"], *(f"{r['of_copy'][n]:.0%}" if n in r["of_copy"] else "-" for n in NAMES),
          ratio(r)) for r in {row["name"]: row for row in rows}.values()])


def part(progress: Progress, attn: Any) -> None:
    """Every shape that fits while time is left, FlexAttention beside a few; what time is left then
    goes to FlexAttention beside the others."""
    copy, free = gpu_environment.ceilings()["bytes_per_s"], torch.cuda.mem_get_info()[0]
    progress.put("copy_bytes_per_s", copy)
    progress.put("call_overhead_us", call_overhead(attn))
    too_large = [f"B{b} K{n}" for b, n in SIZES if not Shape(b, n).fits(free)]
    progress.note(f"not measured, as two caches take more than {SHARE_OF_MEMORY:.0%} of "
                  f"{free / 1e9:.0f} GB: {', '.join(too_large) or 'none'}")
    todo = [shape for shape in shapes() if shape.fits(free)]
    again = []
    for n, shape in enumerate(todo):
        if progress.left() < _PER_CASE:
            progress.note(f"out of time: {', '.join(map(str, todo[n:]))} not measured")
            break
        flex = shape.flex and progress.left() > _FLEX_SECONDS
        _add(progress, attn, shape, flex, copy)
        again += [] if flex else [shape]
    for n, shape in enumerate(again):
        if progress.left() < _FLEX_SECONDS:
            progress.note(f"no time to compile FlexAttention for {', '.join(map(str, again[n:]))}")
            break
        _add(progress, attn, shape, True, copy)
    print(table(progress.state["data"].get("speed", [])), flush=True)


def _add(progress: Progress, attn: Any, shape: Shape, flex: bool, copy: float) -> None:
    progress.put("at", str(shape))
    try:
        progress.add("speed", measure(attn, shape, flex, copy))
    except torch.OutOfMemoryError as reason:
        progress.note(f"{shape}: {str(reason).splitlines()[0]}")
    torch.cuda.empty_cache()
