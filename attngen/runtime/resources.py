"""What the CUDA assembler says about each kernel: registers, spills, shared memory, remarks."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Resources:
    """One kernel's use of the machine. Registers are per thread, sizes in bytes: stack and spills
    per thread, ``shared_static`` per block, ``constant`` the bank that holds the arguments."""

    registers: int
    spill_stores: int = 0
    spill_loads: int = 0
    stack: int = 0
    shared_static: int = 0
    barriers: int = 0
    constant: int = 0


_ENTRY = re.compile(r"Compiling entry function '([^']+)'")
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_BARRIERS = re.compile(r"used (\d+) barriers")
_SHARED = re.compile(r"(\d+) bytes smem")
_CONSTANT = re.compile(r"(\d+) bytes cmem\[0\]")
_REMARK = re.compile(r"\bC7\d{3}\b")


def parse_resources(log: str) -> dict[str, Resources]:
    """Resources by kernel, from the log of an assembler run with ``-v``."""
    found: dict[str, Resources] = {}
    name, frame = "", (0, 0, 0)
    for line in log.splitlines():
        if entry := _ENTRY.search(line):
            name, frame = entry[1], (0, 0, 0)
        elif sizes := _FRAME.search(line):
            frame = (int(sizes[1]), int(sizes[2]), int(sizes[3]))
        elif name and (used := _USED.search(line)):
            found[name] = Resources(
                registers=int(used[1]), stack=frame[0], spill_stores=frame[1],
                spill_loads=frame[2], shared_static=_number(_SHARED, line),
                barriers=_number(_BARRIERS, line), constant=_number(_CONSTANT, line))
            name = ""
    return found


def parse_remarks(log: str) -> tuple[str, ...]:
    """The log's lines with a C7xxx code: the assembler gave up on something, such as overlapping
    matrix instructions (C7510, C7520) or a register hint (C7504)."""
    return tuple(line.strip() for line in log.splitlines() if _REMARK.search(line))


def _number(pattern: re.Pattern[str], line: str) -> int:
    found = pattern.search(line)
    return int(found[1]) if found else 0
