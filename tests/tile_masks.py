"""Masks for tests of tile proofs: random conditions, and the truth about tiles counted out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from attngen.ir.node import Node, const, gather, idx, make, param, walk
from attngen.ir.ops import SCALAR_OPS

Array = np.ndarray[Any, Any]


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


def number(rng: np.random.Generator, depth: int) -> Node:
    """Index arithmetic over i, j, h, a parameter and constants."""
    if depth == 0:
        leaves = (idx("i"), idx("j"), idx("i"), idx("j"), make("sub", idx("i"), idx("j")),
                  idx("h"), param("n"), const(int(rng.integers(-20, 60))))
        return leaves[rng.integers(len(leaves))]
    op = ("add", "sub", "mul", "floordiv", "mod", "abs", "min", "max")[rng.integers(8)]
    a = number(rng, depth - 1)
    if op == "abs":
        return make(op, a)
    if op in ("mul", "floordiv", "mod"):
        return make(op, a, const(int(rng.choice([-3, -1, 2, 3, 5, 8, 16, 24, 40]))))
    return make(op, a, number(rng, depth - 1))


def condition(rng: np.random.Generator, depth: int) -> Node:
    """Comparisons of index arithmetic, combined."""
    if depth == 0:
        op = ("lt", "le", "lt", "le", "eq", "ne")[rng.integers(6)]
        return make(op, number(rng, int(rng.integers(0, 3))), number(rng, int(rng.integers(0, 2))))
    op = ("and", "or", "and", "or", "not")[rng.integers(5)]
    a = condition(rng, depth - 1)
    return make("not", a) if op == "not" else make(op, a, condition(rng, depth - 1))


def evaluate(node: Node, leaves: Mapping[Node, Any], params: Mapping[str, Any],
             tables: Mapping[str, Array] | None = None) -> Any:
    """The value of an expression: indices and tile bounds by node, parameters and tables by
    name."""
    done: dict[str, Any] = {}
    for n in walk(node):
        args = [done[a.key] for a in n.args]
        if n in leaves:
            done[n.key] = leaves[n]
        elif n.op == "const":
            done[n.key] = n.attr("value")
        elif n.op == "param":
            done[n.key] = params[n.attr("name")]
        elif n.op == "gather":
            table = (tables or {})[n.attr("name")]
            inside: Any = True
            for x, size in zip(args, table.shape, strict=True):
                inside = inside & (x >= 0) & (x < size)
            clipped = tuple(np.clip(x, 0, s - 1) for x, s in zip(args, table.shape, strict=True))
            done[n.key] = np.where(inside, table[clipped], 0)
        else:
            row = SCALAR_OPS[n.op].evaluate
            assert row is not None
            done[n.key] = row(*args)
    return done[node.key]


def visible(mask: Node, seqlen_q: int, seqlen_k: int, heads: int, params: Mapping[str, Any],
            tables: Mapping[str, Array] | None = None, batch: int = 1) -> Array:
    """bool [batch, heads, seqlen_q, seqlen_k]; params are numbers or arrays [batch]."""
    leaves = {idx("b"): np.arange(batch)[:, None, None, None],
              idx("h"): np.arange(heads)[None, :, None, None],
              idx("i"): np.arange(seqlen_q)[:, None], idx("j"): np.arange(seqlen_k)}
    spread = {k: v if np.ndim(v) == 0 else np.reshape(v, (-1, 1, 1, 1)) for k, v in params.items()}
    return np.broadcast_to(evaluate(mask, leaves, spread, tables),
                           (batch, heads, seqlen_q, seqlen_k))


def kinds(seen: Array, block: tuple[int, int]) -> Array:
    """int8 [..., q_tiles, k_tiles] counted pair by pair: 0 empty, 1 partial, 2 full. A tile that
    reaches beyond the keys is full when the keys there are visible too, so ``seen`` has to
    cover whole tiles of keys."""
    m, n = block
    rows = np.arange(0, seen.shape[-2], m)
    columns = np.arange(0, seen.shape[-1], n)
    some = np.logical_or.reduceat(np.logical_or.reduceat(seen, rows, -2), columns, -1)
    every = np.logical_and.reduceat(np.logical_and.reduceat(seen, rows, -2), columns, -1)
    return some.astype(np.int8) + every


def document(name: str = "ids") -> Node:
    """Both positions carry the same number."""
    return make("eq", gather(name, [idx("i")], "int32"), gather(name, [idx("j")], "int32"))
