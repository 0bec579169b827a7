"""Is a placed kernel synchronised? An abstract run over every short trip count.

Follows what each shared tile holds: a copy in flight, arrived, or published to the block by a
barrier. Reading anything but the published tile of the iteration, overwriting what another warp may
still read, or leaving a copy in flight at the end is an error. The same judge decides which
synchronisation a kernel can do without.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from .stmt import Barrier, Commit, Copy, Issue, Kernel, Loop, Stmt, Wait, reads

_TRIPS = range(7)  # covers prologue, steady state and drain of rings up to four stages


class _Run:
    def __init__(self, kernel: Kernel, trips: int) -> None:
        self.kernel, self.trips = kernel, trips
        self.shared = {v.name: v for v in kernel.values if v.space == "shared"}
        self.asynchronous = kernel.schedule.vector_bytes == 16
        self.holds: dict[tuple[str, int], tuple[int | None, str]] = {}
        self.open: list[tuple[str, int]] = []
        self.groups: list[list[tuple[str, int]]] = []
        self.unread_safe: dict[tuple[str, int], str] = {}  # slot -> "" safe, else needed scope
        self.tile: int | None = None

    def problem(self) -> str | None:
        """What is wrong, or None."""
        found = self._body(self.kernel.body)
        if found is None and any(self.groups) or self.open:
            return "a copy is still in flight when the kernel ends"
        return found

    def _body(self, body: tuple[Stmt, ...]) -> str | None:
        for position, stmt in enumerate(body):
            if isinstance(stmt, Loop):
                for tile in range(self.trips):
                    self.tile = tile
                    found = self._body(stmt.body)
                    if found:
                        return found
                self.tile = None
                continue
            found = self._step(stmt, body[:position])
            if found:
                return found
        return None

    def _slot(self, name: str) -> int:
        moves = self.kernel.loop in self.shared[name].axes and self.tile is not None
        return (self.tile or 0) % self.shared[name].stages if moves else 0

    def _step(self, stmt: Stmt, before: tuple[Stmt, ...]) -> str | None:
        match stmt:
            case Issue(dst=d, ahead=ahead):
                return self._issue(d, ahead)
            case Commit():
                self.groups.append(self.open)
                self.open = []
            case Wait(pending=n):
                while len(self.groups) > n:
                    for slot in self.groups.pop(0):
                        self.holds[slot] = (self.holds[slot][0], "arrived")
            case Barrier(scope=scope):
                for slot, (tile, state) in self.holds.items():
                    if state == "arrived" and scope == "block" or state == "written":
                        self.holds[slot] = (tile, "published")
                for slot, needed in self.unread_safe.items():
                    if scope == "block" or needed == "warp":
                        self.unread_safe[slot] = ""
            case Copy(dst=d) if d in self.shared:
                if self.unread_safe.get((d, 0)):
                    return f"{d} is overwritten while other lanes may read it"
                self.holds[d, 0] = (self.tile, "written")
        return self._reads(stmt)

    def _issue(self, name: str, ahead: int | None) -> str | None:
        tile = (self.tile or 0) + (ahead or 0)
        if tile >= self.trips:
            return None
        slot = (name, 0 if ahead is None else tile % self.shared[name].stages)
        if self.unread_safe.get(slot):
            return f"{name} is overwritten while other warps may read it"
        if self.holds.get(slot, (None, ""))[1] == "flying":
            return f"{name} is overwritten while a copy into it is in flight"
        self.holds[slot] = (None if ahead is None else tile,
                            "flying" if self.asynchronous else "arrived")
        if self.asynchronous:
            self.open.append(slot)
        return None

    def _reads(self, stmt: Stmt) -> str | None:
        for name in reads(stmt):
            if name not in self.shared:
                continue
            slot = (name, self._slot(name))
            tile, state = self.holds.get(slot, (None, "empty"))
            if state != "published":
                return f"{name} is read while {state}"
            if tile is not None and tile != self.tile:
                return f"{name} holds tile {tile} when tile {self.tile} is read"
            copied = any(isinstance(s, Copy) and s.dst == name for s in _all(self.kernel.body))
            self.unread_safe[slot] = "warp" if copied else "block"
        return None


def _all(body: tuple[Stmt, ...]) -> Iterator[Stmt]:
    from .stmt import statements
    return statements(body)


def sync_problem(kernel: Kernel) -> str | None:
    """The first synchronisation error over all short trip counts, or None."""
    for trips in _TRIPS:
        found = _Run(kernel, trips).problem()
        if found:
            return f"{found} ({trips} tiles)"
    return None


def minimise(kernel: Kernel) -> Kernel:
    """Drop every barrier, wait and commit the kernel is right without.

        commit; wait 0; barrier; …; commit; wait 0   →   the same without what an earlier wait did
    """
    for kind in (Barrier, Wait, Commit):
        position = 0
        while True:
            sites = [n for n, s in enumerate(_flat(kernel.body)) if isinstance(s, kind)]
            if position >= len(sites):
                break
            candidate = replace(kernel, body=_without(kernel.body, sites[position], [0]))
            if sync_problem(candidate) is None:
                kernel = candidate
            else:
                position += 1
    return kernel


def _flat(body: tuple[Stmt, ...]) -> list[Stmt]:
    return list(_all(body))


def _without(body: tuple[Stmt, ...], target: int, count: list[int]) -> tuple[Stmt, ...]:
    out: list[Stmt] = []
    for stmt in body:
        mine = count[0]
        count[0] += 1
        if isinstance(stmt, Loop):
            stmt = replace(stmt, body=_without(stmt.body, target, count))
        if mine != target:
            out.append(stmt)
    return tuple(out)
