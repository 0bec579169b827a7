"""Named masks: which keys a query may see.

A mask is called with ``(b, h, q_idx, kv_idx)`` and is true where the key is visible; i is the
query's position, j the key's. Masks and plain callables of that signature combine with ``& | ~``::

    masks.causal() & (masks.sliding_window(256) | masks.attention_sinks(4))

The masks here are formulas of the positions; those that read tensors are in ``masks_table``.
"""

from __future__ import annotations

import math
from typing import Any

from .combined import MASK_ARGUMENTS as ARGUMENTS
from .combined import Mask, MaskMod, all_of, any_of, none_of
from .combined import per_head_mask as per_head
from .errors import PatternError, UnknownNameError
from .masks_table import (
    block_sparse,
    document,
    from_dense,
    global_tokens,
    padding,
    random_blocks,
    tree,
)
from .patterns import whole
from .tables import wholes

__all__ = ["ARGUMENTS", "NAMED", "Mask", "MaskMod", "all_of", "any_of", "attention_sinks",
           "block_sparse", "causal", "chunked", "dilated_window", "document", "fixed",
           "from_dense", "global_tokens", "neighborhood", "none_of", "padding", "per_head",
           "prefix_lm", "random_blocks", "sliding_window", "strided", "tree"]
PARTS = (None, "local", "stride")


class causal(Mask):
    """No key after the query: j ≤ i."""

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return kv_idx <= q_idx


class sliding_window(Mask):
    """Keys near the query: i − j ≤ l and j − i ≤ r for ``window=(l, r)``.

    ``sliding_window(w)`` is the last w positions, itself included: ``(w − 1, 0)``. Raises
    PatternError for a negative side or w < 1.
    """

    window: int | tuple[int, int]

    def __post_init__(self) -> None:
        window = self.window
        if isinstance(window, tuple | list):
            if len(window) != 2:
                raise PatternError(f"sliding_window{tuple(window)!r} has {len(window)} sides",
                                   remedy="Give (left, right), or one int w for (w - 1, 0).")
            sides = (whole(window[0], "sliding_window", "left", 0),
                     whole(window[1], "sliding_window", "right", 0))
        else:
            sides = (whole(window, "sliding_window", "window", 1) - 1, 0)
        self._put(window=sides)

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        left, right = self.window  # type: ignore[misc]  # a pair since __post_init__
        return (q_idx - kv_idx <= left) & (kv_idx - q_idx <= right)


class prefix_lm(Mask):
    """Causal, but the first n keys are visible to all: j ≤ i or j < n."""

    n: int

    def __post_init__(self) -> None:
        self._put(n=whole(self.n, "prefix_lm", "n", 0))

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return (kv_idx <= q_idx) | (kv_idx < self.n)


class chunked(Mask):
    """Blocks of c positions that see only themselves: ⌊i/c⌋ = ⌊j/c⌋. Not causal."""

    c: int

    def __post_init__(self) -> None:
        self._put(c=whole(self.c, "chunked", "c", 1))

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return q_idx // self.c == kv_idx // self.c


class attention_sinks(Mask):
    """The first n keys: j < n. Made to be combined: ``sliding_window(w) | attention_sinks(4)``."""

    n: int

    def __post_init__(self) -> None:
        self._put(n=whole(self.n, "attention_sinks", "n", 0))

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return kv_idx < self.n


class dilated_window(Mask):
    """n keys to either side, ``step`` apart: |i − j| ≤ n·step and (i − j) mod step = 0."""

    n: int
    step: int

    def __post_init__(self) -> None:
        self._put(n=whole(self.n, "dilated_window", "n", 0))
        self._put(step=whole(self.step, "dilated_window", "step", 1))

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        reach = self.n * self.step
        near = (q_idx - kv_idx <= reach) & (kv_idx - q_idx <= reach)
        return near & ((q_idx - kv_idx) % self.step == 0)


def _check_part(part: str | None, pattern: str) -> None:
    if part not in PARTS:
        raise UnknownNameError("part", str(part), [p for p in PARTS if p], where=pattern)


class strided(Mask):
    """Sparse Transformer's strided pattern: causal and (i − j ≤ l or (i − j) mod l = 0).

    ``part="local"`` keeps only the first of the pair, ``part="stride"`` only the second.
    """

    l: int  # noqa: E741  # the paper's name
    part: str | None = None

    def __post_init__(self) -> None:
        self._put(l=whole(self.l, "strided", "l", 1))
        _check_part(self.part, "strided")

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        distance = q_idx - kv_idx
        local, stride = distance <= self.l, distance % self.l == 0
        return (kv_idx <= q_idx) & _chosen(self.part, local, stride)


class fixed(Mask):
    """Sparse Transformer's fixed pattern: causal and (⌊j/l⌋ = ⌊i/l⌋ or j mod l ≥ l − c).

    ``part="local"`` keeps only the first of the pair, ``part="stride"`` only the second.
    """

    l: int  # noqa: E741  # the paper's name
    c: int
    part: str | None = None

    def __post_init__(self) -> None:
        self._put(l=whole(self.l, "fixed", "l", 1))
        self._put(c=whole(self.c, "fixed", "c", 0))
        if self.c > self.l:
            raise PatternError(f"fixed: c={self.c} summary columns do not fit in blocks of "
                               f"l={self.l}", remedy="Choose c no larger than l.")
        _check_part(self.part, "fixed")

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        local = kv_idx // self.l == q_idx // self.l
        summary = kv_idx % self.l >= self.l - self.c
        return (kv_idx <= q_idx) & _chosen(self.part, local, summary)


def _chosen(part: str | None, local: Any, stride: Any) -> Any:
    return {None: local | stride, "local": local, "stride": stride}[part]


class neighborhood(Mask):
    """A kernel of tokens around each token of a 1-, 2- or 3-dimensional grid, as in NATTEN.

    Token i of a grid ``shape`` lies at its row-major coordinates x(i). It sees j when for each
    dimension of length L, with kernel k and dilation d, and x, y the coordinates of i and j there:

        x mod d = y mod d  and  s ≤ ⌊y/d⌋ < s + k,   s = min(max(⌊x/d⌋ − ⌊k/2⌋, 0), n − k)

    where n = ⌈(L − x mod d)/d⌉ counts the tokens with x's remainder. The window is shifted at the
    borders, not cut: every token sees exactly kᵈⁱᵐˢ tokens. Positions outside the grid are hidden.
    ``kernel`` and ``dilation`` are ints, or one for each dimension. Raises PatternError unless
    1 ≤ k and k·d ≤ L.
    """

    shape: int | tuple[int, ...]
    kernel: int | tuple[int, ...]
    dilation: int | tuple[int, ...] = 1

    def __post_init__(self) -> None:
        shape = self._sizes("shape", None)
        if not 1 <= len(shape) <= 3:
            raise PatternError(f"neighborhood: shape={shape} has {len(shape)} dimensions, "
                               "not 1, 2 or 3")
        kernel, dilation = self._sizes("kernel", len(shape)), self._sizes("dilation", len(shape))
        for size, k, d in zip(shape, kernel, dilation, strict=True):
            if k * d > size:
                raise PatternError(f"neighborhood: kernel {k} with dilation {d} does not fit a "
                                   f"dimension of {size}", numbers=f"{k} * {d} = {k * d} > {size}")
        self._put(shape=shape, kernel=kernel, dilation=dilation)

    def _sizes(self, field: str, count: int | None) -> tuple[int, ...]:
        value = getattr(self, field)
        if not isinstance(value, tuple | list):
            return (whole(value, "neighborhood", field, 1),) * (count or 1)
        sizes = wholes(value, "neighborhood", field, 1)
        if count not in (None, len(sizes)):
            raise PatternError(f"neighborhood: {field}={sizes} has {len(sizes)} entries for "
                               f"{count} dimensions")
        return sizes

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        shape, kernel, dilation = self.shape, self.kernel, self.dilation
        assert isinstance(shape, tuple) and isinstance(kernel, tuple)
        assert isinstance(dilation, tuple)
        tokens = stride = math.prod(shape)
        visible = (q_idx >= 0) & (q_idx < tokens) & (kv_idx >= 0) & (kv_idx < tokens)
        for axis, (size, k, d) in enumerate(zip(shape, kernel, dilation, strict=True)):
            stride //= size
            x, y = (i // stride if stride > 1 else i for i in (q_idx, kv_idx))
            if axis > 0:
                x, y = x % size, y % size
            visible = visible & _near(x, y, size, k, d)
        return visible


def _near(x: Any, y: Any, size: int, kernel: int, dilation: int) -> Any:
    """One dimension of ``neighborhood``, for coordinates inside it. As 0 ≤ y, the bounds of the
    window come apart into comparisons: y ≥ s is y ≥ x − k/2 or y ≥ n − k."""
    group, count = None, size
    if dilation > 1:
        group = x % dilation == y % dilation
        count = (size + dilation - 1 - x % dilation) // dilation
        x, y = x // dilation, y // dilation
    first = x - kernel // 2
    near = ((first <= y) | (count - kernel <= y)) & ((y < first + kernel) | (y < kernel))
    return near if group is None else near & group


NAMED: dict[str, type[Mask]] = {cls.name: cls for cls in (
    all_of, any_of, none_of, per_head, causal, sliding_window, prefix_lm, chunked, attention_sinks,
    dilated_window, strided, fixed, neighborhood, global_tokens, document, padding, tree,
    block_sparse, random_blocks, from_dense)}
