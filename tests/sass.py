"""Disassembled kernels: instructions in order, and the loop that does the work."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import nvidia

_LABEL = re.compile(r"^(\.L_x_\d+):")
_CODE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)\s*([^;]*);")


@dataclass(frozen=True)
class Instruction:
    """Mnemonic with its modifiers (``LDSM.16.M88.4``), and operands as text."""

    name: str
    operands: str

    @property
    def base(self) -> str:
        """The mnemonic alone."""
        return self.name.split(".")[0]


@dataclass(frozen=True)
class Sass:
    """The instructions of a cubin and where its labels point."""

    code: tuple[Instruction, ...]
    labels: dict[str, int]

    def main_loop(self) -> tuple[Instruction, ...]:
        """The loop with the most matrix instructions, and of equals the shortest."""
        loops = []
        for position, instruction in enumerate(self.code):
            target = re.search(r"\.L_x_\d+", instruction.operands)
            if instruction.base == "BRA" and target:
                start = self.labels[target[0]]
                if start <= position:
                    body = self.code[start:position + 1]
                    loops.append((-count(body)["HMMA"], len(body), start, body))
        return min(loops)[3]


def count(code: tuple[Instruction, ...]) -> Counter[str]:
    """How often each mnemonic occurs."""
    return Counter(i.base for i in code)


def disassemble(cubin: bytes) -> Sass:
    """The machine code of a cubin, by the ``nvdisasm`` of the installed wheel."""
    tool = next(file for place in nvidia.__path__
                for file in Path(place).glob("cu*/bin/nvdisasm"))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        done = subprocess.run([os.fspath(tool), "-c", os.fspath(file)], capture_output=True,
                              text=True, check=True)
    code: list[Instruction] = []
    labels = {}
    for line in done.stdout.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(code)
        elif (found := _CODE.search(line)) and "@!PT" not in line:  # which never executes
            code.append(Instruction(found[1], found[2]))
    return Sass(tuple(code), labels)
