"""A cache that keeps what a sliding window can still see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import CapturedError, ShapeError, UnknownNameError
from ..runtime.variant import Cached
from .cache import Cache

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..attention import Attention
    from .rope import Rope

_POSITIONS = ("tokens", "cache")


class RollingKVCache(Cache):
    """The first ``sinks`` tokens of each sequence and its newest ``window``, in a ring.

    A query at position i sees the first ``sinks`` keys and those at i − window + 1 … i, as far as
    the spec's mask lets it (StreamingLLM, Xiao et al. 2023). Up to ``chunk`` queries can be
    answered at once: the ring has room for the windows of all of them. k [batch, groups, sinks +
    window + chunk − 1, head_dim].

    ``positions`` says what scores and rotary embeddings count: with "tokens" keys keep the
    positions they had; with "cache" those that have left do not count, as in that paper: the query
    is at min(i, sinks + window − 1), the first tokens at their own, and others as far before the
    query as they are, so a model never sees a distance above its window. Masks see the positions of
    tokens in either case. Give ``rope`` to ``append`` and to ``decode`` then; its tables have
    ``rope_positions`` rows at least, however long the stream is.
    """

    zones = 3  # ir.rolling.ZONES

    def __init__(self, attn: Attention, batch: int, window: int, *, sinks: int = 0,
                 chunk: int = 16, positions: str = "tokens", dtype: torch.dtype | None = None,
                 device: Any = None, quantize: str | None = None) -> None:
        if batch < 0 or window < 1 or sinks < 0 or chunk < 1:
            raise ShapeError(f"a ring for {batch} sequences with window={window}, sinks={sinks}, "
                             f"chunk={chunk}", remedy="window and chunk are at least 1.")
        if positions not in _POSITIONS:
            raise UnknownNameError("positions", positions, _POSITIONS, where="RollingKVCache")
        slots = sinks + window + chunk - 1
        super().__init__(attn, batch, (batch, attn.spec.kv_heads, slots), slots, dtype, device,
                         quantize, Cached(ring=True, inside=positions == "cache"))
        self.window, self.sinks, self.chunk = window, sinks, chunk
        self._turned = ""  # how the keys there are were; empty while there are none

    @property
    def rope_positions(self) -> int:
        """With positions in the cache: rows that tables of a rotary embedding have to have."""
        return self.seqlen_k + self.window + 2 * (self.chunk - 1)

    def numbers(self) -> dict[str, int]:
        return {"ring_sinks": self.sinks, "ring_reach": self.window}

    def append(self, k: Tensor, v: Tensor, counts: Sequence[int] | Tensor | None = None, *,
               rope: Rope | None = None) -> None:
        super().append(k, v, counts, rope=rope)
        if k.shape[2]:
            self._turned = _turned(rope)

    def clear(self, sequence: int | None = None) -> None:
        super().clear(sequence)
        if not any(self._longest):
            self._turned = ""

    def check_rope(self, rope: Rope | None, new: Sequence[int] | None = None) -> None:
        """Raises also CapturedError where keys and queries, or keys, would be turned differently,
        if positions are those in the cache."""
        if self.cached.inside and self._turned not in ("", _turned(rope)):
            raise CapturedError(
                "rope is not what the cache's keys were appended with",
                numbers=f"{_turned(rope)}; in the cache {self._turned}",
                remedy="Give all appends and decode() the same tables, or clear() the cache.")
        super().check_rope(rope, new)

    def angles(self, tokens: int) -> int:
        return self.rope_positions if self.cached.inside else tokens

    def make_room(self, counts: Sequence[int]) -> None:
        """A ring is never full."""

    def check_queries(self, seqlen_q: int) -> None:
        if seqlen_q > self.chunk:
            raise ShapeError(f"{seqlen_q} queries at once from a ring made for {self.chunk}",
                             numbers=f"window {self.window}, {self.seqlen_k} slots",
                             remedy="Make it with a larger chunk: keys that the first queries see "
                                    "were overwritten when the last ones' were appended.")


def _turned(rope: Rope | None) -> str:
    return "none" if rope is None else f"{rope.style}, {rope.rotary_dim} columns"
