"""Tile ranges and intervals against brute force: what closed forms promise, counted out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from backward_graphs import dkdv
from ir_problem import lowered, schedule
from ir_problem import only as only_kernel

from attngen import masks
from attngen.ir.fuse import fuse
from attngen.ir.interval import certainty, interval
from attngen.ir.lower import tile
from attngen.ir.node import Node, const, first, idx, last, make, param, walk
from attngen.ir.ops import SCALAR_OPS
from attngen.ir.passes import rebase
from attngen.ir.ranges import solve
from attngen.ir.stmt import Kernel, Loop, Map
from attngen.spec import AttentionSpec

Array = np.ndarray[Any, Any]
BLOCKS = [(16, 16), (48, 16), (16, 64), (32, 48)]


def evaluate(node: Node, known: dict[str, Any]) -> Any:
    """An expression's value; ``known`` has leaves by name (``i``, ``first i``, ``q_offset``)."""
    done: dict[str, Any] = {}
    for n in walk(node):
        if n.is_const:
            done[n.key] = n.attr("value")
        elif n.op in ("first", "last"):
            done[n.key] = known[f"{n.op} {n.attr('axis')}"]
        elif not n.args:
            done[n.key] = known[n.attr("axis" if n.op == "idx" else "name")]
        else:
            row = SCALAR_OPS[n.op].evaluate
            assert row is not None
            done[n.key] = row(*(done[a.key] for a in n.args))
    return done[node.key]


def visibility(spec: AttentionSpec, p: dict[str, int]) -> Array:
    """Which key each query sees, pair by pair: bool [seqlen_q, seqlen_k]."""
    i = np.arange(p["seqlen_q"])[:, None] + p["q_offset"]
    j = np.arange(p["seqlen_k"])[None] + p["kv_offset"]
    seen = np.broadcast_to(j - p["kv_offset"] < p["kv_len"], (p["seqlen_q"], p["seqlen_k"]))
    for _, mod in spec.mask_mods():
        seen = seen & mod(0, 0, i, j)
    return seen


def random_call(rng: np.random.Generator) -> dict[str, int]:
    seqlen_q, seqlen_k = int(rng.integers(1, 150)), int(rng.integers(0, 150))
    offset = int(rng.integers(-200, 200)) if rng.integers(2) else seqlen_k - seqlen_q
    kv_offset = int(rng.integers(-40, 40)) if rng.integers(2) else 0
    kv_len = int(rng.integers(0, seqlen_k + 1)) if rng.integers(2) else seqlen_k
    return {"seqlen_q": seqlen_q, "seqlen_k": seqlen_k, "q_offset": offset + kv_offset,
            "kv_offset": kv_offset, "kv_len": kv_len}


LENGTH = {"i": "seqlen_q", "j": "seqlen_k"}


def asked(kernel: Kernel) -> tuple[Node | None, Node | None]:
    """What the kernel's loop asks of a tile."""
    (loop,) = (s for s in kernel.body if isinstance(s, Loop))
    return loop.visible, loop.full


def ranges(kernel: Kernel, p: dict[str, int],
           row_tile: int) -> tuple[dict[str, Any], tuple[int, int, int, int]]:
    """What is known in one block, and begin, end, full_begin, full_end by its own statements."""
    start, rows = row_tile * kernel.schedule.block_m, p[LENGTH[kernel.keep]]
    known = {**p, f"first {kernel.keep}": start, "b": 0, "h": 0,
             f"last {kernel.keep}": min(start + kernel.schedule.block_m, rows) - 1}
    for statement in kernel.body:
        if isinstance(statement, Map) and not statement.axes:
            for name, expr in zip(statement.dsts, statement.exprs, strict=True):
                known[name] = evaluate(expr, known)
    begin, end, full_begin, full_end = (
        int(known[n]) for n in ("n_begin", "n_end", "n_full_begin", "n_full_end"))
    return known, (begin, end, full_begin, full_end)


def tiles(kernel: Kernel, p: dict[str, int], seen: Array) -> tuple[Array, Array, Array, Array]:
    """For every tile of the call: does it hold a visible key, are all its keys visible, is it
    visited, is it taken as full? bool [row tiles, column tiles]; a tile that ends past the columns
    is never all visible. ``seen`` has the kernel's rows first."""
    m, n = kernel.schedule.block_m, kernel.schedule.block_n
    rows, columns = -(-len(seen) // m), -(-seen.shape[1] // n) + 1
    padded = np.zeros((len(seen), columns * n), bool)
    padded[:, :seen.shape[1]] = seen
    some, every, visited, full = np.zeros((4, rows, columns), bool)
    for t in range(rows):
        tile = padded[t * m:(t + 1) * m].reshape(-1, columns, n)
        some[t], every[t] = tile.any((0, 2)), tile.all((0, 2))
        known, (begin, end, full_begin, full_end) = ranges(kernel, p, t)
        number = np.arange(columns)
        known[f"first {kernel.loop}"] = number * n
        known[f"last {kernel.loop}"] = np.minimum(number * n + n, seen.shape[1]) - 1
        visible, whole = ((True if n is None else evaluate(n, known)) for n in asked(kernel))
        visited[t] = (begin <= number) & (number < end) & visible
        full[t] = visited[t] & (full_begin <= number) & (number < full_end) & whole
        assert begin >= end or (begin >= 0 and end < columns), (begin, end, columns)
    return some, every, visited, full


BANDS = {
    "everything": AttentionSpec(heads=1, head_dim=8),
    "causal": AttentionSpec(heads=1, head_dim=8, causal=True),
    **{f"last_{w}": AttentionSpec(heads=1, head_dim=8, causal=True, window=w)
       for w in (1, 2, 16, 33)},
    **{f"pair_{left}_{right}": AttentionSpec(heads=1, head_dim=8, window=(left, right))
       for left, right in ((0, 0), (5, 40), (64, 3), (15, 16))},
    "causal_pair": AttentionSpec(heads=1, head_dim=8, causal=True, window=(20, 9)),
}
BY_ROW = {name: AttentionSpec(heads=1, head_dim=8, causal=causal, mask=mask)
          for name, causal, mask in (
    ("late_queries", False, lambda b, h, i, j: (i >= 20) & ~(i > 90)),
    ("no_head", False, lambda b, h, i, j: h == 1), ("all_heads", True, lambda b, h, i, j: h < 1))}
OTHERS = {name: AttentionSpec(heads=1, head_dim=8, mask=mask) for name, mask in {
    "prefix": masks.prefix_lm(30), "chunked": masks.chunked(20), "keys": masks.attention_sinks(9),
    "dilated": masks.dilated_window(6, 5), "strided": masks.strided(16),
    "after": ~masks.causal(), "not_near": ~masks.sliding_window((9, 9)),
    "twice": masks.sliding_window((40, 9)) & masks.sliding_window((7, 30)),
    "late_and_causal": masks.causal() & (lambda b, h, i, j: i >= 20),
    "near_keys": masks.sliding_window((30, 30)) & masks.attention_sinks(50)}.items()}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: f"{b[0]}x{b[1]}")
@pytest.mark.parametrize("name", [*BANDS, *BY_ROW, *OTHERS])
def test_ranges_against_brute_force(name: str, block: tuple[int, int]) -> None:
    spec = {**BANDS, **BY_ROW, **OTHERS}[name]
    kernel = only_kernel(lowered(spec, plan=schedule("mma", *block))["tile"])
    rng = np.random.default_rng(hash(block) % 1000)
    for _ in range(60):
        p = random_call(rng)
        some, every, visited, full = tiles(kernel, p, visibility(spec, p))
        check(some, every, visited, full, p, exact=name in BANDS or name in BY_ROW)


def check(some: Array, every: Array, visited: Array, full: Array, p: dict[str, int],
          exact: bool) -> None:
    assert not (some & ~visited).any(), f"a visible key is never visited: {p}"
    assert not (full & ~every).any(), f"a hidden key in a full tile: {p}"
    if exact:
        np.testing.assert_array_equal(visited, some, f"an empty tile is visited: {p}")
        np.testing.assert_array_equal(full, every, f"a full tile is masked: {p}")


@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: f"{b[0]}x{b[1]}")
@pytest.mark.parametrize("name", [*BANDS, *OTHERS])
def test_transposed_ranges_against_brute_force(name: str, block: tuple[int, int]) -> None:
    """Rows are keys and the loop walks queries, as a kernel for dk and dv does. Where kv_len ends
    inside a row tile, its last rows are hidden but still bound the queries: a visit too many."""
    graph = rebase(fuse(dkdv({**BANDS, **OTHERS}[name], "bfloat16"), keep="j", loop="i"))
    kernel = only_kernel(tile(graph, schedule("mma", *block), "j", "i"))
    rng = np.random.default_rng(block[0] + block[1])
    for _ in range(40):
        p = random_call(rng)
        check(*tiles(kernel, p, visibility({**BANDS, **OTHERS}[name], p).T), p,
              exact=name in BANDS and p["kv_len"] == p["seqlen_k"])


def test_what_bounds_express_and_what_they_leave() -> None:
    j, n = idx("j"), param("n")
    bounded = solve(make("and", make("lt", j, n), make("le", idx("i"), j)), "j")
    assert (bounded.lower, bounded.upper, bounded.rest) == (idx("i"), n, None)
    even = make("eq", make("mod", j, const(2)), const(0))
    left = solve(make("and", make("lt", j, n), even), "j")
    assert (left.lower, left.upper, left.rest) == (None, n, even)
    exact = solve(make("eq", make("add", j, const(3)), n), "j")
    assert exact.rest is None
    for value in range(10):
        known = {"n": value, "j": value - 3}
        assert evaluate(exact.lower, known) == value - 3  # type: ignore[arg-type]
        assert evaluate(exact.upper, known) == value - 2  # type: ignore[arg-type]


@pytest.mark.parametrize("spelling", [
    lambda j, i: j <= i, lambda j, i: i >= j, lambda j, i: j < i + 1, lambda j, i: i - j >= 0,
    lambda j, i: ~(j > i), lambda j, i: -j >= -i, lambda j, i: ~(i - j < 0),
    lambda j, i: j + 5 <= 2 + i + 3])
def test_ways_to_write_a_mask_give_one_kernel(spelling: Any) -> None:
    plain = lowered(AttentionSpec(heads=1, head_dim=8, mask=lambda b, h, i, j: j <= i))["place"]
    other = lowered(AttentionSpec(heads=1, head_dim=8,
                                  mask=lambda b, h, i, j: spelling(j, i)))["place"]
    assert other.key() == plain.key()


# -- intervals ----------------------------------------------------------------------------------


def random_expression(rng: np.random.Generator, depth: int) -> Node:
    """Index arithmetic over i, an offset and constants."""
    if depth == 0:
        leaves = (idx("i"), idx("i"), param("n"), const(int(rng.integers(-9, 9))))
        return leaves[rng.integers(len(leaves))]
    op = ("add", "sub", "min", "max", "neg", "mul", "floordiv", "where", "mod",
          "abs")[rng.integers(10)]
    a = random_expression(rng, depth - 1)
    b = random_expression(rng, depth - 1)
    if op in ("neg", "abs"):
        return make(op, a)
    if op in ("mul", "floordiv", "mod"):
        factor = int(rng.choice([-5, -2, -1, 1, 2, 3, 7]))
        return make(op, a, const(factor))
    if op == "where":
        return make("where", make("lt", a, const(int(rng.integers(-5, 5)))), a, b)
    return make(op, a, b)


def test_intervals_hold_every_value() -> None:
    rng, bounded, exact = np.random.default_rng(3), 0, 0
    for _ in range(3000):
        node = random_expression(rng, int(rng.integers(1, 4)))
        start, size, n = (int(x) for x in (rng.integers(0, 50), rng.integers(1, 20),
                                           rng.integers(-40, 40)))
        known = {"n": n, "first i": start, "last i": start + size - 1}
        values = evaluate(node, {**known, "i": np.arange(start, start + size)})
        low, high = interval(node, "i")
        if low is not None:
            assert evaluate(low, known) <= np.min(values), node
        if high is not None:
            assert evaluate(high, known) >= np.max(values), node
        if low is not None and high is not None:
            bounded += 1
            exact += bool(evaluate(low, known) == np.min(values)
                          and evaluate(high, known) == np.max(values))
    assert bounded > 2000 and exact > 1500  # and they are not vacuous


def test_interval_of_what_does_not_move_is_itself() -> None:
    n = make("add", param("n"), const(3))
    assert interval(n, "i") == (n, n)
    assert interval(idx("i"), "i") == (first("i"), last("i"))
    low, high = interval(make("mod", idx("i"), param("n")), "i")
    assert (low, high) == (None, None)


def random_condition(rng: np.random.Generator, depth: int) -> Node:
    """Comparisons of index arithmetic, combined."""
    if depth == 0:
        op = ("lt", "le", "eq")[rng.integers(3)]
        return make(op, random_expression(rng, 1), random_expression(rng, 1))
    a = random_condition(rng, depth - 1)
    op = ("and", "or", "not")[rng.integers(3)]
    return make(op, a) if op == "not" else make(op, a, random_condition(rng, depth - 1))


def test_certainty_is_never_mistaken() -> None:
    rng, decided, known = np.random.default_rng(5), 0, 0
    for _ in range(1200):
        node = random_condition(rng, int(rng.integers(0, 3)))
        start, size, n = (int(x) for x in (rng.integers(0, 50), rng.integers(1, 20),
                                           rng.integers(-40, 40)))
        tile_of = {"n": n, "first i": start, "last i": start + size - 1}
        truth = evaluate(node, {**tile_of, "i": np.arange(start, start + size)})
        always, sometimes = certainty(node, "i")
        if always is not None:
            assert not evaluate(always, tile_of) or np.all(truth), node
        if sometimes is not None:
            assert evaluate(sometimes, tile_of) or not np.any(truth), node
        if always is not None and sometimes is not None:
            known += 1
            decided += bool(evaluate(always, tile_of) == np.all(truth)
                            and evaluate(sometimes, tile_of) == np.any(truth))
    assert known > 500 and decided > 400
