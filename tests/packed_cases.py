"""Calls with sequences end to end, judged by the oracle of the same sequences padded to a batch.

Used by the tests of every target and by the GPU suite, so nothing here needs pytest.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from forward_cases import Offset, arranged
from torch import Tensor

from attngen import AttentionSpec, masks, reference, scores


@dataclass(frozen=True)
class PackedCase:
    """A spec and one call of it: ``q_lens`` queries and ``k_lens`` keys (as many, if None) a
    sequence. Tuples of offsets and visible lengths hold one number a sequence."""

    name: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    heads: int = 4
    groups: int = 2
    head_dim: int = 64
    head_dim_v: int | None = None
    dtype: str = "float32"
    q_lens: tuple[int, ...] = (3, 70, 0, 130, 1, 64)
    k_lens: tuple[int, ...] | None = None
    q_offset: Offset = None
    kv_offset: Offset = None
    seqlens_k: tuple[int, ...] | None = None
    layout: str = "dense"

    @cached_property
    def spec(self) -> AttentionSpec:
        return AttentionSpec(heads=self.heads, groups=self.groups, head_dim=self.head_dim,
                             head_dim_v=self.head_dim_v, **self.fields)

    @property
    def keys(self) -> tuple[int, ...]:
        return self.q_lens if self.k_lens is None else self.k_lens

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} head_dim {self.head_dim} {self.q_lens} {self.keys}"


class PackedInputs(NamedTuple):
    """q, k, v as the call passes them, and its keyword arguments."""

    q: Tensor
    k: Tensor
    v: Tensor
    where: dict[str, Any]


def boundaries(lengths: tuple[int, ...]) -> Tensor:
    """cu_seqlens."""
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def inputs(case: PackedCase, device: str = "cpu") -> PackedInputs:
    """Normal random tensors, the same numbers on every device."""
    generator = torch.Generator().manual_seed(len(case.q_lens))
    dtype = getattr(torch, case.dtype)
    dim_v = case.head_dim_v or case.head_dim

    def make(heads: int, lengths: tuple[int, ...], dim: int) -> Tensor:
        x = torch.randn(1, heads, sum(lengths), dim, generator=generator, dtype=torch.float64)
        return arranged(x.to(dtype).to(device), case.layout)

    where: dict[str, Any] = {
        name: torch.tensor(value, dtype=torch.int32, device=device)
        if isinstance(value, tuple) else value
        for name, value in (("q_offset", case.q_offset), ("kv_offset", case.kv_offset),
                            ("seqlens_k", case.seqlens_k)) if value is not None}
    where["cu_seqlens_q"] = boundaries(case.q_lens).to(device)
    if case.k_lens is not None:
        where["cu_seqlens_k"] = boundaries(case.k_lens).to(device)
    return PackedInputs(make(case.heads, case.q_lens, case.head_dim),
                        make(case.groups, case.keys, case.head_dim),
                        make(case.groups, case.keys, dim_v), where)


def padded(x: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Sequences end to end [1, heads, total, dim] as a batch [n, heads, longest, dim], 0 after
    the end of each."""
    out = x.new_zeros(len(lengths), x.shape[1], max(lengths, default=0), *x.shape[3:])
    for n, part in enumerate(x[0].split(lengths, 1)):
        out[n, :, :lengths[n]] = part
    return out


def packed(x: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """What ``padded`` undoes."""
    return torch.cat([x[n, :, :length] for n, length in enumerate(lengths)], 1)[None]


def complaints(case: PackedCase, o: Tensor, lse: Tensor, factor: float = 2.0,
               **how: Any) -> list[str]:
    """What is wrong with a result on the cpu; empty when it is right. The oracle sees a batch of
    padded sequences whose lengths and positions are given, and ``how``: dropout_p and seed."""
    data = inputs(case)
    q, k, v = (padded(t, lengths) for t, lengths in
               ((data.q, case.q_lens), (data.k, case.keys), (data.v, case.keys)))
    ends, queries = torch.tensor(case.keys), torch.tensor(case.q_lens)
    kv_offset = data.where.get("kv_offset", 0)
    where = {"kv_offset": kv_offset,
             "q_offset": data.where.get("q_offset", kv_offset + ends - queries),
             "seqlens_k": torch.minimum(data.where.get("seqlens_k", ends), ends), **how}
    right = [packed(t, case.q_lens) for t in reference.attention(case.spec, q, k, v, **where)]
    naive = [packed(t, case.q_lens) for t in reference.naive(case.spec, q, k, v, **where)]
    verdicts = [reference.compare(ours, want, plain, factor=factor, name=name) for
                name, ours, want, plain in zip(("o", "lse"), (o, lse), right, naive, strict=True)]
    found = [verdict.report for verdict in verdicts if not verdict.ok]
    if bool((o[right[1] == float("-inf")] != 0).any()):
        found.append("o is not exactly 0 where nothing is visible")
    return [f"{case}: {line}" for line in found]


def check(case: PackedCase, there: PackedCase, attn: Callable[..., Any],
          device: str = "cpu") -> list[str]:
    """Call ``attn`` and judge what it returns. ``there`` is ``case`` with captured tensors on
    ``device``."""
    data = inputs(there, device)
    o, lse = attn(data.q, data.k, data.v, return_lse=True, **data.where)
    return complaints(case, o.cpu(), lse.cpu())


def by_sequence(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    """A mask that tells sequences and heads apart."""
    return (q_idx * 3 + kv_idx + b * 5 + h) % 7 != 0


def fields(device: str = "cpu") -> dict[str, dict[str, Any]]:
    """Fields of specs by name, captured tensors on ``device``, for up to 6 sequences of up to
    200 keys."""
    ids = (torch.arange(200) // torch.tensor([[7], [31], [16], [50], [64], [9]])).to(device)
    bias = torch.randn(6, 4, 200, generator=torch.Generator().manual_seed(0)).to(device)
    return {"full": {}, "causal": {"causal": True}, "window": {"window": (40, 20)},
            "causal window": {"causal": True, "window": 33},
            "by sequence": {"mask": by_sequence},
            "chunked": {"mask": masks.chunked(48) & masks.causal()},
            "documents of each": {"mask": masks.document(ids.to(torch.int32))},
            "sinks": {"causal": True, "mask": masks.sliding_window((30, 0))
                      | masks.attention_sinks(3)},
            "softcap": {"causal": True, "score": [scores.softcap(4.0), scores.alibi()]},
            "bias of each": {"score": lambda s, b, h, i, j: s + bias[b, h, j]}}


def cases(device: str = "cpu", dtype: str = "float32") -> Iterator[PackedCase]:
    """Named calls, the most telling first."""
    base = PackedCase(dtype=dtype)
    table = fields(device)
    other = (70, 3, 5, 0, 150, 64)
    for name, given in table.items():
        yield replace(base, name=name, fields=given)
        yield replace(base, name=f"{name}, other keys", fields=given, k_lens=other)
    causal = replace(base, name="causal", fields=table["causal"])
    for where in ({"q_offset": 0}, {"q_offset": (5, -3, 0, 60, 100, 7)}, {"kv_offset": 9},
                  {"kv_offset": (5, -3, 0, 60, 100, 7)}, {"seqlens_k": (1, 0, 5, 100, 1, 64)},
                  {"seqlens_k": (9, 9, 9, 99, 9, 9), "q_offset": (1, 2, 3, 4, 5, 6)}):
        yield replace(causal, name=f"causal {where}", **where)
    for layout in ("bshd", "padded", "odd_rows", "unaligned"):
        yield replace(causal, name=layout, layout=layout, k_lens=other)
    for dim, dim_v in ((8, 24), (72, 40), (128, None), (256, None)):
        yield replace(causal, name="head_dim", head_dim=dim, head_dim_v=dim_v)
    for lens in ((0, 0, 0), (5,), (0, 199), (1,) * 40, (128, 128), (64, 63, 65)):
        yield replace(causal, name="lengths", q_lens=lens)


def random_case(rng: random.Random, device: str, dtypes: tuple[str, ...]) -> PackedCase:
    """Any of ``fields``, up to 6 sequences of any lengths up to 200."""
    name, given = rng.choice(sorted(fields(device).items(), key=lambda item: item[0]))

    def lengths(count: int) -> tuple[int, ...]:
        return tuple(rng.choice((0, 1, 64, rng.randint(2, 200))) for _ in range(count))

    count = rng.randint(1, 6)
    return PackedCase(name, given, head_dim=8 * rng.randint(1, 16), dtype=rng.choice(dtypes),
                      q_lens=lengths(count),
                      k_lens=rng.choice((None, lengths(count))), layout=rng.choice(
                          ("dense", "bshd", "padded", "odd_rows", "unaligned")))
