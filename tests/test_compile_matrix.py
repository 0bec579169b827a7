"""Every emitted kernel becomes machine code on every architecture it claims, losing nothing.

No spills, no stack, no remark of the assembler, resources within the limits that the CUDA C++
Programming Guide gives for each compute capability. The quick tier compiles a subset in which every
pair of choices meets; ``make test-full`` compiles all.
"""

from __future__ import annotations

import re
from functools import lru_cache

import pytest
import torch
from pairwise import Row, full, pairs, pairwise

from attngen import AttentionSpec, masks, scores
from attngen.compiler import Options, lower, make_plan
from attngen.runtime.nvrtc import compile_cubin
from attngen.runtime.plan import KernelPlan, Plan

# Shared memory a block may have, in bytes, and the 32-bit registers of a multiprocessor.
SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_86": 99 * 1024, "sm_89": 99 * 1024,
                "sm_90": 227 * 1024, "sm_100": 227 * 1024, "sm_120": 99 * 1024}
REGISTERS = 65536
# Shared memory of a block that the system keeps, on some architectures listed as the kernel's own.
RESERVED = 1024

IDS = torch.zeros(8, dtype=torch.int64)
VISIBLE = {
    "all": {}, "causal": {"causal": True}, "window": {"window": (96, 33)},
    "causal-window": {"causal": True, "window": 200},
    # What is asked of each tile, without captured tensors and with.
    "asked": {"causal": True, "mask": masks.sliding_window(900) | masks.attention_sinks(4)},
    "document": {"causal": True, "mask": masks.document(IDS),
                 "score": scores.bias(torch.zeros(1, 12, 8, 8))},
}
GROUPS: dict[str, int | tuple[int, ...]] = {"mha": 12, "gqa6": 2, "uneven": (0,) * 5 + (1,) * 7}
FUSED = {
    "kernel": ("fused",), "dtype": ("bfloat16", "float16", "float32"),
    "head_dim": (32, 64, 96, 128, 192, 256), "target": tuple(SHARED_LIMIT),
    "copies": ("16B", "scalar"), "visible": tuple(VISIBLE), "groups": tuple(GROUPS),
    "calls": ("batch", "packed", "dropout"),
}
UNFUSED = {**FUSED, "kernel": ("s", "p_lse", "o"), "visible": ("causal", "window"),
           "calls": ("batch",)}
# head_dim, head_dim_v: no whole number of panels, and values of another size than keys.
ODD = ((8, 8), (40, 40), (72, 72), (200, 200), (64, 128), (192, 128), (128, 72), (24, 256),
       (256, 8))


def _all_rows() -> list[Row]:
    """Masks and head maps change few instructions: they take turns over the other choices."""
    turns = [(v, g) for v in VISIBLE for g in GROUPS]
    plain = {name: values for name, values in FUSED.items() if name not in ("visible", "groups")}
    rows = [row | {"visible": visible, "groups": groups}
            for n, row in enumerate(full(plain))
            for visible, groups in (turns[n % len(turns)], turns[(n + 5) % len(turns)])
            if row["calls"] == "batch" or visible == turns[n % len(turns)][0]]
    shapes = {name: UNFUSED[name] for name in plain}
    rows += [row | {"visible": ("causal", "window")[n % 2], "groups": tuple(GROUPS)[n % 3]}
             for n, row in enumerate(full(shapes))]
    rows += [{**row, "head_dim_v": row["head_dim"][1], "head_dim": row["head_dim"][0]}
             for row in full({**FUSED, "head_dim": ODD, "visible": ("causal",),
                              "groups": ("gqa6",), "calls": ("batch",)})]
    return rows


def _quick_rows() -> list[Row]:
    rows = pairwise(FUSED)
    rows += pairwise({**{n: UNFUSED[n] for n in ("kernel", "dtype", "copies")},
                      "head_dim": (64, 96, 256), "target": ("sm_80", "sm_86", "sm_90"),
                      "visible": ("causal",), "groups": ("gqa6",), "calls": ("batch",)})
    odd = {"kernel": "fused", "dtype": "bfloat16", "copies": "16B", "visible": "causal",
           "groups": "gqa6", "target": "sm_80", "calls": "batch"}
    rows += [{**odd, "head_dim": 40, "head_dim_v": 72}, {**odd, "head_dim": 192, "head_dim_v": 128},
             {**odd, "head_dim": 24, "head_dim_v": 8, "dtype": "float32", "copies": "scalar"}]
    return rows


def _name(row: Row) -> str:
    dv = row.get("head_dim_v", row["head_dim"])
    dims = str(row["head_dim"]) if dv == row["head_dim"] else f"{row['head_dim']}x{dv}"
    return "-".join([row["kernel"], row["dtype"], f"d{dims}", row["target"], row["copies"],
                     row["visible"], row["groups"], row["calls"]])


@lru_cache(maxsize=64)
def _plan(kernel: str, dtype: str, head_dim: int, head_dim_v: int, target: str, copies: str,
          visible: str, groups: str, calls: str) -> Plan:
    spec = AttentionSpec(heads=12, groups=GROUPS[groups], head_dim=head_dim, head_dim_v=head_dim_v,
                         **VISIBLE[visible])  # type: ignore[arg-type]
    options = Options(target, dtype, vectorized=copies == "16B", fuse=kernel == "fused",
                      packed=calls == "packed", dropout=calls == "dropout")
    return make_plan(spec, options, lower(spec, options))


def kernel_of(row: Row) -> KernelPlan:
    """The kernel a row names."""
    plan = _plan(row["kernel"] if row["kernel"] == "fused" else "unfused", row["dtype"],
                 row["head_dim"], row.get("head_dim_v", row["head_dim"]), row["target"],
                 row["copies"], row["visible"], row["groups"], row["calls"])
    found = [k for k in plan.kernels
             if row["kernel"] == "fused" or k.kind.endswith(f"_{row['kernel']}")]
    assert len(found) == 1, [k.kind for k in plan.kernels]
    return found[0]


def _check(row: Row) -> None:
    kernel = kernel_of(row)
    cubin = compile_cubin(kernel.text, row["target"], kernel.flags, name=kernel.name)
    used = cubin.resources[kernel.name]
    assert (used.spill_stores, used.spill_loads, used.stack) == (0, 0, 0), used
    assert not cubin.remarks
    assert not re.search(r"C75\d\d|warning", cubin.log), cubin.log
    assert used.shared_static in (0, RESERVED)  # all of ours is dynamic
    assert kernel.shared_bytes <= SHARED_LIMIT[row["target"]]
    assert used.registers * kernel.threads <= REGISTERS, (used.registers, kernel.threads)


QUICK = _quick_rows()


@pytest.mark.parametrize("row", QUICK, ids=_name)
def test_compiles_clean(row: Row) -> None:
    _check(row)


@pytest.mark.full
@pytest.mark.parametrize("row", _all_rows(), ids=_name)
def test_every_kernel_compiles_clean(row: Row) -> None:
    _check(row)


def test_quick_subset_meets_every_pair_and_stays_small() -> None:
    fused = [row for row in QUICK if row["kernel"] == "fused" and "head_dim_v" not in row]
    wanted = set().union(*(pairs(row) for row in full(FUSED)))
    assert wanted == set().union(*(pairs(row) for row in fused))
    assert len(QUICK) <= 60
