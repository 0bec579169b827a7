"""In which order a grid's blocks start, as ``block_x`` counts fastest.

Blocks with much to do must not come last: the rest of the device would wait for them. Where the
number of tiles a block visits depends on its rows, the rows of all heads that have most to do go
first:

    grid(i/64, h, b)    before: head 0 from its first rows on, then head 1, …
    grid(h, i/64, b)    after: the last rows of every head, then those before, …
"""

from __future__ import annotations

from typing import NamedTuple

from ..ir.node import walk
from ..ir.stmt import Kernel, Loop, Map
from .code import Code


class BlockOrder(NamedTuple):
    """``axes``: what x, y and z of the grid count. ``reversed``: tiles from the last to the
    first."""

    axes: tuple[str, str, str]
    reversed: bool

    def number(self, axis: str) -> Code:
        """A block's number along an axis."""
        return Code(f"block_{'xyz'[self.axes.index(axis)]}()")


def block_order(kernel: Kernel) -> BlockOrder:
    """Where loop bounds follow the rows, later rows have more to do, or as much. What is asked of
    single tiles may give any rows more: those of the first, such as global tokens, go first."""
    bounds = [m for m in kernel.body if isinstance(m, Map) and not m.axes]
    move = any(n.op in ("first", "last") and n.attr("axis") == kernel.keep
               for m in bounds for n in walk(*m.exprs))
    asks = any(isinstance(s, Loop) and s.asks for s in kernel.body)
    if move or asks:
        return BlockOrder(("h", kernel.keep, "b"), move)
    return BlockOrder((kernel.keep, "h", "b"), False)
