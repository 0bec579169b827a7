"""The device layer: the only functions emitted kernels may touch memory or threads through.

One folder per language. The text a kernel needs is pasted into it between two marker lines, so
that an emitted file is complete, and so that the emulator knows which part to replace by its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from ...errors import UnknownNameError

BEGIN = "// ==== attngen device layer: begin ===="
END = "// ==== attngen device layer: end ===="

# Order of inclusion; a file may use those before it. "types" is always there.
ORDER = ("types", "thread", "shared", "async_copy", "matrix", "convert", "global", "math", "table",
         "ops", "philox", "eight_bit")


def device_text(files: Iterable[str], language: str = "cuda") -> str:
    """The named files of the device layer, in order, between the marker lines.

    ``files`` are stems such as ``"matrix"``; what they need of other files is added.
    Raises UnknownNameError for a name that is no file of the layer.
    """
    wanted = {"types", *files}
    if unknown := wanted - set(ORDER):
        raise UnknownNameError("device file", min(unknown), ORDER)
    if "table" in wanted:
        wanted |= {"convert", "global", "math"}
    if "eight_bit" in wanted:
        wanted |= {"convert", "global"}
    if "ops" in wanted:
        wanted.add("math")
    if "philox" in wanted:
        wanted.add("thread")
    parts = [f"// -- device/{name}\n{_read(language, name)}" for name in ORDER if name in wanted]
    return "\n".join([BEGIN, *parts, END]) + "\n"


@cache
def _read(language: str, name: str) -> str:
    extension = {"cuda": "cuh"}[language]
    return (Path(__file__).parent / language / f"{name}.{extension}").read_text()
