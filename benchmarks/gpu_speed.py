"""GPU suite, part 8: how fast forward is, beside what a user would call instead.

SDPA's cuDNN, flash and efficient backends and compiled FlexAttention run on the same tensors
(normal random bf16), taking turns in one process, timed by events with the L2 cache overwritten
between runs. What a backend does not take is written down with its reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import attngen as ag

from . import gpu_part, record
from .gpu_part import Progress

TOKENS = 16384  # batch x seqlen
WIDTH = 2048  # heads x head_dim
_PER_CASE = 4.0  # seconds that should be left to start another
_FLEX_SECONDS = 12.0  # to compile it
Run = Callable[[], Any]


@dataclass(frozen=True)
class Problem:
    """Self-attention over [batch, heads, seqlen, head_dim]; ``window`` keys before the query,
    itself included, 0 for all."""

    head_dim: int
    seqlen: int
    causal: bool
    heads: int
    groups: int
    batch: int
    window: int = 0
    flex: bool = False  # compile FlexAttention for it

    def __str__(self) -> str:
        grouped = "" if self.groups == self.heads else f"/{self.groups}"
        limited = f" window {self.window}" if self.window else ""
        return (f"D{self.head_dim} S{self.seqlen} B{self.batch} H{self.heads}{grouped}"
                f"{' causal' if self.causal else ''}{limited}")

    @property
    def pairs(self) -> int:
        """Visible pairs of query and key, as speeds are quoted: S^2, half of it if causal."""
        if self.window:
            w = min(self.window, self.seqlen)
            return w * self.seqlen - w * (w - 1) // 2
        return self.seqlen**2 // 2 if self.causal else self.seqlen**2

    @property
    def flops(self) -> float:
        """Two products of head_dim multiply-adds a pair."""
        return 4.0 * self.batch * self.heads * self.pairs * self.head_dim

    def spec(self) -> ag.AttentionSpec:
        return ag.AttentionSpec(heads=self.heads, groups=self.groups, head_dim=self.head_dim,
                                causal=self.causal, window=self.window or None)


def problems() -> list[Problem]:
    """All of them, those most asked about first."""
    def square(dim: int, seqlen: int, causal: bool) -> Problem:
        heads = WIDTH // dim
        return Problem(dim, seqlen, causal, heads, heads, TOKENS // seqlen,
                       flex=seqlen in (1024, 4096, 16384))

    grouped = [Problem(128, s, True, 64, 8, TOKENS // s, flex=s in (4096, 16384))
               for s in (16384, 8192, 4096, 2048)]
    windows = [Problem(dim, TOKENS, True, WIDTH // dim, WIDTH // dim, 1, window, flex=True)
               for dim in (128, 64) for window in (1024, 128)]
    lengths = (16384, 4096, 1024, 8192, 2048, 512)
    squares = [square(dim, s, causal) for dim in (128, 64, 256) for s in lengths
               for causal in (True, False)]
    long = [p for p in squares if p.seqlen >= 4096]
    return [*long, *grouped[:1], *windows, *grouped[1:],
            *(p for p in squares if p not in long)]


def trials() -> list[tuple[Problem, list[dict[str, Any]]]]:
    """Schedules to try beside the heuristic's, by problem: data for its table."""
    tried = {64: [(128, 64, 4, (2, 1)), (128, 64, 4, (2, 2)), (128, 128, 8, (2, 1)),
                  (128, 128, 8, (1, 1)), (64, 64, 4, (2, 1)), (128, 64, 8, (2, 2))],
             128: [(128, 64, 4, (2, 1)), (128, 64, 8, (2, 1)), (128, 64, 8, (2, 2)),
                   (128, 128, 8, (1, 1)), (64, 64, 4, (2, 1)), (64, 64, 4, (2, 2)),
                   (128, 48, 4, (2, 1)), (128, 32, 4, (2, 2))],
             256: [(128, 64, 8, (1, 1)), (128, 32, 8, (2, 2)), (64, 32, 4, (2, 1)),
                   (64, 64, 4, (1, 1)), (128, 48, 8, (2, 1))]}
    return [(Problem(dim, 8192, causal, WIDTH // dim, WIDTH // dim, 2),
             [dict(zip(("block_m", "block_n", "warps", "stages"), s, strict=True))
              for s in schedules]) for dim, schedules in tried.items() for causal in (True, False)]


def candidates(problem: Problem, q: Any, k: Any, v: Any, flex: bool) -> dict[str, Run]:
    """What to time; attngen first. Entries that the backends refuse raise when called."""
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from attngen.runtime.targets import default_target

    attn = ag.compile(problem.spec(), target=default_target().name)
    grouped = problem.groups != problem.heads
    runs: dict[str, Run] = {"attngen": lambda: attn(q, k, v)}
    mask = None
    if problem.window:
        i = torch.arange(problem.seqlen, device="cuda")
        distance = i[:, None] - i
        mask = (distance >= 0) & (distance < problem.window)

    def sdpa(backend: Any) -> Run:
        def run() -> Any:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(
                    q, k, v, attn_mask=mask, is_causal=problem.causal and mask is None,
                    enable_gqa=grouped)
        return run

    for name, backend in (("cudnn", SDPBackend.CUDNN_ATTENTION),
                          ("flash", SDPBackend.FLASH_ATTENTION),
                          ("efficient", SDPBackend.EFFICIENT_ATTENTION)):
        runs[name] = sdpa(backend)
    if flex:
        runs["flex"] = _flex(problem, q, k, v)
    return runs


def _flex(problem: Problem, q: Any, k: Any, v: Any) -> Run:
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    reach = problem.window or problem.seqlen

    def visible(b: Any, h: Any, i: Any, j: Any) -> Any:
        return (i >= j) & (i - j < reach)

    torch._dynamo.reset()  # it compiles one function a limited number of times, then gives up
    block_mask = create_block_mask(visible, None, None, problem.seqlen, problem.seqlen,
                                   device="cuda") if problem.causal else None
    compiled = torch.compile(flex_attention, dynamic=False)
    grouped = problem.groups != problem.heads
    return lambda: compiled(q, k, v, block_mask=block_mask, enable_gqa=grouped)


def measure(problem: Problem, flex: bool, rounds: int) -> dict[str, Any]:
    """Times of one problem, and how far our result is from the first other's that ran."""
    import torch

    from attngen.runtime import timing

    torch.manual_seed(0)

    def normal(heads: int) -> Any:
        return torch.randn(problem.batch, heads, problem.seqlen, problem.head_dim, device="cuda",
                           dtype=torch.bfloat16)

    q, k, v = normal(problem.heads), normal(problem.groups), normal(problem.groups)
    row: dict[str, Any] = {"name": str(problem), **vars(problem), "flops": problem.flops,
                           "refused": {}}
    usable: dict[str, Run] = {}
    want = None
    for name, run in candidates(problem, q, k, v, flex).items():
        try:
            result = run()
            torch.cuda.synchronize()
        except Exception as reason:  # each backend has its own way to say no
            row["refused"][name] = f"{type(reason).__name__}: {reason}"[:300]
            continue
        usable[name] = run
        if name == "attngen":
            ours = result
        elif want is None:
            want = name
            row["difference"] = {name: (ours - result).abs().max().item()} \
                if "attngen" in usable else None
    times = timing.compare(usable, cuda=True, rounds=rounds) if usable else {}
    row["times"] = {name: t.to_dict() for name, t in times.items()}
    row["tflops"] = {name: problem.flops / t.median / 1e12 for name, t in times.items()}
    if "attngen" in times:
        best = min((t.median for n, t in times.items() if n != "attngen"), default=None)
        row["of_best"] = best / times["attngen"].median if best else None
    row["ok"] = "attngen" in times and (row.get("difference") is None or all(
        d < 0.05 for d in row["difference"].values()))
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """TFLOP/s of everybody."""
    names = ("attngen", "cudnn", "flash", "efficient", "flex")
    return record.table("Forward, bf16, TFLOP/s", ("problem", *names, "of best"), [
        (r["name"], *(f"{r['tflops'][n]:.0f}" if n in r["tflops"] else "-" for n in names),
         f"{r['of_best']:.2f}" if r.get("of_best") else "-") for r in rows])


def try_schedules(problem: Problem, schedules: list[dict[str, Any]]) -> dict[str, Any]:
    """TFLOP/s by schedule, the heuristic's first."""
    import torch

    from attngen.runtime import timing
    from attngen.runtime.targets import default_target

    shape = (problem.batch, problem.heads, problem.seqlen, problem.head_dim)
    q, k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    row: dict[str, Any] = {"name": str(problem), "refused": {}}
    runs: dict[str, Run] = {}
    for schedule in ({}, *schedules):
        name = " ".join(map(str, schedule.values())) or "heuristic"
        try:
            attn = ag.compile(problem.spec(), default_target().name, schedule=schedule)
            attn(q, k, v)
        except ag.errors.AttngenError as refused:
            row["refused"][name] = str(refused)[:200]
            continue
        runs[name] = lambda attn=attn: attn(q, k, v)  # type: ignore[misc]
    times = timing.compare(runs, cuda=True, rounds=11)
    return row | {"tflops": {n: problem.flops / t.median / 1e12 for n, t in times.items()}}


def call_overhead() -> dict[str, float]:
    """Host time of a call on tiny tensors, in microseconds."""
    import torch
    import torch.nn.functional as F

    from attngen.runtime import timing
    from attngen.runtime.targets import default_target

    q, k, v = (torch.randn(1, 2, 16, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    attn = ag.compile(ag.AttentionSpec(heads=2, head_dim=64), target=default_target().name)
    times = timing.compare({"attngen": lambda: attn(q, k, v),
                            "sdpa": lambda: F.scaled_dot_product_attention(q, k, v)}, rounds=11)
    torch.cuda.synchronize()
    return {name: t.median * 1e6 for name, t in times.items()}


def part(progress: Progress) -> None:
    """Every problem while time is left; FlexAttention only while there is time to compile it."""
    import torch

    rows: list[dict[str, Any]] = []
    todo = problems()
    with torch.no_grad():
        progress.put("call_overhead_us", call_overhead())
        for n, problem in enumerate(todo):
            if progress.left() < _PER_CASE:
                progress.note(f"out of time: {len(todo) - n} problems not measured")
                break
            # The problems still to come have a claim on the time, too.
            spare = progress.left() - 1.2 * (len(todo) - n) - 12.0
            flex = problem.flex and spare > _FLEX_SECONDS
            if problem.flex and not flex:
                progress.note(f"{problem}: no time to compile FlexAttention")
            rows.append(measure(problem, flex, rounds=15))
            progress.add("speed", rows[-1])
            torch.cuda.empty_cache()
        for problem, schedules in trials():
            if progress.left() < _PER_CASE / 2:
                progress.note(f"out of time: schedules of {problem} not tried")
                continue
            progress.add("schedules", try_schedules(problem, schedules))
    print(table(rows), flush=True)


if __name__ == "__main__":
    gpu_part.main(part)
