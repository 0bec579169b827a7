"""Ten lines: describe a variant, compile it, call it, look at what was generated."""

from __future__ import annotations

import torch

import attngen as ag
from attngen import reference


def main() -> None:
    """Causal attention with a window and grouped heads, checked against the float64 oracle."""
    spec = ag.AttentionSpec(heads=8, groups=2, head_dim=64, causal=True, window=256)
    attn = ag.compile(spec)  # for this machine: its GPU, or C++ for its processor
    device = "cpu" if attn.target.name == "cpu" else "cuda"
    q = torch.randn(2, 8, 500, 64, device=device)
    k, v = torch.randn(2, 2, 2, 500, 64, device=device)
    o, lse = attn(q, k, v, return_lse=True)
    print(f"{attn.target.name}: o {list(o.shape)}, lse {list(lse.shape)}")

    ref, plain = (f(spec, q, k, v)[0] for f in (reference.attention, reference.naive))
    verdict = reference.compare(o, ref, plain, name="o")
    print(f"largest error {verdict.error:.1e}, of plain torch {verdict.naive_error:.1e}")
    assert verdict.ok, verdict.report

    cuda = ag.compile(spec, target="sm_80").source()  # any target's text, on any machine
    print(f"the same spec for sm_80 is {len(cuda.splitlines())} lines of CUDA")


if __name__ == "__main__":
    main()
