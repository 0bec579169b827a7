"""Sheets of a mask: what is proved about any tile, filled in with the numbers of a call.

The proof (``interval.conditions``) gives two conditions on the first and last index of a tile; none
of a call's numbers is in it, so it is kept for other lengths, tiles and values of the same mask. A
*plane* is one batch entry and head. Planes that no condition tells apart share a sheet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from ..errors import VerifyError
from .interval import conditions
from .node import Node, walk
from .ops import SCALAR_OPS
from .sheet import Sheet, Sum, vector
from .tables import TableRange

Array = np.ndarray[Any, Any]
TABLE_OPS = ("table_min", "table_max", "table_bits")
_PLANE, _ROW, _COLUMN = 1, 2, 4  # what a node depends on


class Proof:
    """The conditions "all pairs visible" and "some pair visible" on one tile."""

    def __init__(self, mask: Node) -> None:
        self.full, self.some = conditions(mask, "i", "j", tables="map", coarse=True)
        self.nodes = list(walk(self.full, self.some))
        self.depends: dict[str, int] = {}
        for n in self.nodes:
            own = _PLANE if n.op in ("idx", "param") and n.axes else 0
            if n.op in TABLE_OPS:  # looked up by sheets only
                own = _ROW
            elif n.op in ("first", "last"):
                own = _ROW if n.attr("axis") == "i" else _COLUMN
            for a in n.args:
                own |= self.depends[a.key]
            self.depends[n.key] = own
        self.moduli = frozenset(
            abs(int(n.args[1].attr("value"))) for n in self.nodes
            if n.op in ("mod", "floordiv") and n.args[1].is_const and n.args[1].attr("value"))


@lru_cache(maxsize=64)
def proof_of(mask: Node) -> Proof:
    """Kept for other lengths and values of the same mask."""
    return Proof(mask)


@dataclass(frozen=True)
class Context:
    """What a call brings: numbers (or arrays [batch]) and captured tensors by name, and how many
    heads a plane number counts through."""

    params: Mapping[str, Array]
    tables: Mapping[str, Array]
    heads: int
    _ranges: dict[str, TableRange] = field(default_factory=dict)

    def range(self, name: str) -> TableRange:
        known = self._ranges.get(name)
        if known is None:
            known = self._ranges[name] = TableRange(self.tables[name])
        return known


def numbers(proof: Proof, context: Context, planes: Array) -> dict[str, Array]:
    """By node key, the values on every plane of what depends on the plane alone, or on nothing."""
    out: dict[str, Any] = {}
    for n in proof.nodes:
        if proof.depends[n.key] & ~_PLANE:
            continue
        if n.is_const:
            out[n.key] = n.attr("value")
        elif n.op == "idx":
            out[n.key] = (planes // context.heads if n.attr("axis") == "b"
                          else planes % context.heads)
        elif n.op == "param":
            value = context.params[n.attr("name")].reshape(-1)
            out[n.key] = _typed(value[planes // context.heads] if value.size > 1 else value[0],
                                n.dtype)
        elif n.op == "cast":
            out[n.key] = _typed(out[n.args[0].key], n.dtype)
        else:
            args = [out[a.key] for a in n.args]
            if n.op == "gather":
                args.insert(0, context.tables[n.attr("name")])
            evaluate = SCALAR_OPS[n.op].evaluate if n.op in SCALAR_OPS else None
            if evaluate is None:
                raise VerifyError(f"{n.op} has no meaning in a proof about tiles")
            with np.errstate(all="ignore"):
                out[n.key] = evaluate(*args)
    return out


def _typed(value: Any, dtype: str) -> Any:
    """As a kernel has it, as far as NumPy knows the type; whole numbers in 64 bits."""
    if dtype in ("float32", "float16"):
        return np.asarray(value, dtype)
    wide = {"bool": bool, "float64": float, "bfloat16": float}.get(dtype, np.int64)
    return np.asarray(value, wide)


def alike(proof: Proof, known: Mapping[str, Array], planes: int) -> Array:
    """For each plane the first that has the same sheet."""
    edge = {a.key for n in proof.nodes if proof.depends[n.key] & ~_PLANE for a in n.args}
    edge |= {proof.full.key, proof.some.key}
    told = [np.broadcast_to(known[k], planes) for k in edge
            if proof.depends.get(k) == _PLANE]
    if not told:
        return np.zeros(planes, np.int64)
    met: dict[tuple[Any, ...], int] = {}
    return np.array([met.setdefault(row, plane) for plane, row in enumerate(
        zip(*(t.tolist() for t in told), strict=True))])


def sheet(proof: Proof, context: Context, known: Mapping[str, Array], plane: int,
          leaves: Mapping[tuple[str, str], Array], shape: tuple[int, int]) -> Sheet:
    """Of one plane; ``leaves`` are the values of the first and last indices by (op, axis)."""
    out = Sheet(shape)
    done: dict[str, Sum] = {}

    def number(n: Node) -> Sum:
        value = np.asarray(known[n.key])
        return Sum((value[plane] if value.ndim else value).item())

    needed: dict[str, tuple[Node, ...]] = {}  # nodes, and which operands they are made of here
    waiting = [proof.full, proof.some]
    while waiting:
        n = waiting.pop()
        if n.key not in needed and n.key not in known:
            needed[n.key] = _operands(n, lambda a: number(a).number if a.key in known else None)
            waiting += needed[n.key]
    for n in proof.nodes:
        if n.key not in needed:
            continue
        if len(needed[n.key]) < len(n.args):
            (only,) = needed[n.key]
            done[n.key] = done[only.key] if only.key in done else number(only)
            continue
        if not n.args:
            axis = n.attr("axis")
            done[n.key] = vector(leaves[n.op, axis], "row" if axis == "i" else "col")
            continue
        args = [done[a.key] if a.key in done else number(a) for a in n.args]
        table = context.range(n.attr("name")) if n.op in TABLE_OPS else None
        if table is None and n.op not in SCALAR_OPS:
            raise VerifyError(f"{n.op} has no meaning in a proof about tiles")
        done[n.key] = out.apply(n.op, args, table=table)
    full, some = (done[r.key] if r.key in done else number(r)
                  for r in (proof.full, proof.some))
    return out.finish(full, some)


def _operands(n: Node, value: Callable[[Node], Any]) -> tuple[Node, ...]:
    """The operands of a node, or the one it comes down to, by what the plane's numbers decide."""
    if n.op in ("and", "or"):
        for a, b in (n.args, n.args[::-1]):
            known = value(a)
            if known is not None:
                return (a,) if bool(known) == (n.op == "or") else (b,)
    if n.op == "where" and (chosen := value(n.args[0])) is not None:
        return (n.args[1] if chosen else n.args[2],)
    return n.args
