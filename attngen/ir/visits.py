"""Which tiles of its range a loop visits, and which of those are full.

What a mask says beyond bounds on the loop index is decided tile by tile, by interval arithmetic
over both tiles:

    (i − j) mod 256 < 8   →   Loop j in [n_begin, n_end) where <the differences of this tile reach
                              a residue below 8> full where <none of them is another>
"""

from __future__ import annotations

from dataclasses import dataclass

from .interval import certainty
from .node import Node
from .ranges import Bounds


@dataclass(frozen=True)
class Visits:
    """Conditions on one tile of the loop axis and one of the kept axis; None: true of all in the
    range. ``settled`` is false where no tile can be known to be full."""

    visible: Node | None
    full: Node | None
    settled: bool


def visits(bounds: Bounds, axis: str, keep: str, all_tiles: bool = False) -> Visits:
    """The conditions that remain for each tile in the range that ``bounds`` give.

    ``all_tiles`` as for ``ranges.tile_range``: every tile is visited.
    """
    if bounds.rest is None or axis not in bounds.rest.axes:
        return Visits(None, None, True)
    always, sometimes = certainty(bounds.rest, keep, axis, tables="kernel")
    if all_tiles or sometimes is None:
        visible = None
    else:  # together with the bounds it may exclude more
        _, visible = certainty(bounds.predicate(axis), keep, axis, tables="kernel")
    return Visits(visible, always, always is not None)
