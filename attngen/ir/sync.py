"""Is a placed kernel synchronised? An abstract run over every short trip count.

Follows what each shared tile holds: a copy in flight, arrived, or published to the block by a
barrier. Reading anything but the published tile of the iteration, overwriting what another warp may
still read, or leaving a copy in flight at the end is an error. The same judge decides which
synchronisation a kernel can do without.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from .stmt import Barrier, Commit, Copy, Issue, Kernel, Loop, Stmt, Wait, reads

_TRIPS = range(7)  # covers prologue, steady state and drain of rings up to four stages

Slot = tuple[str, int]  # a shared value and which of its stages


class _Event(NamedTuple):
    """A statement as far as shared memory is concerned; ``number`` counts all statements."""

    number: int
    kind: str  # issue commit wait barrier copy read
    name: str = ""
    argument: int | None = None  # how far ahead, how many pending, 1 for a barrier of the block


Program = list[tuple[bool, list[_Event]]]  # straight pieces and loop bodies (true), in order


def _program(kernel: Kernel) -> Program:
    shared = {v.name for v in kernel.values if v.space == "shared"}
    program: Program = [(False, [])]
    number = 0

    def visit(body: Iterable[Stmt]) -> None:
        nonlocal number
        for stmt in body:
            events = program[-1][1]
            events += [_Event(number, "read", n) for n in reads(stmt) if n in shared]
            match stmt:
                case Issue(dst=d, ahead=ahead):
                    events.append(_Event(number, "issue", d, ahead))
                case Commit():
                    events.append(_Event(number, "commit"))
                case Wait(pending=n):
                    events.append(_Event(number, "wait", "", n))
                case Barrier(scope=scope):
                    events.append(_Event(number, "barrier", "", int(scope == "block")))
                case Copy(dst=d) if d in shared:
                    events.append(_Event(number, "copy", d))
            number += 1
            if isinstance(stmt, Loop):
                program.append((True, []))
                visit(stmt.body)
                program.append((False, []))

    visit(kernel.body)
    return program


@dataclass(frozen=True)
class _Ring:
    """What a run needs to know of a shared value."""

    stages: int
    moves: bool  # with the loop
    copied: bool  # written by the warp that reads it, not by an asynchronous copy


def _rings(kernel: Kernel, program: Program) -> dict[str, _Ring]:
    copied = {e.name for _, events in program for e in events if e.kind == "copy"}
    return {v.name: _Ring(v.stages, kernel.loop in v.axes, v.name in copied)
            for v in kernel.values if v.space == "shared"}


class _Run:
    def __init__(self, rings: dict[str, _Ring], asynchronous: bool, trips: int) -> None:
        self.rings, self.asynchronous, self.trips = rings, asynchronous, trips
        self.tile: int | None = None  # None outside of loops
        self.holds: dict[Slot, tuple[int | None, str]] = {}
        self.open: list[Slot] = []
        self.groups: list[list[Slot]] = []
        self.unsafe: dict[Slot, bool] = {}  # read since; true: only a barrier of the block frees it

    def problem(self, program: Program) -> str | None:
        """What is wrong, or None."""
        for looped, events in program:
            for tile in range(self.trips) if looped else (None,):
                self.tile = tile
                for event in events:
                    found = self._step(event)
                    if found:
                        return found
        if self.open or any(self.groups):
            return "a copy is still in flight when the kernel ends"
        return None

    def _step(self, event: _Event) -> str | None:
        match event.kind:
            case "read":
                return self._read(event.name)
            case "issue":
                return self._issue(event.name, event.argument)
            case "commit":
                self.groups.append(self.open)
                self.open = []
            case "wait":
                while len(self.groups) > (event.argument or 0):
                    for slot in self.groups.pop(0):
                        self.holds[slot] = (self.holds[slot][0], "arrived")
            case "barrier":
                self._barrier(bool(event.argument))
            case "copy":
                slot = (event.name, 0)
                if slot in self.unsafe:
                    return f"{event.name} is overwritten while other lanes may read it"
                self.holds[slot] = (self.tile, "written")
        return None

    def _barrier(self, block: bool) -> None:
        for slot, (tile, state) in self.holds.items():
            if state == "written" or block and state == "arrived":
                self.holds[slot] = (tile, "published")
        self.unsafe = {} if block else {s: b for s, b in self.unsafe.items() if b}

    def _issue(self, name: str, ahead: int | None) -> str | None:
        tile = (self.tile or 0) + (ahead or 0)
        if tile >= self.trips:
            return None
        slot = (name, 0 if ahead is None else tile % self.rings[name].stages)
        if slot in self.unsafe:
            return f"{name} is overwritten while other warps may read it"
        if slot in self.holds and self.holds[slot][1] == "flying":
            return f"{name} is overwritten while a copy into it is in flight"
        self.holds[slot] = (None if ahead is None else tile,
                            "flying" if self.asynchronous else "arrived")
        if self.asynchronous:
            self.open.append(slot)
        return None

    def _read(self, name: str) -> str | None:
        ring = self.rings[name]
        slot = (name, self.tile % ring.stages if ring.moves and self.tile is not None else 0)
        tile, state = self.holds.get(slot, (None, "empty"))
        if state != "published":
            return f"{name} is read while {state}"
        if tile is not None and tile != self.tile:
            return f"{name} holds tile {tile} when tile {self.tile} is read"
        self.unsafe[slot] = not ring.copied
        return None


def _problem(kernel: Kernel, program: Program, rings: dict[str, _Ring],
             trips: Iterable[int]) -> str | None:
    asynchronous = kernel.schedule.vector_bytes == 16
    for n in trips:
        found = _Run(rings, asynchronous, n).problem(program)
        if found:
            return f"{found} ({n} tiles)"
    return None


def sync_problem(kernel: Kernel) -> str | None:
    """The first synchronisation error over all short trip counts, or None."""
    program = _program(kernel)
    return _problem(kernel, program, _rings(kernel, program), _TRIPS)


def minimise(kernel: Kernel) -> Kernel:
    """Drop every barrier, wait and commit the kernel is right without.

        commit; wait 0; barrier; …; commit; wait 0   →   the same without what an earlier wait did
    """
    program = _program(kernel)
    rings = _rings(kernel, program)
    dropped: set[int] = set()
    for kind in ("barrier", "wait", "commit"):
        for site in [e.number for _, events in program for e in events if e.kind == kind]:
            without = [(looped, [e for e in events if e.number != site])
                       for looped, events in program]
            # Long runs first: they are the ones most omissions break.
            if _problem(kernel, without, rings, reversed(_TRIPS)) is None:
                program = without
                dropped.add(site)
    return replace(kernel, body=_without(kernel.body, dropped, [0]))


def _without(body: tuple[Stmt, ...], dropped: set[int], count: list[int]) -> tuple[Stmt, ...]:
    out: list[Stmt] = []
    for stmt in body:
        number = count[0]
        count[0] += 1
        if isinstance(stmt, Loop):
            stmt = replace(stmt, body=_without(stmt.body, dropped, count))
        if number not in dropped:
            out.append(stmt)
    return tuple(out)
