"""Running hand-written kernel text in tests: NumPy arrays in, ``Params`` packed by position."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from attngen.runtime import emulator
from attngen.runtime.emulator import Counters, EmulatedModule, Region
from attngen.templates.device import ORDER, device_text

KERNELS = Path(__file__).parent / "kernels"


def complete(kernel: str) -> str:
    """Kernel text with the whole device layer before it."""
    return device_text(ORDER) + kernel


def from_file(name: str) -> str:
    """The complete text of a kernel in ``tests/kernels``."""
    return complete((KERNELS / name).read_text())


def pack(values: Mapping[str, Any], pointers: Iterable[str] = ()) -> bytes:
    """``Params`` with these members in order: arrays become pointers, int int32, float float32.
    The members named in ``pointers`` are addresses already."""
    codes = {np.ndarray: "Q", int: "i", float: "f", np.float32: "f"}
    plain = [v.ctypes.data if isinstance(v, np.ndarray) else v for v in values.values()]
    layout = ["Q" if name in pointers else codes[type(v)] for name, v in values.items()]
    return struct.pack("".join(layout) + "0Q", *plain)


def launch(module: EmulatedModule, entry: str, values: Mapping[str, Any], *,
           grid: tuple[int, int, int] = (1, 1, 1), threads: int = 32, shared: int = 0,
           writes: tuple[str, ...] = ("out",), **options: Any) -> Counters:
    """Launch with ``values`` as Params; the arrays named in ``writes`` may be written."""
    regions = [Region(name, v.ctypes.data, v.nbytes, name in writes)
               for name, v in values.items() if isinstance(v, np.ndarray)]
    address = dict(zip((r.name for r in regions), emulator.pointers(regions), strict=True))
    packed = pack({**values, **address}, address)
    return module.launch(entry, grid, threads, shared, packed, regions, **options)


def run(kernel: str, values: Mapping[str, Any], entry: str = "test", **options: Any) -> Counters:
    """Compile the kernel text and launch it once."""
    return launch(emulator.load(complete(kernel)), entry, values, **options)
