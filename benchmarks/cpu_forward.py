"""Forward on the cpu target beside torch's own attention, interleaved in one process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import record


@dataclass(frozen=True)
class Shape:
    """One problem: [batch, heads, seqlen, head_dim], keys in ``groups`` heads."""

    batch: int
    heads: int
    groups: int
    seqlen: int
    head_dim: int
    causal: bool
    dtype: str

    def __str__(self) -> str:
        grouped = "" if self.groups == self.heads else f"/{self.groups}"
        return (f"{self.dtype} B{self.batch} H{self.heads}{grouped} S{self.seqlen} "
                f"D{self.head_dim}{' causal' if self.causal else ''}")

    @property
    def flops(self) -> float:
        full = 4.0 * self.batch * self.heads * self.seqlen**2 * self.head_dim
        return full / 2 if self.causal else full


SHAPES = tuple(Shape(*shape, dtype) for dtype in ("float32", "bfloat16") for shape in (
    (8, 12, 12, 128, 32, False),  # a sentence encoder
    (1, 8, 8, 512, 64, False), (1, 8, 8, 512, 64, True), (1, 8, 8, 2048, 64, True),
    (1, 16, 4, 1024, 128, True)))


def candidates(shape: Shape) -> dict[str, Any]:
    """SDPA, attngen and, in float32, unfused torch operations on the same tensors. SDPA comes
    first: ratios are its time over theirs."""
    import torch
    import torch.nn.functional as F

    import attngen as ag

    dtype = getattr(torch, shape.dtype)
    generator = torch.Generator().manual_seed(0)

    def normal(heads: int) -> torch.Tensor:
        return torch.randn(shape.batch, heads, shape.seqlen, shape.head_dim,
                           generator=generator).to(dtype)

    q, k, v = normal(shape.heads), normal(shape.groups), normal(shape.groups)
    grouped = shape.groups != shape.heads
    wide_k, wide_v = (t.repeat_interleave(shape.heads // shape.groups, 1) for t in (k, v))
    hidden = torch.ones(shape.seqlen, shape.seqlen, dtype=torch.bool).triu(1)
    attn = ag.compile(ag.AttentionSpec(heads=shape.heads, groups=shape.groups,
                                       head_dim=shape.head_dim, causal=shape.causal), target="cpu")

    def eager() -> torch.Tensor:
        s = q @ wide_k.transpose(-1, -2) * shape.head_dim**-0.5
        if shape.causal:
            s = s.masked_fill(hidden, float("-inf"))
        return torch.softmax(s, -1) @ wide_v

    runs = {"sdpa": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=shape.causal,
                                                           enable_gqa=grouped),
            "attngen": lambda: attn(q, k, v)}
    return runs | ({"eager": eager} if shape.dtype == "float32" else {})


def measure(rounds: int = 11) -> list[dict[str, Any]]:
    """Times of every shape; each result of ours is compared with SDPA's."""
    import torch

    from attngen.runtime import timing

    rows = []
    with torch.no_grad():
        for shape in SHAPES:
            runs = candidates(shape)
            off = (runs["attngen"]() - runs["sdpa"]()).abs().max().item()
            if not off < (1e-4 if shape.dtype == "float32" else 5e-2):
                raise RuntimeError(f"{shape}: results differ by {off}")
            times = timing.compare(runs, rounds=rounds, sample_seconds=10e-3)
            rows.append({"shape": str(shape), "gflops": {
                n: shape.flops / t.median / 1e9 for n, t in times.items()},
                "times": {n: t.to_dict() for n, t in times.items()}, "difference": off})
    return rows


def report(rows: list[dict[str, Any]]) -> str:
    """A table of medians in ms, and our speed relative to SDPA's."""
    names = ("sdpa", "eager", "attngen")
    return record.table(
        "Forward on the cpu, milliseconds", ("shape", *names, "GFLOP/s", "vs sdpa"),
        [(r["shape"], *(f"{r['times'][n]['median'] * 1e3:.2f}" if n in r["times"] else "-"
                        for n in names),
          f"{r['gflops']['attngen']:.0f}", f"{r['times']['attngen']['ratio']:.2f}x")
         for r in rows])


def main() -> dict[str, Any]:
    """Measure, print, and write ``results/<date>-cpu-forward.json``."""
    import torch

    rows = measure()
    print(report(rows))
    data = {"threads": torch.get_num_threads(), "rows": rows}
    print("written to", record.save("cpu-forward", data))
    return data


if __name__ == "__main__":
    main()
