"""The C++ texts that are compiled: the runtime, and a kernel with the device layer exchanged."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from .sections import Part, Sections

NAME = "kernel.cu"  # what compiler messages call the emitted text

_HERE = Path(__file__).parent
_RUNTIME = ("fiber", "machine", "banks", "shadow", "schedule", "memory", "matrix", "faults")
_ALWAYS = ("runtime", "types", "checks")
_LOCAL = re.compile(r'^#(?:include "[^"]*"|pragma once)\n', re.MULTILINE)


@cache
def runtime_text() -> str:
    """The runtime library as one translation unit."""
    files = [_HERE / "device" / "runtime.hpp", *(_HERE / "cpp" / f"{n}.hpp" for n in _RUNTIME),
             _HERE / "cpp" / "runtime.cpp"]
    return "".join(_whole(file) for file in files)


def kernel_text(sections: Sections) -> str:
    """The kernel section unchanged, after the emulator's device layer in place of the CUDA one.

    A file of the device layer that the emulator does not implement must be compositions of the
    others, and is kept. Line numbers are those of the emitted text.
    """
    wanted = list(sections.device) or [p.stem for p in sorted((_HERE / "device").glob("*.hpp"))]
    parts = [_whole(_HERE / "device" / f"{name}.hpp") for name in _ALWAYS]
    for name in wanted:
        own = _HERE / "device" / f"{name}.hpp"
        if name not in _ALWAYS:
            parts.append(_whole(own) if own.exists() else _lines(sections.device[name]))
    parts += [_lines(sections.head), _lines(sections.kernel)]
    parts += [_entry(name) for name in sections.entries()]
    return "".join(parts)


def _whole(file: Path) -> str:
    """A file of ours without its includes of others of ours (blank lines keep the numbering)."""
    return f'#line 1 "emulator/{file.parent.name}/{file.name}"\n' \
        + _LOCAL.sub("\n", file.read_text())


def _lines(part: Part) -> str:
    return f'#line {part.line} "{NAME}"\n{part.text}\n'


def _entry(name: str) -> str:
    export = 'extern "C" __attribute__((visibility("default")))'
    return (f"{export} void emu_enter_{name}(const void* params) {{ emu_enter({name}, params); }}\n"
            f"{export} int emu_size_{name}() {{ return emu_params_size({name}); }}\n")
