"""Tile maps of masks that read tensors: bounds on their entries, and what follows for tiles."""

from __future__ import annotations

import numpy as np
import pytest
from tile_masks import Tally, document, kinds, visible

from attngen.ir.node import const, gather, idx, make, param
from attngen.ir.tables import GridRange, TableRange, distinct
from attngen.ir.tilemap import prove

HEADS = 2


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


def test_matrices_are_bounded_by_their_entries() -> None:
    rng, tight = np.random.default_rng(8), 0
    for rows, columns, widest in ((12, 9, 4), (50, 40, 30), (0, 7, 3)):
        table = rng.integers(-50, 50, (rows, columns))
        ends = []
        for size in (rows, columns):
            low = rng.integers(-5, size + 5, 25)
            ends.append((low, low + rng.integers(0, widest, 25)))
        for op in ("table_min", "table_max"):
            found = GridRange(op, table, *ends).bound(op, [], *np.ogrid[:25, :25])
            for r, (a, b) in enumerate(zip(*ends[0], strict=True)):
                for c, (x, y) in enumerate(zip(*ends[1], strict=True)):
                    inside = table[max(a, 0):max(b + 1, 0), max(x, 0):max(y + 1, 0)]
                    values = [*inside.ravel()]
                    if len(values) < (b + 1 - a) * (y + 1 - x):
                        values.append(0)
                    exact = min(values) if op == "table_min" else max(values)
                    assert found[r, c] <= exact if op == "table_min" else found[r, c] >= exact
                    tight += bool(found[r, c] == exact)
    assert tight > 3500


def test_common_entries_are_never_missed() -> None:
    rng, told = np.random.default_rng(9), 0
    for length, values in ((1000, 40), (300, 5000), (0, 1)):
        table = rng.integers(0, values, length).repeat(8)[:length]
        known = TableRange(table)
        low = rng.integers(-20, length + 20, 100)
        high = low + rng.integers(0, 40, 100)
        for few in (slice(None), (slice(None), None)):  # exact, and by blocks
            bits = known.bound("table_bits", [], low[few], high[few]).ravel()
            sets = [{int(table[x]) if 0 <= x < length else 0 for x in range(a, b + 1)}
                    for a, b in zip(low, high, strict=True)]
            for a, b in rng.integers(0, 100, (400, 2)):
                assert bits[a] & bits[b] or not sets[a] & sets[b]
                told += not bits[a] & bits[b]
    assert told > 500


def test_tuples_are_told_apart() -> None:
    parts = [np.array([3, 1, 3, 1, 2]), np.array([0, 0, 1, 0, 0])]
    where, which = distinct(parts)
    assert len(where) == 4
    assert all(np.array_equal(p[where][which], p) for p in parts)


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
    assert tally.true > 60 and tally.share >= 0.99


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


@pytest.mark.parametrize("length", [256, 4096])
def test_far_entries_do_not_overflow(length: int) -> None:
    """3·(2^61 + 2^61) is beyond 64 bits: bounds that overflow would have the other sign."""
    rng = np.random.default_rng(6)
    table = rng.choice([-(1 << 61), 1 << 61], length)
    table[length // 2:] = rng.integers(-9, 9, length - length // 2)
    t_i, t_j = (gather("t", [idx(a)], "int64") for a in "ij")
    thrice = make("mul", make("add", t_i, t_j), const(3))
    for mask in (make("lt", thrice, const(40)), make("lt", const(1 << 55), t_i)):
        tiles = prove(mask, length, length, (32, 32), {}, {"t": table}, heads=HEADS).dense()[0, 0]
        half = length // 64
        assert (tiles[:half, :half] == 1).all()  # partial: nothing is known of these
    tiles = prove(make("lt", thrice, const(150)), length, length, (32, 32), {}, {"t": table},
                  heads=HEADS).dense()[0, 0]
    assert (tiles[half:, half:] == 2).all()
