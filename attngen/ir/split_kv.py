"""Attention in parts of the keys, which run side by side, and the kernel that joins them.

    lse = lse_j(s);  o = Σ_j exp(s − lse)·v;  …
  →
    of each part:  lse_part = lse over its keys,  o_part = Σ over its keys exp(s − lse_part)·v
    combine:       lse = lse_split(lse_part);  o = Σ_split exp(lse_part − lse)·o_part;  …

What follows lse and o, such as a sink, is computed once, where they are whole. Parts are joined in
order, so results do not depend on which is ready first (Flash-Decoding; ``merge`` is the same
formula). Which keys a part has, is for tiling to say.

Where keys lie in zones (``rolling``) the graph is that of one zone:
    zone → split mod 3;  q where a zone has its own → q[split]

so parts are of the zones in turns, and each zone falls into as many.
"""

from __future__ import annotations

from dataclasses import replace

from ..errors import VerifyError
from . import rolling
from .bounds import extent
from .graph import Graph, Region
from .node import (
    AXES,
    Node,
    const,
    contract,
    idx,
    interning,
    make,
    reduce,
    substitute,
    tensor,
    walk,
)
from .tensor import Tensor

AXIS = "split"


def split_kv(graph: Graph, loop: str = "j") -> Graph:
    """Cut the one region of a forward graph in two. Raises VerifyError for a region that is no
    softmax over ``loop`` with sums weighted by it."""
    (region,) = graph.regions
    zones = rolling.ZONES if rolling.zone() in walk(*region.roots) else 1
    with interning(*region.roots):
        read = tuple(_of_zone(t, zones) for t in graph.tensors)
        parts, whole = _cut(region, replace(graph, tensors=read), loop, zones)
    tensors = (*read, *(t for t, _ in parts.outputs))
    return replace(graph, kernels=(parts, whole), tensors=tensors)


def _of_zone(t: Tensor, zones: int) -> Tensor:
    """``t`` as parts see it: one that lies where a zone says is another for each part."""
    place = tuple((a, substitute(n, _zone(zones))) for a, n in t.place)
    if place == t.place:
        return t
    return replace(t, place=place, view=tuple(sorted((AXIS, *t.seen), key=AXES.index)))


def _zone(zones: int) -> dict[Node, Node]:
    return {rolling.zone(): make("mod", idx(AXIS), const(zones), origin="zone")}


def _cut(region: Region, graph: Graph, loop: str, zones: int) -> tuple[Region, Region]:
    over = [n for n in walk(*region.roots) if dict(n.attrs).get("over") == loop]
    lse = next((n for n in over if n.op == "reduce" and n.attr("kind") == "lse"), None)
    sums = [n for n in over if n.op == "contract"]
    if lse is None or len(over) != 1 + len(sums) or any(lse not in walk(n) for n in sums):
        raise VerifyError(f"{region.name} cannot be split along {loop}: it takes more than the "
                          "log-sum-exp of scores and sums weighted by exp(score - lse)")
    own = make("of_part", idx(loop), idx(AXIS), axes=(loop, AXIS), dtype="bool", origin=AXIS,
               zones=zones)
    table = _zone(zones)
    own_of = {n: make("visible", make("and", substitute(n.args[0], table), own), origin=n.origin)
              for n in walk(*region.roots) if n.op == "visible"}
    own_of |= table
    own_of |= {n: tensor(t.name, t.seen, t.dtype) for n in walk(*region.roots) if n.op == "input"
               for t in (graph.tensor(n.attr("name")),) if AXIS in t.seen}
    like = next(t for t, n in region.outputs if {"i", "row"} & set(n.axes))
    outputs: list[tuple[Tensor, Node]] = []
    loaded: dict[Node, Node] = {}
    for n in (lse, *sums):
        name = f"{n.origin}_part"
        split = tuple(a for x in n.axes for a in ((AXIS, x) if x in ("i", "row") else (x,)))
        stored = tuple({"row": "i", "g": "h"}.get(a, a) for a in split) if like.place else split
        part = Tensor(name, stored, n.dtype, "workspace", view=split if like.place else (),
                      place=like.place)
        outputs.append((part, _in_part(n, own_of)))
        loaded[n] = tensor(name, part.seen, n.dtype)
    parts = loaded.pop(lse)
    joined = {lse: reduce("lse", parts, AXIS, origin=lse.origin)}
    weight = make("exp", make("sub", parts, make("finite_or_zero", joined[lse])), origin="weight")
    for n, load in loaded.items():
        joined[n] = contract(weight, load, AXIS, n.dtype, origin=n.origin)
    roots = tuple(substitute(r, joined) for r in region.roots)
    return (Region(f"{region.name}_parts", tuple(outputs)),
            Region("combine", region.with_roots(roots).outputs, loop=AXIS))


def part_of(roots: tuple[Node, ...]) -> tuple[Node, Node]:
    """The number of a block's part among those of its zone, and how many these are."""
    zones = next(n.attr("zones") for n in walk(*roots) if n.op == "of_part")
    part, parts = idx(AXIS), extent(AXIS)
    if zones == 1:
        return part, parts
    return make("floordiv", part, const(zones)), make("floordiv", parts, const(zones))


def without_parts(roots: tuple[Node, ...]) -> tuple[Node, ...]:
    """The same for all keys: whose parts they are is in the tiles a kernel visits."""
    table = {}
    for n in walk(*roots):
        if n.op == "visible" and any(m.op == "of_part" for m in n.args[0].args):
            mask, = (m for m in n.args[0].args if m.op != "of_part")
            table[n] = make("visible", mask, origin=n.origin)
    return tuple(substitute(r, table) for r in roots)


def _in_part(root: Node, own_of: dict[Node, Node]) -> Node:
    """``root`` for the keys of one part: what depends on a part's own masks and queries gains the
    axis."""
    done: dict[str, Node] = {}
    for n in walk(root):
        args = tuple(done[a.key] for a in n.args)
        if n in own_of:
            done[n.key] = own_of[n]
        elif args == n.args:
            done[n.key] = n
        else:
            axes = {*n.axes, *(a for x in args for a in x.axes if a == AXIS)}
            done[n.key] = make(n.op, *args, axes=axes, dtype=n.dtype, origin=n.origin,
                               **dict(n.attrs))
    return done[root.key]
