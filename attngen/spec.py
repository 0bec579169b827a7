"""AttentionSpec: what the user wants computed, validated once and then immutable."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

from . import masks, patterns, scores
from .errors import (
    GroupsError,
    HeadDimError,
    NotDeliveredError,
    PatternError,
    SpecError,
    SpecJsonError,
    UnknownDtypeError,
    UnknownNameError,
    WindowError,
)
from .masks import MaskMod
from .scores import ScoreMod

DTYPES = ("float64", "float32", "bfloat16", "float16")
LATER_DTYPES = ("float8_e4m3",)
JSON_VERSION = 1


@dataclass(frozen=True)
class AttentionSpec:
    """One attention variant.

    heads       query heads, at least 1
    head_dim    size of q and k vectors, a multiple of 8 from 8 to 256
    groups      key/value heads: an int dividing heads (default: heads), or a tuple of length heads
                giving the key/value head of each query head, each head 0, 1, ... used at least once
    head_dim_v  size of v vectors, same range; default head_dim
    causal      keys after the query are hidden: j ≤ i
    window      (left, right) positions visible to either side besides the query's own; an int w is
                (w − 1, 0) and needs causal
    mask        a pattern of ``attngen.masks`` or a callable (b, h, q_idx, kv_idx), true = visible;
                ``attngen.per_head([...])`` of them for one each
    score       a pattern of ``attngen.scores`` or a callable (score, b, h, q_idx, kv_idx), or a
                list of them, applied left to right to the scaled score; ``per_head`` here too
    sinks       one learned logit per head in the softmax denominator
    scale       factor on q·kᵀ, above 0; default 1/√head_dim
    dtype       "float64", "float32", "bfloat16", "float16", or None for the tensors' own

    Fields hold the normalised values (defaults filled in, window as a pair, score as a tuple), so
    specs that mean the same are equal. Raises a class of ``attngen.errors`` derived from SpecError,
    UnknownDtypeError, or NotDeliveredError.
    """

    heads: int
    head_dim: int
    groups: int | tuple[int, ...] | None = None
    head_dim_v: int | None = None
    causal: bool = False
    window: int | tuple[int, int] | None = None
    mask: MaskMod | None = None
    score: ScoreMod | Sequence[ScoreMod] | None = None
    sinks: bool = False
    scale: float | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        put("heads", _whole("heads", self.heads))
        put("head_dim", _head_dim("head_dim", self.head_dim))
        put("head_dim_v", self.head_dim if self.head_dim_v is None
            else _head_dim("head_dim_v", self.head_dim_v))
        put("groups", _groups(self.groups, self.heads))
        put("causal", _flag("causal", self.causal))
        put("window", _window(self.window, self.causal))
        put("mask", _mask(self.mask, self.heads))
        put("score", _scores(self.score, self.heads))
        put("sinks", _flag("sinks", self.sinks))
        put("scale", _scale(self.scale))
        put("dtype", _dtype(self.dtype))

    # -- derived ------------------------------------------------------------------------------

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads: the ``groups`` of the tensors' shapes."""
        return max(self.groups) + 1 if isinstance(self.groups, tuple) else _int(self.groups)

    @property
    def group_size(self) -> int | None:
        """Query heads per key/value head; None when they differ."""
        return None if isinstance(self.groups, tuple) else self.heads // _int(self.groups)

    @property
    def softmax_scale(self) -> float:
        return 1.0 / math.sqrt(self.head_dim) if self.scale is None else self.scale

    def kv_head(self, h: int) -> int:
        """The key/value head that query head ``h`` reads."""
        if isinstance(self.groups, tuple):
            return self.groups[h]
        return h * _int(self.groups) // self.heads

    def mask_mods(self) -> tuple[tuple[str, MaskMod], ...]:
        """Named predicates ``(b, h, q_idx, kv_idx)``; a key is visible where all are true."""
        mods: list[MaskMod] = [masks.causal()] if self.causal else []
        if self.window is not None:
            mods.append(masks.sliding_window(self.window))
        if self.mask is not None:
            mods.append(self.mask)
        return tuple((patterns.describe(m), m) for m in mods)

    def score_mods(self) -> tuple[tuple[str, ScoreMod], ...]:
        """Named score functions ``(score, b, h, q_idx, kv_idx)`` in the order they apply."""
        return tuple((patterns.describe(s), s) for s in self._score_tuple())

    def _score_tuple(self) -> tuple[ScoreMod, ...]:
        return self.score if isinstance(self.score, tuple) else ()

    # -- JSON ---------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON values. Raises SpecJsonError when a mask or score is a callable."""
        data: dict[str, Any] = {"attngen_spec": JSON_VERSION}
        return data | {f.name: patterns.to_value(getattr(self, f.name), f.name)
                       for f in fields(self)}

    @classmethod
    def from_dict(cls, data: Any) -> AttentionSpec:
        """The spec that ``to_dict`` described; fields left out have their defaults.

        Raises SpecJsonError, UnknownNameError, or what the constructor raises.
        """
        if not isinstance(data, dict):
            raise SpecJsonError(f"a spec is an object of fields, not a {type(data).__name__}")
        values = dict(data)
        version = values.pop("attngen_spec", JSON_VERSION)
        if version != JSON_VERSION:
            raise SpecJsonError(f"spec format {version!r} is unknown; this version of attngen "
                                f"reads format {JSON_VERSION}")
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                raise UnknownNameError("spec field", str(name), known)
        missing = [name for name in ("heads", "head_dim") if name not in values]
        if missing:
            raise SpecJsonError(f"the spec lacks {' and '.join(missing)}")
        for name in ("groups", "window"):
            if isinstance(values.get(name), list):
                values[name] = tuple(values[name])
        if values.get("mask") is not None:
            values["mask"] = patterns.from_dict(values["mask"], "mask", masks.NAMED)
        if values.get("score") is not None:
            listed = values["score"] if isinstance(values["score"], list) else [values["score"]]
            values["score"] = tuple(patterns.from_dict(s, "score", scores.NAMED) for s in listed)
        return cls(**values)

    def to_json(self) -> str:
        """The spec as JSON text. Raises SpecJsonError when a mask or score is a callable."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> AttentionSpec:
        """The spec that ``to_json`` wrote. Raises as ``from_dict`` does."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SpecJsonError(f"not JSON: {error}") from None
        return cls.from_dict(data)

    def cache_key(self) -> str | None:
        """Text equal for equal specs of named patterns; None when a callable or a tensor is
        involved, also one that a pattern works out from its arguments."""
        if next(patterns.tensors_of((self.mask, self.score)), None) is not None:
            return None
        try:
            return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        except SpecJsonError:
            return None


# -- one check per field ------------------------------------------------------------------------


def _int(value: Any) -> int:
    return int(value)


def _whole(name: str, value: Any, low: int = 1) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise SpecError(f"{name} must be a whole number, got {value!r}")
    if number < low:
        raise SpecError(f"{name} must be at least {low}, got {number}")
    return number


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise SpecError(f"{name} must be True or False, got {value!r}")
    return value


def _head_dim(name: str, value: Any) -> int:
    number = _whole(name, value)
    if number % 8:
        raise HeadDimError(f"{name}={number} is not a multiple of 8")
    if number > 256:
        raise HeadDimError(f"{name}={number} is larger than 256")
    return number


def _groups(groups: Any, heads: int) -> int | tuple[int, ...]:
    if groups is None:
        return heads
    if not isinstance(groups, tuple | list):
        number = _whole("groups", groups)
        if heads % number:
            raise GroupsError(f"groups={number} does not divide heads={heads}",
                              numbers=f"{heads} = {heads // number} * {number} + {heads % number}")
        return number
    table = tuple(_whole("groups", g, 0) for g in groups)
    if len(table) != heads:
        raise GroupsError(f"groups has {len(table)} entries for {heads} heads")
    unused = sorted(set(range(max(table) + 1)) - set(table))
    if unused:
        raise GroupsError(f"key/value heads {unused} are read by no query head",
                          where=f"groups={table}",
                          remedy="Leave them out of k and v and renumber the others.")
    count = max(table) + 1
    uniform = tuple(h * count // heads for h in range(heads))
    return count if table == uniform and heads % count == 0 else table


def _window(window: Any, causal: bool) -> tuple[int, int] | None:
    if window is None:
        return None
    if isinstance(window, tuple | list):
        if len(window) != 2:
            raise WindowError(f"window={tuple(window)} has {len(window)} entries",
                              remedy="Write window=(left, right).")
        left, right = (_side(s, tuple(window)) for s in window)
        return left, right
    width = _side(window, window)
    if width < 1:
        raise WindowError("window=0 would hide every key",
                          remedy="Write window=1 to see only the query's own position.")
    if not causal:
        raise WindowError(f"window={width} needs causal=True",
                          numbers=f"an int window is ({width - 1}, 0): nothing to the right",
                          remedy=f"Write causal=True, window={width}; or window=({width - 1}, 0), "
                                 f"window=({width - 1}, {width - 1}) to say both sides.")
    return width - 1, 0


def _side(value: Any, window: Any) -> int:
    try:
        number = _whole("window", value, 0)
    except SpecError:
        raise WindowError(
            f"window={window!r}: {value!r} is not a whole number of at least 0",
            remedy="Leave window out for no limit; for a limit on the left only, "
                   "write causal=True, window=(left, 0).") from None
    return number


def _mask(mask: Any, heads: int) -> MaskMod | None:
    if mask is None:
        return None
    if isinstance(mask, tuple | list):
        raise PatternError(f"mask is a {type(mask).__name__}",
                           remedy="Write mask=ag.per_head([...]) for a mask for each head; combine "
                                  "masks that must all agree with &.")
    return _fitted(mask, "mask", masks.ARGUMENTS, heads)


def _scores(score: Any, heads: int) -> tuple[ScoreMod, ...] | None:
    listed = score if isinstance(score, tuple | list) else [] if score is None else [score]
    return tuple(_fitted(s, "score", scores.ARGUMENTS, heads) for s in listed) or None


def _fitted(function: Any, kind: str, arguments: tuple[str, ...], heads: int) -> Any:
    """The mask or score, checked and, when named, for this number of heads."""
    patterns.check_callable(function, kind, arguments)
    return function.for_heads(heads) if isinstance(function, patterns.Pattern) else function


def _scale(scale: Any) -> float | None:
    if scale is None:
        return None
    number = isinstance(scale, Real) and not isinstance(scale, bool)
    if not number or not math.isfinite(scale) or scale <= 0:
        raise SpecError(f"scale must be a finite number above 0, got {scale!r}",
                        remedy="For other factors, use a score such as lambda s, b, h, i, j: -s.")
    return float(scale)


def _dtype(dtype: Any) -> str | None:
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    if name in LATER_DTYPES or name.startswith("float8"):
        raise NotDeliveredError(f"dtype {name!r} is not available in this version of attngen",
                                remedy=f"Use one of {', '.join(DTYPES)}.")
    if name not in DTYPES:
        raise UnknownDtypeError(name, DTYPES)
    return name
