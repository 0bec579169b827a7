"""A pool of pages, each held by as many sequences as share it."""

from __future__ import annotations

from ..errors import KVCacheFullError, ShapeError


class PagePool:
    """Pages 1 … count; page 0 is nobody's, so that tables may point to it."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count, 0, -1))
        self._holders = [0] * (count + 1)

    @property
    def free(self) -> int:
        """How many pages nobody holds."""
        return len(self._free)

    def holders(self, page: int) -> int:
        """How many sequences hold a page."""
        return self._holders[page]

    def take(self, count: int) -> list[int]:
        """``count`` pages with one holder each. Raises KVCacheFullError, taking none."""
        if count > len(self._free):
            raise KVCacheFullError(f"{count} pages are wanted, {len(self._free)} are free",
                                   numbers=f"of {self.count}",
                                   remedy="Free a sequence, or make the cache with more pages.")
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._holders[page] = 1
        return pages

    def share(self, pages: list[int]) -> None:
        """One more holder for each."""
        self._check(pages)
        for page in pages:
            self._holders[page] += 1

    def release(self, pages: list[int]) -> None:
        """One holder less for each; without any a page is free."""
        self._check(pages)
        for page in pages:
            self._holders[page] -= 1
            if not self._holders[page]:
                self._free.append(page)

    def _check(self, pages: list[int]) -> None:
        wrong = [p for p in pages if not 0 < p <= self.count or not self._holders[p]]
        if wrong or len(set(pages)) != len(pages):
            raise ShapeError(f"pages {wrong or pages} are held by nobody, or named twice",
                             numbers=f"pages 1 ... {self.count}")
