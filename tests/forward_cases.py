"""Calls of a forward kernel: named ones for every feature, random ones for what nobody thought of.

Used by the tests of every target and by the GPU suite, so nothing here needs pytest. Inputs lie in
memory filled with NaN: a kernel that reads past a row, or a key it must not see, gives itself away.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from attngen import AttentionSpec, reference

Offset = int | tuple[int, ...] | None
LENGTHS = (0, 1, 17, 63, 65, 197, 420, 1027)
LAYOUTS = ("dense", "bshd", "padded", "odd_rows", "unaligned", "shared_kv")


@dataclass(frozen=True)
class Case:
    """A spec and one call of it. Offsets and lengths as tuples become int32 [batch] tensors.

    ``layout``: "dense"; "bshd", heads next to rows as a projection leaves them; "padded", rows of a
    wider tensor, 16-byte aligned; "odd_rows" and "unaligned", where 16-byte loads are impossible;
    "shared_kv", one batch entry of keys expanded to all.
    """

    heads: int = 2
    head_dim: int = 64
    groups: int | tuple[int, ...] | None = None
    head_dim_v: int | None = None
    causal: bool = False
    window: int | tuple[int, int] | None = None
    scale: float | None = None
    dtype: str = "float32"
    batch: int = 2
    seqlen_q: int = 63
    seqlen_k: int = 63
    q_offset: Offset = None
    kv_offset: Offset = None
    seqlens_k: tuple[int, ...] | None = None
    layout: str = "dense"
    dropout: float = 0.0
    num_splits: int | None = None
    seed: int = 0

    @cached_property
    def spec(self) -> AttentionSpec:
        return AttentionSpec(heads=self.heads, head_dim=self.head_dim, groups=self.groups,
                             head_dim_v=self.head_dim_v, causal=self.causal, window=self.window,
                             scale=self.scale)

    def __str__(self) -> str:
        """What differs from the defaults."""
        given = {name: value for name, value in vars(self).items()
                 if name in self.__dataclass_fields__ and value != getattr(Case, name)}
        return " ".join(f"{n}={v}".replace(" ", "") for n, v in given.items()) or "defaults"


@dataclass(frozen=True)
class Inputs:
    """q, k, v as the call passes them, and its keyword arguments."""

    q: Tensor
    k: Tensor
    v: Tensor
    where: dict[str, Any]


def inputs(case: Case, device: str = "cpu") -> Inputs:
    """Normal random tensors in the case's layout, the same numbers on every device."""
    generator = torch.Generator().manual_seed(case.seed)
    spec, dtype = case.spec, getattr(torch, case.dtype)
    assert spec.head_dim_v is not None

    def make(heads: int, seqlen: int, dim: int, batch: int) -> Tensor:
        x = torch.randn(batch, heads, seqlen, dim, generator=generator, dtype=torch.float64)
        return arranged(x.to(dtype).to(device), case.layout)

    shared = case.layout == "shared_kv" and case.batch > 0
    keys = 1 if shared else case.batch
    q = make(spec.heads, case.seqlen_q, spec.head_dim, case.batch)
    k = make(spec.kv_heads, case.seqlen_k, spec.head_dim, keys)
    v = make(spec.kv_heads, case.seqlen_k, spec.head_dim_v, keys)
    if shared:
        k, v = (t.expand(case.batch, -1, -1, -1) for t in (k, v))
    given = {"q_offset": case.q_offset, "kv_offset": case.kv_offset, "seqlens_k": case.seqlens_k}
    where = {name: torch.tensor(value, dtype=torch.int32, device=device)
             if isinstance(value, tuple) else value
             for name, value in given.items() if value is not None}
    if case.dropout:
        where |= {"dropout_p": case.dropout, "seed": (case.seed << 32) - 7}
    return Inputs(q, k, v, where)


def arranged(x: Tensor, layout: str) -> Tensor:
    """The values of ``x`` [batch, heads, rows, dim] in the layout, surrounded by NaN."""
    batch, heads, rows, dim = x.shape
    wide = 16 // x.element_size()
    pad = {"padded": wide, "odd_rows": 1}.get(layout, 0)
    shape = (batch, rows, heads, dim + pad) if layout == "bshd" else (batch, heads, rows, dim + pad)
    lead = 1 if layout == "unaligned" else 0
    # No padding after the last row, as that would be outside a tensor of just this size.
    count = max(0, batch * heads * rows * (dim + pad) - pad)
    memory = torch.full((lead + count,), float("nan"), dtype=x.dtype, device=x.device)
    strides = torch.empty(shape, device="meta").stride()
    view = memory.as_strided(shape[:3] + (dim,), strides, lead)
    if layout == "bshd":
        view = view.transpose(1, 2)
    if x.numel():
        view.copy_(x)
    return view


def complaints(case: Case, data: Inputs, o: Tensor, lse: Tensor | None,
               factor: float = 2.0) -> list[str]:
    """What is wrong with a result; empty when it is right.

    The rule of ``reference.compare`` against the float64 oracle, for o and lse. Rows that see
    nothing are exactly o = 0, lse = -inf; everything else is finite.
    """
    where = {"kv_offset": 0} | data.where
    ref_o, ref_lse = reference.attention(case.spec, data.q, data.k, data.v, **where)
    naive_o, naive_lse = reference.naive(case.spec, data.q, data.k, data.v, **where)
    found = []
    if o.dtype != data.q.dtype:
        found.append(f"o is {o.dtype}")
    verdicts = [reference.compare(o, ref_o, naive_o, factor=factor, name="o")]
    if lse is not None:
        verdicts.append(reference.compare(lse, ref_lse, naive_lse, factor=factor, name="lse"))
    found += [verdict.report for verdict in verdicts if not verdict.ok]
    blind = (ref_lse == float("-inf")).to(o.device)
    if o.numel() and bool((o[blind] != 0).any()):
        found.append("o is not exactly 0 where nothing is visible")
    return [f"{case}: {line}" for line in found]


def check(case: Case, attn: Callable[..., Any], device: str = "cpu") -> list[str]:
    """Call ``attn`` and judge what it returns. Where it cannot cut the keys into parts, as unfused,
    it is not asked to."""
    data = inputs(case, device)
    cut = case.num_splits is not None and getattr(attn, "decodes", True)
    how = {"num_splits": case.num_splits} if cut else {}
    o, lse = attn(data.q, data.k, data.v, return_lse=True, **data.where, **how)
    return complaints(case, data, o, lse)


# -- named cases ----------------------------------------------------------------------------------

_BASE = Case()
_WINDOWED = replace(_BASE, seqlen_q=197, seqlen_k=197)

NAMED: dict[str, tuple[Case, ...]] = {
    "lengths": tuple(
        replace(_BASE, causal=causal, seqlen_q=q, seqlen_k=k) for causal in (False, True)
        for q, k in ((1, 1), (17, 17), (63, 65), (65, 63), (197, 420), (420, 197), (1, 1027),
                     (1027, 17))),
    "empty": (replace(_BASE, seqlen_q=0), replace(_BASE, seqlen_k=0),
              replace(_BASE, seqlen_q=0, seqlen_k=0), replace(_BASE, batch=0),
              replace(_BASE, causal=True, seqlen_q=5, seqlen_k=0)),
    "groups": tuple(replace(_BASE, heads=heads, groups=groups, causal=True, batch=1, seqlen_k=130)
                    for heads, groups in ((14, 2), (5, (0, 0, 1, 2, 1)), (6, 1), (12, 2), (6, 2),
                                          (8, 8))),
    "causal offsets": tuple(
        replace(_BASE, causal=True, seqlen_q=65, seqlen_k=197, **where)
        for where in ({"q_offset": 0}, {"q_offset": 100}, {"q_offset": -30},
                      {"q_offset": -200}, {"q_offset": 1000}, {"kv_offset": 70},
                      {"kv_offset": -7}, {"q_offset": (3, 160)}, {"kv_offset": (-20, 4)},
                      {"q_offset": (-5, 90), "kv_offset": (2, -60)})),
    "windows": tuple(
        replace(_WINDOWED, causal=causal, window=window, **where)
        for causal, window in ((True, 65), (False, (63, 64)), (False, (0, 70)), (True, 1),
                               (False, (0, 0)), (False, (30, 0)), (True, (100, 5)))
        for where in ({}, {"q_offset": 40})),
    "seqlens_k": tuple(replace(_BASE, causal=causal, seqlen_q=65, seqlen_k=197, seqlens_k=lens)
                       for causal in (False, True)
                       for lens in ((0, 197), (1, 64), (63, 130), (65, 196))),
    "blind rows": (replace(_BASE, causal=True, seqlen_q=197, seqlen_k=17),
                   replace(_BASE, seqlens_k=(0, 0)),
                   replace(_BASE, causal=True, q_offset=-1000),
                   replace(_WINDOWED, window=(3, 3), q_offset=150),
                   replace(_WINDOWED, window=(3, 3), q_offset=(500, -500))),
    "scale": tuple(replace(_BASE, causal=True, scale=scale) for scale in (4.0, 0.3, 1e-3)),
    "head_dim": tuple(replace(_BASE, head_dim=dim, causal=True, seqlen_k=70)
                      for dim in (8, 72, 256, 128, 40, 96, 200)),
    "head_dim_v": tuple(replace(_BASE, head_dim=d, head_dim_v=e, causal=True, seqlen_k=70)
                        for d, e in ((192, 128), (8, 256), (64, 128), (72, 24))),
    "layouts": tuple(replace(_BASE, head_dim=dim, heads=6, groups=2, causal=True, seqlen_q=65,
                             seqlen_k=197, layout=layout)
                     for dim in (64, 72) for layout in LAYOUTS[1:]),
    "dropout": tuple(replace(_BASE, heads=4, groups=2, seqlen_q=65, seqlen_k=197, dropout=p, seed=n,
                             **where) for n, (p, where) in enumerate((
                                 (0.2, {"causal": True}), (0.5, {"q_offset": (-9, 70),
                                                                 "kv_offset": (5, -40)}),
                                 (0.9, {"window": (40, 9)}), (1.0, {"causal": True}),
                                 (0.1, {"causal": True, "head_dim": 256}),
                                 (0.3, {"seqlens_k": (0, 131), "head_dim": 40})))),
    "few queries": tuple(
        replace(_BASE, causal=True, heads=heads, groups=groups, head_dim=dim, seqlen_q=q,
                seqlen_k=k, num_splits=n, **where)
        for heads, groups, dim in ((4, 4, 64), (8, 2, 128), (7, 1, 40), (5, (0, 1, 1, 0, 1), 64),
                                   (64, 1, 32))
        for q, k, n, where in (
            (1, 197, None, {}), (1, 1, 3, {}), (3, 420, 4, {"layout": "bshd"}),
            (16, 65, 2, {"seqlens_k": (0, 64)}), (2, 1027, 16, {"q_offset": (500, -1)}),
            (5, 63, 7, {"layout": "unaligned"}))),
    "parts of the keys": tuple(
        replace(_BASE, heads=4, groups=2, seqlen_q=65, seqlen_k=420, num_splits=n, **where)
        for n, where in ((2, {"causal": True}), (5, {"window": (70, 9)}),
                         (3, {"seqlens_k": (0, 300)}), (4, {"head_dim": 200}))),
}


def of_few_specs(feature: str, specs: int) -> tuple[Case, ...]:
    """The named cases of a feature that belong to its first ``specs`` specs."""
    seen = list(dict.fromkeys(case.spec for case in NAMED[feature]))[:specs]
    return tuple(case for case in NAMED[feature] if case.spec in seen)


# -- random cases ---------------------------------------------------------------------------------


def random_spec(rng: random.Random, dtypes: Sequence[str], most_dim: int = 256) -> Case:
    """A spec of any feature, as the case its calls are made from."""
    size, groups = rng.choice(((1, 1), (1, 2), (2, 1), (3, 1), (6, 1), (7, 1), (3, 2), (4, 2)))
    heads: int = size * groups
    head_map: int | tuple[int, ...] = groups
    if rng.random() < 0.15:
        head_map = tuple(sorted([*range(groups), *(rng.randrange(groups)
                                                   for _ in range(heads - groups))]))
    dim = 8 * rng.randint(1, most_dim // 8)
    dim_v = dim if rng.random() < 0.6 else 8 * rng.randint(1, most_dim // 8)
    causal = rng.random() < 0.5
    window: int | tuple[int, int] | None = None
    if rng.random() < 0.4:
        left, right = rng.choice((0, 1, 31, 64, 200)), rng.choice((0, 1, 31, 64, 200))
        window = (left + 1) if causal and rng.random() < 0.5 else (left, right)
    return Case(heads=heads, groups=head_map, head_dim=dim, head_dim_v=dim_v, causal=causal,
                window=window, scale=rng.choice((None, None, 0.05, 0.7)), dtype=rng.choice(dtypes))


def random_call(rng: random.Random, spec: Case, most: int = 1027) -> Case:
    """A call of the spec: lengths up to ``most``, positions, visible lengths, layout, values."""
    lengths = [n for n in LENGTHS if n <= most] + [rng.randint(2, min(300, most)) for _ in range(4)]
    batch, q = rng.choice((1, 1, 2, 3)), rng.choice(lengths)
    k = q if rng.random() < 0.3 else rng.choice(lengths)

    def position() -> Offset:
        kind = rng.random()
        if kind < 0.6:
            return None
        draw = [rng.randint(-q - 20, k + 20) for _ in range(batch)]
        return draw[0] if kind < 0.8 else tuple(draw)

    visible = tuple(rng.randint(0, k) for _ in range(batch)) if rng.random() < 0.25 else None
    call = replace(spec, batch=batch, seqlen_q=q, seqlen_k=k, q_offset=position(),
                   kv_offset=position(), seqlens_k=visible, layout=rng.choice(LAYOUTS),
                   seed=rng.randrange(1 << 30))
    call = replace(call, dropout=(0.0, 0.0, 0.0, 0.1, 0.5)[call.seed % 5])
    splits = (None, 1, 2, 5)[call.seed // 5 % 4]
    return call if call.dropout else replace(call, num_splits=splits)
