"""One variant of an attention, ready for tensors: allocates what it writes and runs its plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from . import operands
from .captured import Captured
from .operands import Heads
from .packed import Packing
from .plan import Plan
from .positions import Positions
from .runner import Runner

if TYPE_CHECKING:
    from torch import Tensor

_NOTHING = Captured()
_NONE: Mapping[str, Tensor] = {}


class Cached(NamedTuple):
    """How a cache keeps keys and values, as ``ir.cache.Cache`` has it; ``rotary`` is 0 for all
    columns."""

    ring: bool = False
    page: int = 0
    stored: str = ""
    rope: str = ""
    rotary: int = 0
    inside: bool = False


class Kind(NamedTuple):
    """Which kernels of a spec: for tensors of ``dtype``, whose rows can be read 16 bytes at a time
    (``vectorized``), with sequences lying end to end (``packed``), with ``dropout``. ``rows``: for
    few queries, tiles have so many rows, of all heads that share keys (0: for many queries).
    ``split``: the keys are cut into parts, which run side by side. ``cached``: keys and values are
    in a cache."""

    dtype: str
    vectorized: bool = True
    packed: bool = False
    dropout: bool = False
    rows: int = 0
    split: bool = False
    cached: Cached = Cached()


class Problem(NamedTuple):
    """The numbers of one call. Where sequences are packed ``batch`` is their number and the
    lengths are the longest. ``params`` holds q_offset, kv_offset and kv_len, or their ``_ptr``,
    where sequences begin and end (``packed.Packing.numbers``), and captured numbers; ``tables``
    are the captured tensors. ``packing`` and ``where`` hold the tensors whose addresses are among
    the numbers. The keys are cut into ``num_splits`` parts."""

    batch: int
    seqlen_q: int
    seqlen_k: int
    params: dict[str, int | float]
    tables: dict[str, Tensor]
    packing: Packing | None
    where: Positions
    num_splits: int = 1

    def queries(self, first: int, count: int) -> Problem:
        """That of some of the queries alone."""
        where = self.where._replace(q_offset=self.where.q_offset + first)
        return self._replace(seqlen_q=count, where=where, params=self.params | where.numbers())

    def sizes(self, fixed: Heads) -> dict[str, int]:
        """By the names of ``plan.SIZE_OF``."""
        heads, groups, head_dim, head_dim_v = fixed
        return {"batch": self.batch, "heads": heads, "groups": groups, "seqlen_q": self.seqlen_q,
                "seqlen_k": self.seqlen_k, "head_dim": head_dim, "head_dim_v": head_dim_v,
                "rows": self.seqlen_q * (heads // groups), "num_splits": self.num_splits}

    def work(self, fixed: Heads) -> int:
        """Multiply-adds of the forward pass, were everything visible."""
        return (self.batch * fixed.heads * self.seqlen_q * self.seqlen_k
                * (fixed.head_dim + fixed.head_dim_v))


class Variant:
    """The kernels for one dtype and alignment, called with checked tensors."""

    def __init__(self, plan: Plan, fixed: Heads, *, emulate: bool,
                 captured: Captured = _NOTHING) -> None:
        import torch

        self._runner = Runner(plan, emulate=emulate)
        self.executable = self._runner.executable
        self._fixed = fixed
        self.captured = captured
        self.captures = bool(captured.tensors or captured.numbers)
        self.packed = "b" not in plan.tensor("q").axes
        self._lse_dtype = getattr(torch, plan.tensor("lse").dtype)

    def run(self, q: Tensor, k: Tensor, v: Tensor, problem: Problem,
            others: Mapping[str, Tensor] = _NONE) -> tuple[Tensor, Tensor]:
        """(o, lse) for operands that ``operands.check_tensors`` accepted; ``others`` by name:
        scales of keys and values in eight bits, or queries where kernels read others than q."""
        shape = (*q.shape[:3], self._fixed.head_dim_v)
        o = q.new_empty(shape) if q.is_contiguous() \
            else q.new_empty_strided(shape, operands.ordered_strides(q, shape))
        lse = q.new_empty(shape[:3], dtype=self._lse_dtype)
        if not (problem.batch and problem.seqlen_q):
            return o, lse
        tensors = {"q": q, "k": k, "v": v, "o": o, "lse": lse, **others}
        if self.packed:
            tensors = {name: t[0] for name, t in tensors.items()}
        self._runner.run(tensors, problem.tables, problem.sizes(self._fixed), problem.params,
                         problem.work(self._fixed))
        return o, lse
