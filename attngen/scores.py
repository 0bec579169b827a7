"""Named score modifications, and the functions a score may use.

A score is called with ``(score, b, h, q_idx, kv_idx)`` on the already scaled score and returns the
new one. The functions here (``tanh``, ``where``, ...) work on whatever they are given: the
expression being traced, a torch tensor, or a number. Scores that read tensors are in
``scores_table``, and their names are here too.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, ClassVar

from .combined import SCORE_ARGUMENTS as ARGUMENTS
from .combined import Score, ScoreMod
from .combined import per_head_score as per_head
from .errors import PatternError, UnknownNameError
from .functions import (
    clamp,
    exp,
    exp2,
    log,
    maximum,
    minimum,
    sigmoid,
    sqrt,
    take,
    tanh,
    where,
)
from .patterns import is_tensor, whole
from .scores_table import bias, relative_position_bias, swin_bias
from .tables import FLOATS, as_table, made

__all__ = ["ARGUMENTS", "NAMED", "Score", "ScoreMod", "activation", "alibi", "bias", "clamp", "exp",
           "exp2", "log", "maximum", "minimum", "per_head", "relative_position_bias", "sigmoid",
           "softcap", "sqrt", "swin_bias", "tanh", "temperature", "where"]


def _positive(value: Any, pattern: str, argument: str) -> float:
    good = isinstance(value, Real) and not isinstance(value, bool)
    if not good or not math.isfinite(value) or value <= 0:
        raise PatternError(f"{pattern}: {argument} must be a finite number above 0, got {value!r}")
    return float(value)


class softcap(Score):
    """Scores bounded to ±cap: cap · tanh(score / cap), as in Gemma 2."""

    cap: float

    def __post_init__(self) -> None:
        self._put(cap=_positive(self.cap, "softcap", "cap"))

    def __call__(self, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return tanh(score / self.cap) * self.cap


class temperature(Score):
    """Scores divided by t: below 1 sharpens the softmax, above 1 flattens it."""

    t: float

    def __post_init__(self) -> None:
        self._put(t=_positive(self.t, "temperature", "t"))

    def __call__(self, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score / self.t


class alibi(Score):
    """A penalty linear in distance: score − slope(h) · |i − j| (Press et al., 2021).

    With H heads and m the largest power of two ≤ H, head h has slope 2^(−8(h+1)/m) for h < m and
    2^(−(8(h−m)+4)/m) from there on, as the authors extend it to any number of heads; ``heads`` is
    filled in by the spec when left out. Or give the ``slopes``: a sequence of numbers, or a tensor
    [heads], which is read at each call.
    """

    heads: int | None = None
    slopes: Any = None
    _table: ClassVar[Any]

    def __post_init__(self) -> None:
        if self.heads is not None:
            self._put(heads=whole(self.heads, "alibi", "heads", 1))
        self._put(_table=None)
        if self.slopes is None:
            return
        table = as_table(self.slopes, "alibi", "slopes", FLOATS, (1,)) if is_tensor(
            self.slopes) else _numbers(self.slopes, "alibi", "slopes")
        if self.heads not in (None, len(table)):
            raise PatternError(f"alibi has {len(table)} slopes for {self.heads} heads")
        self._put(heads=len(table), _table=table)
        if not is_tensor(self.slopes):
            self._put(slopes=tuple(float(s) for s in self.slopes))

    def for_heads(self, heads: int) -> alibi:
        if self.heads not in (None, heads):
            raise PatternError(f"alibi is for {self.heads} heads, the spec has {heads}",
                               remedy="Write alibi() to take the number from the spec.")
        return self if self.heads == heads else self.replace(heads=heads)

    def __call__(self, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        if self._table is not None:
            return score - take(self._table, h) * abs(q_idx - kv_idx)
        if self.heads is None:
            raise PatternError("alibi does not know the number of heads",
                               remedy="Use it in an AttentionSpec, or write alibi(heads).")
        m = 1 << (self.heads.bit_length() - 1)
        # h // m is 0 up to head m and 1 beyond it, which folds both formulas into one exponent.
        slope = exp2((h // m * (8 * m + 4) - 8 * h - 8) / m)
        return score - slope * abs(q_idx - kv_idx)


def _numbers(values: Any, pattern: str, argument: str) -> Any:
    """Finite numbers as a float32 tensor, the precision every target can read."""
    listed = list(values) if hasattr(values, "__iter__") and not isinstance(values, str) else []
    good = all(isinstance(v, Real) and math.isfinite(v) for v in listed)
    if not listed or not good:
        raise PatternError(f"{pattern}: {argument} must be finite numbers, one for each head, got "
                           f"{values!r}")
    import torch

    return made(torch.tensor([float(v) for v in listed], dtype=torch.float32))


class activation(Score):
    """A function of each score alone, with x the score:

    relu max(x, 0); tanh (eˣ − e⁻ˣ)/(eˣ + e⁻ˣ); sigmoid 1/(1 + e⁻ˣ); silu x·sigmoid(x);
    gelu x/2 · (1 + tanh(√(2/π)·(x + 0.044715·x³))), the tanh form.
    """

    function: str

    def __post_init__(self) -> None:
        if self.function not in _ACTIVATIONS:
            raise UnknownNameError("activation", str(self.function), _ACTIVATIONS)

    def __call__(self, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return _ACTIVATIONS[self.function](score)


_ACTIVATIONS: dict[str, Any] = {
    "relu": lambda x: maximum(x, 0.0),
    "tanh": tanh,
    "sigmoid": sigmoid,
    "silu": lambda x: x * sigmoid(x),
    "gelu": lambda x: 0.5 * x * (1.0 + tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))),
}

NAMED: dict[str, type[Score]] = {cls.name: cls for cls in (
    per_head, softcap, temperature, alibi, activation, bias, relative_position_bias, swin_bias)}
