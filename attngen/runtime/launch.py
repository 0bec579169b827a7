"""Running plans: an ``Executable`` holds a plan's kernels, compiled once, and launches them.

How a kernel runs depends on its language: C++ through ctypes (``host_kernel``), CUDA on the device
through CuPy (``device_kernel``), or CUDA on the CPU under the emulator (``emulated_kernel``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from .. import knobs
from ..errors import OverrideWarning
from . import notice
from .params import Packer
from .plan import KernelPlan, Plan

_SUFFIX = {"cuda": "cu", "cpp": "cpp"}


class Buffer(NamedTuple):
    """Memory of one tensor: address, strides in elements in the order of the plan's axes, the
    bytes from the address to the last element's end (needed by the emulator only), and the lengths
    of a captured tensor."""

    ptr: int
    strides: tuple[int, ...]
    nbytes: int = 0
    lengths: tuple[int, ...] = ()


class Call(NamedTuple):
    """What one call hands to each kernel beside its packed parameters."""

    buffers: Mapping[str, Buffer]
    sizes: Mapping[str, int]
    params: Mapping[str, int | float]
    stream: Any
    threads: int


class Kernel(Protocol):
    """A compiled kernel, whatever it runs on; ``counters`` are the emulator's, of its last launch,
    and None elsewhere."""

    counters: Any

    def build(self) -> Any:
        """Compile, or find in the cache, and load as far as this machine allows."""

    def launch(self, packed: bytes, grid: tuple[int, int, int], call: Call) -> None:
        """Run with these ``Params``; ``grid`` has no zero."""


class Executable:
    """A plan made runnable. Kernels are compiled at the first ``run``, or by ``build``."""

    def __init__(self, plan: Plan, *, emulate: bool = False) -> None:
        self.plan = plan
        self.emulate = emulate
        self._steps = tuple((Packer(k, plan.tensors), k.grid) for k in plan.kernels)
        self._kernels: tuple[Kernel, ...] | None = None

    def build(self) -> tuple[Any, ...]:
        """Compile and load every kernel now; returns what each one's compiler made: ``Cubin``
        objects for CUDA text, loaded libraries for C++ or under the emulator."""
        return tuple(kernel.build() for kernel in self.kernels())

    def kernels(self) -> tuple[Kernel, ...]:
        """One runnable per kernel of the plan, in order."""
        if self._kernels is None:
            self._kernels = tuple(self._runnable(overridden(k)) for k in self.plan.kernels)
        return self._kernels

    def _runnable(self, kernel: KernelPlan) -> Kernel:
        """Each way of running is loaded when it is first needed: a warm start is short."""
        if kernel.language == "cpp":
            from .host_kernel import HostKernel
            return HostKernel(kernel)
        if self.emulate:
            from .emulated_kernel import EmulatedKernel
            return EmulatedKernel(kernel, self.plan.tensors)
        from .device_kernel import DeviceKernel
        return DeviceKernel(kernel)

    @property
    def counters(self) -> tuple[Any, ...]:
        """What the emulator counted in the last run, one per kernel launched; empty otherwise."""
        return tuple(k.counters for k in self.kernels() if k.counters is not None)

    def run(self, buffers: Mapping[str, Buffer], sizes: Mapping[str, int],
            params: Mapping[str, int | float], *, stream: Any = None, threads: int = 1) -> None:
        """Launch the kernels in order.

        ``buffers`` by tensor name; ``sizes`` by the names of ``plan.SIZE_OF``; ``params`` by field
        name (``q_offset``, and ``q_offset_ptr`` with the address of an int32 [batch], else null).
        ``stream`` is the torch stream for a device; ``threads`` is for the ``cpu`` target. A grid
        with no blocks launches nothing. Device launches return before they are done.
        """
        call = Call(buffers, sizes, params, stream, threads)
        kernels = self._kernels or self.kernels()
        for kernel, (packer, (x, y, z)) in zip(kernels, self._steps, strict=True):
            grid = x.blocks(sizes), y.blocks(sizes), z.blocks(sizes)
            if 0 not in grid:
                kernel.launch(packer.pack(buffers, sizes, params), grid, call)


def overridden(kernel: KernelPlan) -> KernelPlan:
    """The kernel with its text from ATTNGEN_OVERRIDE's folder, if a file of its name is there;
    says so."""
    place = knobs.override()
    path = place / f"{kernel.name}.{_SUFFIX[kernel.language]}" if place else None
    if path is None or not path.is_file():
        return kernel
    notice.once(OverrideWarning(f"running {path} instead of the generated text"))
    return kernel._replace(text=path.read_text())
