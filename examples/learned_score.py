"""A score with a parameter: how fast each head forgets is learned from what attention gave.

A teacher attends with ALiBi slopes of its own. The student starts with none, and finds the
teacher's by gradient descent on the outputs: backward goes through the generated kernels into a
tensor that the score captured.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import attngen as ag

HEADS, DIM, LENGTH = 4, 16, 96
TRUE = torch.tensor([0.5, 0.25, 0.1, 0.02])


class Forgetful(nn.Module):
    """Causal attention, each head with a slope of its own."""

    def __init__(self, slopes: Tensor) -> None:
        super().__init__()
        self.slopes = nn.Parameter(slopes.clone())
        rate = self.slopes  # kernels read it at each call: another value compiles nothing

        def score(score, b, h, q_idx, kv_idx):  # type: ignore[no-untyped-def]
            return score - rate[h] * (q_idx - kv_idx)

        self.attend = ag.compile(ag.AttentionSpec(heads=HEADS, head_dim=DIM, causal=True,
                                                  score=score), target="cpu")

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        o: Tensor = self.attend(q, k, v)
        return o


def main(steps: int = 150) -> None:
    """Learn, and show the slopes on their way."""
    torch.manual_seed(0)
    teacher, student = Forgetful(TRUE), Forgetful(torch.zeros(HEADS))
    optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
    for step in range(steps + 1):
        q, k, v = torch.randn(3, 4, HEADS, LENGTH, DIM)
        with torch.no_grad():
            right = teacher(q, k, v)
        loss = (student(q, k, v) - right).square().mean()
        if step % 30 == 0:
            slopes = ", ".join(f"{x:.3f}" for x in student.slopes.tolist())
            print(f"step {step:3}: loss {loss.item():.6f}, slopes {slopes}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"teacher:                      slopes {', '.join(f'{x:.3f}' for x in TRUE.tolist())}")
    assert torch.allclose(student.slopes, TRUE, atol=0.02)


if __name__ == "__main__":
    main()
