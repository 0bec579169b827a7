"""A small GPT writes text, with every cache and with none: the bytes are the same.

    python examples/generate.py [--steps 200] [--bytes 300]

The model is trained for a moment on Python's standard library. Its attention has two query heads
for each key/value head, sees the last 64 bytes and the first 4, and tells distances by ALiBi, so
texts may be of any length. A rolling cache keeps what such a window can see and nothing else.
"""

from __future__ import annotations

import argparse
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import attngen as ag
from attngen import kv, masks, scores

WIDTH, HEADS, GROUPS, LAYERS, LENGTH, BATCH = 128, 4, 2, 2, 128, 12
DIM, WINDOW, SINKS, TEMPERATURE = WIDTH // HEADS, 64, 4, 0.5
PROMPT = b'def _format_text(self, text):\n    """'
# Of a layer: q, k and v of new bytes in, what they attend to out.
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class Layer(nn.Module):
    """Attention, then a perceptron; both residual."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.before, self.after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, (HEADS + 2 * GROUPS) * DIM)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.inner = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(),
                                   nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        heads = self.qkv(self.before(x)).unflatten(-1, (-1, DIM)).transpose(1, 2)
        o = attend(self.number, *heads.split((HEADS, GROUPS, GROUPS), dim=1))
        x = x + self.out(o.transpose(1, 2).flatten(2))
        return x + self.inner(self.after(x))


class GPT(nn.Module):
    """Bytes in, logits of the next byte out."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(256, WIDTH)
        self.layers = nn.ModuleList(Layer(n) for n in range(LAYERS))
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256))

    def forward(self, tokens: Tensor, attend: Attend) -> Tensor:
        x = self.token(tokens)
        for layer in self.layers:
            x = layer(x, attend)
        return self.head(x)


def trained(steps: int, attend: Attend) -> GPT:
    """A model that has read a little."""
    torch.manual_seed(0)
    folder = Path(sysconfig.get_paths()["stdlib"])
    names = ("textwrap", "argparse", "difflib")
    text = b"\n".join((folder / f"{name}.py").read_bytes() for name in names)
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    model = GPT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in track(range(steps), description="training"):
        starts = torch.randint(len(data) - LENGTH - 1, (BATCH,))
        window = torch.stack([data[s:s + LENGTH + 1] for s in starts]).long()
        loss = F.cross_entropy(model(window[:, :-1], attend).flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@torch.no_grad()
def write(model: GPT, count: int, attend: Attend, whole: bool) -> bytes:
    """The prompt and ``count`` more bytes, drawn the same way each time. ``whole``: the model reads
    all of the text for each byte, otherwise what is new."""
    text = torch.tensor([list(PROMPT)])
    new, draw = text, torch.Generator().manual_seed(0)
    for _ in range(count):
        likely = (model(text if whole else new, attend)[:, -1] / TEMPERATURE).softmax(-1)
        new = (likely.cumsum(-1) < torch.rand(1, generator=draw)).sum(-1, keepdim=True)
        text = torch.cat([text, new], 1)
    return bytes(text[0].tolist())


def main(steps: int = 30, count: int = 120) -> None:
    """Write with each cache, compare with writing without one."""
    spec = ag.AttentionSpec(heads=HEADS, groups=GROUPS, head_dim=DIM, causal=True,
                            score=scores.alibi(),
                            mask=masks.sliding_window(WINDOW) | masks.attention_sinks(SINKS))
    attn = ag.compile(spec, target="cpu")

    def recomputed(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        o: Tensor = attn(q, k, v)
        return o

    def with_cache(caches: list[kv.cache.Cache]) -> Attend:
        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            caches[layer].append(k, v)
            o: Tensor = attn.decode(q, caches[layer])
            return o
        return attend

    model, longest = trained(steps, recomputed), len(PROMPT) + count
    pages = -(-longest // 16)
    kinds: dict[str, Callable[[], kv.cache.Cache]] = {
        "contiguous": lambda: kv.KVCache(attn, 1, longest),
        "in pages of 16": lambda: kv.PagedKVCache(attn, 1, pages, page_size=16),
        "rolling": lambda: kv.RollingKVCache(attn, 1, WINDOW, sinks=SINKS, chunk=len(PROMPT)),
    }
    table = Table("cache", "bytes a second", "memory of a token", "memory in all")
    texts, text = [], b""
    for name in ("none, all is computed again", *kinds):
        caches = [kinds[name]() for _ in range(LAYERS)] if name in kinds else []
        attend = with_cache(caches) if caches else recomputed
        write(model, 2, attend, not caches)  # compiles
        for cache in caches:
            cache.clear()
        start = time.perf_counter()
        text = write(model, count, attend, not caches)
        speed = count / (time.perf_counter() - start)
        texts.append(text)
        token = sum(c.bytes_per_token for c in caches)
        whole = sum(c.k.nbytes + c.v.nbytes for c in caches)
        table.add_row(name, f"{speed:.0f}", f"{token:,} B" if caches else "",
                      f"{whole:,} B" if caches else "")
    Console().print(table)
    print(text.decode("ascii", "replace"))
    print(f"{len(texts)} ways to write {count} bytes: " + (
        "the same bytes" if len(set(texts)) == 1 else "different bytes"))
    assert len(set(texts)) == 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--bytes", type=int, default=300)
    given = parser.parse_args()
    main(given.steps, given.bytes)
