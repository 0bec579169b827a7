"""A part of the GPU suite: runs alone in its process, within its time, and leaves what it has.

A part is a function of a ``Progress``. Its file is written after every row, so that a part which
crashes the process, or runs out of time, still reports all it did before.
"""

from __future__ import annotations

import argparse
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import record


class Progress:
    """Rows of results on their way into ``file``; ``left()`` seconds remain to make more. ``parts``
    are those that run in the same suite, none if they are not known."""

    def __init__(self, file: Path, seconds: float, parts: tuple[str, ...] = ()) -> None:
        self.file = file
        self.parts = parts
        self._start = time.monotonic()
        self._seconds = seconds
        self.state: dict[str, Any] = {"status": "running", "reason": "", "seconds": 0.0,
                                      "failures": [], "data": {}}

    def left(self) -> float:
        return self._seconds - (time.monotonic() - self._start)

    def put(self, key: str, value: Any) -> None:
        """Set one entry of the part's data."""
        self.state["data"][key] = value
        self._write()

    def add(self, key: str, row: dict[str, Any]) -> None:
        """Append a row to the list ``key``. A row with ``ok: False`` is a failure of the part."""
        self.state["data"].setdefault(key, []).append(row)
        if row.get("ok") is False:
            self.state["failures"].append(f"{key}: {row.get('name', '?')}")
        self._write()

    def note(self, text: str) -> None:
        """Say something that was left out, and why."""
        print(text, flush=True)
        self.state["data"].setdefault("notes", []).append(text)
        self._write()

    def finish(self, status: str, reason: str = "") -> None:
        self.state["status"], self.state["reason"] = status, reason
        self._write()

    def _write(self) -> None:
        self.state["seconds"] = round(time.monotonic() - self._start, 2)
        record.write(self.file, self.state)


def run(part: Callable[[Progress], None], progress: Progress) -> None:
    """Run a part to its end; any exception becomes its status."""
    try:
        part(progress)
    except Exception as problem:
        traceback.print_exc()
        progress.finish("failed", f"{type(problem).__name__}: {problem}"[:1000])
    else:
        failures = progress.state["failures"]
        progress.finish("failed" if failures else "ok",
                        f"{len(failures)} rows failed" if failures else "")


def main(part: Callable[[Progress], None]) -> None:
    """The command line of a part: ``--out FILE --seconds N --parts NAME,...``."""
    parser = argparse.ArgumentParser(description=part.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--seconds", type=float, default=120.0, help="time it may take")
    parser.add_argument("--parts", default="", help="parts of the suite that run (default: all)")
    options = parser.parse_args()
    names = tuple(name for name in options.parts.split(",") if name)
    run(part, Progress(options.out, options.seconds, names))
