"""Reductions along a loop as accumulators: what starts them, rescales them and adds to them.

    l = Σ_j e, relative to m   →   Fill l 0;  Loop j: …; l = l·α; l += Σ e       (tiles of j)
    l = Σ_split w, likewise    →   Fill l 0;  Loop split: …; l = l·α; l = l + w  (one at a time)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .node import Node, make, value
from .stmt import Fill, Map, Mma, Reduce
from .stream import rescale_factor

if TYPE_CHECKING:
    from .lower import Lowering


def accumulate(low: Lowering, n: Node) -> None:
    """One reduction along the loop: its accumulator, its rescaling, its update."""
    body = low.bodies[low.current]
    name = low.running.get(n.key) or low.new(n.origin or "acc", n)
    kind = n.attr("kind") if n.op == "reduce" else "sum"
    low.outer.setdefault(low.current, []).append(
        Fill(name, float("-inf") if kind == "max" else 0.0, origin=n.origin))
    low.kept[n.key] = name
    if n.op in ("contract", "stream_contract") and not low.serial:
        a, b = low.operands(n.args[0], n.args[1])
        _rescale(low, n, name)
        body.append(Mma(name, a, b, low.loop, True, origin=n.origin))
        return
    terms = n.args[:2] if n.op in ("contract", "stream_contract") else n.args[:1]
    sources = [low.emit(x) for x in terms]
    _rescale(low, n, name)
    if n.key in low.running:
        previous = low.new(f"{name}_prev", n)
        low.local[f"previous {name}"] = previous
        leaf = value(name, n.axes, n.dtype)
        body.append(Map((previous,), (leaf,), low.tile_axes(n), origin=n.origin))
    if not low.serial:
        body.append(Reduce(name, kind, sources[0], low.loop, True, origin=n.origin))
        return
    term, *rest = (value(s, x.axes, x.dtype) for s, x in zip(sources, terms, strict=True))
    for factor in rest:
        term = make("mul", term, factor)
    update = make("max" if kind == "max" else "add", value(name, n.axes, n.dtype), term)
    body.append(Map((name,), (update,), low.tile_axes(n), origin=n.origin))


def _rescale(low: Lowering, n: Node, name: str) -> None:
    """acc → acc · exp2(m_prev·c − m·c) when the running maximum moved."""
    if not n.op.startswith("stream_"):
        return
    top = low.running[n.args[-1].key]
    leaf = value(top, n.args[-1].axes, n.args[-1].dtype)
    previous = value(low.local[f"previous {top}"], leaf.axes, leaf.dtype)
    factor = rescale_factor(n, leaf, previous)
    alpha = low.emit(factor, "alpha")
    acc = value(name, n.axes, n.dtype)
    scaled = make("mul", acc, value(alpha, factor.axes, factor.dtype))
    low.bodies[low.current].append(Map((name,), (scaled,), low.tile_axes(n), origin=n.origin))
