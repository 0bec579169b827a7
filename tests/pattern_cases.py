"""Every named pattern as a case of a forward kernel, alone and many in a kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from forward_cases import Case

from attngen import AttentionSpec, masks, per_head, scores

HEADS, BATCH, N = 3, 2, 70
_AT = torch.arange(4 * N)
_IDS = torch.stack([_AT[:N] // 17, _AT[:N] // 9 % 4 + 1])
_MARKS = (_AT[:BATCH * N] % 7 != 3).reshape(BATCH, N)
_PARENTS = [-1, *((i * 7 % (i + 1)) for i in range(N - 1))]


class Patterns(NamedTuple):
    """Fields of a spec by name. ``masks`` and ``scores`` have tables for any number of heads,
    ``of_heads`` an entry for each of HEADS."""

    masks: dict[str, Any]
    scores: dict[str, Any]
    of_heads: dict[str, dict[str, Any]]

    def alone(self) -> dict[str, dict[str, Any]]:
        """Each in a kernel of its own."""
        return {**{name: {"mask": m} for name, m in self.masks.items()},
                **{name: {"score": s} for name, s in self.scores.items()}, **self.of_heads}

    def together(self) -> dict[str, dict[str, Any]]:
        """All of them in a few kernels."""
        return {**_by_head("mask", self.masks, 10), **_by_head("score", self.scores, 7),
                "of heads": {"mask": self.of_heads["block_sparse_heads"]["mask"],
                             "score": [fields["score"] for fields in self.of_heads.values()
                                       if "score" in fields]}}


def patterns(device: str = "cpu") -> Patterns:
    """Every named pattern, its tensors (the same numbers everywhere) on ``device``."""
    def put(x: torch.Tensor) -> torch.Tensor:
        return x.to(device)

    def bits(*shape: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(len(shape))
        return put(torch.rand(shape, generator=generator) < 0.4)

    def floats(*shape: int) -> torch.Tensor:
        return put(torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))))

    ids, marks = put(_IDS), put(_MARKS)
    of_any: dict[str, Any] = {
        "sliding_window": masks.sliding_window((5, 20)),
        "dilated_window": masks.dilated_window(4, 3),
        "global_tokens": masks.global_tokens(5), "global_few": masks.global_tokens([3, 40]),
        "global_many": masks.global_tokens(range(0, 60, 5)),
        "global_marks": masks.global_tokens(~marks), "attention_sinks": masks.attention_sinks(4),
        "prefix_lm": masks.prefix_lm(20), "document": masks.document(ids[0]),
        "document_batch": masks.document(ids.to(torch.int16)),
        "padding_lengths": masks.padding(put(torch.tensor([40, 0]))),
        "padding": masks.padding(marks),
        "chunked": masks.chunked(16), "strided": masks.strided(8),
        "strided_stride": masks.strided(8, part="stride"), "fixed": masks.fixed(16, 3),
        "neighborhood": masks.neighborhood(N - 3, 9, 2),
        "neighborhood_2d": masks.neighborhood((8, 8), (3, 4), (2, 1)),
        "neighborhood_3d": masks.neighborhood((4, 4, 4), (3, 1, 2)), "tree": masks.tree(_PARENTS),
        "block_sparse": masks.block_sparse(bits(5, 5), 15),
        "block_sparse_batch": masks.block_sparse(bits(BATCH, 1, 9, 9), 8),
        "random_blocks": masks.random_blocks(8, 2, seqlen=N, seed=3),
        "from_dense": masks.from_dense(bits(N, N)),
        "from_dense_batch": masks.from_dense(bits(BATCH, 1, N - 10, N)),
        "causal_document": masks.causal() & masks.document(ids),
        "sinks_window": masks.sliding_window(9) | masks.attention_sinks(2),
        "none_of": ~masks.prefix_lm(30)}
    scoring: dict[str, Any] = {
        "softcap": scores.softcap(1.5), "temperature": scores.temperature(0.4),
        "alibi": scores.alibi(), **{f: scores.activation(f) for f in (
            "relu", "tanh", "sigmoid", "silu", "gelu")},
        "bias": scores.bias(floats(BATCH, 1, N - 5, N)), "bias_row": scores.bias(floats(N)),
        "relative_position_bias": scores.relative_position_bias(floats(32, 1), max_distance=50),
        "relative_position_bias_causal": scores.relative_position_bias(
            floats(8, 1), max_distance=40, bidirectional=False),
        "swin_bias": scores.swin_bias(floats(15 * 15, 1), (8, 8))}
    of_heads: dict[str, dict[str, Any]] = {
        "block_sparse_heads": {"mask": masks.block_sparse(bits(HEADS, 9, 9), 8)},
        "from_dense_heads": {"mask": masks.from_dense(bits(BATCH, HEADS, N, N))},
        "slopes": {"score": scores.alibi(slopes=[0.5, -0.02, 0.1])},
        "slopes_tensor": {"score": scores.alibi(slopes=put(torch.tensor([0.5, -0.02, 0.1])))},
        "bias_heads": {"score": scores.bias(floats(HEADS, N, N).to(torch.bfloat16))},
        "relative_position_bias_heads": {"score": scores.relative_position_bias(floats(32, HEADS))},
        "swin_bias_heads": {"score": scores.swin_bias(floats(15 * 15, HEADS), (8, 8))}}
    return Patterns(of_any, scoring, of_heads)


@dataclass(frozen=True)
class PatternCase(Case):
    """A case whose spec has a mask and scores. ``name`` says which."""

    name: str = ""
    mask: Any = None
    score: Any = None

    @cached_property
    def spec(self) -> AttentionSpec:
        return AttentionSpec(heads=self.heads, head_dim=self.head_dim, groups=self.groups,
                             causal=self.causal, mask=self.mask, score=self.score)

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} {self.seqlen_q}x{self.seqlen_k} {self.q_offset}"


def _by_head(kind: str, each: dict[str, Any], size: int) -> dict[str, dict[str, Any]]:
    values = list(each.values())
    return {f"{kind} {n} ...": {"heads": len(part), kind: per_head(part)}
            for n in range(0, len(values), size) for part in [values[n:n + size]]}


ALONE, TOGETHER = patterns().alone(), patterns().together()

# Calls within the tables and out of them on every side.
_CALLS: tuple[dict[str, Any], ...] = (
    {"seqlen_q": N, "seqlen_k": N}, {"seqlen_q": 17, "seqlen_k": N},
    {"seqlen_q": 65, "seqlen_k": 90, "q_offset": (-9, 12), "kv_offset": -6},
    {"seqlen_q": 1, "seqlen_k": 63, "q_offset": N + 1})


def cases(fields: dict[str, Any], name: str, calls: Sequence[int] = range(len(_CALLS)),
          **more: Any) -> list[PatternCase]:
    """The calls of one spec."""
    return [PatternCase(**{"heads": HEADS, "batch": BATCH, "head_dim": 16, "groups": 1,
                           "name": name, **_CALLS[c], **fields, **more}) for c in calls]
