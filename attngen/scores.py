"""Named score modifications, and the functions a score may use.

A score is called with ``(score, b, h, q_idx, kv_idx)`` on the already scaled score and returns the
new one. The functions here (``tanh``, ``exp2``, ...) work on whatever they are given: the
expression being traced, a torch tensor, or a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

from .errors import PatternError
from .patterns import Pattern, no_attribute, whole

ScoreMod = Callable[[Any, Any, Any, Any, Any], Any]
ARGUMENTS = ("score", "b", "h", "q_idx", "kv_idx")


def _function(name: str, on_number: Callable[[float], float]) -> Callable[[Any], Any]:
    def apply(x: Any) -> Any:
        method = getattr(x, name, None)
        return on_number(x) if method is None else method()
    apply.__name__ = apply.__qualname__ = name
    apply.__doc__ = f"``{name}(x)``, element by element."
    return apply


exp = _function("exp", math.exp)
exp2 = _function("exp2", lambda x: 2.0 ** x)
log = _function("log", math.log)
sigmoid = _function("sigmoid", lambda x: 1.0 / (1.0 + math.exp(-x)))
sqrt = _function("sqrt", math.sqrt)
tanh = _function("tanh", math.tanh)


class Score(Pattern):
    """Base of named score modifications."""

    def __call__(self, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        raise PatternError(f"{self.name} defines no score")

    def for_heads(self, heads: int) -> Score:
        """The same pattern, knowing how many query heads the spec has."""
        return self


def _positive(value: Any, pattern: str, argument: str) -> float:
    good = isinstance(value, Real) and not isinstance(value, bool)
    if not good or not math.isfinite(value) or value <= 0:
        raise PatternError(f"{pattern}: {argument} must be a finite number above 0, got {value!r}")
    return float(value)


@dataclass(frozen=True)
class softcap(Score):
    """Scores bounded to ±cap: cap · tanh(score / cap), as in Gemma 2."""

    cap: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "cap", _positive(self.cap, "softcap", "cap"))

    def __call__(self, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return tanh(score / self.cap) * self.cap


@dataclass(frozen=True)
class temperature(Score):
    """Scores divided by t: below 1 sharpens the softmax, above 1 flattens it."""

    t: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "t", _positive(self.t, "temperature", "t"))

    def __call__(self, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score / self.t


@dataclass(frozen=True)
class alibi(Score):
    """A penalty linear in distance: score − slope(h) · |i − j| (Press et al., 2021).

    With H heads and m the largest power of two ≤ H, head h has slope 2^(−8(h+1)/m) for h < m and
    2^(−(8(h−m)+4)/m) from there on, as the authors extend it to any number of heads. ``heads`` is
    filled in by the spec when left out.
    """

    heads: int | None = None

    def __post_init__(self) -> None:
        if self.heads is not None:
            object.__setattr__(self, "heads", whole(self.heads, "alibi", "heads", 1))

    def for_heads(self, heads: int) -> Score:
        if self.heads not in (None, heads):
            raise PatternError(f"alibi is for {self.heads} heads, the spec has {heads}",
                               remedy="Write alibi() to take the number from the spec.")
        return replace(self, heads=heads)

    def __call__(self, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        if self.heads is None:
            raise PatternError("alibi does not know the number of heads",
                               remedy="Use it in an AttentionSpec, or write alibi(heads).")
        m = 1 << (self.heads.bit_length() - 1)
        # h // m is 0 up to head m and 1 beyond it, which folds both formulas into one exponent.
        slope = exp2((h // m * (8 * m + 4) - 8 * h - 8) / m)
        return score - slope * abs(q_idx - kv_idx)


NAMED: dict[str, type[Score]] = {cls.__name__: cls for cls in (softcap, temperature, alibi)}

_LATER = ("bias", "relative_bias")


def __getattr__(name: str) -> Any:
    raise no_attribute(__name__, name, _LATER)
