"""One prompt, many answers: attention over the shared prompt once, not once per answer.

Every answer sees the whole prompt and its own tokens so far. The queries of all answers together
attend to the prompt's keys, each answer's to its own, and ``ag.merge`` makes of both what attention
over prompt and answer end to end would give.
"""

from __future__ import annotations

import torch
from torch import Tensor

import attngen as ag
from attngen.runtime import timing

HEADS, GROUPS, DIM = 8, 2, 64
PROMPT, ANSWERS, LENGTH = 2048, 16, 32

causal = ag.compile(ag.AttentionSpec(heads=HEADS, groups=GROUPS, head_dim=DIM, causal=True),
                    target="cpu")
everything = ag.compile(ag.AttentionSpec(heads=HEADS, groups=GROUPS, head_dim=DIM), target="cpu")


def end_to_end(q: Tensor, prompt: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor]) -> Tensor:
    """The prompt's keys and values copied in front of each answer's."""
    k, v = (torch.cat((shared.expand(ANSWERS, -1, -1, -1), mine), 2)
            for shared, mine in zip(prompt, own, strict=True))
    o: Tensor = causal(q, k, v)
    return o


def cascade(q: Tensor, prompt: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor]) -> Tensor:
    """The prompt attended to by the queries of all answers in one call."""
    flat = q.transpose(0, 1).reshape(1, HEADS, ANSWERS * LENGTH, DIM)
    o, lse = everything(flat, *prompt, return_lse=True)
    of_prompt = (x.reshape(HEADS, ANSWERS, LENGTH, *x.shape[3:]).transpose(0, 1) for x in (o, lse))
    return ag.merge(*of_prompt, *causal(q, *own, return_lse=True))[0]


def main() -> None:
    """Both ways on the same tensors: the same numbers, in less time and memory."""
    torch.manual_seed(0)
    q = torch.randn(ANSWERS, HEADS, LENGTH, DIM)
    prompt = torch.randn(1, GROUPS, PROMPT, DIM), torch.randn(1, GROUPS, PROMPT, DIM)
    own = tuple(torch.randn(2, ANSWERS, GROUPS, LENGTH, DIM))
    with torch.no_grad():
        difference = (cascade(q, prompt, own) - end_to_end(q, prompt, own)).abs().max().item()
        times = timing.compare({"end to end": lambda: end_to_end(q, prompt, own),
                                "cascade": lambda: cascade(q, prompt, own)}, rounds=5,
                               sample_seconds=5e-3)
    row = 2 * GROUPS * DIM * 4  # bytes of one token's key and value
    sizes = {"end to end": ANSWERS * (PROMPT + LENGTH), "cascade": PROMPT + ANSWERS * LENGTH}
    print(f"{ANSWERS} answers of {LENGTH} tokens to a prompt of {PROMPT}")
    for name, took in times.items():
        print(f"{name:>10}: {took.median * 1e3:5.1f} ms, keys and values "
              f"{sizes[name] * row / 2**20:5.1f} MiB")
    print(f"largest difference {difference:.1e}")
    if not difference < 1e-5:
        raise SystemExit("the two ways do not agree")


if __name__ == "__main__":
    main()
