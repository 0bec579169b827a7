"""Tile maps: time and memory to prove which tiles a mask needs, beside torch's create_block_mask.

Every named pattern, at 131,072 and 1,048,576 positions, with the proof made anew ("first") and
kept from before ("again"); only ``from_dense`` is missing, whose tensor would take 17 GB. torch
evaluates the mask on every pair of positions, so its length is capped.
"""

from __future__ import annotations

import statistics
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import attngen as ag
from attngen.describe import lengths
from attngen.ir.build import build_forward
from attngen.ir.capture import Captures
from attngen.ir.node import Node, walk
from attngen.ir.planes import proof_of
from attngen.ir.tilemap import TileMap, prove

from . import record

M = ag.masks
BLOCK = (128, 128)
LENGTHS = (2**17, 2**20)
TORCH_LENGTH = 2**14
ROUNDS = 5


def documents(n: int, order: str = "ascending") -> torch.Tensor:
    """int32 [n], 64 documents of random lengths."""
    rng = np.random.default_rng(0)
    starts = np.zeros(n, np.int64)
    starts[rng.choice(n, 63, replace=False)] = 1
    ids = np.cumsum(starts)
    return torch.from_numpy((ids if order == "ascending" else rng.permutation(64)[ids]).astype(
        np.int32))


NEAR = M.sliding_window((512, 512))
# Of a length.
MASKS: dict[str, Callable[[int], Any]] = {
    "causal": lambda n: M.causal(),
    "window 4096": lambda n: M.causal() & M.sliding_window(4096),
    "window | 64 first": lambda n: M.sliding_window(4096) | M.attention_sinks(64),
    "strided 128": lambda n: M.strided(128), "strided 300": lambda n: M.strided(300),
    "strided 1024": lambda n: M.strided(1024),
    "fixed 128, 8": lambda n: M.fixed(128, 8), "fixed 1024, 8": lambda n: M.fixed(1024, 8),
    "dilated 512, 4": lambda n: M.dilated_window(512, 4),
    "dilated 8, 512": lambda n: M.dilated_window(8, 512),
    "chunked 4096": lambda n: M.chunked(4096), "chunked 1000": lambda n: M.chunked(1000),
    "prefix_lm 1000": lambda n: M.prefix_lm(1000),
    "window | 16 global": lambda n: NEAR | M.global_tokens(16),
    "window | 3 global": lambda n: NEAR | M.global_tokens([3, 5000, 70000]),
    "window | N/5000 global": lambda n: NEAR | M.global_tokens(range(0, n, 5000)),
    "window | marks": lambda n: NEAR | M.global_tokens(torch.arange(n) % 9000 == 7),
    "document": lambda n: M.document(documents(n)),
    "causal document": lambda n: M.causal() & M.document(documents(n)),
    "document, any order": lambda n: M.document(documents(n, "any")),
    "padding lengths": lambda n: M.padding(torch.tensor([n])),
    "padding marks": lambda n: M.padding(torch.arange(n)[None] < n // 3),
    "grid 256, 7 x 7": lambda n: lambda b, h, i, j: (abs(i // 256 - j // 256) <= 3)
    & (abs(i % 256 - j % 256) <= 3),
    "neighborhood 1-d": lambda n: M.neighborhood(n, 1025),
    "neighborhood 2-d": lambda n: M.neighborhood((512, n // 512), 13),
    "neighborhood 2-d, dilated": lambda n: M.neighborhood((512, n // 512), 13, 2),
    "neighborhood 3-d": lambda n: M.neighborhood((n // 4096, 64, 64), 5),
    "neighborhood 3-d, dilated": lambda n: M.neighborhood((n // 4096, 64, 64), (5, 5, 7),
                                                          (1, 2, 3)),
    "tree": lambda n: M.tree([i - 1 if i % 4096 else i // 4096 - 1 for i in range(n)]),
    "block_sparse": lambda n: M.block_sparse(
        torch.from_numpy(np.random.default_rng(0).random((1024, 1024)) < 0.05), n // 1024),
    "random_blocks": lambda n: M.random_blocks(n // 2048, 3, seqlen=n),
    "four per head": lambda n: M.per_head([M.causal(), M.strided(128), M.fixed(128, 8),
                                           M.causal() & M.sliding_window(1024)])}
TORCH = ("causal", "window 4096", "window | 64 first", "strided 128", "fixed 128, 8",
         "dilated 512, 4", "chunked 4096", "prefix_lm 1000", "grid 256, 7 x 7")


def measure(name: str, length: int) -> dict[str, Any]:
    """Milliseconds (medians), peak megabytes of Python's and NumPy's allocations, and what was
    found. ``cpu_ms`` is processor time, which other work on the machine disturbs less."""
    heads = 4 if "per head" in name else 1
    captures = Captures()
    spec = ag.AttentionSpec(heads=heads, head_dim=64, mask=MASKS[name](length))
    graph = build_forward(spec, "float32", captures)
    node = _visible(graph.regions[0].roots)
    tables = {t.name: t.source.numpy() for t in captures.tables}
    sizes = {"heads": heads, "groups": 1, "head_dim": 64, "head_dim_v": 64}
    _, params = lengths(sizes, 1, length, length)

    def build() -> TileMap:
        return prove(node, length, length, BLOCK, params, tables, heads=heads)

    first, again = [], []
    for _ in range(ROUNDS):
        proof_of.cache_clear()
        first.append(_timed(build)[:2])
        again.append(_timed(build)[:2])
    tracemalloc.start()
    tiles = build()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    (first_ms, first_cpu), (again_ms, again_cpu) = (
        [statistics.median(x) for x in zip(*times, strict=True)] for times in (first, again))
    return {"mask": name, "length": length, "first_ms": first_ms, "first_cpu_ms": first_cpu,
            "again_ms": again_ms, "again_cpu_ms": again_cpu, "peak_mb": peak / 1e6,
            "visited": tiles.visited, "full": tiles.full, "stored": tiles.stored}


def _visible(roots: tuple[Node, ...]) -> Node:
    """The visibility of a graph, key lengths included."""
    return next(n for n in walk(*roots) if n.op == "visible").args[0]


def _timed(run: Callable[[], Any]) -> tuple[float, float, Any]:
    start, busy = time.perf_counter(), time.process_time()
    result = run()
    return (time.perf_counter() - start) * 1e3, (time.process_time() - busy) * 1e3, result


def measure_torch(name: str, length: int = TORCH_LENGTH) -> float:
    """Milliseconds of torch's create_block_mask on the CPU."""
    from torch.nn.attention.flex_attention import create_block_mask

    mask = MASKS[name](length)
    return _timed(lambda: create_block_mask(mask, None, None, length, length, device="cpu",
                                            BLOCK_SIZE=BLOCK))[0]


def main() -> dict[str, Any]:
    """Measure, print and write ``results/<date>-tiles.json``."""
    rows = [measure(name, length) for length in LENGTHS for name in MASKS]
    theirs = {name: measure_torch(name) for name in TORCH}
    print(record.table("Tile maps at (128, 128)", (
        "mask", "N", "first, ms", "CPU", "again, ms", "peak, MB", "visited", "full", "stored"), [
        (r["mask"], r["length"], f"{r['first_ms']:.1f}", f"{r['first_cpu_ms']:.1f}",
         f"{r['again_ms']:.1f}", f"{r['peak_mb']:.1f}", r["visited"], r["full"], r["stored"])
        for r in rows]))
    print(record.table(f"torch create_block_mask, N = {TORCH_LENGTH}", ("mask", "ms"), [
        (name, f"{ms:.0f}") for name, ms in theirs.items()]))
    data = {"block": BLOCK, "tiles": rows, "torch": {"length": TORCH_LENGTH, "ms": theirs}}
    print("written to", record.save("tiles", data))
    return data


if __name__ == "__main__":
    main()
