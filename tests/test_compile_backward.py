"""Every backward kernel becomes machine code on every architecture it claims, losing nothing."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from test_compile_matrix import REGISTERS, SHARED_LIMIT

from attngen import AttentionSpec, masks, scores
from attngen.backward import backward_plans
from attngen.compiler import Options, lower
from attngen.runtime.nvrtc import compile_cubin

IDS = torch.zeros(8, dtype=torch.int32)
VISIBLE: dict[str, dict[str, Any]] = {
    "all": {}, "causal": {"causal": True}, "window": {"window": (96, 33)},
    "softcap": {"causal": True, "score": scores.softcap(5.0)},
    "alibi": {"causal": True, "score": scores.alibi()},
    "asked": {"causal": True, "mask": masks.sliding_window(900) | masks.attention_sinks(4)},
    "document": {"causal": True, "mask": masks.document(IDS),
                 "score": scores.bias(torch.zeros(1, 12, 8, 8))}}
# target, dtype, head_dim, visible, vectorized, more options
Row = tuple[str, str, int, str, bool, str]
SLOPES, BIAS, BUCKETS = torch.zeros(12), torch.zeros(12, 8, 8), torch.zeros(32, 12)
LEARNED = {"slopes": lambda s, b, h, i, j: s + SLOPES[h] * (j - i),
           "bias": lambda s, b, h, i, j: s + BIAS[h, i, j],
           "t5": scores.relative_position_bias(BUCKETS)}
VISIBLE |= {name: {"causal": True, "score": score} for name, score in LEARNED.items()}
ALL: list[Row] = list(product(SHARED_LIMIT, ("bfloat16", "float32"), (32, 64, 96, 128),
                              [n for n in VISIBLE if n not in LEARNED], (True, False), ("",)))
ALL += list(product(SHARED_LIMIT, ("bfloat16", "float32"), (32, 64, 96, 128, 256), LEARNED,
                    (True,), ("",)))
ALL += list(product(SHARED_LIMIT, ("bfloat16", "float32"), (192, 256),
                    [n for n in VISIBLE if n not in LEARNED], (True,), ("", "dropout")))
ALL += list(product(SHARED_LIMIT, ("bfloat16", "float32"), (64, 128), ("all", "causal"), (True,),
                    ("packed", "dropout")))
ALL += list(product(SHARED_LIMIT, ("bfloat16", "float32"), (32, 64, 96, 128),
                    ("window", "softcap", "alibi", "asked", "document"), (True,), ("dropout",)))
QUICK: list[Row] = [("sm_80", "bfloat16", 64, "causal", True, ""),
                    ("sm_90", "bfloat16", 128, "causal", True, ""),
                    ("sm_90", "bfloat16", 64, "document", True, ""),
                    ("sm_100", "float32", 64, "softcap", True, ""),
                    ("sm_86", "bfloat16", 128, "window", False, ""),
                    ("sm_120", "bfloat16", 64, "all", True, "packed"),
                    ("sm_80", "bfloat16", 128, "causal", True, "dropout"),
                    ("sm_90", "float32", 64, "document", True, "dropout"),
                    ("sm_80", "bfloat16", 64, "t5", True, ""),
                    ("sm_90", "bfloat16", 256, "document", True, "dropout"),
                    ("sm_90", "float32", 256, "softcap", True, "dropout"),
                    ("sm_100", "float32", 64, "slopes", True, "")]


def _check(row: Row) -> None:
    target, dtype, dim, visible, vectorized, more = row
    spec = AttentionSpec(heads=12, groups=2, head_dim=dim, **VISIBLE[visible])
    options = Options(target, dtype, vectorized, **({more: True} if more else {}))  # type: ignore[arg-type]
    wanted = frozenset(t.name for t in lower(spec, options).captured.tensors
                       if visible in LEARNED)
    for plan in backward_plans(spec, options, wanted).all():
        for kernel in plan.kernels:
            cubin = compile_cubin(kernel.text, target, kernel.flags, name=kernel.name)
            used = cubin.resources[kernel.name]
            assert (used.spill_stores, used.spill_loads, used.stack) == (0, 0, 0), (
                kernel.kind, used)
            assert not cubin.remarks
            assert kernel.shared_bytes <= SHARED_LIMIT[target]
            assert used.registers * kernel.threads <= REGISTERS


@pytest.mark.parametrize("row", QUICK, ids=lambda row: "-".join(map(str, row)))
def test_compiles_clean(row: Row) -> None:
    _check(row)


@pytest.mark.full
@pytest.mark.parametrize("row", ALL, ids=lambda row: "-".join(map(str, row)))
def test_every_backward_kernel_compiles_clean(row: Row) -> None:
    _check(row)
