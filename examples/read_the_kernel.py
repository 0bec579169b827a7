"""How a spec becomes a kernel: the formula, what fusion makes of it, and the CUDA that results."""

from __future__ import annotations

import re

import torch

import attngen as ag
from attngen import reference


def main() -> None:
    """Print the graph before and after fusion, the kernel's numbers and its main loop; run it."""
    spec = ag.AttentionSpec(heads=2, head_dim=64, causal=True)
    attn = ag.compile(spec, target="sm_80", emulate=True)

    print("1. The formula: s for every pair, its log-sum-exp, then the weighted sum of v.\n")
    print(attn.ir("math"))
    print("2. Fused: running maximum m and sum l, so that one pass over the keys is enough.\n")
    print(attn.ir("fused"))

    text = attn.source()
    kernel = text[text.index("device layer: end"):]
    tile = dict(re.findall(r"constexpr int (BLOCK_M|BLOCK_N) = (\d+)", kernel))
    total = len(text.splitlines())
    print(f"3. The CUDA text: {total} lines, {total - len(kernel.splitlines())} of them the device "
          f"layer (every PTX instruction behind a name).\n   A block takes {tile['BLOCK_M']} "
          f"queries and walks the keys {tile['BLOCK_N']} at a time. Causality is a loop bound;\n"
          f"   only tiles on the diagonal compare positions:\n")
    for line in kernel.splitlines():
        if re.search(r"const int n_(full_)?end =|const bool partial|for \(int j_tile", line):
            print("  ", line.strip())
    print("\n   In the loop, in order:", ", ".join(loop_steps(kernel)))

    q, k, v = torch.randn(3, 1, 2, 300, 64, dtype=torch.bfloat16)
    o = attn(q, k, v)
    ref, plain = (f(spec, q, k, v)[0] for f in (reference.attention, reference.naive))
    verdict = reference.compare(o, ref, plain, name="o")
    counted = attn.counters[0]
    print(f"\n4. Executed on the CPU at length 300: {counted.mma} matrix instructions, "
          f"{counted.bank_conflicts} bank conflicts,\n   largest error {verdict.error:.1e} where "
          f"plain torch in bfloat16 has {verdict.naive_error:.1e}.")
    assert verdict.ok, verdict.report


def loop_steps(kernel: str) -> list[str]:
    """The device functions that the main loop calls, in order, without repetitions."""
    loop = kernel[kernel.index("for (int j_tile"):]
    loop = loop[:loop.index("\n    }\n")]
    names = ("cp_async_wait", "sync_block", "issue_tile", "cp_async_commit", "ldmatrix_x4_trans",
             "ldmatrix_x4", "mma_m16n8k16", "max_over_lanes", "exp2_f32")
    calls = re.findall(rf"\b({'|'.join(names)})\b", loop)
    return [name for n, name in enumerate(calls) if n == 0 or calls[n - 1] != name]


if __name__ == "__main__":
    main()
