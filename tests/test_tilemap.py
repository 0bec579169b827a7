"""Tile maps against masks counted out pair by pair: never wrong, and rarely undecided."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tile_masks import condition, document, evaluate, kinds, visible

import attngen as ag
from attngen.ir.build import build_forward
from attngen.ir.interval import certainty
from attngen.ir.node import Node, const, first, gather, idx, last, make, param, walk
from attngen.ir.tables import TableRange
from attngen.ir.tilemap import TileMap, prove

HEADS = 2


def mask_of(mask: Any = None, **fields: Any) -> Node:
    """What the graph of a spec calls visible."""
    spec = ag.AttentionSpec(heads=HEADS, head_dim=64, mask=mask, **fields)
    graph = build_forward(spec, "float32")
    return next(n for n in walk(*graph.regions[0].roots) if n.op == "visible").args[0]


class Tally:
    """How many of the truly empty and full tiles were found; errors are asserted at once."""

    def __init__(self) -> None:
        self.true, self.found, self.total = 0, 0, 0

    def add(self, proved: np.ndarray[Any, Any], truth: np.ndarray[Any, Any], what: Any) -> None:
        proved, truth = np.broadcast_arrays(proved, truth)
        decided = proved != 1
        assert np.array_equal(proved[decided], truth[decided]), what
        self.true += int((truth != 1).sum())
        self.found += int(decided.sum())
        self.total += truth.size

    @property
    def share(self) -> float:
        return self.found / self.true


def check_random(count: int, seed: int) -> Tally:
    """Random masks of random lengths in tiles of random sizes."""
    rng, tally = np.random.default_rng(seed), Tally()
    for _ in range(count):
        mask = condition(rng, int(rng.integers(0, 4)))
        m, n = (int(x) for x in rng.choice([8, 16, 32], 2))
        seqlen_q, keys = int(rng.integers(40, 130)), int(rng.integers(40, 130))
        params = {"n": int(rng.integers(-40, 80))}
        seen = visible(mask, seqlen_q, -(-keys // n) * n, HEADS, params)
        tiles = prove(mask, seqlen_q, keys, (m, n), params, heads=HEADS)
        tally.add(tiles.dense(), kinds(seen, (m, n)), mask)
    return tally


def test_random_masks_are_proved() -> None:
    tally = check_random(150, 11)
    assert tally.true > 3000
    assert tally.share >= 0.95


@pytest.mark.full
def test_many_random_masks_are_proved() -> None:
    tally = check_random(2500, 12)
    assert tally.share >= 0.95
