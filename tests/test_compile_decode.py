"""The kernels of decoding become machine code on every architecture, losing nothing.

As ``test_compile_matrix``: no spills, no stack, no remark. Partial kernels and ``combine``, for
every kind of cache, and the kernels that fill them.
"""

from __future__ import annotations

import re
from functools import lru_cache

import pytest
import test_compile_matrix as matrix
from pairwise import Row, full, pairs, pairwise

from attngen import AttentionSpec
from attngen.cache_plans import append_plan, rotate_plan
from attngen.compiler import Options, lower, make_plan
from attngen.runtime.nvrtc import compile_cubin
from attngen.runtime.plan import KernelPlan
from attngen.runtime.variant import Cached

CACHES = {
    "contiguous": Cached(), "pages": Cached(page=16), "odd pages": Cached(page=7),
    "ring": Cached(ring=True), "int8": Cached(stored="int8"),
    "e4m3 pages": Cached(page=16, stored="float8_e4m3"),
    "int8 ring": Cached(ring=True, stored="int8"),
    "zones": Cached(ring=True, inside=True, rope="half")}
DECODE = {
    "cache": tuple(CACHES), "dtype": ("bfloat16", "float16", "float32"),
    "head_dim": (32, 64, 96, 128, 192, 256), "target": tuple(matrix.SHARED_LIMIT),
    "copies": ("16B", "scalar"), "visible": ("causal", "window", "asked", "document"),
    "groups": ("mha", "gqa6", "uneven"), "rows": (16, 32, 64, 0)}
APPEND = {
    "cache": tuple(CACHES), "dtype": ("bfloat16", "float32"), "head_dim": (32, 72, 128, 256),
    "target": tuple(matrix.SHARED_LIMIT), "copies": ("16B", "scalar"),
    "rope": ("", "half", "interleaved")}
ROTATE = {
    "dtype": ("bfloat16", "float16", "float32"), "head_dim": (32, 72, 128, 256),
    "target": tuple(matrix.SHARED_LIMIT), "copies": ("16B", "scalar"),
    "rope": ("half", "interleaved"), "inside": (False, True)}


def _name(row: Row) -> str:
    return "-".join(str(x) for x in row.values())


@lru_cache(maxsize=16)
def _kernels(cache: str, dtype: str, head_dim: int, target: str, copies: str, visible: str,
             groups: str, rows: int) -> tuple[KernelPlan, ...]:
    spec = AttentionSpec(heads=12, groups=matrix.GROUPS[groups], head_dim=head_dim,
                         **matrix.VISIBLE[visible])  # type: ignore[arg-type]
    options = Options(target, dtype, copies == "16B", rows=rows, split=True, cached=CACHES[cache])
    return make_plan(spec, options, lower(spec, options)).kernels


def _append(cache: str, dtype: str, head_dim: int, target: str, copies: str,
            rope: str) -> tuple[KernelPlan, ...]:
    spec = AttentionSpec(heads=12, groups=2, head_dim=head_dim)
    cached = CACHES[cache]._replace(rope=rope, rotary=head_dim // 2 if rope else 0)
    options = Options(target, dtype, copies == "16B", rows=8, cached=cached)
    return append_plan(spec, options).kernels


def _rotate(dtype: str, head_dim: int, target: str, copies: str, rope: str,
            inside: bool) -> tuple[KernelPlan, ...]:
    spec = AttentionSpec(heads=12, groups=2, head_dim=head_dim)
    cached = Cached(rope=rope, rotary=head_dim // 2, inside=inside)
    return rotate_plan(spec, Options(target, dtype, copies == "16B", rows=8, cached=cached)).kernels


def _check(kernels: tuple[KernelPlan, ...], target: str) -> None:
    for kernel in kernels:
        cubin = compile_cubin(kernel.text, target, kernel.flags, name=kernel.name)
        used = cubin.resources[kernel.name]
        assert (used.spill_stores, used.spill_loads, used.stack) == (0, 0, 0), (kernel.kind, used)
        assert not cubin.remarks and not re.search(r"C75\d\d|warning", cubin.log), cubin.log
        assert kernel.shared_bytes <= matrix.SHARED_LIMIT[target]


QUICK = pairwise(DECODE)
QUICK_APPEND = pairwise(APPEND)[::2]


@pytest.mark.parametrize("row", QUICK[::2], ids=_name)
def test_decode(row: Row) -> None:
    _check(_kernels(**row), row["target"])


@pytest.mark.parametrize("row", QUICK_APPEND, ids=_name)
def test_append(row: Row) -> None:
    _check(_append(**row), row["target"])


@pytest.mark.parametrize("row", pairwise(ROTATE)[::2], ids=_name)
def test_rotate(row: Row) -> None:
    _check(_rotate(**row), row["target"])


@pytest.mark.full
@pytest.mark.parametrize("row", full(ROTATE), ids=_name)
def test_every_rotate(row: Row) -> None:
    _check(_rotate(**row), row["target"])


@pytest.mark.full
@pytest.mark.parametrize("row", QUICK[1::2], ids=_name)
def test_every_pair_of_choices(row: Row) -> None:
    _check(_kernels(**row), row["target"])


# Heads take turns over the other choices, and with them the masks.
_TURNS = [(v, g) for v in DECODE["visible"] for g in DECODE["groups"]]
ALL = [row | {"visible": _TURNS[n % 12][0], "groups": _TURNS[n % 12][1]} for n, row in enumerate(
    full({n: v for n, v in DECODE.items() if n not in ("visible", "groups")})) if n % 7 == 0]


@pytest.mark.full
@pytest.mark.parametrize("row", ALL, ids=_name)
def test_every_decode(row: Row) -> None:
    _check(_kernels(**row), row["target"])


@pytest.mark.full
@pytest.mark.parametrize("row", full(APPEND)[::5], ids=_name)
def test_every_append(row: Row) -> None:
    _check(_append(**row), row["target"])


def test_pairs_are_met() -> None:
    wanted = set().union(*(pairs(row) for row in full({n: v for n, v in DECODE.items()
                                                       if n in ("cache", "dtype", "head_dim")})))
    assert wanted <= set().union(*(pairs(row) for row in QUICK))
    assert len(QUICK) <= 70 and 300 < len(ALL) < 1200
