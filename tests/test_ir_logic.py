"""Boolean normal form: one mask, one graph, however it is written."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from helpers import run_python

import attngen as ag
from attngen.ir.logic import canonical
from attngen.ir.node import Node, const, idx, make

X = [make("lt", idx("i"), const(n)) for n in range(9)]


def near(i: Any, j: Any) -> Any:
    return i - j < 40


SPELLINGS = {
    "causal": [lambda b, h, i, j: i >= j, lambda b, h, i, j: ~(j > i), lambda b, h, i, j: j <= i],
    "sinks": [
        lambda b, h, i, j: (j <= i) & (near(i, j) | (j < 4)),
        lambda b, h, i, j: ((j <= i) & near(i, j)) | ((j < 4) & (j <= i)),
        lambda b, h, i, j: ~((i < j) | (~near(i, j) & ~(j < 4))),
        lambda b, h, i, j: (i >= j) & ((j < 4) | near(i, j) | (near(i, j) & (j == 7))),
    ],
    "neither": [
        lambda b, h, i, j: ~((i == j) | (i % 3 == 0)),
        lambda b, h, i, j: (i != j) & (i % 3 != 0),
    ],
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings_of_one_mask_share_a_kernel(name: str) -> None:
    def text(mask: Any) -> str:
        spec = ag.AttentionSpec(heads=1, head_dim=16, mask=mask)
        return ag.compile(spec, target="sm_80").source()

    assert len({text(mask) for mask in SPELLINGS[name]}) == 1


def value(n: Node, row: dict[Node, bool]) -> bool:
    if n in row:
        return row[n]
    if n.op == "const":
        return bool(n.attr("value"))
    if n.op == "le":  # of integers: not the other way round
        return not row[make("lt", n.args[1], n.args[0])]
    parts = [value(a, row) for a in n.args]
    return {"and": all, "or": any, "not": lambda p: not p[0]}[n.op](parts)


def drawn(rng: random.Random, atoms: list[Node], depth: int) -> Node:
    if depth == 0:
        return rng.choice(atoms)
    if rng.random() < 0.25:
        return make("not", drawn(rng, atoms, depth - 1))
    return make(rng.choice(("and", "or")), drawn(rng, atoms, depth - 1),
                drawn(rng, atoms, depth - 1))


@pytest.mark.parametrize("seed", range(40))
def test_the_normal_form_means_the_same(seed: int) -> None:
    rng = random.Random(seed)
    atoms = X[:rng.randint(1, 5)]
    mask = drawn(rng, atoms, 4)
    form = canonical(mask)
    for row in itertools.product((False, True), repeat=len(atoms)):
        table = dict(zip(atoms, row, strict=True))
        assert value(mask, table) == value(form, table), (mask, form, row)
    assert canonical(form) is form


def test_conjunctions_and_masks_of_many_atoms_stay() -> None:
    plain = make("and", make("and", X[0], X[1]), X[2])
    assert canonical(plain) is plain
    many = X[0]
    for x in X[1:]:
        many = make("or", many, x)
    assert canonical(many) is many


def test_plain_masks_do_not_load_sympy() -> None:
    loaded = run_python("""
import sys, attngen as ag
ag.compile(ag.AttentionSpec(heads=1, head_dim=16, causal=True, window=9), target="sm_80",
           schedule={"warps": 4}).source()
print("sympy" in sys.modules)""")
    assert loaded.strip() == "False"
