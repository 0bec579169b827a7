"""A score of one's own: a Python function becomes a line of the kernel."""

from __future__ import annotations

import torch

import attngen as ag
from attngen import reference


def recency(score, b, h, q_idx, kv_idx):  # type: ignore[no-untyped-def]
    """Far keys are worth less, saturating; every head forgets at its own pace."""
    return score - (h + 1) * torch.tanh((q_idx - kv_idx) / 32)


def main() -> None:
    """Compile it, find it in the emitted C++ and CUDA, and check it against the oracle.

    The oracle calls the same function, on index tensors; the compiler calls it once, on symbols.
    """
    spec = ag.AttentionSpec(heads=4, head_dim=32, causal=True, score=recency)
    attn = ag.compile(spec, target="cpu")
    print("as Python:  score - (h + 1) * torch.tanh((q_idx - kv_idx) / 32)")
    for target in ("cpu", "sm_80"):
        text = ag.compile(spec, target=target).source(dtype="float32")
        print(f"for {target + ':':<7} {emitted_line(text)}")

    q, k, v = torch.randn(3, 2, 4, 200, 32)
    o = attn(q, k, v)
    ref, plain = (f(spec, q, k, v)[0] for f in (reference.attention, reference.naive))
    verdict = reference.compare(o, ref, plain, name="o")
    print(f"largest error {verdict.error:.1e}, of plain torch {verdict.naive_error:.1e}")
    assert verdict.ok, verdict.report


def emitted_line(text: str) -> str:
    """The line of a kernel that calls tanh, which only the score does."""
    kernel = text[text.index("Params"):]
    return next(line.strip() for line in kernel.splitlines() if "tanh" in line)


if __name__ == "__main__":
    main()
