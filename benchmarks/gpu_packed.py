"""GPU suite, part 6: packed sequences on the device: against the float64 oracle, then the speed
beside torch's ``varlen_attn``, FlashAttention's kernel for them.

The cases of ``tests/packed_cases.py``, judged on the CPU. Speeds are of sequences of random lengths
up to 3000, as many as fill 16,384 tokens.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

import attngen as ag

from . import gpu_forward, gpu_part, record
from .gpu_forward import compiled
from .gpu_part import Progress

sys.path.insert(0, str(record.ROOT / "tests"))  # no package: others install one of that name

import packed_cases
from packed_cases import PackedCase

TOKENS, HEADS = 16384, 16
SPEEDS = ((64, True), (64, False), (128, True), (128, False))  # head_dim, causal
_FOR_SPEED = 14.0  # seconds


def check(here: PackedCase, there: PackedCase) -> list[str]:
    """What is wrong with one call, its oracle computed on the CPU from the same numbers."""
    return packed_cases.check(here, there, compiled(there.spec, True), "cuda")


def variants() -> Iterator[tuple[str, ag.AttentionSpec, str, bool]]:
    """(name, spec, dtype, vectorized) of every kernel of this part."""
    for dtype in gpu_forward.DTYPES:
        for case in packed_cases.cases("cpu", dtype):
            yield (f"packed {case.name}", case.spec, dtype,
                   case.layout not in ("odd_rows", "unaligned"))
    for head_dim, causal in SPEEDS:
        yield (f"packed head_dim {head_dim}", ag.AttentionSpec(
            heads=HEADS, head_dim=head_dim, causal=causal), "bfloat16", True)


def lengths() -> tuple[int, ...]:
    """Random ones up to 3000 that fill TOKENS."""
    rng, found = random.Random(0), [0]
    while sum(found) < TOKENS:
        found.append(min(rng.randint(1, 3000), TOKENS - sum(found)))
    return tuple(found[1:])


def measure(head_dim: int, causal: bool, rounds: int = 15) -> dict[str, Any]:
    """Times of ours and of ``varlen_attn``, and how far apart their results are."""
    from attngen.runtime import timing
    from attngen.runtime.targets import default_target

    lens = lengths()
    cu, longest = packed_cases.boundaries(lens).to("cuda"), max(lens)
    flat = tuple(torch.randn(TOKENS, HEADS, head_dim, device="cuda", dtype=torch.bfloat16)
                 for _ in range(3))
    q, k, v = (t.transpose(0, 1)[None] for t in flat)
    attn = ag.compile(ag.AttentionSpec(heads=HEADS, head_dim=head_dim, causal=causal),
                      default_target().name)
    runs: dict[str, Callable[[], Any]] = {
        "attngen": lambda: attn(q, k, v, cu_seqlens_q=cu, max_seqlen_q=longest)}
    row: dict[str, Any] = {"name": f"head_dim {head_dim}{' causal' if causal else ''}",
                           "sequences": len(lens)}
    ours = runs["attngen"]()
    try:
        from torch.nn.attention.varlen import varlen_attn

        window = {"window_size": (-1, 0)} if causal else {}
        runs["varlen_attn"] = partial(varlen_attn, *flat, cu, cu, longest, longest, **window)
        theirs = runs["varlen_attn"]().transpose(0, 1)[None]
        row["difference"] = (ours - theirs).abs().max().item()
        row["ok"] = row["difference"] < 0.05
    except Exception as reason:  # an older torch, or whatever it says
        row["refused"] = f"{type(reason).__name__}: {reason}"[:300]
        runs.pop("varlen_attn", None)
    took = timing.compare(runs, cuda=True, rounds=rounds)
    pairs = sum(n * (n + 1) // 2 if causal else n * n for n in lens)
    return row | {"tflops": {name: 4.0 * HEADS * pairs * head_dim / t.median / 1e12
                             for name, t in took.items()}}


def part(progress: Progress) -> None:
    """All cases in every dtype while time is left, then speeds."""
    gpu_forward.judge_all(progress, (
        pair for dtype in gpu_forward.DTYPES for pair in zip(
            packed_cases.cases("cpu", dtype), packed_cases.cases("cuda", dtype), strict=True)),
        check, _FOR_SPEED)
    with torch.no_grad():
        for head_dim, causal in SPEEDS:
            row = measure(head_dim, causal)
            progress.add("speed", row)
            print(f"packed {row['name']}: TFLOP/s " + ", ".join(
                f"{n} {x:.0f}" for n, x in row["tflops"].items()), flush=True)


if __name__ == "__main__":
    gpu_part.main(part)
