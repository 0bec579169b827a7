"""A tile map as text: one character per tile, or per square of tiles where there are many."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .tilemap import TileMap

_MARKS = "·▒█"  # empty, partial, full
_WIDEST, _MOST_PLANES = 64, 8


def draw(tiles: TileMap) -> str:
    """Counts, then a picture for each batch entry and head the map tells apart, the first eight
    at most. A character that stands for several tiles is empty or full where all of them are."""
    m, n = tiles.block
    share = tiles.visited / tiles.tiles if tiles.tiles else 0.0
    lines = [f"{tiles.seqlen_q} queries x {tiles.seqlen_k} keys in tiles of {m} x {n}: "
             f"{tiles.tiles} tiles, {tiles.visited} visited ({share:.1%}), {tiles.full} full"]
    step = max(1, -(-max(tiles.q_tiles, tiles.k_tiles) // _WIDEST))
    lines.append("· empty  ▒ partial  █ full"
                 + (f"; one character is {step} x {step} tiles" if step > 1 else ""))
    planes = tiles.batch * tiles.heads
    for plane in range(min(planes, _MOST_PLANES)):
        if planes > 1:
            lines += ["", f"batch {plane // tiles.heads}, head {plane % tiles.heads}"]
        lines += ["".join(_MARKS[k] for k in row) for row in _picture(tiles, plane, step)]
    if planes > _MOST_PLANES:
        lines += ["", f"and {planes - _MOST_PLANES} more"]
    return "\n".join(lines)


def _picture(tiles: TileMap, plane: int, step: int) -> np.ndarray[Any, Any]:
    """Kinds of squares of step × step tiles."""
    height, width = -(-tiles.q_tiles // step), -(-tiles.k_tiles // step)
    count = np.zeros((2, height, width), np.int64)  # tiles not empty, tiles full
    left = np.arange(width) * step
    for q in range(tiles.q_tiles):
        for begin, end, kind in tiles.row(q, plane // tiles.heads, plane % tiles.heads):
            covered = np.clip(np.minimum(end, left + step) - np.maximum(begin, left), 0, None)
            count[0, q // step] += covered
            if kind == 2:
                count[1, q // step] += covered
    total = np.outer(np.minimum(step, tiles.q_tiles - np.arange(height) * step),
                     np.minimum(step, tiles.k_tiles - left))
    return np.where(count[1] == total, 2, np.where(count[0] > 0, 1, 0))
