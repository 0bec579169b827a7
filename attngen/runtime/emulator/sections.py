"""The two parts of an emitted kernel: the device layer between its marker lines, and the kernel."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...errors import CompileError

BEGIN = "// ==== attngen device layer: begin ===="
END = "// ==== attngen device layer: end ===="

_FILE = re.compile(r"^// -- device/(\w+)\s*$")
_KERNEL = re.compile(r"\bKERNEL\s*\([^()]*(?:\([^()]*\)[^()]*)*\)\s*(\w+)\s*\(")


@dataclass(frozen=True)
class Part:
    """Consecutive lines of the text; ``line`` is the number of the first, from 1."""

    text: str
    line: int


@dataclass(frozen=True)
class Sections:
    """``head`` precedes the device layer (comments); ``device`` maps the layer's file names, such
    as ``"matrix"``, to their text; ``kernel`` is everything after it."""

    head: Part
    device: dict[str, Part]
    kernel: Part

    def entries(self) -> tuple[str, ...]:
        """Names of the kernels, in order."""
        return tuple(_KERNEL.findall(self.kernel.text))


def split(text: str) -> Sections:
    """Take an emitted text apart. Raises CompileError when the marker lines are not there once
    each, in order."""
    lines = text.splitlines(keepends=True)
    marks = [[i for i, line in enumerate(lines) if line.strip() == mark] for mark in (BEGIN, END)]
    if [len(m) for m in marks] != [1, 1] or marks[0] > marks[1]:
        raise CompileError(
            "the kernel text has no device layer that the emulator could replace", source=text,
            where="the marker lines", remedy=f"Keep the lines `{BEGIN}` and `{END}`, once each.")
    begin, end = marks[0][0], marks[1][0]
    files = [(i, found.group(1)) for i in range(begin, end)
             if (found := _FILE.match(lines[i]))]
    ends = [i for i, _ in files[1:]] + [end]
    device = {name: Part("".join(lines[i + 1:stop]), i + 2)
              for (i, name), stop in zip(files, ends, strict=True)}
    return Sections(Part("".join(lines[:begin]), 1), device,
                    Part("".join(lines[end + 1:]), end + 2))
