"""Train a small GPT on Python's own standard library, twice: eager attention, then attngen.

    python examples/train_gpt.py [--steps 300]

Forward and backward of every layer run on generated C++. Both models start from the same weights
and see the same bytes, so their losses should overlay. The plot goes to build/train_gpt.png when
matplotlib is installed.
"""

from __future__ import annotations

import argparse
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

import attngen as ag

WIDTH, HEADS, GROUPS, LAYERS, LENGTH, BATCH = 128, 4, 2, 2, 128, 12
DIM = WIDTH // HEADS
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def corpus() -> Tensor:
    """Bytes of standard library modules, uint8."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    names = ("textwrap", "argparse", "string", "calendar", "difflib", "heapq", "statistics")
    text = b"\n".join((folder / f"{name}.py").read_bytes() for name in names)
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


class Block(nn.Module):
    """Attention with two query heads for each key/value head, then a perceptron; both residual."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.attend = attend
        self.before, self.after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, (HEADS + 2 * GROUPS) * DIM)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.inner = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(),
                                   nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(self.before(x)).unflatten(-1, (-1, DIM)).transpose(1, 2)
        q, k, v = heads.split((HEADS, GROUPS, GROUPS), dim=1)
        x = x + self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))
        return x + self.inner(self.after(x))


class GPT(nn.Module):
    """Bytes in, logits of the next byte out."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(256, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(*(Block(attend) for _ in range(LAYERS)))
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256))

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1])
        return self.head(self.blocks(self.token(tokens) + self.place(places)))


def eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention in torch's own operations."""
    k, v = (t.repeat_interleave(HEADS // GROUPS, 1) for t in (k, v))
    hidden = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(1)
    s = (q @ k.mT / DIM**0.5).masked_fill(hidden, float("-inf"))
    return s.softmax(-1) @ v


def train(attend: Attend, steps: int, name: str) -> list[float]:
    """The losses of ``steps`` steps, one a step."""
    torch.manual_seed(0)
    model = GPT(attend)
    data, losses = corpus(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    draw = torch.Generator().manual_seed(1)
    for _ in track(range(steps), description=name):
        starts = torch.randint(len(data) - LENGTH - 1, (BATCH,), generator=draw)
        window = torch.stack([data[s:s + LENGTH + 1] for s in starts]).long()
        loss = F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def plot(curves: dict[str, list[float]], path: Path) -> None:
    """Losses over steps, one over the other."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed (pip install 'attngen[plot]')")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    for (name, losses), style in zip(curves.items(), ("-", "--"), strict=True):
        pyplot.plot(losses, style, label=name)
    pyplot.xlabel("step")
    pyplot.ylabel("loss, nats per byte")
    pyplot.legend()
    path.parent.mkdir(exist_ok=True)
    pyplot.savefig(path)
    print(f"plotted {path}")


def main(steps: int = 20) -> None:
    """Train both, compare step by step."""
    attn = ag.compile(ag.AttentionSpec(heads=HEADS, groups=GROUPS, head_dim=DIM, causal=True),
                      target="cpu")
    curves, seconds = {}, {}

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        o: Tensor = attn(q, k, v)
        return o

    kinds: dict[str, Attend] = {"eager": eager, "attngen": ours}
    for name, attend in kinds.items():
        start = time.perf_counter()
        curves[name] = train(attend, steps, name)
        seconds[name] = time.perf_counter() - start
    apart = sum(abs(a - b) for a, b in zip(*curves.values(), strict=True)) / steps
    first, last = curves["attngen"][0], curves["attngen"][-1]
    print(f"loss {first:.3f} → {last:.3f} in {steps} steps; mean difference to eager {apart:.1e}; "
          f"{seconds['attngen']:.0f} s, eager {seconds['eager']:.0f} s")
    plot(curves, Path("build/train_gpt.png"))
    assert last < first and apart < 1e-3


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    main(parser.parse_args().steps)
