"""What a kernel knows of a captured tensor: the least and greatest entry of every block of 64 along
its last dimension, a table of its own (``<name>_per_64``) that it looks up once per tile.

    document[q] == document[k]      can hold in the tile only if the ranges meet:
    table_min(document, k0, k1)     before: the least entry between two indices, an op of proofs
    min(document_per_64[k0 / 64, 0], …)     after: at most MOST_BLOCKS entries of the summary
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .node import Node, walk
from .ops import PROOF_OPS
from .tensor import Table

Array = np.ndarray[Any, Any]
BLOCK = 64
MOST_BLOCKS = 4  # a kernel that would have to look at more takes anything to be possible
# A block with an entry beyond FAR is taken to hold anything between ±UNKNOWN: 64-bit sums and small
# multiples of these do not overflow.
FAR, UNKNOWN = 1 << 40, 1 << 50


def summary(table: Array) -> Array:
    """int64 [..., blocks, 2]: the least and greatest entry of every block of the last dimension.
    An empty table counts as one of a zero: kernels look something up before they know."""
    values = table.astype(np.int64)
    if not values.size:
        values = np.zeros([max(n, 1) for n in values.shape], np.int64)
    starts = np.arange(0, values.shape[-1], BLOCK)
    out = np.stack([np.minimum.reduceat(values, starts, axis=-1),
                    np.maximum.reduceat(values, starts, axis=-1)], axis=-1)
    out[(out[..., 0] < -FAR) | (out[..., 1] > FAR)] = -UNKNOWN, UNKNOWN
    return out


def bound(op: str, blocks: Array, length: int, leading: list[Any], low: Any, high: Any) -> Array:
    """``op`` (table_min or table_max) of ``table[leading, low … high]``, as kernels compute it from
    ``blocks``, the table's summary, and ``length``, its last dimension. Entries outside of the
    table are 0."""
    which, pick = (0, np.minimum) if op == "table_min" else (1, np.maximum)
    low, high, *leading = np.broadcast_arrays(low, high, *leading)
    last = max(length - 1, 0)
    begin = np.clip(low, 0, last) // BLOCK
    count = np.maximum(np.clip(high, 0, last) // BLOCK - begin, 0) + 1
    inside = np.ones(low.shape, bool)
    for x, n in zip(leading, blocks.shape, strict=False):
        inside = inside & (x >= 0) & (x < n)
    where = tuple(np.clip(x, 0, n - 1) for x, n in zip(leading, blocks.shape, strict=False))
    found = blocks[(*where, begin, which)]
    for n in range(1, MOST_BLOCKS):
        found = pick(found, blocks[(*where, begin + np.minimum(n, count - 1), which)])
    found = np.where(count > MOST_BLOCKS, (-UNKNOWN, UNKNOWN)[which], found)
    found = np.where((low < 0) | (high >= length), pick(found, 0), found)
    return np.where(inside, found, 0)


def summarised(*roots: Node) -> tuple[str, ...]:
    """Names of the captured tensors of which expressions ask the least or greatest entry."""
    return tuple(dict.fromkeys(n.attr("name") for n in walk(*roots) if n.op in PROOF_OPS))


def summary_of(table: Table) -> Table:
    """The summary of a captured tensor, as a table of its own."""
    return Table(f"{table.name}_per_64", "int64", table.ndim + 1, table.name)
