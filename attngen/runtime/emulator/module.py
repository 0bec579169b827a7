"""Emitted CUDA text as something that runs on the CPU."""

from __future__ import annotations

import ctypes
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from ...errors import CompileError, DeadlockError, LaunchError, UnknownNameError
from .. import cxx
from . import abi, failure
from .counters import Counters
from .sections import split
from .source import kernel_text, runtime_text

_COMMON = ("-std=c++17", "-fPIC", "-shared", "-fvisibility=hidden", "-w")
_RUNTIME_FLAGS = ("-O3", *_COMMON, "-march=native", "-ffp-contract=fast",
                  "-ftls-model=initial-exec", "-U_FORTIFY_SOURCE", "-pthread")
# -O1 compiles four times faster than -O3 and runs as fast. The sanitizer's checks call functions
# of ours (device/checks.hpp), so its library must not be linked. No -march=native: newer
# instructions make the pattern below from other constants.
_KERNEL_FLAGS = ("-O1", *_COMMON, "-ffp-contract=off", "-ftrivial-auto-var-init=pattern",
                 "-fno-sanitize-recover=all", "-nodefaultlibs", "-lm", "-lc")
_CHECKS = "shift,signed-integer-overflow,integer-divide-by-zero"
_MOST_SHARED = 227 * 1024
# What gcc fills uninitialised variables with, and what we make of it: a NaN in every float type.
_PATTERN, _NAN = b"\xfe" * 4, b"\xff" * 4


@dataclass(frozen=True)
class Region:
    """Device memory a launch may touch: ``nbytes`` from address ``ptr``. Accesses outside all
    regions, and writes to one that is not ``writable``, are errors."""

    name: str
    ptr: int
    nbytes: int
    writable: bool


def pointers(regions: Sequence[Region]) -> list[int]:
    """What to give a kernel as the address of each region. Through such a pointer a kernel can
    reach its own region only; a bare ``ptr`` may lead from one to another that happens to lie
    beside it."""
    return [region.ptr | n << 48 for n, region in enumerate(regions, 1)]


def load(text: str) -> EmulatedModule:
    """Compile emitted CUDA text for the emulator, or find it in the disk cache.

    The part after the device layer is compiled unchanged. Raises CompileError with the compiler's
    message and lines of ``text``, and NoCompilerError.
    """
    sections = split(text)
    checks = "bounds" if "clang" in cxx.compiler().version else "bounds-strict"
    try:
        entry = cxx.shared_object(kernel_text(sections), (*_KERNEL_FLAGS,
                                  f"-fsanitize={checks},{_CHECKS}"), name="kernel", kind="emu")
    except CompileError as error:
        if not error.log:
            raise
        raise CompileError("the kernel text does not compile for the emulator", source=text,
                           log=error.log, path=error.path) from None
    poisoned = replace(entry, payload=entry.payload.replace(_PATTERN, _NAN), path=None)
    library = cxx.load(poisoned)
    library.emu_bind.argtypes = [ctypes.c_void_p]
    library.emu_bind(_runtime().emu_runtime())
    return EmulatedModule(text, sections.entries(), library)


@cache
def _runtime() -> ctypes.CDLL:
    return build_runtime()


def build_runtime(*defines: str) -> ctypes.CDLL:
    """The runtime library, compiled with ``defines`` such as ``-DEMU_PORTABLE_FIBERS``."""
    entry = cxx.shared_object(runtime_text(), (*_RUNTIME_FLAGS, *defines), name="emulator",
                              kind="emu")
    return abi.declare(cxx.load(entry))


class EmulatedModule:
    """The kernels of one emitted text; ``entries`` are their names."""

    def __init__(self, text: str, entries: tuple[str, ...], library: ctypes.CDLL) -> None:
        self.text = text
        self.entries = entries
        self._library = library

    def launch(self, entry: str, grid: tuple[int, int, int], threads: int, shared_bytes: int,
               params: bytes, regions: Sequence[Region], *, seed: int = 0,
               workers: int | None = None, detect_races: bool = True,
               timeout: float | None = None) -> Counters:
        """Run kernel ``entry`` to its end.

        ``threads`` per block, ``shared_bytes`` of dynamic shared memory, ``params`` the bytes of
        its ``Params``. The same ``seed`` gives the same schedule on any number of ``workers``
        (threads of this machine; default: all cores). After ``timeout`` seconds the launch is
        given up. Raises the subclass of EmulatorError for what it finds, UnknownNameError for
        ``entry`` and LaunchError for a shape that no GPU takes.
        """
        if entry not in self.entries:
            raise UnknownNameError("kernel", entry, self.entries)
        size = getattr(self._library, f"emu_size_{entry}")()
        _check(entry, grid, threads, shared_bytes, len(params), size)
        blocks = math.prod(grid)
        if blocks == 0:
            return Counters()
        table = (abi.Region * max(1, len(regions)))(*(
            abi.Region(r.ptr, r.nbytes, r.writable, r.name.encode()[:59]) for r in regions))
        enter = getattr(self._library, f"emu_enter_{entry}")
        spec = abi.Spec(
            ctypes.cast(enter, ctypes.c_void_p), params, (ctypes.c_int * 3)(*grid), threads,
            shared_bytes, workers or _cores(), detect_races, len(regions), seed, table)
        error, raw = abi.Error(), abi.Counters()
        read, written = ((ctypes.c_uint64 * max(1, len(regions)))() for _ in range(2))
        in_time = _run(spec, timeout, error, raw, read, written)
        if error.kind:
            failed = failure.exception(error, entry, self.text, seed)
            if in_time or not isinstance(failed, DeadlockError):
                raise failed
        if not in_time:
            raise DeadlockError(f"kernel {entry} has not finished", where=f"grid {grid}",
                                numbers=f"given up after {timeout} s", remedy="Give it more time.")
        n = len(regions)
        return Counters.of(raw, [r.name for r in regions], read[:n], written[:n])


def _run(spec: abi.Spec, timeout: float | None, error: abi.Error, raw: abi.Counters,
         read: ctypes.Array[ctypes.c_uint64], written: ctypes.Array[ctypes.c_uint64]) -> bool:
    """Start, wait, collect. Waits in short steps, so that Ctrl-C is heard."""
    runtime = _runtime()
    limit = math.inf if timeout is None else time.monotonic() + timeout
    launch = runtime.emu_start(ctypes.byref(spec))
    in_time = True
    try:
        while not runtime.emu_wait(launch, 50):
            if time.monotonic() > limit:
                in_time = False
                runtime.emu_cancel(launch)
                break
    except BaseException:
        runtime.emu_cancel(launch)
        raise
    finally:
        runtime.emu_finish(launch, ctypes.byref(error), ctypes.byref(raw), read, written)
    return in_time


def _check(entry: str, grid: tuple[int, int, int], threads: int, shared_bytes: int, given: int,
           size: int) -> None:
    if threads % 32 or not 32 <= threads <= 1024:
        raise LaunchError(f"kernel {entry} was given {threads} threads a block",
                          remedy="Use a multiple of 32 from 32 to 1024.")
    if min(grid) < 0 or grid[0] >= 2**31 or max(grid[1:]) > 65535:
        raise LaunchError(f"kernel {entry} was given the grid {grid}",
                          remedy="At most 2^31 - 1 blocks along x and 65535 along y and z.")
    if not 0 <= shared_bytes <= _MOST_SHARED:
        raise LaunchError(f"kernel {entry} was given {shared_bytes} bytes of shared memory",
                          remedy=f"No GPU has more than {_MOST_SHARED} for a block.")
    if given != size:
        raise LaunchError(f"kernel {entry} was given {given} bytes of parameters",
                          numbers=f"its Params has {size} bytes")


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1
