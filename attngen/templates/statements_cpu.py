"""What the CPU macros see of a statement: names, ready expressions and comments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .code import Code
from .conditions import Condition
from .statements import StatementView


@dataclass(frozen=True)
class Lines(StatementView):
    """The same lines for every element: per column up to ``columns``, per lane when ``lanes``;
    locals are declared before them, and ``guard`` decides whether anything runs at all."""

    kind: ClassVar[str] = "lines"
    columns: Code | None
    column_local: Code | None
    lanes: bool
    lane_local: Code | None
    lines: tuple[Code, ...]
    guard: Code | None = None


@dataclass(frozen=True)
class RowLines(StatementView):
    """The same where columns are the lanes: per row when ``rows``, per column up to ``columns``."""

    kind: ClassVar[str] = "row_lines"
    rows: bool
    row_local: Code | None
    columns: Code | None
    column_local: Code | None
    lines: tuple[Code, ...]
    guard: Code | None = None


@dataclass(frozen=True)
class LoadView(StatementView):
    """A tile from memory. ``way`` is the value's space: "array", "rows", "lines", "row", "column",
    or "view", which declares ``dst`` as a pointer of type ``pointer``, or without a ``stride`` as
    the function from rows to addresses that ``source`` is then; with ``table`` so many rows are
    looked up at once."""

    kind: ClassVar[str] = "load"
    way: str
    dst: Code
    pointer: Code
    source: Code
    stride: Code | None
    rows: Code
    columns: Code
    lanes: Code
    table: Code | None


@dataclass(frozen=True)
class StoreView(StatementView):
    """A tile to memory; ``way`` as for LoadView, "array", "row" or "column"."""

    kind: ClassVar[str] = "store"
    way: str
    target: Code
    stride: Code | None
    src: Code
    rows: Code
    columns: Code


@dataclass(frozen=True)
class RowsMmaView(StatementView):
    """A product whose columns are the lanes: ``function`` takes ``count`` rows of ``b``."""

    kind: ClassVar[str] = "rows_mma"
    function: Code
    accumulate: Code
    dst: Code
    a: Code
    b: Code
    count: Code


@dataclass(frozen=True)
class MmaView(StatementView):
    """dst[n][lane] (+)= Σ_k a[k][lane] · b[n·stride_n + k·stride_k]; ``accumulate`` is the C bool
    that says whether dst is added to."""

    kind: ClassVar[str] = "mma"
    accumulate: Code
    dst: Code
    a: Code
    b: Code
    stride_n: Code
    stride_k: Code
    columns: Code
    depth: Code


@dataclass(frozen=True)
class LoopView(StatementView):
    """Tiles of ``axis``; ``partial`` is whether the body asks if a tile is full, ``last`` whether
    it needs the last index. Tiles that are not ``visible`` are passed over, those in the full
    range are full if ``full``."""

    kind: ClassVar[str] = "loop"
    axis: Code
    serial: bool
    tile: Code
    size: Code
    begin: Code
    end: Code
    full_begin: Code
    full_end: Code
    partial: bool
    last: bool
    visible: Condition | None
    full: Condition | None
    body: tuple[StatementView, ...]
