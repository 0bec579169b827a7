"""GPU suite, part 7: gradients on the device against the float64 oracle, then the speed of backward
beside SDPA's backends and compiled FlexAttention.

The cases of ``tests/forward_cases.py`` and some patterns, judged on the CPU. Speeds are of dq, dk
and dv together, from saved o and lse, in bfloat16 at 16,384 tokens; 5 products of visible pairs are
counted, although ours takes 7 (Dao 2023, section 3.1).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch

import attngen as ag
from attngen import masks, scores

from . import gpu_forward, gpu_part, record
from .gpu_forward import compiled, guarded
from .gpu_part import Progress

sys.path.insert(0, str(record.ROOT / "tests"))  # no package: others install one of that name

import backward_cases
import forward_cases
from pattern_cases import PatternCase

TOKENS = 16384
_FOR_SPEED = 25.0  # seconds
SPEEDS = tuple((dim, seqlen, causal) for dim in (64, 128) for seqlen in (2048, 16384)
               for causal in (True, False))


def patterns(device: str) -> Iterator[PatternCase]:
    """Masks and scores with tiles of every kind, and scores with derivatives."""
    ids = torch.arange(420, device=device)
    fields: dict[str, dict[str, Any]] = {
        "document": {"causal": True, "mask": masks.document((ids // 57).to(torch.int32))},
        "sinks": {"mask": masks.sliding_window((90, 0)) | masks.attention_sinks(5)},
        "softcap alibi": {"causal": True, "score": [scores.softcap(4.0), scores.alibi()]},
        "strided": {"mask": masks.strided(70)}, "prefix": {"mask": masks.prefix_lm(100)}}
    for name, some in fields.items():
        for dim in (64, 128):
            yield PatternCase(heads=4, groups=2, batch=2, head_dim=dim, name=name, seqlen_q=300,
                              seqlen_k=420, dtype="bfloat16", **some)


def named(device: str) -> Iterator[Any]:
    """Every case, patterns first."""
    yield from patterns(device)
    for dtype in gpu_forward.DTYPES:
        for some in forward_cases.NAMED.values():
            for case in some[:3]:
                if not backward_cases.alone(case):
                    yield replace(case, dtype=dtype)


def check(here: Any, there: Any) -> list[str]:
    """What is wrong with the gradients of one call."""
    return backward_cases.check(here, there, compiled(there.spec, True), "cuda")


def same_bits() -> list[str]:
    """Twenty backward passes give the same bits, with another stream keeping the device busy."""
    case = replace(gpu_forward.SHARED, seqlen_q=500, seqlen_k=500)
    data = forward_cases.inputs(case, "cuda")
    q, k, v = (t.detach().requires_grad_() for t in (data.q, data.k, data.v))
    o = compiled(case.spec, True)(q, k, v)
    dout = torch.randn_like(o)
    busy, noise = torch.cuda.Stream(), torch.randn(2048, 2048, device="cuda")
    found = []
    for _ in range(20):
        with torch.cuda.stream(busy):
            noise @ noise
        found.append(torch.autograd.grad(o, (q, k, v), dout, retain_graph=True))
    torch.cuda.synchronize()
    wrong = sum(not all(a.equal(b) for a, b in zip(f, found[0], strict=True)) for f in found)
    return [f"{wrong} of 20 gave other bits"] if wrong else []


def dropout_in_a_graph() -> list[str]:
    """A captured graph draws another seed at each replay, or reads the one in a tensor; forward and
    backward of a replay drop the same."""
    case = replace(gpu_forward.SHARED, seqlen_q=300, seqlen_k=300)
    data, seed = forward_cases.inputs(case, "cuda"), torch.tensor([3], device="cuda")
    q, k, v = (t.detach().requires_grad_() for t in (data.q, data.k, data.v))
    attn, wrong = compiled(case.spec, True), []
    for given in (None, seed):
        def step(given: Any = given) -> tuple[torch.Tensor, ...]:
            o = attn(q, k, v, dropout_p=0.5, seed=given)
            return (o.detach(), *torch.autograd.grad(o.sum(), v))

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = step()
        found = []
        for n in (4, 5, 4):
            seed.fill_(n)
            graph.replay()
            found.append(tuple(t.clone() for t in out))
        if found[0][0].equal(found[1][0]):
            wrong.append(f"two replays with seed {given} drop the same")
        if given is not None:
            seed.fill_(4)
            if not all(a.equal(b) and a.equal(c) for a, b, c in
                       zip(found[0], found[2], step(), strict=True)):
                wrong.append("a replay is not the call with the same seed")
    return wrong


def measure(dim: int, seqlen: int, causal: bool, flex: bool, rounds: int = 11) -> dict[str, Any]:
    """Times of backward alone, ours first."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from attngen.runtime import timing
    from attngen.runtime.targets import default_target

    heads, batch = 2048 // dim, TOKENS // seqlen
    q, k, v, dout = (torch.randn(batch, heads, seqlen, dim, device="cuda", dtype=torch.bfloat16)
                     for _ in range(4))
    given = tuple(t.requires_grad_() for t in (q, k, v))
    attn = ag.compile(ag.AttentionSpec(heads=heads, head_dim=dim, causal=causal),
                      default_target().name)
    outputs: dict[str, torch.Tensor] = {"attngen": attn(q, k, v)}
    row: dict[str, Any] = {"name": f"D{dim} S{seqlen}{' causal' if causal else ''}"}
    for name, backend in (("flash", SDPBackend.FLASH_ATTENTION),
                          ("cudnn", SDPBackend.CUDNN_ATTENTION)):
        try:
            with sdpa_kernel(backend):
                outputs[name] = torch.nn.functional.scaled_dot_product_attention(
                    q, k, v, is_causal=causal)
        except Exception as reason:  # whatever the backend says
            row[f"{name} refused"] = str(reason)[:200]
    if flex:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        torch._dynamo.reset()
        block_mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, seqlen, seqlen,
                                       device="cuda") if causal else None
        outputs["flex"] = torch.compile(flex_attention, dynamic=False)(
            q, k, v, block_mask=block_mask)
    runs: dict[str, Callable[[], Any]] = {
        name: partial(torch.autograd.grad, o, given, dout, retain_graph=True)
        for name, o in outputs.items()}
    ours, others = runs["attngen"](), {n: run() for n, run in runs.items() if n != "attngen"}
    row["difference"] = {n: max((a - b).abs().max().item() for a, b in zip(ours, g, strict=True))
                         for n, g in others.items()}
    took = timing.compare(runs, cuda=True, rounds=rounds)
    pairs = seqlen * (seqlen + 1) // 2 if causal else seqlen**2
    flops = 10.0 * batch * heads * pairs * dim
    return row | {"tflops": {n: flops / t.median / 1e12 for n, t in took.items()},
                  "times": {n: t.to_dict() for n, t in took.items()}}


def part(progress: Progress) -> None:
    """Right first, then fast, while time is left."""
    for name, run in (("same bits", same_bits), ("dropout in a graph", dropout_in_a_graph)):
        found = guarded(run)
        progress.add("device", {"name": name, "ok": not found, "complaints": found})
    gpu_forward.judge_all(progress, zip(named("cpu"), named("cuda"), strict=True), check,
                          _FOR_SPEED)
    for dim, seqlen, causal in SPEEDS:
        if progress.left() < 3.0:
            progress.note(f"out of time at head_dim {dim}, {seqlen}")
            break
        row = measure(dim, seqlen, causal, flex=seqlen == TOKENS and progress.left() > 15.0)
        progress.add("speed", row)
        print(f"backward {row['name']}: TFLOP/s " + ", ".join(
            f"{n} {x:.0f}" for n, x in row["tflops"].items()), flush=True)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    gpu_part.main(part)
