"""One variant of an attention, ready for tensors: allocates what it writes and runs its plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import knobs
from . import operands
from .captured import Captured
from .launch import Buffer, Executable
from .operands import Heads
from .plan import ITEMSIZE, SIZE_OF, Plan, TensorArg
from .summary import per_64

if TYPE_CHECKING:
    from torch import Tensor

_NOTHING = Captured()

# Below this many multiply-adds, waking a second thread costs more than it saves (25 us against
# about as long of work).
_WORTH_THREADS = 400_000


class Variant:
    """The kernels for one dtype and alignment, called with checked tensors."""

    def __init__(self, plan: Plan, fixed: Heads, *, emulate: bool,
                 captured: Captured = _NOTHING) -> None:
        import torch

        self.executable = Executable(plan, emulate=emulate)
        self._torch = torch
        self._fixed = fixed
        self.captured = captured
        self.captures = bool(captured.tensors or captured.numbers)
        self._emulate = emulate
        self._on_host = emulate or plan.target == "cpu"
        self._packed = "b" not in plan.tensor("q").axes
        self._lse_dtype = getattr(torch, plan.tensor("lse").dtype)
        self._workspaces = tuple(t for t in plan.tensors if t.role == "workspace")
        self._summaries = tuple(t for t in plan.tensors if t.of)

    def run(self, q: Tensor, k: Tensor, v: Tensor, batch: int, seqlen_q: int, seqlen_k: int,
            params: dict[str, int | float],
            tables: dict[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """(o, lse) for operands that ``operands.check_tensors`` accepted. ``params`` holds
        q_offset, kv_offset and kv_len, or their ``_ptr``, and captured numbers; ``tables`` the
        captured tensors. Where sequences are packed ``batch`` is their number, the lengths are the
        longest, and ``params`` says where they begin and end (``packed.Packing.numbers``)."""
        heads, groups, head_dim, head_dim_v = self._fixed
        sizes = {"batch": batch, "heads": heads, "groups": groups, "seqlen_q": seqlen_q,
                 "seqlen_k": seqlen_k, "head_dim": head_dim, "head_dim_v": head_dim_v}
        shape = (*q.shape[:3], head_dim_v)
        o = q.new_empty(shape) if q.is_contiguous() \
            else q.new_empty_strided(shape, operands.ordered_strides(q, shape))
        lse = q.new_empty(shape[:3], dtype=self._lse_dtype)
        if not (batch and seqlen_q):
            return o, lse
        tensors = {"q": q, "k": k, "v": v, "o": o, "lse": lse}
        if self._packed:
            tensors = {name: t[0] for name, t in tensors.items()}
        for arg in self._workspaces:
            tensors[arg.name] = self._workspace(arg, sizes, q)
        if self._emulate:
            buffers = {name: Buffer(t.data_ptr(), t.stride(), operands.span_bytes(t))
                       for name, t in tensors.items()}
        else:
            buffers = {name: Buffer(t.data_ptr(), t.stride()) for name, t in tensors.items()}
        tables = dict(tables or {})
        for arg in self._summaries:
            tables[arg.name] = per_64(tables[arg.of])
        for name, t in tables.items():
            buffers[name] = Buffer(t.data_ptr(), t.stride(), operands.span_bytes(t), tuple(t.shape))
        if self._on_host:
            work = batch * heads * seqlen_q * seqlen_k * (head_dim + head_dim_v)
            threads = 1 if work < _WORTH_THREADS else \
                knobs.threads() or self._torch.get_num_threads()
            self.executable.run(buffers, sizes, params, threads=threads)
        else:
            stream = self._torch.cuda.current_stream(q.device)
            self.executable.run(buffers, sizes, params, stream=stream)
        return o, lse

    def _workspace(self, arg: TensorArg, sizes: dict[str, int], like: Tensor) -> Tensor:
        shape = tuple(sizes[SIZE_OF[axis]] for axis in arg.axes)
        strides = operands.padded_strides(shape, ITEMSIZE[arg.dtype])
        # The whole of the padding belongs to it: the last row may be read in 16-byte pieces.
        flat = like.new_empty(strides[0] * max(1, shape[0]), dtype=getattr(self._torch, arg.dtype))
        return flat.as_strided(shape, strides)
