"""GPU suite, part 9: forward under masks and scores, beside compiled FlexAttention.

Causal and window masks are in ``gpu_speed``; here are those no hand-written kernel takes. Flex gets
its block mask ready made. Speeds count visible pairs only, so that a kernel which computes hidden
ones is slower for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

import attngen as ag
from attngen import masks, scores

from . import gpu_part, record
from .gpu_part import Progress

TOKENS, HEADS, DIM = 16384, 16, 128
_PER_CASE = 14.0  # seconds, most of them to compile FlexAttention
_TRIED: tuple[dict[str, Any], ...] = (
    {}, {"block_m": 128, "block_n": 64, "warps": 4, "stages": (2, 1)},
    {"block_m": 128, "block_n": 64, "warps": 4, "stages": (1, 1)},
    {"block_m": 128, "block_n": 64, "warps": 8, "stages": (2, 2)},
    {"block_m": 128, "block_n": 32, "warps": 4, "stages": (2, 1)},
    {"block_m": 64, "block_n": 64, "warps": 4, "stages": (2, 1)},
    {"block_m": 64, "block_n": 64, "warps": 4, "stages": (2, 2)})


@dataclass(frozen=True)
class Masked:
    """Self-attention of TOKENS under a mask and a score, ours and in FlexAttention's terms."""

    name: str
    ours: dict[str, Any]
    visible: Callable[..., Any] | None = field(default=None)
    score: Callable[..., Any] | None = field(default=None)

    def spec(self) -> ag.AttentionSpec:
        return ag.AttentionSpec(heads=HEADS, head_dim=DIM, **self.ours)


def problems(device: str) -> Iterator[Masked]:
    """Every problem, captured tensors on ``device``."""
    at = torch.arange(TOKENS, device=device)
    lengths = torch.randint(1, 3000, (40,), generator=torch.Generator().manual_seed(0))
    ids = torch.bucketize(at, lengths.cumsum(0).to(device), right=True).to(torch.int32)
    slopes = 2.0 ** (-8.0 / HEADS * torch.arange(1, HEADS + 1, device=device))

    def causal(b: Any, h: Any, i: Any, j: Any) -> Any:
        return i >= j

    yield Masked("causal document", {"mask": masks.causal() & masks.document(ids)},
                 lambda b, h, i, j: (i >= j) & (ids[i] == ids[j]))
    yield Masked("causal alibi", {"causal": True, "score": scores.alibi()}, causal,
                 lambda score, b, h, i, j: score + slopes[h] * (j - i))
    yield Masked("causal softcap", {"causal": True, "score": scores.softcap(50.0)}, causal,
                 lambda score, b, h, i, j: 50.0 * torch.tanh(score / 50.0))
    yield Masked("window or sinks", {"mask": masks.sliding_window((1023, 0))
                                     | (masks.causal() & masks.attention_sinks(4))},
                 lambda b, h, i, j: (i >= j) & ((i - j < 1024) | (j < 4)))
    yield Masked("document", {"mask": masks.document(ids)},
                 lambda b, h, i, j: ids[i] == ids[j])
    yield Masked("prefix", {"mask": masks.prefix_lm(2048)},
                 lambda b, h, i, j: (i >= j) | (j < 2048))
    yield Masked("neighborhood 128x128, 13", {"mask": masks.neighborhood((128, 128), 13)},
                 _neighborhood)
    yield Masked("window and global", {"mask": masks.sliding_window((256, 256))
                                       | masks.global_tokens(16)},
                 lambda b, h, i, j: ((i - j).abs() <= 256) | (i < 16) | (j < 16))


def _neighborhood(b: Any, h: Any, i: Any, j: Any) -> Any:
    side, reach = 128, 6

    def near(x: Any, y: Any) -> Any:
        center = torch.clamp(x, reach, side - 1 - reach)
        return (y - center).abs() <= reach

    return near(i // side, j // side) & near(i % side, j % side)


def visible_pairs(problem: Masked) -> int:
    """Counted, 1024 queries at a time."""
    if problem.visible is None:
        return TOKENS**2
    keys, total = torch.arange(TOKENS, device="cuda"), 0
    for start in range(0, TOKENS, 1024):
        rows = torch.arange(start, start + 1024, device="cuda")[:, None]
        total += int(problem.visible(0, 0, rows, keys).sum())
    return total


def operands() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k and v, the same for every problem."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, HEADS, TOKENS, DIM, device="cuda", dtype=torch.bfloat16)
               for _ in range(3))
    return q, k, v


def alone(problem: Masked) -> dict[str, Any]:
    """Our speed by schedule, the heuristic's first, without anyone beside."""
    from attngen.runtime import timing
    from attngen.runtime.targets import default_target

    q, k, v = operands()
    pairs = visible_pairs(problem)
    runs: dict[str, Callable[[], Any]] = {}
    for schedule in _TRIED:
        attn = ag.compile(problem.spec(), default_target().name, schedule=schedule)
        runs[" ".join(map(str, schedule.values())) or "heuristic"] = partial(attn, q, k, v)
    took = timing.compare(runs, cuda=True)
    return {"name": problem.name, "visible": pairs / TOKENS**2,
            "tflops": {name: 4.0 * HEADS * pairs * DIM / t.median / 1e12
                       for name, t in took.items()}}


def measure(problem: Masked, rounds: int = 15) -> dict[str, Any]:
    """Times of both, and how far apart their results are."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    from attngen.runtime import timing
    from attngen.runtime.targets import default_target

    q, k, v = operands()
    flops = 4.0 * HEADS * visible_pairs(problem) * DIM
    row: dict[str, Any] = {"name": problem.name, "flops": flops}
    attn = ag.compile(problem.spec(), default_target().name)
    ours = attn(q, k, v)
    torch._dynamo.reset()  # it compiles one function a limited number of times, then gives up
    flex = torch.compile(flex_attention, dynamic=False)
    try:
        block_mask = None if problem.visible is None else create_block_mask(
            problem.visible, None, None, TOKENS, TOKENS, device="cuda")
        theirs = flex(q, k, v, score_mod=problem.score, block_mask=block_mask)
    except Exception as reason:  # whatever the other compiler says
        return row | {"refused": f"{type(reason).__name__}: {reason}"[:300]}
    row["difference"] = (ours - theirs).abs().max().item()
    times = timing.compare({
        "attngen": lambda: attn(q, k, v),
        "flex": lambda: flex(q, k, v, score_mod=problem.score, block_mask=block_mask)},
        cuda=True, rounds=rounds)
    row["times"] = {name: t.to_dict() for name, t in times.items()}
    row["tflops"] = {name: flops / t.median / 1e12 for name, t in times.items()}
    row["of_flex"] = times["flex"].median / times["attngen"].median
    return row | {"ok": row["difference"] < 0.05}


def table(rows: list[dict[str, Any]]) -> str:
    """TFLOP/s of visible pairs, and how much faster than FlexAttention."""
    return record.table(
        f"Forward under masks, bf16, {TOKENS} tokens, TFLOP/s of visible pairs",
        ("problem", "attngen", "flex", "flex time / ours"),
        [(r["name"], *(f"{r['tflops'][n]:.0f}" for n in ("attngen", "flex")),
          f"{r['of_flex']:.2f}") for r in rows if "tflops" in r])


def part(progress: Progress) -> None:
    """Ours alone on every problem, then beside FlexAttention while time is left: what takes long
    is to compile theirs."""
    with torch.no_grad():
        for problem in problems("cuda"):
            progress.put("at", f"{problem.name}, alone")
            progress.add("alone", row := alone(problem))
            print(f"{problem.name}: {row['visible']:.2%} visible, TFLOP/s "
                  + ", ".join(f"{n} {x:.0f}" for n, x in row["tflops"].items()), flush=True)
        for problem in problems("cuda"):
            if progress.left() < _PER_CASE:
                progress.note(f"out of time before {problem.name}")
                break
            progress.put("at", f"{problem.name}, beside FlexAttention")
            progress.add("speed", measure(problem))
            torch.cuda.empty_cache()
    print(table(progress.state["data"].get("speed", [])), flush=True)


if __name__ == "__main__":
    gpu_part.main(part)
