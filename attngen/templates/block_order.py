"""In which order a grid's blocks start, as ``block_x`` counts fastest.

Blocks with much to do must not come last: the rest of the device would wait for them. Where the
number of tiles a block visits depends on its rows, the rows of all heads that have most to do go
first:

    grid(i/64, h, b)    before: head 0 from its first rows on, then head 1, …
    grid(h, i/64, b)    after: the last rows of every head, then those before, …

Parts of the keys are counted with the rows, x = rows · num_splits + split.
"""

from __future__ import annotations

from typing import NamedTuple

from ..ir.node import walk
from ..ir.stmt import Kernel, Loop, Map
from .code import Code


class BlockOrder(NamedTuple):
    """``axes``: what x, y and z of the grid count. ``reversed``: tiles from the last to the
    first. ``split``: x counts parts of the keys, too."""

    axes: tuple[str, str, str]
    reversed: bool
    split: bool = False

    def number(self, axis: str) -> Code:
        """A block's number along an axis, "split" among them."""
        if axis == "split":
            return Code("block_x() % params.num_splits")
        place = "xyz"[self.axes.index(axis)]
        return Code(f"block_{place}()" + (" / params.num_splits" if self.split and place == "x"
                                          else ""))


def block_order(kernel: Kernel) -> BlockOrder:
    """Where loop bounds follow the rows, later rows have more to do, or as much. What is asked of
    single tiles may give any rows more: those of the first, such as global tokens, go first."""
    bounds = [m for m in kernel.body if isinstance(m, Map) and not m.axes]
    move = any(n.op in ("first", "last") and n.attr("axis") == kernel.keep
               for m in bounds for n in walk(*m.exprs))
    asks = any(isinstance(s, Loop) and s.asks for s in kernel.body)
    if kernel.split:
        return BlockOrder((kernel.keep, kernel.head, "b"), False, True)
    if move or asks:
        return BlockOrder((kernel.head, kernel.keep, "b"), move)
    return BlockOrder((kernel.keep, kernel.head, "b"), False)
