"""A cache that keeps what a sliding window can still see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ShapeError
from ..runtime.variant import Cached
from .cache import Cache

if TYPE_CHECKING:
    import torch

    from ..attention import Attention


class RollingKVCache(Cache):
    """The first ``sinks`` tokens of each sequence and its newest ``window``, in a ring.

    A query at position i sees the first ``sinks`` keys and those at i − window + 1 … i, as far as
    the spec's mask lets it (StreamingLLM, Xiao et al. 2023). Keys keep their positions, so masks
    and scores mean what they always do. Up to ``chunk`` queries can be answered at once: the ring
    has room for the windows of all of them. k [batch, groups, sinks + window + chunk − 1,
    head_dim].
    """

    def __init__(self, attn: Attention, batch: int, window: int, *, sinks: int = 0,
                 chunk: int = 16, dtype: torch.dtype | None = None, device: Any = None,
                 quantize: str | None = None) -> None:
        if batch < 0 or window < 1 or sinks < 0 or chunk < 1:
            raise ShapeError(f"a ring for {batch} sequences with window={window}, sinks={sinks}, "
                             f"chunk={chunk}", remedy="window and chunk are at least 1.")
        slots = sinks + window + chunk - 1
        super().__init__(attn, batch, (batch, attn.spec.kv_heads, slots), slots, dtype, device,
                         quantize, Cached(ring=True))
        self.window, self.sinks, self.chunk = window, sinks, chunk

    def numbers(self) -> dict[str, int]:
        return {"ring_sinks": self.sinks, "ring_reach": self.window}

    def make_room(self, counts: Sequence[int]) -> None:
        """A ring is never full."""

    def check_queries(self, seqlen_q: int) -> None:
        if seqlen_q > self.chunk:
            raise ShapeError(f"{seqlen_q} queries at once from a ring made for {self.chunk}",
                             numbers=f"window {self.window}, {self.seqlen_k} slots",
                             remedy="Make it with a larger chunk: keys that the first queries see "
                                    "were overwritten when the last ones' were appended.")
