"""Tile maps against masks counted out pair by pair: never wrong, and rarely undecided."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from commands import output, refusal
from tile_masks import Tally, condition, kinds, visible

import attngen as ag
from attngen.errors import ShapeError
from attngen.ir import periodic, refine, regions
from attngen.ir.build import build_forward
from attngen.ir.capture import Captures
from attngen.ir.node import Node, const, idx, make, param, walk
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


BITS = np.random.default_rng(4)
TABLES = {
    "document": M.document(torch.arange(256) // 37),
    "shuffled": M.document(BITS.permutation(8)[np.arange(256) // 32]),
    "causal document": M.causal() & M.document(torch.arange(256) // 50),
    "padding": M.padding(torch.arange(256)[None].repeat(1, 1) % 256 < 199),
    "global": M.global_tokens(7) | M.sliding_window((20, 20)),
    "global few": M.global_tokens([3, 77, 200]) | M.sliding_window((20, 20)),
    "global many": M.global_tokens(range(0, 250, 25)) & M.causal(),
    "tree": M.tree([i - 1 if i % 40 else -1 for i in range(256)]),
    "block_sparse": M.block_sparse(BITS.random((16, 16)) < 0.3, 16),
    "block_sparse by head": M.block_sparse(BITS.random((2, 9, 9)) < 0.5, 30),
    "random_blocks": M.random_blocks(32, 1, seqlen=256, seed=3),
    "from_dense": M.from_dense(np.kron(BITS.random((8, 8)) < 0.4, np.ones((32, 32), bool))),
    "grid 1": M.neighborhood(250, 31), "grid 1, dilated": M.neighborhood(250, 31, 4),
    "grid 2": M.neighborhood((8, 32), (3, 9)), "grid 3": M.neighborhood((8, 4, 8), 3),
    "one each": M.per_head([M.causal(), M.sliding_window((9, 30))])}


def mask_of(mask: Any = None, **fields: Any) -> Node:
    """What the graph of a spec calls visible."""
    return captured(mask, **fields)[0]


def captured(mask: Any = None, **fields: Any) -> tuple[Node, dict[str, Any]]:
    """``mask_of``, and the tensors it reads by name."""
    spec, captures = ag.AttentionSpec(heads=HEADS, head_dim=64, mask=mask, **fields), Captures()
    graph = build_forward(spec, "float32", captures)
    node = next(n for n in walk(*graph.regions[0].roots) if n.op == "visible").args[0]
    return node, {t.name: t.source.numpy() for t in captures.tables}


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
    monkeypatch.setattr(refine, "_STRIPE", 64)


@pytest.fixture
def repeating(monkeypatch: pytest.MonkeyPatch) -> None:
    """What repeats is looked for in small maps, too."""
    monkeypatch.setattr(periodic, "_GAIN", 0)
    monkeypatch.setattr(regions, "_GAIN", 1)


def test_random_masks_are_proved() -> None:
    tally = check_random(150, 11)
    assert tally.true > 3000
    assert tally.share >= 0.95


@pytest.mark.usefixtures("rectangles")
def test_random_masks_are_proved_by_rectangles() -> None:
    assert check_random(25, 13).share >= 0.95


@pytest.mark.usefixtures("repeating")
def test_random_masks_are_proved_where_they_repeat() -> None:
    assert check_random(60, 15).share >= 0.95


@pytest.mark.full
@pytest.mark.usefixtures("repeating", "rectangles")
def test_many_random_masks_are_proved_where_they_repeat() -> None:
    assert check_random(600, 16).share >= 0.95


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
    mask, tables = captured((NAMED | TABLES)[name])
    for seqlen_q, keys, block, q_offset, kv_offset in calls:
        params = {"q_offset": q_offset, "kv_offset": kv_offset, "kv_len": keys}
        seen = visible(mask, seqlen_q, -(-keys // block[1]) * block[1], HEADS, params,
                       tables)
        tiles = prove(mask, seqlen_q, keys, block, params, tables, heads=HEADS)
        tally.add(tiles.dense(), kinds(seen, block), name)


def test_named_masks_are_proved() -> None:
    tally = Tally()
    for name in NAMED | TABLES:
        check_named(name, tally)
    assert tally.true > 16000
    assert tally.share >= 0.99


@pytest.mark.usefixtures("repeating")
@pytest.mark.parametrize("more", [False, True])
def test_named_masks_are_proved_where_they_repeat(more: bool, monkeypatch: Any) -> None:
    if more:  # and blocks are decided between
        monkeypatch.setattr(refine, "_FEW", 0)
    tally = Tally()
    for name in NAMED | TABLES:
        check_named(name, tally, CALLS[:4])
    assert tally.share >= 0.99


@pytest.mark.parametrize("length", [4096, 4000])
def test_long_maps_are_what_their_tiles_say(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept by rows that repeat, or decided block by block, against all tiles one by one."""
    params = {"q_offset": 0, "kv_offset": 0, "kv_len": length}
    fewer = 0
    for name in NAMED | TABLES:
        mask, tables = captured((NAMED | TABLES)[name])
        for block in ((16, 16), (32, 16)):
            tiles = prove(mask, length, length, block, params, tables, heads=HEADS)
            with monkeypatch.context() as slow:
                slow.setattr(refine, "_FEW", 10**9)
                slow.setattr(periodic, "_GAIN", 10**9)
                slow.setattr(regions, "_GAIN", 10**9)
                plain = prove(mask, length, length, block, params, tables, heads=HEADS)
            dense = plain.dense()
            assert np.array_equal(tiles.dense(), dense), (name, block)
            assert (tiles.visited, tiles.full) == ((dense > 0).sum(), (dense == 2).sum())
            assert np.array_equal(tiles.transposed().dense(), dense.swapaxes(2, 3)), (name, block)
            for x, y in zip(tiles._runs, plain._runs, strict=True):
                assert np.array_equal(x, y), (name, block)
            assert tiles.row(77, head=1) == plain.row(77, head=1)
            fewer += tiles.stored < plain.stored
    assert fewer > 30


@pytest.mark.usefixtures("rectangles")
def test_named_masks_are_proved_by_rectangles() -> None:
    tally = Tally()
    for name in NAMED:
        check_named(name, tally, CALLS[:1])
    assert tally.share >= 0.99


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


def test_divisors_of_a_call_are_proved() -> None:
    rng, tally = np.random.default_rng(7), Tally()
    for op in ("floordiv", "mod"):
        for n in (5, 16, 40, -7, -30, 1, -1):
            i, j = (make(op, make("add", idx(a), const(int(rng.integers(-9, 9)))), param("n"))
                    for a in "ij")
            mask = make(("le", "eq", "lt")[rng.integers(3)], i, make("add", j, const(
                int(rng.integers(-2, 3)))))
            for also in (mask, make("and", mask, make("le", idx("j"), idx("i")))):
                seen = visible(also, 200, 208, 1, {"n": n})
                tiles = prove(also, 200, 200, (16, 16), {"n": n})
                tally.add(tiles.dense(), kinds(seen, (16, 16)), also)
    assert tally.share > 0.9 and tally.true > 2000


def test_numbers_past_32_bits_are_not_cut_off() -> None:
    rng, tally = np.random.default_rng(6), Tally()
    i, j = idx("i"), idx("j")
    for _ in range(30):
        a, b, m, n = (int(x) for x in rng.integers(1, 2**30, 4))
        product = make("mul", make("mod", make("add", i, j), const(40)),
                       make("floordiv", make("sub", i, j), const(3)))
        sides = [make("mul", make("mod", make("add", i, j), const(24)), const(a)),
                 make("sub", make("mul", i, const(b)), make("mul", j, const(m))),
                 make("mul", product, const(n)), param("n")]
        left, right = (sides[k] for k in rng.permutation(4)[:2])
        mask = make("lt", left, make("add", right, const(int(rng.integers(-2**30, 2**30)))))
        with np.errstate(over="ignore"):
            wide = visible(mask, 96, 96, 1, {"n": np.int64(n)})
        tiles = prove(mask, 96, 96, (8, 8), {"n": n})
        tally.add(tiles.dense(), kinds(wide, (8, 8)), mask)
    assert tally.found > 200


def test_what_cancels_is_decided() -> None:
    nothing = make("sub", idx("i"), idx("i"))
    mask = make("le", make("mod", make("add", nothing, param("n")), const(3)), const(1))
    for n, kind in ((4, 2), (5, 0)):
        assert set(prove(mask, 64, 64, (16, 16), {"n": n}).dense().ravel()) == {kind}
