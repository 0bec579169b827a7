"""Attention in parts of the keys, as the interpreter defines it: joined, they are the whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attngen.ir import rolling
from attngen.ir.build import build_forward
from attngen.ir.cache import Cache
from attngen.ir.eval_tensor import interpret_tensors
from attngen.ir.group_rows import group_rows
from attngen.ir.passes import canonicalise
from attngen.ir.split_kv import split_kv
from attngen.ir.verify import verify
from attngen.spec import AttentionSpec

Array = np.ndarray[Any, Any]
SPEC = AttentionSpec(heads=4, groups=2, head_dim=8, causal=True,
                     score=lambda s, b, h, i, j: s + (j - i) * 0.1)
BATCH, QUERIES, SINKS, WINDOW = 2, 3, 2, 5
SLOTS = SINKS + WINDOW + QUERIES - 1
LENGTHS = np.array([23, 6])  # a ring that has turned, and one that has not
PARAMS = {"q_offset": LENGTHS - QUERIES, "kv_offset": 0, "kv_len": LENGTHS, "seqlen_k": SLOTS,
          "ring_sinks": SINKS, "ring_reach": WINDOW, "seqlen_q": QUERIES, "rows": 2 * QUERIES}
EXTENTS = {"b": BATCH, "h": 4, "g": 2, "i": QUERIES, "row": 2 * QUERIES, "j": SLOTS, "d": 8,
           "e": 8}


def tensors(zones: bool) -> dict[str, Array]:
    draw = np.random.default_rng(0).standard_normal
    q = draw((rolling.ZONES, BATCH, 4, QUERIES, 8))
    return {"q": q if zones else q[0], "k": draw((BATCH, 2, SLOTS, 8)),
            "v": draw((BATCH, 2, SLOTS, 8))}


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("cache", [Cache(), Cache(ring=True),
                                   Cache(ring=True, inside=True, rope="half")])
def test_parts_join_into_the_whole(cache: Cache, parts: int, rows: bool) -> None:
    """Of a ring the whole is that of all zones, each a graph of its own before the pass."""
    graph = canonicalise(build_forward(SPEC, "float64", cache=cache))
    graph = group_rows(graph) if rows else graph
    inputs, zones = tensors(cache.inside), rolling.ZONES if cache.ring else 1
    params = PARAMS if cache.ring else PARAMS | {"kv_len": np.minimum(LENGTHS, SLOTS)}
    alone = [interpret_tensors(graph, inputs, params | {"zone": zone}, EXTENTS)
             for zone in range(zones)]
    lse = np.logaddexp.reduce([x["lse"] for x in alone])
    o = sum(np.exp(x["lse"] - lse)[..., None] * x["o"] for x in alone)
    split = split_kv(graph)
    verify(split)
    found = interpret_tensors(split, inputs, params | {"num_splits": zones * parts},
                              EXTENTS | {"split": zones * parts})
    np.testing.assert_allclose(found["lse"], lse, rtol=1e-12)
    np.testing.assert_allclose(found["o"], o, rtol=1e-11, atol=1e-12)


def test_zones_are_all_that_is_visible_once() -> None:
    """Slots of different zones do not overlap, and each token of the window is in one."""
    graph = build_forward(SPEC, "float64", cache=Cache(ring=True))
    inputs = tensors(False) | {"q": np.zeros((BATCH, 4, QUERIES, 8))}
    inputs["v"] = np.broadcast_to(np.eye(SLOTS, 8), (BATCH, 2, SLOTS, 8))  # o tells which slots
    seen = np.zeros((BATCH, SLOTS))
    for zone in range(rolling.ZONES):
        o = interpret_tensors(graph, inputs, PARAMS | {"zone": zone}, EXTENTS)["o"]
        seen[:, :8] += o[:, 0, -1] > 0
    newest = [(n - 1 - SINKS) % (SLOTS - SINKS) + SINKS for n in LENGTHS]
    for b, n in enumerate(LENGTHS):
        ring = [SINKS + (newest[b] - SINKS - back) % (SLOTS - SINKS)
                for back in range(min(WINDOW, n - SINKS))]
        want = np.isin(np.arange(SLOTS), [*range(SINKS), *ring])
        np.testing.assert_array_equal(seen[b, :8], want[:8])
