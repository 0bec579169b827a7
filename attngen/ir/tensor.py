"""What a kernel is handed: tensors it reads and writes, captured tensors, run-time numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .node import Node


@dataclass(frozen=True)
class Tensor:
    """A tensor in device memory. ``axes`` end in the unit-stride axis; ``role`` is input, output
    or workspace; ``by_head`` maps query heads to positions along ``g`` when ``g`` is an axis.
    A packed tensor has no axis ``b``: batch entry b begins at index ``begin[b]`` of the sequence
    axis, ``begin`` being a parameter.

    Kernels may see it otherwise than it is stored: with the axes ``view``, ``place`` being the
    index along a stored axis that belongs to indices along those. Stored axes without a place are
    seen as they are. Of an output, only elements for which ``only`` is true are stored.
    """

    name: str
    axes: tuple[str, ...]
    dtype: str
    role: str
    by_head: tuple[int, ...] | None = None
    begin: str = ""
    view: tuple[str, ...] = ()
    place: tuple[tuple[str, Node], ...] = ()
    only: Node | None = None

    @property
    def seen(self) -> tuple[str, ...]:
        """Its axes as nodes and kernels see them."""
        return self.view or self.axes


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
