"""The bases of masks and scores, and what makes one of several: ``& | ~`` and one for each head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .errors import PatternError
from .functions import where
from .patterns import Pattern, check_callable, takes

MaskMod = Callable[[Any, Any, Any, Any], Any]
ScoreMod = Callable[[Any, Any, Any, Any, Any], Any]
MASK_ARGUMENTS = ("b", "h", "q_idx", "kv_idx")
SCORE_ARGUMENTS = ("score", *MASK_ARGUMENTS)


class Mask(Pattern):
    """Base of named masks: callable, and composable with other masks and with callables."""

    kind = "mask"

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


class Score(Pattern):
    """Base of named score modifications."""

    kind = "score"

    def __call__(self, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        raise PatternError(f"{self.name} defines no score")


class all_of(Mask):
    """Visible where both are: ``a & b``."""

    first: MaskMod
    second: MaskMod

    def __post_init__(self) -> None:
        check_callable(self.first, "mask", MASK_ARGUMENTS)
        check_callable(self.second, "mask", MASK_ARGUMENTS)

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return self.first(b, h, q_idx, kv_idx) & self.second(b, h, q_idx, kv_idx)


class any_of(Mask):
    """Visible where either is: ``a | b``."""

    first: MaskMod
    second: MaskMod

    def __post_init__(self) -> None:
        check_callable(self.first, "mask", MASK_ARGUMENTS)
        check_callable(self.second, "mask", MASK_ARGUMENTS)

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return self.first(b, h, q_idx, kv_idx) | self.second(b, h, q_idx, kv_idx)


class none_of(Mask):
    """Visible where the other is not: ``~a``."""

    mask: MaskMod

    def __post_init__(self) -> None:
        check_callable(self.mask, "mask", MASK_ARGUMENTS)

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return ~self.mask(b, h, q_idx, kv_idx)


# -- one for each head ----------------------------------------------------------------------------


class per_head_mask(Mask):
    """Query head h sees what ``each[h]`` lets it see; None lets it see all. Made by
    ``attngen.per_head``."""

    name = "per_head"
    each: tuple[MaskMod | None, ...]

    def __post_init__(self) -> None:
        self._put(each=_entries(self.each, "mask", MASK_ARGUMENTS))

    def for_heads(self, heads: int) -> per_head_mask:
        _check_count(len(self.each), heads)
        return super().for_heads(heads)

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        groups = _groups(self.each)
        if len(groups) == 1 and groups[0][0] is not None:
            return groups[0][0](b, h, q_idx, kv_idx)
        visible: Any = False
        for mask, heads in groups:
            here = _among(h, heads, len(self.each))
            term = here if mask is None else here & mask(b, h, q_idx, kv_idx)
            visible = term if visible is False else visible | term
        return visible


class per_head_score(Score):
    """Query head h has its scores modified by ``each[h]``; None leaves them. Made by
    ``attngen.per_head``."""

    name = "per_head"
    each: tuple[ScoreMod | None, ...]

    def __post_init__(self) -> None:
        self._put(each=_entries(self.each, "score", SCORE_ARGUMENTS))

    def for_heads(self, heads: int) -> per_head_score:
        _check_count(len(self.each), heads)
        return super().for_heads(heads)

    def __call__(self, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        *others, (last, _) = _groups(self.each)
        result = score if last is None else last(score, b, h, q_idx, kv_idx)
        for mod, heads in reversed(others):
            own = score if mod is None else mod(score, b, h, q_idx, kv_idx)
            result = where(_among(h, heads, len(self.each)), own, result)
        return result


def per_head(each: Sequence[Any]) -> Any:
    """One mask, or one score, for each query head, in the order of the heads.

    ``each`` holds named patterns or callables, all of one kind; None lets a head see everything, or
    leaves its scores. Equal entries are evaluated once. Raises PatternError; a spec with another
    number of heads refuses it.
    """
    if isinstance(each, Pattern) or not isinstance(each, list | tuple):
        raise PatternError(f"per_head takes a list, one entry for each head, got {each!r}")
    kinds = {_kind(e) for e in each} - {None}
    if len(kinds) > 1:
        raise PatternError("per_head mixes masks and scores: "
                           + ", ".join(f"head {h} has a {_kind(e)}" for h, e in enumerate(each)),
                           remedy="Make one of the masks, mask=, and one of the scores, score=.")
    return per_head_score(tuple(each)) if kinds == {"score"} else per_head_mask(tuple(each))


def _kind(entry: Any) -> str | None:
    if isinstance(entry, Pattern) or (isinstance(entry, type) and issubclass(entry, Pattern)):
        return entry.kind
    if entry is None or not callable(entry):
        return None
    return "mask" if takes(entry, MASK_ARGUMENTS) else "score"


def _entries(each: Any, kind: str, arguments: tuple[str, ...]) -> tuple[Any, ...]:
    if not isinstance(each, list | tuple) or not each:
        raise PatternError(f"per_head takes a {kind} for each head, got {each!r}")
    for entry in each:
        if entry is not None:
            check_callable(entry, kind, arguments)
    return tuple(each)


def _check_count(entries: int, heads: int) -> None:
    if entries != heads:
        raise PatternError(f"per_head has {entries} entries, the spec has {heads} heads",
                           remedy="Give one for each query head; None for a head without one.")


def _groups(each: Sequence[Any]) -> list[tuple[Any, list[int]]]:
    """The different entries with the heads of each, in order of first use."""
    heads: dict[Any, list[int]] = {}
    for h, entry in enumerate(each):
        heads.setdefault(entry, []).append(h)
    return list(heads.items())


def _among(h: Any, heads: list[int], count: int) -> Any:
    """Whether ``h``, one of 0 ... count − 1, is among ``heads`` (ascending)."""
    step = heads[1] - heads[0] if len(heads) > 1 else 1
    if step > 1 and heads == list(range(heads[0] % step, count, step)):
        return h % step == heads[0]
    result: Any = None
    start = 0
    for end in range(1, len(heads) + 1):
        if end < len(heads) and heads[end] == heads[end - 1] + 1:
            continue
        low, high = heads[start], heads[end - 1]
        term = _between(h, low, high, count)
        result = term if result is None else result | term
        start = end
    return result


def _between(h: Any, low: int, high: int, count: int) -> Any:
    if low == high:
        return h == low
    if low == 0:
        return h <= high
    return low <= h if high == count - 1 else (low <= h) & (h <= high)
