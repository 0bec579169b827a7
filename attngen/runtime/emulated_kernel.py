"""CUDA kernels executed on the CPU, by the emulator."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .. import knobs
from .plan import ITEMSIZE, KernelPlan, TensorArg, struct_format

if TYPE_CHECKING:
    from .launch import Call


class EmulatedKernel:
    """The exact CUDA text under the emulator; ``counters`` are those of the last launch."""

    def __init__(self, plan: KernelPlan, tensors: Iterable[TensorArg]) -> None:
        self.plan = plan
        self.counters: Any = None
        self._writable = {t.name: t.role in ("output", "workspace") for t in tensors
                          if t.name in plan.tensors}
        self._program: Any = None

    def build(self) -> Any:
        """Compile for the CPU and load."""
        if self._program is None:
            from . import emulator

            self._program = emulator.load(self.plan.text)
        return self._program

    def launch(self, packed: bytes, grid: tuple[int, int, int], call: Call) -> None:
        """Run to the end, with races, bounds and deadlocks checked."""
        from . import emulator

        regions = [emulator.Region(name, call.buffers[name].ptr, call.buffers[name].nbytes, writes)
                   for name, writes in self._writable.items() if call.buffers[name].ptr]
        for param in self.plan.params:
            address = call.params.get(f"{param.name}_ptr", 0)
            if address:
                size = call.sizes["batch"] * ITEMSIZE[param.dtype]
                regions.append(emulator.Region(f"{param.name}_ptr", int(address), size, False))
        self.counters = self.build().launch(
            self.plan.name, grid, self.plan.threads, self.plan.shared_bytes,
            self._tagged(packed, regions), regions, seed=knobs.seed())

    def _tagged(self, packed: bytes, regions: list[Any]) -> bytes:
        """Params with each pointer bound to its own region."""
        from . import emulator

        address = dict(zip((r.name for r in regions), emulator.pointers(regions), strict=True))
        layout = struct.Struct(struct_format(self.plan.fields))
        return layout.pack(*(address.get(field.name, value) for field, value in
                             zip(self.plan.fields, layout.unpack(packed), strict=True)))
