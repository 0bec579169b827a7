"""A cache in pages, which sequences take as they grow, and may share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import KVCacheFullError, ShapeError
from ..runtime.variant import Cached
from .cache import Cache
from .pages import PagePool

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..attention import Attention

_LARGEST = 256


class PagedKVCache(Cache):
    """``num_pages`` pages of ``page_size`` tokens, 1 … 256, for ``batch`` sequences of up to
    ``capacity`` tokens each, by default all: k [1 + num_pages, groups, page_size, head_dim]
    and ``page_table``, int32 [batch, pages of a sequence] (vLLM, Kwon et al. 2023). Page 0 is
    nobody's: table entries that are not in use point to it, and for entries that are no page
    kernels take it.

    ``fork`` lets a sequence begin as another one did; they share pages until one of them writes to
    a page, which then gets a copy of its own. Pages are taken by the host: for appends in a CUDA
    graph ``reserve`` them before.
    """

    def __init__(self, attn: Attention, batch: int, num_pages: int, *, page_size: int = 16,
                 capacity: int | None = None, dtype: torch.dtype | None = None,
                 device: Any = None, quantize: str | None = None) -> None:
        import torch

        if batch < 0 or num_pages < 1 or not 1 <= page_size <= _LARGEST:
            raise ShapeError(f"{num_pages} pages of {page_size} tokens for {batch} sequences",
                             numbers=f"page_size is 1 ... {_LARGEST}",
                             remedy="At least one page; 16 tokens are a common size.")
        most = num_pages if capacity is None else -(-capacity // page_size)
        super().__init__(attn, batch, (num_pages + 1, attn.spec.kv_heads, page_size),
                         most * page_size, dtype, device, quantize, Cached(page=page_size))
        self.page_size = page_size
        self.page_table = torch.zeros(batch, most, dtype=torch.int32, device=self.device)
        self.pool = PagePool(num_pages)
        self._pages: list[list[int]] = [[] for _ in range(batch)]

    def numbers(self) -> dict[str, int]:
        return {"num_pages": self.k.shape[0]}

    def tables(self) -> dict[str, Tensor]:
        return {"page_table": self.page_table}

    def pages_of(self, sequence: int) -> tuple[int, ...]:
        """The pages a sequence holds, in order."""
        return tuple(self._pages[sequence])

    def make_room(self, counts: Sequence[int]) -> None:
        super().make_room(counts)
        writing = [b for b in range(self.batch) if counts[b]]
        shared = {b: self._first_shared(b) for b in writing}
        copies = sum(1 for b in writing for _ in self._pages[b][shared[b]:])
        missing = {b: max(0, -(-(self._longest[b] + counts[b]) // self.page_size)
                          - len(self._pages[b])) for b in writing}
        if copies + sum(missing.values()) > self.pool.free:
            raise KVCacheFullError(
                f"{copies + sum(missing.values())} pages are wanted, {self.pool.free} are free",
                numbers=f"of {self.pool.count}, {self.page_size} tokens each",
                remedy="free() a sequence, or make the cache with more pages.")
        for b in writing:
            self._own(b, shared[b])
            self._pages[b] += self.pool.take(missing[b])
            if missing[b] or shared[b] < len(self._pages[b]):
                self._write_table(b)

    def reserve(self, tokens: int) -> None:
        """Take the pages that the next ``tokens`` of every sequence go to. Raises
        KVCacheFullError."""
        self.make_room([tokens] * self.batch)

    def fork(self, source: int, target: int) -> None:
        """Let ``target``, which must be empty, hold what ``source`` does. Nothing is copied yet."""
        self._check(source, target)
        if self._pages[target] or self._longest[target]:
            raise ShapeError(f"sequence {target} is not empty", numbers=f"it holds "
                             f"{len(self._pages[target])} pages", remedy="free() it first.")
        used = self._pages[source][:-(-self._longest[source] // self.page_size)]
        self.pool.share(used)
        self._pages[target] = list(used)
        self._longest[target] = self._longest[source]
        self.lengths[target] = self.lengths[source]
        self._write_table(target)

    def free(self, sequence: int) -> None:
        """Give the pages of a sequence back; it is empty then."""
        self.clear(sequence)

    def clear(self, sequence: int | None = None) -> None:
        for b in range(self.batch) if sequence is None else (sequence,):
            self._check(b)
            self.pool.release(self._pages[b])
            self._pages[b] = []
            self._write_table(b)
        super().clear(sequence)

    def _first_shared(self, b: int) -> int:
        """From which of its pages on a sequence needs copies of its own to write."""
        first = self._longest[b] // self.page_size
        shared = [n for n, page in enumerate(self._pages[b])
                  if n >= first and self.pool.holders(page) > 1]
        return shared[0] if shared else len(self._pages[b])

    def _own(self, b: int, first: int) -> None:
        """Copies of the pages from the ``first`` shared one on that others hold, too."""
        for n in range(first, len(self._pages[b])):
            old, (new,) = self._pages[b][n], self.pool.take(1)
            for kept in (self.k, self.v, *self.scales.values()):
                kept[new] = kept[old]
            self.pool.release([old])
            self._pages[b][n] = new

    def _write_table(self, b: int) -> None:
        import torch

        row = torch.zeros(self.page_table.shape[1], dtype=torch.int32)
        row[:len(self._pages[b])] = torch.tensor(self._pages[b], dtype=torch.int32)
        self.page_table[b] = row.to(self.page_table.device)

    def _check(self, *sequences: int) -> None:
        wrong = [b for b in sequences if not 0 <= b < self.batch]
        if wrong:
            raise ShapeError(f"there is no sequence {wrong[0]}", numbers=f"0 ... {self.batch - 1}")
