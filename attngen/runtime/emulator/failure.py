"""Errors of the runtime as exceptions, with the lines of the emitted text they point to."""

from __future__ import annotations

from ...errors import (
    DeadlockError,
    DivergenceError,
    EmulatorError,
    MisalignedError,
    OutOfBoundsError,
    RaceError,
    UninitialisedError,
)
from . import abi

_CLASSES: dict[str, type[EmulatorError]] = {
    "race": RaceError, "out_of_bounds": OutOfBoundsError, "deadlock": DeadlockError,
    "divergence": DivergenceError, "uninitialised": UninitialisedError,
    "misaligned": MisalignedError, "fault": EmulatorError, "cancelled": DeadlockError,
}


def exception(raw: abi.Error, entry: str, text: str, seed: int) -> EmulatorError:
    """The exception for an error the runtime reported; ``text`` is the emitted text."""
    lines = text.splitlines()
    block = tuple(raw.block)
    where = [f"kernel {entry}, block {block}, seed {seed}"]
    for number in dict.fromkeys((raw.line, raw.other_line)):
        if 0 < number <= len(lines):
            where.append(f"line {number}: {lines[number - 1].strip()}")
    error = _CLASSES[abi.KINDS[raw.kind]](
        raw.what.decode(errors="replace"), where="\n         ".join(where),
        numbers=raw.numbers.decode(errors="replace"))
    error.line, error.other_line = raw.line or None, raw.other_line or None
    error.block = (block[0], block[1], block[2])
    error.thread = raw.thread if raw.thread >= 0 else None
    return error
