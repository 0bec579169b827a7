"""Kernels with one synchronisation statement missing: what the emulator must object to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .sections import split

_DECLARED = re.compile(r"^\s*SYNC_FN\s[^(]*?\b(\w+)\s*\(", re.MULTILINE)


@dataclass(frozen=True)
class Mutation:
    """``text`` is the kernel text without the call of ``function`` in ``line`` (from 1)."""

    line: int
    function: str
    text: str


def sync_functions(text: str) -> tuple[str, ...]:
    """Names that the text's device layer declares as synchronisation (``SYNC_FN``)."""
    device = split(text).device
    return tuple(sorted({name for part in device.values()
                         for name in _DECLARED.findall(part.text)}))


def mutations(text: str) -> Iterator[Mutation]:
    """Every way to delete one synchronisation statement of the kernel section, top to bottom."""
    functions = sync_functions(text)
    if not functions:
        return
    sections = split(text)
    start = len(text) - len(sections.kernel.text)
    call = re.compile(rf"\b({'|'.join(functions)})\s*(?:<[^<>;]*>)?\s*\([^();]*\)\s*;")
    kernel = _without_comments(sections.kernel.text)
    for found in call.finditer(kernel):
        first, last = start + found.start(), start + found.end()
        yield Mutation(text.count("\n", 0, first) + 1, found.group(1),
                       text[:first] + ";" + text[last:])


def _without_comments(text: str) -> str:
    """The text with comments blanked out; every character stays in its place."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", lambda m: re.sub(r"[^\n]", " ", m.group()), text,
                  flags=re.DOTALL)
