"""Tile maps against masks counted out pair by pair: never wrong, and rarely undecided."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from commands import output, refusal
from tile_masks import condition, document, kinds, visible

import attngen as ag
from attngen.errors import ShapeError
from attngen.ir import refine
from attngen.ir.build import build_forward
from attngen.ir.node import Node, const, gather, idx, make, param, walk
from attngen.ir.tables import TableRange
from attngen.ir.tilemap import TileMap, prove

HEADS = 2
M = ag.masks
NAMED = {
    "causal": M.causal(), "window": M.causal() & M.sliding_window(40),
    "both sides": M.sliding_window((30, 17)), "prefix_lm": M.prefix_lm(45),
    "chunked": M.chunked(48), "sinks": M.sliding_window(60) | M.attention_sinks(5),
    "dilated": M.dilated_window(6, 9), "far dilated": M.dilated_window(3, 40),
    "strided": M.strided(16), "strided far": M.strided(50), "stride": M.strided(50, "stride"),
    "fixed": M.fixed(16, 3), "fixed far": M.fixed(64, 5), "summary": M.fixed(64, 5, "stride"),
    "causal chunks": M.causal() & M.chunked(40), "not causal": ~M.causal(),
    "no window": ~M.sliding_window((30, 17)),
    "square": lambda b, h, i, j: (abs(i // 16 - j // 16) <= 1) & (abs(i % 16 - j % 16) <= 2),
    "by head": lambda b, h, i, j: (i - j <= 20 * (h + 1)) & (j <= i),
}


def mask_of(mask: Any = None, **fields: Any) -> Node:
    """What the graph of a spec calls visible."""
    spec = ag.AttentionSpec(heads=HEADS, head_dim=64, mask=mask, **fields)
    graph = build_forward(spec, "float32")
    return next(n for n in walk(*graph.regions[0].roots) if n.op == "visible").args[0]


class Tally:
    """How many of the truly empty and full tiles were found; errors are asserted at once."""

    def __init__(self) -> None:
        self.true, self.found = 0, 0

    def add(self, proved: np.ndarray[Any, Any], truth: np.ndarray[Any, Any], what: Any) -> None:
        proved, truth = np.broadcast_arrays(proved, truth)
        decided = proved != 1
        assert np.array_equal(proved[decided], truth[decided]), what
        self.true += int((truth != 1).sum())
        self.found += int(decided.sum())

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


@pytest.fixture
def rectangles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small maps are refined like large ones."""
    monkeypatch.setattr(refine, "_FEW", 0)


def test_random_masks_are_proved() -> None:
    tally = check_random(150, 11)
    assert tally.true > 3000
    assert tally.share >= 0.95


@pytest.mark.usefixtures("rectangles")
def test_random_masks_are_proved_by_rectangles() -> None:
    assert check_random(25, 13).share >= 0.95


@pytest.mark.full
def test_many_random_masks_are_proved() -> None:
    assert check_random(2500, 12).share >= 0.95


@pytest.mark.full
@pytest.mark.usefixtures("rectangles")
def test_many_random_masks_are_proved_by_rectangles() -> None:
    assert check_random(600, 14).share >= 0.95


CALLS = ((256, 256, (16, 16), 0, 0), (200, 250, (16, 32), 50, 0), (120, 77, (32, 16), -43, 0),
         (90, 200, (128, 16), 130, 9), (1, 333, (16, 48), 332, 0))


def check_named(name: str, tally: Tally, calls: Any = CALLS) -> None:
    mask = mask_of(NAMED[name])
    for seqlen_q, keys, block, q_offset, kv_offset in calls:
        params = {"q_offset": q_offset, "kv_offset": kv_offset, "kv_len": keys}
        seen = visible(mask, seqlen_q, -(-keys // block[1]) * block[1], HEADS, params)
        tiles = prove(mask, seqlen_q, keys, block, params, heads=HEADS)
        tally.add(tiles.dense(), kinds(seen, block), name)


def test_named_masks_are_proved() -> None:
    tally = Tally()
    for name in NAMED:
        check_named(name, tally)
    assert tally.true > 8000
    assert tally.share >= 0.99


@pytest.mark.usefixtures("rectangles")
def test_named_masks_are_proved_by_rectangles() -> None:
    tally = Tally()
    for name in NAMED:
        check_named(name, tally, CALLS[:1])
    assert tally.share >= 0.99


# -- captured tensors ---------------------------------------------------------------------------


def test_table_ranges_hold_every_entry() -> None:
    rng, tight = np.random.default_rng(2), 0
    for length in (0, 1, 63, 64, 65, 1000):
        table = rng.integers(-50, 50, (3, length))
        known = TableRange(table)
        row = rng.integers(-1, 4, 200)
        low = rng.integers(-20, length + 20, 200)
        high = low + rng.integers(0, 300, 200)
        least, greatest = (known.bound(op, [row], low, high) for op in ("table_min", "table_max"))
        for r, x, y, a, b in zip(row, low, high, least, greatest, strict=True):
            inside = table[r, max(x, 0):max(y + 1, 0)] if 0 <= r < 3 else table[0, :0]
            values = inside if len(inside) == y + 1 - x else np.append(inside, 0)
            assert a <= values.min() and b >= values.max()
            tight += bool(a == values.min() and b == values.max())
    assert tight > 400


@pytest.mark.parametrize("order", ["sorted", "shuffled", "per batch"])
def test_documents_are_proved(order: str) -> None:
    rng, length = np.random.default_rng(3), 1024
    ids = np.sort(rng.integers(0, 6, (2, length)), axis=-1)
    if order == "shuffled":
        ids = np.repeat(rng.permutation(16), 64)[None].repeat(2, 0)
    mask = document()
    tables, batch = {"ids": ids[0]}, 1
    if order == "per batch":
        mask = make("eq", *(gather("ids", [idx("b"), idx(axis)], "int32") for axis in "ij"))
        tables, batch = {"ids": ids}, 2
    tally = Tally()
    for m in (64, 128):
        seen = visible(mask, length, length, HEADS, {}, tables, batch)
        tiles = prove(mask, length, length, (m, m), {}, tables, batch=batch, heads=HEADS)
        assert tiles.dense().shape == (batch, 1, length // m, length // m)
        tally.add(tiles.dense(), kinds(seen, (m, m)), order)
    assert tally.true > 60 and tally.share >= (0.95 if order != "shuffled" else 0.8)


def test_random_tables_are_never_mistaken() -> None:
    rng, tally = np.random.default_rng(5), Tally()
    for _ in range(40):
        length = int(rng.integers(100, 400))
        tables = {"t": rng.integers(-3, 4, length).cumsum(), "f": np.arange(length) % 130 < 90}
        i, j = (make("add", idx(a), const(int(rng.integers(-9, 9)))) for a in "ij")
        t_i, t_j = (gather("t", [x], "int64") for x in (i, j))
        parts = [make("le", t_i, make("add", t_j, param("n"))), make("lt", j, t_i),
                 gather("f", [j], "bool"), make("eq", t_i, t_j), make("le", j, i),
                 make("not", gather("f", [make("floordiv", i, const(2))], "bool"))]
        a, b, c = (parts[k] for k in rng.permutation(6)[:3])
        mask = make("or", make("and", a, b), make("not", c)) if rng.integers(2) else make(
            "and", make("or", a, make("not", b)), c)
        seen = visible(mask, length, -(-length // 32) * 32, HEADS, {"n": 4}, tables)
        tiles = prove(mask, length, length, (32, 32), {"n": 4}, tables, heads=HEADS)
        tally.add(tiles.dense(), kinds(seen, (32, 32)), mask)
    assert tally.found > 500


# -- the map ------------------------------------------------------------------------------------


def test_runs_are_joined_sorted_and_counted() -> None:
    mask = mask_of(NAMED["sinks"])
    tiles = prove(mask, 512, 512, (16, 16), {"q_offset": 0, "kv_offset": 0, "kv_len": 512})
    dense = tiles.dense()[0, 0]
    for q in range(tiles.q_tiles):
        runs = tiles.row(q)
        for (_, end, kind), (begin, _, following) in zip(runs, runs[1:], strict=False):
            assert end < begin or end == begin and kind != following
        again = np.zeros(tiles.k_tiles, np.int8)
        for begin, end, kind in runs:
            again[begin:end] = kind
        assert np.array_equal(again, dense[q])
    assert tiles.visited == (dense > 0).sum() and tiles.full == (dense == 2).sum()
    assert tiles.partial == (dense == 1).sum() and tiles.tiles == dense.size
    assert len(tiles.begin) < 6 * tiles.q_tiles
    turned = tiles.transposed()
    assert np.array_equal(turned.dense()[0, 0], dense.T) and turned.block == (16, 16)
    assert (turned.visited, turned.full) == (tiles.visited, tiles.full)


def test_batch_and_heads_appear_only_where_they_matter() -> None:
    attn = ag.compile(ag.AttentionSpec(heads=3, head_dim=16, causal=True), target="cpu")
    assert attn.tiles(300, 300).dense().shape == (1, 1, 3, 3)
    lengths = torch.tensor([100, 300], dtype=torch.int32)
    ragged = attn.tiles(300, 300, batch=2, seqlens_k=lengths)
    assert ragged.dense().shape == (2, 1, 3, 3)
    assert ragged.row(2, batch=0, head=2) == [(0, 1, 1)]
    assert ragged.row(2, batch=1) == [(0, 2, 2), (2, 3, 1)]
    spec = ag.AttentionSpec(heads=3, head_dim=16, mask=NAMED["by head"])
    by_head = ag.compile(spec, target="cpu").tiles(512, 512, (16, 16))
    assert (by_head.batch, by_head.heads) == (1, 3)
    sizes = [sum(e - b for b, e, _ in by_head.row(31, head=h)) for h in range(3)]
    assert sizes == sorted(set(sizes))


def test_positions_and_lengths_are_those_of_a_call() -> None:
    attn = ag.compile(ag.AttentionSpec(heads=1, head_dim=16, causal=True), target="cpu")
    assert np.array_equal(attn.tiles(128, 256, (64, 64)).dense()[0, 0],
                          [[2, 2, 1, 0], [2, 2, 2, 1]])  # ends aligned
    top = attn.tiles(128, 256, (64, 64), q_offset=0).dense()[0, 0]
    assert np.array_equal(top, [[1, 0, 0, 0], [2, 1, 0, 0]])
    assert attn.tiles(128, 100, (64, 64), q_offset=500).dense().tolist() == [[[[2, 1]] * 2]]
    assert attn.tiles(0, 64).visited == 0 and attn.tiles(64, 0).visited == 0
    with pytest.raises(ShapeError, match="q_offset has shape"):
        attn.tiles(8, 8, batch=2, q_offset=torch.zeros(3, dtype=torch.int32))
    with pytest.raises(ShapeError, match="block is too small"):
        attn.tiles(8, 8, (0, 8))


@pytest.mark.parametrize("mask", [
    M.causal(), M.causal() & M.sliding_window(4096), M.strided(128), M.fixed(128, 8),
    M.prefix_lm(1000), M.chunked(4096), M.dilated_window(512, 4),
    M.sliding_window(4096) | M.attention_sinks(64)], ids=lambda m: m.name)
def test_long_maps_are_small(mask: Any) -> None:
    node, length = mask_of(mask), 2**17
    params = {"q_offset": 0, "kv_offset": 0, "kv_len": length}
    tracemalloc.start()
    start = time.perf_counter()
    tiles = prove(node, length, length, (128, 128), params)
    seconds, memory = time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert memory < 32e6 and seconds < 5.0  # the benchmark measures; this only catches O(N²)
    assert isinstance(tiles, TileMap) and tiles.q_tiles == tiles.k_tiles == 1024
    assert len(tiles.begin) <= 6 * 1024


def test_command_draws_tiles() -> None:
    text = output("show", "--heads", "2", "--head-dim", "16", "--causal", "--tiles", "256",
                  "--block", "64,64", "--target", "cpu")
    assert text.splitlines()[2:] == ["▒···", "█▒··", "██▒·", "███▒"]
    assert text.startswith("256 queries x 256 keys in tiles of 64 x 64: 16 tiles, 10 visited")
    long = output("show", "--heads", "2", "--head-dim", "16", "--causal", "--tiles", "100000",
                  "--target", "cpu").splitlines()
    assert "one character is 13 x 13 tiles" in long[1] and max(map(len, long[2:])) <= 64
    assert "--tiles: '1,2,3'" in refusal("show", "--heads", "2", "--head-dim", "16", "--tiles",
                                         "1,2,3")


def test_what_cancels_is_decided() -> None:
    nothing = make("sub", idx("i"), idx("i"))
    mask = make("le", make("mod", make("add", nothing, param("n")), const(3)), const(1))
    for n, kind in ((4, 2), (5, 0)):
        assert set(prove(mask, 64, 64, (16, 16), {"n": n}).dense().ravel()) == {kind}
