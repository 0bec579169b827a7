"""GPU suite, part 4: forward attention on the device against the float64 oracle.

All the cases of ``tests/forward_cases.py`` in every dtype, fused and as separate kernels, random
ones for as long as time allows, and what only a device can show: repeated bits, streams, graphs.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

import attngen as ag

from . import gpu_part, record
from .gpu_part import Progress

sys.path.insert(0, str(record.ROOT / "tests"))  # no package: others install one of that name

import forward_cases as cases
from forward_cases import Case

DTYPES = ("bfloat16", "float16", "float32")
LARGE = tuple(
    Case(heads=8, groups=2, head_dim=dim, causal=True, batch=batch, seqlen_q=q, seqlen_k=k,
         dtype="bfloat16")
    for dim in (64, 128, 256) for batch, q, k in ((9, 239, 420), (2, 1027, 1027), (1, 2048, 4097)))
SHARED = Case(heads=16, groups=4, head_dim=128, causal=True, batch=2, seqlen_q=1027,
              seqlen_k=1027, dtype="bfloat16")
_FOR_RANDOM = 20.0  # seconds


def named() -> Iterator[tuple[str, Case, bool]]:
    """(name, case, fused) of everything that is not random, the most telling first."""
    for n, case in enumerate(LARGE):
        yield f"large {n}", case, True
    for dtype in DTYPES:
        for feature, some in cases.NAMED.items():
            for n, case in enumerate(some):
                yield f"{feature} {n}", replace(case, dtype=dtype), True
    for dtype in ("bfloat16", "float32"):
        for feature in ("lengths", "causal offsets", "windows", "head_dim_v"):
            for n, case in enumerate(cases.of_few_specs(feature, 2)):
                yield f"{feature} {n}", replace(case, dtype=dtype), False


@cache
def compiled(spec: ag.AttentionSpec, fuse: bool) -> Any:
    """For the device's own target."""
    from attngen.runtime.targets import default_target

    return ag.compile(spec, target=default_target().name, fuse=fuse)


def judge(name: str, case: Case, fuse: bool, device: str = "cuda") -> dict[str, Any]:
    """One call as a row of the report."""
    found = guarded(lambda: cases.check(case, compiled(case.spec, fuse), device))
    return {"name": f"{name}: {case}{'' if fuse else ' unfused'}", "ok": not found,
            "complaints": found}


def judge_all(progress: Progress, pairs: Iterable[tuple[Any, Any]],
              check: Callable[[Any, Any], list[str]], spare: float = 2.0) -> None:
    """Check pairs of a case here and on the device while more than ``spare`` seconds are left; what
    is wrong becomes rows of the report."""
    passed = 0
    for here, there in pairs:
        if progress.left() < spare:
            progress.note(f"out of time at {there}")
            break
        found = guarded(partial(check, here, there))
        passed += not found
        if found:
            progress.add("cases", {"name": str(there), "ok": False, "complaints": found})
    progress.put("passed", passed)


def guarded(check: Callable[[], list[str]]) -> list[str]:
    """The complaints of a check, an exception being one. Raises when the device is lost by it, as
    nothing after could be believed."""
    import torch

    try:
        return check()
    except Exception as problem:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return [f"{type(problem).__name__}: {problem}"[:2000]]


# -- what only a device shows ---------------------------------------------------------------------


def same_bits_every_time() -> list[str]:
    """300 calls, half of them with another stream keeping the device busy."""
    import torch

    data = cases.inputs(SHARED, "cuda")
    attn = compiled(SHARED.spec, True)
    first = attn(data.q, data.k, data.v, return_lse=True)
    busy, noise = torch.cuda.Stream(), torch.randn(2048, 2048, device="cuda")
    wrong = 0
    for n in range(300):
        if n % 2:
            with torch.cuda.stream(busy):
                noise @ noise
        o, lse = attn(data.q, data.k, data.v, return_lse=True)
        wrong += not (o.equal(first[0]) and lse.equal(first[1]))
    torch.cuda.synchronize()
    return [f"{wrong} of 300 calls gave other bits"] if wrong else []


def on_another_stream() -> list[str]:
    """A call runs on torch's current stream, after what was queued there."""
    import torch

    data = cases.inputs(SHARED, "cuda")
    attn = compiled(SHARED.spec, True)
    want = attn(data.q, data.k, data.v)
    late = torch.zeros_like(data.q)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(50_000_000)
        late.copy_(data.q)
        o = attn(late, data.k, data.v)
        torch.cuda.current_stream().synchronize()
    return [] if o.equal(want) else ["the call did not wait for its stream"]


def in_another_thread() -> list[str]:
    """A call works in a thread that has not used the device before."""
    import threading

    import torch

    data = cases.inputs(SHARED, "cuda")
    attn = compiled(SHARED.spec, True)
    want, got = attn(data.q, data.k, data.v), []
    torch.cuda.synchronize()
    thread = threading.Thread(target=lambda: got.append(attn(data.q, data.k, data.v)))
    thread.start()
    thread.join()
    torch.cuda.synchronize()
    return [] if got and got[0].equal(want) else ["the other thread's result differs"]


def in_a_graph() -> list[str]:
    """A captured call replays, and sees new values in the same memory."""
    import torch

    data = cases.inputs(SHARED, "cuda")
    attn = compiled(SHARED.spec, True)
    q = data.q.clone()
    attn(q, data.k, data.v)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        o = attn(q, data.k, data.v)
    q.mul_(0.5)
    graph.replay()
    torch.cuda.synchronize()
    return [] if o.equal(attn(q, data.k, data.v)) else ["the replay gave other bits than a call"]


def front_door() -> list[str]:
    """``attngen.attention`` on device tensors, in torch's own words."""
    data = cases.inputs(SHARED, "cuda")
    o, lse = ag.attention(data.q, data.k, data.v, causal=True, return_lse=True)
    return cases.complaints(SHARED, data, o, lse)


def as_emulated() -> list[str]:
    """Device and emulator agree closely: same text, same order of sums, other last bits."""
    from attngen.runtime.targets import default_target

    case = replace(SHARED, heads=2, groups=1, batch=1, seqlen_q=197, seqlen_k=420)
    here, there = cases.inputs(case), cases.inputs(case, "cuda")
    emulated = ag.compile(case.spec, target=default_target().name, emulate=True)
    _, ours = emulated(here.q, here.k, here.v, return_lse=True)
    _, theirs = compiled(case.spec, True)(there.q, there.k, there.v, return_lse=True)
    off = (ours - theirs.cpu()).abs().max().item()
    return [] if off < 2e-5 else [f"lse differs by {off} from the emulator's"]


SPECIAL: dict[str, Callable[[], list[str]]] = {
    f.__name__: f for f in (front_door, as_emulated, same_bits_every_time, on_another_stream,
                            in_another_thread, in_a_graph)}


def part(progress: Progress) -> None:
    """Named cases, special ones, then random ones."""
    for name, check in SPECIAL.items():
        found = guarded(check)
        progress.add("device", {"name": name, "ok": not found, "complaints": found})
    passed = 0
    for name, case, fuse in named():
        if progress.left() < _FOR_RANDOM:
            progress.note(f"out of time at {name}")
            break
        row = judge(name, case, fuse)
        passed += row["ok"]
        if not row["ok"]:
            progress.add("cases", row)
    progress.put("named_passed", passed)
    seed, passed = 0, 0
    while progress.left() > 3.0:
        rng = random.Random(seed)
        spec = cases.random_spec(rng, DTYPES)
        for _ in range(6):
            row = judge(f"random {seed}", cases.random_call(rng, spec), seed % 5 > 0)
            passed += row["ok"]
            if not row["ok"]:
                progress.add("cases", row)
        seed += 1
    progress.put("random_passed", passed)


if __name__ == "__main__":
    gpu_part.main(part)
