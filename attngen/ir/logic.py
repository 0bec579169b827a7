"""Boolean canonical form: masks that say the same get the same graph, and share one kernel.

    (a ∧ b) ∨ (a ∧ c)   →   a ∧ (b ∨ c)
    ¬(a ∨ j > i)        →   ¬a ∧ j ≤ i

A mask is a function of its *atoms*: comparisons, tables of conditions, whatever is no ∧ ∨ ¬. Its
truth table over them, in the order of their keys, determines the minimal sum of products and the
minimal product of sums (Quine-McCluskey, sympy's); the shorter is taken, the product when they are
equal, since conjuncts are what closed-form tile ranges are made of. A plain conjunction is in that
form already and is left alone, and so is a mask of too many atoms.
"""

from __future__ import annotations

from itertools import product
from typing import Any

from .node import Node, const, make
from .ops import FLOATS

_MOST_ATOMS = 7
_MOST_LITERALS = 4  # per atom: what is longer (exclusive or of many) is kept as written
_LOGIC = ("and", "or", "not")


def canonical(mask: Node) -> Node:
    """The canonical form of a condition. Equal functions of equal atoms give the same node."""
    if not any(n.op in ("or", "not") for n in _connectives(mask)):
        return mask
    atoms = _atoms(mask)
    if len(atoms) > _MOST_ATOMS:
        return mask
    from sympy import Symbol
    from sympy.logic.boolalg import POSform, SOPform

    symbols = [Symbol(f"a{n}") for n in range(len(atoms))]
    known = dict(zip((f"a{n}" for n in range(len(atoms))), atoms, strict=True))
    rows = list(product((0, 1), repeat=len(atoms)))
    true = [list(row) for row in rows if _value(mask, dict(zip(atoms, row, strict=True)))]
    forms = [form(symbols, true) for form in (POSform, SOPform)]
    best = min(forms, key=_literals)
    return _node(best, known) if _literals(best) <= _MOST_LITERALS * len(atoms) else mask


def normal_form(n: Node) -> Node | None:
    """visible(mask) → visible(its canonical form), as a rule of ``canonicalise``"""
    if n.op != "visible":
        return None
    mask = canonical(n.args[0])
    return None if mask is n.args[0] else make("visible", mask, axes=n.axes, dtype="bool",
                                               origin=n.origin)


def _connectives(mask: Node) -> list[Node]:
    """The ∧ ∨ ¬ at the top of a condition, down to its atoms."""
    found, stack = [], [mask]
    while stack:
        n = stack.pop()
        if n.op in _LOGIC:
            found.append(n)
            stack += n.args
    return found


def _atoms(mask: Node) -> list[Node]:
    """What the connectives connect, each once, in an order of its own."""
    found = {_positive(a)[0] for n in _connectives(mask) for a in n.args if a.op not in _LOGIC}
    return sorted(found, key=lambda n: n.key)


def _positive(n: Node) -> tuple[Node, bool]:
    """An atom and whether ``n`` is it or its negation: a ≤ b is ¬(b < a), for integers, since a
    NaN is neither."""
    if n.op == "ne":
        return make("eq", *n.args, origin=n.origin), False
    if n.op == "le" and not any(a.dtype in FLOATS for a in n.args):
        return make("lt", n.args[1], n.args[0], origin=n.origin), False
    return n, True


def _value(mask: Node, row: dict[Node, int]) -> bool:
    known: dict[Node, bool] = {}
    stack = [mask]
    while stack:
        n = stack[-1]
        if n.op not in _LOGIC:
            atom, sign = _positive(n)
            known[n] = bool(row[atom]) == sign
        elif missing := [a for a in n.args if a not in known]:
            stack += missing
            continue
        else:
            parts = [known[a] for a in n.args]
            known[n] = (not parts[0] if n.op == "not" else
                        all(parts) if n.op == "and" else any(parts))
        stack.pop()
    return known[mask]


def _literals(form: Any) -> int:
    return sum(_literals(a) for a in form.args) if form.args else 1


def _node(form: Any, known: dict[str, Node]) -> Node:
    from sympy import And, Not, Or, Symbol

    if isinstance(form, Not):
        inner = known[str(form.args[0])]
        if inner.op == "lt" and not any(a.dtype in FLOATS for a in inner.args):
            return make("le", inner.args[1], inner.args[0], origin=inner.origin)
        if inner.op == "eq":
            return make("ne", *inner.args, origin=inner.origin)
        return make("not", inner)
    if isinstance(form, And | Or):
        parts = sorted((_node(a, known) for a in form.args), key=lambda n: n.key)
        out = parts[0]
        for part in parts[1:]:
            out = make("and" if isinstance(form, And) else "or", out, part)
        return out
    return known[form.name] if isinstance(form, Symbol) else const(bool(form))
