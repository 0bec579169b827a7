"""GPU suite, part 5: named masks and scores on the device against the float64 oracle.

The cases of ``tests/pattern_cases.py``, judged on the CPU, and long ones that skip many tiles.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from . import gpu_forward, gpu_part, record
from .gpu_forward import compiled
from .gpu_part import Progress

sys.path.insert(0, str(record.ROOT / "tests"))  # no package: others install one of that name

import forward_cases
import pattern_cases
import torch
from pattern_cases import PatternCase

from attngen import masks, scores

LONG = 1500


def long(device: str) -> dict[str, dict[str, Any]]:
    """Masks of LONG positions with tiles of every kind."""
    ids = torch.arange(LONG, device=device)
    document = masks.document((ids // 217).to(torch.int32))
    return {"long window_or_first": {"mask": masks.sliding_window((200, 0))
                                     | masks.attention_sinks(5)},
            "long document": {"mask": document},
            "long causal document": {"mask": masks.causal() & document},
            "long prefix": {"mask": masks.prefix_lm(300)},
            "long global": {"mask": masks.global_tokens(ids % 500 == 3)
                            | masks.sliding_window(100)},
            "long dilated": {"mask": masks.dilated_window(90, 5)},
            "long strided": {"mask": masks.strided(300)},
            "long grid": {"mask": masks.neighborhood((50, 30), 7)},
            "long causal alibi": {"causal": True, "score": scores.alibi()},
            "long softcap": {"causal": True, "score": scores.softcap(20.0)}}


def named(device: str) -> Iterator[tuple[str, PatternCase]]:
    """Every case, its tensors on ``device``: long ones first."""
    for name, fields in long(device).items():
        for dim in (64, 128):
            yield name, PatternCase(heads=4, groups=2, batch=2, head_dim=dim, name=name,
                                    seqlen_q=LONG - 300, seqlen_k=LONG, dtype="bfloat16", **fields)
    found = pattern_cases.patterns(device)
    for dtype in gpu_forward.DTYPES:
        for name, fields in {**found.alone(), **found.together()}.items():
            for case in pattern_cases.cases(fields, name, dtype=dtype):
                yield name, case


def check(here: PatternCase, there: PatternCase) -> list[str]:
    """What is wrong with one call, its oracle computed on the CPU from the same numbers."""
    data = forward_cases.inputs(there, "cuda")
    o, lse = compiled(there.spec, True)(data.q, data.k, data.v, return_lse=True, **data.where)
    return forward_cases.complaints(here, forward_cases.inputs(here), o.cpu(), lse.cpu())


def part(progress: Progress) -> None:
    """All while time is left."""
    gpu_forward.judge_all(progress, zip((case for _, case in named("cpu")),
                                        (case for _, case in named("cuda")), strict=True), check)


if __name__ == "__main__":
    gpu_part.main(part)
