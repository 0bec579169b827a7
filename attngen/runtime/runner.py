"""Running a plan on tensors: what a call needs around the kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .. import knobs
from . import operands
from .launch import Buffer, Executable
from .plan import ITEMSIZE, SIZE_OF, Plan, TensorArg
from .summary import per_64

if TYPE_CHECKING:
    from torch import Tensor

# Below this many multiply-adds, waking a second thread costs more than it saves (25 us against
# about as long of work).
_WORTH_THREADS = 400_000


class Runner:
    """A plan with its workspaces, the summaries of captured tensors, threads or a stream."""

    def __init__(self, plan: Plan, *, emulate: bool) -> None:
        import torch

        self.plan = plan
        self.executable = Executable(plan, emulate=emulate)
        self._torch = torch
        self._emulate = emulate
        self._on_host = emulate or plan.target == "cpu"
        self._workspaces = tuple(t for t in plan.tensors if t.role == "workspace")
        self._summaries = tuple(t for t in plan.tensors if t.of)

    def run(self, tensors: dict[str, Tensor], tables: Mapping[str, Tensor],
            sizes: dict[str, int], params: Mapping[str, int | float], work: int) -> None:
        """Launch on ``tensors`` and captured ``tables``, by the plan's names. ``sizes`` by the
        names of ``plan.SIZE_OF``; ``work`` in multiply-adds decides how many threads are woken."""
        like = next(iter(tensors.values()))
        for arg in self._workspaces:
            tensors[arg.name] = self._workspace(arg, sizes, like)
        if self._emulate:
            buffers = {name: Buffer(t.data_ptr(), t.stride(), operands.span_bytes(t))
                       for name, t in tensors.items()}
        else:
            buffers = {name: Buffer(t.data_ptr(), t.stride()) for name, t in tensors.items()}
        known = dict(tables)
        for arg in self._summaries:
            known[arg.name] = per_64(known[arg.of])
        for name, t in known.items():
            buffers[name] = Buffer(t.data_ptr(), t.stride(), operands.span_bytes(t), tuple(t.shape))
        if self._on_host:
            threads = 1 if work < _WORTH_THREADS else \
                knobs.threads() or self._torch.get_num_threads()
            self.executable.run(buffers, sizes, params, threads=threads)
        else:
            stream = self._torch.cuda.current_stream(like.device)
            self.executable.run(buffers, sizes, params, stream=stream)

    def _workspace(self, arg: TensorArg, sizes: dict[str, int], like: Tensor) -> Tensor:
        shape = tuple(sizes[SIZE_OF[axis]] for axis in arg.axes)
        strides = operands.padded_strides(shape, ITEMSIZE[arg.dtype])
        # The whole of the padding belongs to it: the last row may be read in 16-byte pieces.
        flat = like.new_empty(strides[0] * max(1, shape[0]), dtype=getattr(self._torch, arg.dtype))
        return flat.as_strided(shape, strides)
