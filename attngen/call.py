"""What a call says beside its tensors, and what it is once checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .runtime.variant import Cached, Problem, Variant

if TYPE_CHECKING:
    from torch import Tensor

Key = tuple[Any, bool, bool, bool, int, bool, Cached]  # a Kind with the dtype as torch has it


class Description(Protocol):
    """What the compiler tells of its work."""

    def ir(self, stage: str) -> Any:
        """The printable graph at a stage: "math", "fused", "tiled" or "placed"."""

    def explain(self) -> Any:
        """Kernel family, tiles, bytes, FLOPs, registers, spills, shared memory, roofline."""

    def tiles(self, seqlen_q: int, seqlen_k: int, block: tuple[int, int], *, batch: int,
              q_offset: Any, kv_offset: Any, seqlens_k: Any) -> Any:
        """The TileMap of the mask."""


class When(NamedTuple):
    """The positions and lengths a call names; what they are is in ``Attention.__call__``."""

    q_offset: int | Tensor | None = None
    kv_offset: int | Tensor | None = None
    seqlens_k: Tensor | None = None
    cu_seqlens_q: Tensor | None = None
    cu_seqlens_k: Tensor | None = None
    max_seqlen_q: int | None = None
    max_seqlen_k: int | None = None
    num_splits: int | None = None

    @property
    def packed(self) -> bool:
        """Whether sequences lie end to end, or are meant to."""
        return not all(x is None for x in self[3:7])


class Ready(NamedTuple):
    """A checked call. ``kind`` is that of its gradients."""

    kind: Key
    variant: Variant
    problem: Problem
