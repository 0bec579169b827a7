"""Tile maps: time and memory to prove which tiles a mask needs, beside torch's create_block_mask.

torch evaluates the mask on every pair of positions, so its length is capped; ours is measured at
131,072 and 1,048,576 positions, with the proof made anew ("first") and kept from before ("again").
"""

from __future__ import annotations

import statistics
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import attngen as ag
from attngen.describe import lengths
from attngen.ir.build import build_forward
from attngen.ir.node import Node, walk
from attngen.ir.planes import proof_of
from attngen.ir.tilemap import TileMap, prove

from . import record

M = ag.masks
BLOCK = (128, 128)
LENGTHS = (2**17, 2**20)
TORCH_LENGTH = 2**14
MASKS: dict[str, Any] = {
    "causal": M.causal(), "window 4096": M.causal() & M.sliding_window(4096),
    "window | 64 first": M.sliding_window(4096) | M.attention_sinks(64),
    "strided 128": M.strided(128), "fixed 128, 8": M.fixed(128, 8),
    "dilated 512, 4": M.dilated_window(512, 4), "chunked 4096": M.chunked(4096),
    "prefix_lm 1000": M.prefix_lm(1000),
    "grid 256, 7 x 7": lambda b, h, i, j: (abs(i // 256 - j // 256) <= 3)
    & (abs(i % 256 - j % 256) <= 3)}


def mask_of(mask: Any) -> Node:
    """The visibility a spec with this mask has, key lengths included."""
    graph = build_forward(ag.AttentionSpec(heads=1, head_dim=64, mask=mask), "float32")
    return next(n for n in walk(*graph.regions[0].roots) if n.op == "visible").args[0]


def measure(name: str, length: int, rounds: int = 5) -> dict[str, Any]:
    """Milliseconds, peak megabytes of Python's and NumPy's allocations, and what was found."""
    node = mask_of(MASKS[name])
    sizes = {"heads": 1, "groups": 1, "head_dim": 64, "head_dim_v": 64}
    _, params = lengths(sizes, 1, length, length)

    def build() -> TileMap:
        return prove(node, length, length, BLOCK, params)

    proof_of.cache_clear()
    first, tiles = _timed(build)
    again = statistics.median(_timed(build)[0] for _ in range(rounds))
    tracemalloc.start()
    build()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"mask": name, "length": length, "first_ms": first, "again_ms": again,
            "peak_mb": peak / 1e6, "visited": tiles.visited, "full": tiles.full,
            "runs": len(tiles.begin)}


def _timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = run()
    return (time.perf_counter() - start) * 1e3, result


def measure_torch(name: str, length: int = TORCH_LENGTH) -> float:
    """Milliseconds of torch's create_block_mask on the CPU."""
    from torch.nn.attention.flex_attention import create_block_mask

    return _timed(lambda: create_block_mask(MASKS[name], None, None, length, length, device="cpu",
                                            BLOCK_SIZE=BLOCK))[0]


def main() -> dict[str, Any]:
    """Measure, print and write ``results/<date>-tiles.json``."""
    rows = [measure(name, length) for length in LENGTHS for name in MASKS]
    theirs = {name: measure_torch(name) for name in MASKS}
    print(record.table("Tile maps at (128, 128)", (
        "mask", "N", "first, ms", "again, ms", "peak, MB", "visited", "full", "runs"), [
        (r["mask"], r["length"], f"{r['first_ms']:.1f}", f"{r['again_ms']:.1f}",
         f"{r['peak_mb']:.1f}", r["visited"], r["full"], r["runs"]) for r in rows]))
    print(record.table(f"torch create_block_mask, N = {TORCH_LENGTH}", ("mask", "ms"), [
        (name, f"{ms:.0f}") for name, ms in theirs.items()]))
    data = {"block": BLOCK, "tiles": rows, "torch": {"length": TORCH_LENGTH, "ms": theirs}}
    print("written to", record.save("tiles", data))
    return data


if __name__ == "__main__":
    main()
