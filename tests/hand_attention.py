"""The attention kernel of tests/kernels/attention.cu: launching it, and what it should compute."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from emulated import from_file, launch

from attngen.runtime import emulator
from attngen.runtime.emulator import Counters, EmulatedModule

BLOCK, D = 64, 64


@cache
def text() -> str:
    return from_file("attention.cu")


@cache
def module() -> EmulatedModule:
    return emulator.load(text())


def to_bf16(x: np.ndarray) -> np.ndarray:
    """Rounded to nearest even, as bits."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bf16(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.uint32) << 16).view(np.float32)


@dataclass
class Case:
    """One problem, with inputs and outputs. ``o`` and ``lse`` start as NaN."""

    seqlen_q: int
    seqlen_k: int
    causal: int = 0
    heads: int = 1
    q: np.ndarray = field(init=False)
    k: np.ndarray = field(init=False)
    v: np.ndarray = field(init=False)
    o: np.ndarray = field(init=False)
    lse: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(7)
        self.q, self.k, self.v = (to_bf16(rng.standard_normal((self.heads, n, D)))
                                  for n in (self.seqlen_q, self.seqlen_k, self.seqlen_k))
        self.reset()

    def reset(self) -> None:
        self.o = np.full(self.q.shape, 0x7FC0, np.uint16)
        self.lse = np.full(self.q.shape[:2], np.nan, np.float32)

    def values(self) -> dict[str, Any]:
        """The members of Params."""
        return {"q": self.q, "k": self.k, "v": self.v, "o": self.o, "lse": self.lse,
                "seqlen_q": self.seqlen_q, "seqlen_k": self.seqlen_k, "causal": self.causal,
                "scale_log2": np.float32(D ** -0.5 * np.log2(np.e))}

    def shape(self) -> tuple[tuple[int, int, int], int, int]:
        """Grid, threads of a block, bytes of shared memory."""
        return (-(-self.seqlen_q // BLOCK), self.heads, 1), 128, 5 * BLOCK * D * 2 + 112

    def run(self, program: EmulatedModule | None = None, **options: Any) -> Counters:
        """Execute in the emulator."""
        self.reset()
        grid, threads, shared = self.shape()
        return launch(program or module(), "attention", self.values(), grid=grid, threads=threads,
                      shared=shared, writes=("o", "lse"), **options)

    def expected(self) -> tuple[np.ndarray, np.ndarray]:
        """o and lse in float64."""
        q, k, v = (from_bf16(x).astype(np.float64) for x in (self.q, self.k, self.v))
        s = q @ k.transpose(0, 2, 1) * D ** -0.5
        if self.causal:
            i = np.arange(self.seqlen_q)[:, None] + self.seqlen_k - self.seqlen_q
            s = np.where(np.arange(self.seqlen_k) <= i, s, -np.inf)
        top = np.maximum(s.max(-1, keepdims=True), -1e30)
        p = np.exp(s - top)
        total = p.sum(-1, keepdims=True)
        with np.errstate(divide="ignore"):
            return p @ v / np.where(total == 0, 1, total), (top + np.log(total))[..., 0]

    def check(self) -> None:
        o, lse = self.expected()
        assert np.isfinite(from_bf16(self.o)).all()
        assert np.abs(from_bf16(self.o) - o).max() < 0.02
        assert np.array_equal(np.isneginf(self.lse), np.isneginf(lse))
        seen = np.isfinite(lse)
        assert np.abs(self.lse[seen] - lse[seen]).max() < 1e-4
