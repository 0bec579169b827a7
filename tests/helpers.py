"""What tests of every kernel need: inputs, the judgement, and proof that the kernel is ours."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attngen import reference
from attngen.spec import AttentionSpec

ROOT = Path(__file__).resolve().parent.parent


def make_qkv(spec: AttentionSpec, batch: int, seqlen_q: int, seqlen_k: int | None = None, *,
             dtype: torch.dtype = torch.float32, device: str = "cpu",
             seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Normal random q, k, v of the spec's shapes; the same numbers for every dtype and device."""
    seqlen_k = seqlen_q if seqlen_k is None else seqlen_k
    generator = torch.Generator().manual_seed(seed)

    def normal(heads: int, seqlen: int, dim: int) -> Tensor:
        x = torch.randn(batch, heads, seqlen, dim, generator=generator, dtype=torch.float64)
        return x.to(dtype).to(device)

    assert spec.head_dim_v is not None
    return (normal(spec.heads, seqlen_q, spec.head_dim),
            normal(spec.kv_heads, seqlen_k, spec.head_dim),
            normal(spec.kv_heads, seqlen_k, spec.head_dim_v))


def assert_close(ours: Tensor, ref: Tensor, naive: Tensor, *, factor: float = 2.0,
                 name: str = "result") -> None:
    """Fails with the worst coordinates unless ``reference.compare`` accepts ``ours``."""
    verdict = reference.compare(ours, ref, naive, factor=factor, name=name)
    assert verdict.ok, verdict.report


def assert_matches_oracle(spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor, o: Tensor,
                          lse: Tensor | None = None, *, factor: float = 2.0,
                          **where: Any) -> None:
    """Judge o (and lse) of a forward call; ``where``: q_offset, kv_offset, seqlens_k."""
    q, k, v = q.cpu(), k.cpu(), v.cpu()
    where = {n: x.cpu() if isinstance(x, Tensor) else x for n, x in where.items()}
    ref_o, ref_lse = reference.attention(spec, q, k, v, **where)
    naive_o, naive_lse = reference.naive(spec, q, k, v, **where)
    assert_close(o, ref_o, naive_o, factor=factor, name="o")
    if lse is not None:
        assert_close(lse, ref_lse, naive_lse, factor=factor, name="lse")


@contextmanager
def only_ours() -> Iterator[None]:
    """Inside, torch's own attention, matmul and softmax raise: what still runs is attngen's."""
    def refuse(name: str) -> Any:
        def raiser(*args: Any, **kwargs: Any) -> Any:
            raise AssertionError(f"{name} was called where only attngen's kernels may run")
        return raiser

    from torch.nn.attention import flex_attention as flex
    with pytest.MonkeyPatch.context() as patch:
        for module, names in (
                (torch, ("matmul", "bmm", "baddbmm", "mm", "addmm", "einsum", "softmax")),
                (torch.Tensor, ("matmul", "__matmul__", "bmm", "mm", "softmax")),
                (torch.nn.functional, ("scaled_dot_product_attention", "softmax")),
                (flex, ("flex_attention",))):
            for name in names:
                patch.setattr(module, name, refuse(name))
        yield


def run_python(code: str, **environment: str) -> str:
    """Standard output of ``code`` in a fresh interpreter that can import attngen; fails loudly."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT,
                          env={**os.environ, **environment}, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout
