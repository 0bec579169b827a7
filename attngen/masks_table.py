"""Named masks that read tensors. What a tensor holds is read at each call, so a mask stays right
when its tensor is written to; tables worked out from the arguments are made once.

An index outside a tensor reads 0 (false), on every target.
"""

from __future__ import annotations

from typing import Any, ClassVar

from .combined import Mask
from .errors import PatternError
from .functions import take, take_broadcast
from .patterns import is_tensor, whole
from .tables import BOOL, INTEGERS, as_table, check_size, made, wholes

FEW = 8  # so many comparisons cost no more than reading a table


class global_tokens(Mask):
    """Global tokens see all and are seen by all: i ∈ G or j ∈ G (Longformer, ETC).

    ``global_tokens(n)`` is the first n: i < n or j < n. A sequence or integer tensor lists the
    positions G, each at least 0, and is read once. A bool tensor [N] or [batch, N] marks them and
    is read at each call.
    """

    tokens: Any
    _table: ClassVar[Any]

    def __post_init__(self) -> None:
        tokens = self.tokens
        if is_tensor(tokens) and str(tokens.dtype) == "torch.bool":
            self._put(tokens=as_table(tokens, self.name, "tokens", BOOL, (1, 2)), _table=tokens)
        elif is_tensor(tokens) or hasattr(tokens, "__iter__"):
            listed = tuple(sorted(set(wholes(tokens, self.name, "tokens", 0))))
            self._put(tokens=listed, _table=_marks(listed) if len(listed) > FEW else None)
        else:
            self._put(tokens=whole(tokens, self.name, "tokens", 0))

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        if isinstance(self.tokens, int):
            return (q_idx < self.tokens) | (kv_idx < self.tokens)
        if self._table is not None:
            return take_broadcast(self._table, b, q_idx) | take_broadcast(self._table, b, kv_idx)
        if not self.tokens:
            return (q_idx != q_idx) | (kv_idx != kv_idx)  # nothing, in the shape of both
        visible: Any = None
        for token in self.tokens:
            here = (q_idx == token) | (kv_idx == token)
            visible = here if visible is None else visible | here
        return visible


def _marks(positions: tuple[int, ...]) -> Any:
    """Bool [largest + 1], true at the positions (ascending)."""
    import torch

    marks = torch.zeros(positions[-1] + 1, dtype=torch.bool)
    marks[list(positions)] = True
    return made(marks)


class document(Mask):
    """Documents packed into one sequence see only themselves: ids[i] = ids[j]. Not causal.

    ``ids`` holds integers of any type, [N] or [batch, N]. A position outside the tensor has id 0:
    where a sequence may go on past its ids, number the documents from 1.
    """

    ids: Any

    def __post_init__(self) -> None:
        self._put(ids=as_table(self.ids, self.name, "ids", INTEGERS, (1, 2)))

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return take_broadcast(self.ids, b, q_idx) == take_broadcast(self.ids, b, kv_idx)


class padding(Mask):
    """Keys that are padding are hidden. ``keep`` is either lengths, integers [batch]: j < keep[b],
    or marks, bool [batch, N]: keep[b, j], and hidden beyond N."""

    keep: Any

    def __post_init__(self) -> None:
        keep = as_table(self.keep, self.name, "keep", (*INTEGERS, *BOOL), (1, 2))
        marks = str(keep.dtype) == "torch.bool"
        if keep.ndim != (2 if marks else 1):
            raise PatternError(f"padding: {'bool' if marks else 'integer'} keep of shape "
                               f"{list(keep.shape)}",
                               remedy="Give lengths, integers [batch], or bool [batch, N].")
        self._put(keep=keep)

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        if self.keep.ndim == 1:
            return kv_idx < take_broadcast(self.keep, b)
        return take_broadcast(self.keep, b, kv_idx)


class tree(Mask):
    """A tree of tokens, as in speculative decoding: i sees itself and its ancestors.

    ``parents[i]`` is the parent of token i, −1 for a root; a sequence or 1-dimensional tensor, read
    once. Positions outside it see nothing and are hidden. With a context before the tree, pass
    ``q_offset=0, kv_offset=-len(context)`` and write ``tree(parents) | attention_sinks(0)``: the
    keys before position 0 are visible to all. Raises PatternError for a parent that does not exist
    and for a circle.
    """

    parents: Any
    _first: ClassVar[Any]
    _last: ClassVar[Any]

    def __post_init__(self) -> None:
        parents = wholes(self.parents, self.name, "parents", -1)
        for token, parent in enumerate(parents):
            if parent >= len(parents):
                raise PatternError(f"tree: token {token} has the parent {parent}, there are "
                                   f"{len(parents)} tokens", remedy="A root's parent is -1.")
        device = self.parents.device if is_tensor(self.parents) else None
        first, last = _intervals(parents, device)
        self._put(parents=parents, _first=first, _last=last)

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        own = take(self._first, q_idx)
        return (take(self._first, kv_idx) <= own) & (own < take(self._last, kv_idx))


def _intervals(parents: tuple[int, ...], device: Any) -> tuple[Any, Any]:
    """Two int32 [n]: the number of each token in a walk of the tree, from 1, and one past the
    largest number below it. j is i or above it exactly when first[j] ≤ first[i] < last[j]."""
    import torch

    children: list[list[int]] = [[] for _ in range(len(parents) + 1)]
    for token, parent in enumerate(parents):
        children[parent].append(token)  # those of -1 come last
    first, last = [0] * len(parents), [0] * len(parents)
    count, stack = 1, [(root, False) for root in reversed(children[-1])]
    while stack:
        token, done = stack.pop()
        if done:
            last[token] = count
        else:
            first[token], count = count, count + 1
            stack += [(token, True), *((c, False) for c in reversed(children[token]))]
    if 0 in first:
        raise PatternError(f"tree: token {first.index(0)} is its own ancestor, or below one that "
                           "is", remedy="Every token must lead to a root, whose parent is -1.")
    return (made(torch.tensor(first, dtype=torch.int32, device=device)),
            made(torch.tensor(last, dtype=torch.int32, device=device)))


class block_sparse(Mask):
    """Blocks of positions chosen one by one: layout[⌊i/block⌋, ⌊j/block⌋].

    ``layout`` is bool [nq, nk], [heads, nq, nk] or [batch, heads, nq, nk], where heads and batch
    may be 1 for all alike. Positions outside it see nothing and are hidden.
    """

    layout: Any
    block: int

    def __post_init__(self) -> None:
        self._put(layout=as_table(self.layout, self.name, "layout", BOOL, (2, 3, 4)),
                  block=whole(self.block, self.name, "block", 1))

    def for_heads(self, heads: int) -> block_sparse:
        if self.layout.ndim > 2:
            check_size(self.layout.shape[-3], heads, "the layout of block_sparse", "heads")
        return self

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        lead = [0 if size == 1 else i for i, size in
                zip((b, h)[4 - self.layout.ndim:], self.layout.shape[:-2], strict=True)]
        return take(self.layout, *lead, q_idx // self.block, kv_idx // self.block)


class random_blocks(Mask):
    """BigBird's pattern over blocks of ``block`` positions: near, global and random blocks.

    Block r = ⌊i/block⌋ of queries sees block c = ⌊j/block⌋ of keys, both of the n = ⌈seqlen/block⌉
    there are, when |r − c| ≤ ⌊window/2⌋, or r < global_blocks or c < global_blocks, or c is among
    the ``num_blocks`` random ones of r: those of the blocks not seen so far with the smallest
    mix(n²·seed + n·r + c), where mix is the finaliser of SplitMix64 (all modulo 2⁶⁴). Positions
    outside these n blocks see nothing and are hidden.
    """

    block: int
    num_blocks: int
    window: int = 3
    global_blocks: int = 1
    seed: int = 0
    seqlen: int = 4096
    _layout: ClassVar[Any]

    def __post_init__(self) -> None:
        for field, low in (("block", 1), ("num_blocks", 0), ("window", 0), ("global_blocks", 0),
                           ("seed", 0), ("seqlen", 1)):
            self._put(**{field: whole(getattr(self, field), self.name, field, low)})
        if self.seed >= 1 << 32:
            raise PatternError(f"random_blocks: seed {self.seed} has more than 32 bits")
        self._put(_layout=self._blocks())

    def _blocks(self) -> Any:
        """Bool [n, n]."""
        import numpy as np
        import torch

        n = -(-self.seqlen // self.block)
        row, column = np.arange(n)[:, None], np.arange(n)[None, :]
        seen = (abs(row - column) <= self.window // 2) | (row < self.global_blocks) | (
            column < self.global_blocks)
        number = np.uint64(n * n * self.seed % 2**64) + (n * row + column).astype(np.uint64)
        rank = np.where(seen, np.uint64(2**64 - 1), _mix(number)).argsort(1, kind="stable")
        picked = np.zeros((n, n), bool)
        np.put_along_axis(picked, rank[:, :self.num_blocks], True, 1)
        return made(torch.from_numpy(seen | picked))

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return take(self._layout, q_idx // self.block, kv_idx // self.block)


def _mix(x: Any) -> Any:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014), on uint64 arrays."""
    import numpy as np

    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class from_dense(Mask):
    """Any mask, written out: mask[b, h, i, j], bool [Nq, Nk] with heads and batch before them.

    A dimension of size 1 is the same for all. Where Nq and Nk differ, the last row is the query
    of the last key, as in a call with default offsets: row i − (Nk − Nq). Positions outside see
    nothing and are hidden.
    """

    mask: Any

    def __post_init__(self) -> None:
        self._put(mask=as_table(self.mask, self.name, "mask", BOOL, (2, 3, 4)))

    def for_heads(self, heads: int) -> from_dense:
        if self.mask.ndim > 2:
            check_size(self.mask.shape[-3], heads, "the mask of from_dense", "heads")
        return self

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return take_broadcast(self.mask, b, h, aligned(self.mask, q_idx), kv_idx)


def aligned(table: Any, q_idx: Any) -> Any:
    """The row of a tensor [..., Nq, Nk] that belongs to the query at ``q_idx``."""
    rows, columns = table.shape[-2:]
    return q_idx if rows == 1 or columns in (1, rows) else q_idx - (columns - rows)
