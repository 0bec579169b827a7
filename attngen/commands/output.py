"""What the commands print: tables, and files written whole."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import UsageError


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[int] = ()
          ) -> None:
    """Print a table: framed on a terminal, aligned text elsewhere. ``right`` lists the columns
    that hold numbers."""
    lines = [tuple(row) for row in rows]
    if sys.stdout.isatty():
        _framed(columns, lines, right)
        return
    widths = [max(len(row[n]) for row in [tuple(columns), *lines]) for n in range(len(columns))]
    for row in [tuple(columns), *lines]:
        cells = (cell.rjust(w) if n in right else cell.ljust(w)
                 for n, (cell, w) in enumerate(zip(row, widths, strict=True)))
        print("  ".join(cells).rstrip())


def _framed(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(header_style="bold")
    for n, name in enumerate(columns):
        shown.add_column(name, justify="right" if n in right else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(Text(cell) for cell in row))  # Text: brackets are not markup
    Console().print(shown)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all. Raises UsageError when it cannot be written."""
    try:
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            path.write_text(text)  # /dev/stdout, a pipe: nothing to replace
            return
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            partial.write_text(text)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as problem:
        raise UsageError(f"{path} cannot be written: {problem.strerror}",
                         remedy="Give -o a file in a folder that exists and is yours.") from None


def size(count: int) -> str:
    """Bytes for people."""
    amount = float(count)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"
