"""Forward and backward on the cpu target: time beside SDPA's, with and without dropout, interleaved
in one process; and the memory one step takes, each length in a process of its own."""

from __future__ import annotations

from functools import partial
from typing import Any

from . import record

HEADS, HEAD_DIM = 4, 64
TIMED = ((1024, 0.0), (4096, 0.0), (1024, 0.1), (4096, 0.1))  # seqlen, dropout_p
LENGTHS = (1024, 2048, 4096, 8192, 16384)
WINDOWED = 65536, 1024

# Peak resident memory beyond what is resident before, when the kernels are compiled and q, k, v and
# the cotangent of o are there: o, lse, delta, the gradients, and what is needed on the way. Linux
# forgets a process's peak when asked to.
_STEP = """
import json, pathlib, time
import torch
import attngen as ag
def resident(field):
    text = pathlib.Path("/proc/self/status").read_text()
    return int(text.split(field + ":")[1].split()[0]) * 1024
def tensors(n):
    return [torch.randn(1, {heads}, n, {dim}, requires_grad=True) for _ in range(3)]
attn = ag.compile(ag.AttentionSpec(heads={heads}, head_dim={dim}, causal=True, window={window}),
                  target="cpu")
attn(*tensors(64)).sum().backward()
given, dout = tensors({seqlen}), torch.randn(1, {heads}, {seqlen}, {dim})
pathlib.Path("/proc/self/clear_refs").write_text("5")
before, start = resident("VmRSS"), time.perf_counter()
attn(*given).backward(dout)
seconds = time.perf_counter() - start
print(json.dumps({{"bytes": resident("VmHWM") - before, "seconds": seconds}}))
"""


def memory() -> list[dict[str, Any]]:
    """One step each of causal attention, and one with a window at the greatest length. Memory of
    full attention's matrix is what keeping one N×N float32 tensor a head would take."""
    rows = []
    for seqlen, window in (*((n, None) for n in LENGTHS), WINDOWED):
        found = record.in_new_process(_STEP.format(heads=HEADS, dim=HEAD_DIM, seqlen=seqlen,
                                                   window=window), timeout=600)
        rows.append({"seqlen": seqlen, "window": window, **found,
                     "tensor_bytes": HEADS * seqlen * HEAD_DIM * 4,
                     "matrix_bytes": HEADS * seqlen**2 * 4})
    return rows


def speed(rounds: int = 7) -> list[dict[str, Any]]:
    """Seconds of a step, forward and backward. SDPA comes first: ratios are its time over ours."""
    import torch
    import torch.nn.functional as F

    import attngen as ag
    from attngen.runtime import timing

    attn = ag.compile(ag.AttentionSpec(heads=HEADS, head_dim=HEAD_DIM, causal=True), target="cpu")
    rows = []
    for seqlen, p in TIMED:
        generator = torch.Generator().manual_seed(0)
        given = [torch.randn(1, HEADS, seqlen, HEAD_DIM, generator=generator).requires_grad_()
                 for _ in range(3)]
        dout = torch.randn(1, HEADS, seqlen, HEAD_DIM, generator=generator)

        def step(attend: Any, given: Any = given, dout: Any = dout) -> Any:
            return torch.autograd.grad(attend(*given), given, dout)

        theirs = partial(F.scaled_dot_product_attention, is_causal=True, dropout_p=p)
        if not p:
            off = max((a - b).abs().max().item() for a, b in
                      zip(step(attn), step(theirs), strict=True))
            if not off < 1e-3:
                raise RuntimeError(f"{seqlen}: gradients differ by {off}")
        times = timing.compare({"sdpa": partial(step, theirs),
                                "attngen": partial(step, partial(attn, dropout_p=p))},
                               rounds=rounds, sample_seconds=10e-3)
        rows.append({"seqlen": seqlen, "dropout_p": p,
                     "times": {n: t.to_dict() for n, t in times.items()}})
    return rows


def report(data: dict[str, Any]) -> str:
    """Two tables."""
    shape = f"{HEADS} heads, head_dim {HEAD_DIM}, causal, float32"
    mib = 2**20
    return record.table(
        f"A training step on the cpu, {shape}, milliseconds",
        ("seqlen", "dropout", "sdpa", "attngen", "vs sdpa"),
        [(r["seqlen"], r["dropout_p"], *(f"{r['times'][n]['median'] * 1e3:.1f}"
                                         for n in ("sdpa", "attngen")),
          f"{r['times']['attngen']['ratio']:.2f}x") for r in data["speed"]]) + "\n" + record.table(
        f"Peak memory of a step beyond q, k, v and do, {shape}, MiB",
        ("seqlen", "window", "one tensor", "peak", "N×N scores", "seconds"),
        [(r["seqlen"], r["window"] or "-", f"{r['tensor_bytes'] / mib:.0f}",
          f"{r['bytes'] / mib:.0f}", f"{r['matrix_bytes'] / mib:,.0f}", f"{r['seconds']:.2f}")
         for r in data["memory"]])


def main() -> dict[str, Any]:
    """Measure, print, and write ``results/<date>-training.json``."""
    import torch

    data = {"threads": torch.get_num_threads(), "speed": speed(), "memory": memory()}
    print(report(data))
    print("written to", record.save("training", data))
    return data


if __name__ == "__main__":
    main()
