"""Checks of the tensors and sequences that patterns hold."""

from __future__ import annotations

from typing import Any

from .errors import PatternError
from .patterns import is_tensor, whole

INTEGERS = ("int8", "int16", "int32", "int64", "uint8")
FLOATS = ("float16", "bfloat16", "float32", "float64")
BOOL = ("bool",)
INT32 = (-2**31, 2**31 - 1)


def as_table(value: Any, pattern: str, argument: str, dtypes: tuple[str, ...],
             ndim: tuple[int, ...]) -> Any:
    """``value`` as a torch tensor: a tensor as it is, a sequence or numpy array copied.

    Raises PatternError for another dtype than ``dtypes`` or number of dimensions than ``ndim``.
    """
    if value is None or isinstance(value, str | int | float) or callable(value):
        raise PatternError(f"{pattern}: {argument} must be a tensor, got {value!r}")
    if not is_tensor(value):
        import torch

        try:
            value = made(torch.tensor(value))
        except (TypeError, ValueError, RuntimeError) as error:
            raise PatternError(f"{pattern}: {argument} is no tensor: {error}") from None
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in dtypes:
        raise PatternError(f"{pattern}: {argument} is {dtype}, not {' or '.join(dtypes)}")
    if value.ndim not in ndim:
        wanted = " or ".join(str(n) for n in ndim)
        raise PatternError(f"{pattern}: {argument} of shape {list(value.shape)} has {value.ndim} "
                           f"dimensions, not {wanted}")
    return value


def made(table: Any) -> Any:
    """Marks a tensor as a pattern's own, which nobody else can move or change: a kernel on another
    device reads a copy, kept in the mark."""
    table.attngen_copies = {}
    return table


def check_size(found: int, wanted: int, what: str, of: str) -> None:
    """Raises PatternError unless a dimension has the size it must have, or is 1 and the same for
    all."""
    if found not in (1, wanted):
        raise PatternError(f"{what} is for {found} {of}, the spec has {wanted}")


def wholes(values: Any, pattern: str, argument: str, low: int) -> tuple[int, ...]:
    """A sequence or 1-dimensional tensor of ints of at least ``low``. Raises PatternError."""
    if hasattr(values, "tolist"):
        values = values.tolist()
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise PatternError(f"{pattern}: {argument} must be a sequence of whole numbers, "
                           f"got {values!r}")
    return tuple(whole(v, pattern, argument, low) for v in values)
