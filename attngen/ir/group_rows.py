"""Heads that share keys and values become rows of one tile: what is read once serves all of them.

    h → g·n + row mod n,   i → row // n
    q[b,h,i,d] → q[b,g,row,d],   by_head(k)[b,h,j,d] → k[b,g,j,d]

for n query heads a key/value head. Masks must not tell the heads of a group apart, as tiles are
visited for all rows together.
"""

from __future__ import annotations

from dataclasses import replace

from .graph import Graph
from .node import Node, const, idx, interning, make, tensor, walk
from .tensor import Tensor


def group_size(graph: Graph) -> int:
    """How many query heads the rows of a tile can be of: 1 where groups are of different sizes, or
    where what is visible depends on the head."""
    heads = next((t.by_head for t in graph.tensors if t.by_head), (0,))
    groups = max(heads) + 1
    size = len(heads) // groups
    if heads != tuple(h // size for h in range(len(heads))):
        return 1
    masks = [n for r in graph.regions for n in walk(*r.roots) if n.op == "visible"]
    return 1 if any("h" in n.axes for n in masks) else size


def group_rows(graph: Graph) -> Graph:
    """The math graph with all query heads of a group in its rows; the same where ``group_size`` is
    1."""
    size = group_size(graph)
    if size == 1:
        return graph
    row, heads = idx("row"), const(size)
    instead = {
        idx("i"): make("floordiv", row, heads, origin="i"),
        idx("h"): make("add", make("mul", idx("g"), heads), make("mod", row, heads), origin="h")}
    tensors = {t.name: _seen(t, instead) for t in graph.tensors}
    regions = []
    for region in graph.regions:
        with interning(*region.roots):
            roots = _grouped(region.roots, tensors, instead)
        outputs = tuple((tensors[t.name], n) for (t, _), n in zip(region.outputs, roots,
                                                                    strict=True))
        regions.append(replace(region, outputs=outputs))
    return replace(graph.with_regions(tuple(regions)), tensors=tuple(tensors.values()))


def _seen(t: Tensor, instead: dict[Node, Node]) -> Tensor:
    """The tensor by key/value head, and by row where it has queries."""
    t = replace(t, by_head=None)
    if not {"h", "i"} <= set(t.axes):
        return t
    view = tuple({"h": "g", "i": "row"}.get(a, a) for a in t.seen)
    return replace(t, view=view, place=(*t.place, *((a, instead[idx(a)]) for a in ("h", "i"))))


def _grouped(roots: tuple[Node, ...], tensors: dict[str, Tensor], instead: dict[Node, Node]
             ) -> tuple[Node, ...]:
    done: dict[str, Node] = {}
    for n in walk(*roots):
        args = [done[a.key] for a in n.args]
        if n in instead:
            new = instead[n]
        elif n.op == "input":
            new = tensor(n.attr("name"), tensors[n.attr("name")].seen, n.dtype)
        elif n.op == "by_head":
            new = args[0]
        elif not args and n.op != "gather":
            new = n
        else:
            axes = {a for x in args for a in x.axes} - {dict(n.attrs).get("over")}
            new = make(n.op, *args, axes=axes, dtype=n.dtype, origin=n.origin, **dict(n.attrs))
        done[n.key] = new
    return tuple(done[r.key] for r in roots)
