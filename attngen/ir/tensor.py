"""What a kernel is handed: tensors it reads and writes, captured tensors, run-time numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tensor:
    """A tensor in device memory. ``axes`` end in the unit-stride axis; ``role`` is input, output
    or workspace; ``by_head`` maps query heads to positions along ``g`` when ``g`` is an axis.
    A packed tensor has no axis ``b``: batch entry b begins at index ``begin[b]`` of the sequence
    axis, ``begin`` being a parameter."""

    name: str
    axes: tuple[str, ...]
    dtype: str
    role: str
    by_head: tuple[int, ...] | None = None
    begin: str = ""


@dataclass(frozen=True)
class Table:
    """A captured tensor: elements are read by position, in expressions (``gather``). Its lengths
    and strides are run-time numbers. With ``of`` it is the summary of another, made at every call:
    see ``tables.summary``."""

    name: str
    dtype: str
    ndim: int
    of: str = ""


@dataclass(frozen=True)
class Param:
    """A run-time number; with ``per_batch`` it is an int32 that may differ per batch entry."""

    name: str
    per_batch: bool
    dtype: str = "int32"
