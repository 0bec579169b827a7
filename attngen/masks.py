"""Named masks: which keys a query may see.

A mask is called with ``(b, h, q_idx, kv_idx)`` and is true where the key is visible; i is the
query's position, j the key's. Masks and plain callables of that signature combine with ``& | ~``::

    masks.causal() & (masks.sliding_window(256) | masks.attention_sinks(4))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .errors import PatternError, UnknownNameError
from .patterns import Pattern, check_callable, no_attribute, whole

MaskMod = Callable[[Any, Any, Any, Any], Any]
ARGUMENTS = ("b", "h", "q_idx", "kv_idx")
PARTS = (None, "local", "stride")


class Mask(Pattern):
    """Base of named masks: callable, and composable with other masks and with callables."""

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        raise PatternError(f"{self.name} defines no mask")

    def __and__(self, other: MaskMod) -> Mask:
        return all_of(self, other)

    def __rand__(self, other: MaskMod) -> Mask:
        return all_of(other, self)

    def __or__(self, other: MaskMod) -> Mask:
        return any_of(self, other)

    def __ror__(self, other: MaskMod) -> Mask:
        return any_of(other, self)

    def __invert__(self) -> Mask:
        return none_of(self)


@dataclass(frozen=True)
class all_of(Mask):
    """Visible where both are: ``a & b``."""

    first: MaskMod
    second: MaskMod

    def __post_init__(self) -> None:
        check_callable(self.first, "mask", ARGUMENTS)
        check_callable(self.second, "mask", ARGUMENTS)

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return self.first(b, h, q_idx, kv_idx) & self.second(b, h, q_idx, kv_idx)


@dataclass(frozen=True)
class any_of(Mask):
    """Visible where either is: ``a | b``."""

    first: MaskMod
    second: MaskMod

    def __post_init__(self) -> None:
        check_callable(self.first, "mask", ARGUMENTS)
        check_callable(self.second, "mask", ARGUMENTS)

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return self.first(b, h, q_idx, kv_idx) | self.second(b, h, q_idx, kv_idx)


@dataclass(frozen=True)
class none_of(Mask):
    """Visible where the other is not: ``~a``."""

    mask: MaskMod

    def __post_init__(self) -> None:
        check_callable(self.mask, "mask", ARGUMENTS)

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return ~self.mask(b, h, q_idx, kv_idx)


@dataclass(frozen=True)
class causal(Mask):
    """No key after the query: j ≤ i."""

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return kv_idx <= q_idx


@dataclass(frozen=True)
class sliding_window(Mask):
    """Keys near the query: i − j ≤ l and j − i ≤ r for ``window=(l, r)``.

    ``sliding_window(w)`` is the last w positions, itself included: ``(w − 1, 0)``. Raises
    PatternError for a negative side or w < 1.
    """

    window: int | tuple[int, int]

    def __post_init__(self) -> None:
        window = self.window
        if isinstance(window, tuple | list):
            if len(window) != 2:
                raise PatternError(f"sliding_window{tuple(window)!r} has {len(window)} sides",
                                   remedy="Give (left, right), or one int w for (w - 1, 0).")
            sides = (whole(window[0], "sliding_window", "left", 0),
                     whole(window[1], "sliding_window", "right", 0))
        else:
            sides = (whole(window, "sliding_window", "window", 1) - 1, 0)
        object.__setattr__(self, "window", sides)

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        left, right = self.window  # type: ignore[misc]  # a pair since __post_init__
        return (q_idx - kv_idx <= left) & (kv_idx - q_idx <= right)


@dataclass(frozen=True)
class prefix_lm(Mask):
    """Causal, but the first n keys are visible to all: j ≤ i or j < n."""

    n: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", whole(self.n, "prefix_lm", "n", 0))

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return (kv_idx <= q_idx) | (kv_idx < self.n)


@dataclass(frozen=True)
class chunked(Mask):
    """Blocks of c positions that see only themselves: ⌊i/c⌋ = ⌊j/c⌋. Not causal."""

    c: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "c", whole(self.c, "chunked", "c", 1))

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return q_idx // self.c == kv_idx // self.c


@dataclass(frozen=True)
class attention_sinks(Mask):
    """The first n keys: j < n. Made to be combined: ``sliding_window(w) | attention_sinks(4)``."""

    n: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", whole(self.n, "attention_sinks", "n", 0))

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return kv_idx < self.n


@dataclass(frozen=True)
class dilated_window(Mask):
    """n keys to either side, ``step`` apart: |i − j| ≤ n·step and (i − j) mod step = 0."""

    n: int
    step: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", whole(self.n, "dilated_window", "n", 0))
        object.__setattr__(self, "step", whole(self.step, "dilated_window", "step", 1))

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        reach = self.n * self.step
        near = (q_idx - kv_idx <= reach) & (kv_idx - q_idx <= reach)
        return near & ((q_idx - kv_idx) % self.step == 0)


def _check_part(part: str | None, pattern: str) -> None:
    if part not in PARTS:
        raise UnknownNameError("part", str(part), [p for p in PARTS if p], where=pattern)


@dataclass(frozen=True)
class strided(Mask):
    """Sparse Transformer's strided pattern: causal and (i − j ≤ l or (i − j) mod l = 0).

    ``part="local"`` keeps only the first of the pair, ``part="stride"`` only the second.
    """

    l: int  # noqa: E741  # the paper's name
    part: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "l", whole(self.l, "strided", "l", 1))
        _check_part(self.part, "strided")

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        distance = q_idx - kv_idx
        local, stride = distance <= self.l, distance % self.l == 0
        return (kv_idx <= q_idx) & _chosen(self.part, local, stride)


@dataclass(frozen=True)
class fixed(Mask):
    """Sparse Transformer's fixed pattern: causal and (⌊j/l⌋ = ⌊i/l⌋ or j mod l ≥ l − c).

    ``part="local"`` keeps only the first of the pair, ``part="stride"`` only the second.
    """

    l: int  # noqa: E741  # the paper's name
    c: int
    part: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "l", whole(self.l, "fixed", "l", 1))
        object.__setattr__(self, "c", whole(self.c, "fixed", "c", 0))
        if self.c > self.l:
            raise PatternError(f"fixed: c={self.c} summary columns do not fit in blocks of "
                               f"l={self.l}", remedy="Choose c no larger than l.")
        _check_part(self.part, "fixed")

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        local = kv_idx // self.l == q_idx // self.l
        summary = kv_idx % self.l >= self.l - self.c
        return (kv_idx <= q_idx) & _chosen(self.part, local, summary)


def _chosen(part: str | None, local: Any, stride: Any) -> Any:
    return {None: local | stride, "local": local, "stride": stride}[part]


NAMED: dict[str, type[Mask]] = {cls.__name__: cls for cls in (
    all_of, any_of, none_of, causal, sliding_window, prefix_lm, chunked, attention_sinks,
    dilated_window, strided, fixed)}

_LATER = ("document", "global_tokens", "from_dense")


def __getattr__(name: str) -> Any:
    raise no_attribute(__name__, name, _LATER)
