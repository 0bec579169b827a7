"""What templates see of a statement: names, ready expressions and comments, one class per macro."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .code import Code
from .conditions import Condition
from .geometry import Columns


@dataclass(frozen=True)
class Line:
    """A declaration or statement with a comment after it."""

    text: Code
    note: Code


@dataclass(frozen=True)
class Nest:
    """A loop over a thread's rows or columns; ``locals`` are declared inside, before ``inner``."""

    var: Code
    bound: Code
    locals: tuple[Code, ...]
    inner: Nest | None


@dataclass(frozen=True)
class StatementView:
    """``kind`` picks the macro; ``comments`` stand above the statement."""

    kind: ClassVar[str]
    comments: tuple[Code, ...]


@dataclass(frozen=True)
class Elements(StatementView):
    """The same lines for every element a thread owns; only under ``guard``, if there is one.
    ``late`` declares first what nothing before needed."""

    kind: ClassVar[str] = "elements"
    nest: Nest | None
    lines: tuple[Code, ...]
    guard: Code | None = None
    late: tuple[Line, ...] = ()


@dataclass(frozen=True)
class Product(StatementView):
    """dst (+)= a · b. ``a_tile`` is None when a is in registers. ``transposed``: the rows of b's
    tile are summed over. A thread reads at ``base`` plus what it makes of its own offset ``at``
    (``one_at`` for columns read one by one). ``zero`` and ``cleared`` clear dst first. ``long``:
    not unrolled to the end. ``chained``: sums this long are made of sums of CHAIN terms."""

    kind: ClassVar[str] = "product"
    dst: Code
    a: Code
    b: Code
    a_tile: Code | None
    a_base: Code
    a_at: Code
    b_tile: Code
    b_base: Code
    b_at: Code
    one_at: Code
    transposed: bool
    depth: Code
    width: Code
    element: Code
    columns: Columns
    zero: Nest | None
    cleared: tuple[Code, ...]
    long: bool
    chained: bool


@dataclass(frozen=True)
class ReduceView(StatementView):
    """Along the columns. ``x`` starts as ``first`` and becomes ``step`` at each column; ``lanes``
    is the function that joins lanes, None while they keep results of their own. ``add``: the old
    value joins last."""

    kind: ClassVar[str] = "reduce"
    dst: Code
    bound: Code
    first: Code
    step: Code
    lanes: Code | None
    add: bool


@dataclass(frozen=True)
class LaneReduceView(StatementView):
    kind: ClassVar[str] = "lane_reduce"
    dst: Code
    lanes: Code


@dataclass(frozen=True)
class Pack(StatementView):
    """Fragment → A operand of a matrix instruction."""

    kind: ClassVar[str] = "pack"
    dst: Code
    src: Code
    width: Code
    element: Code


@dataclass(frozen=True)
class Put(StatementView):
    """Fragment → shared tile of float32."""

    kind: ClassVar[str] = "put"
    src: Code
    tile: Code
    base: Code
    at: Code
    bound: Code


@dataclass(frozen=True)
class StoreRows(StatementView):
    """Fragment → tensor, 16 bytes of a row at a time. ``bound`` ends the columns, if padded."""

    kind: ClassVar[str] = "store_rows"
    src: Code
    pointer: Code
    row_offset: Code
    row: Code
    row_bound: Code
    bound: Code | None
    element: Code
    columns: Columns
    late: tuple[Line, ...] = ()


@dataclass(frozen=True)
class IssueView(StatementView):
    """Copy a tile into shared memory if ``guard`` holds; ``way`` is "issue", or "widen" for eight
    bits. ``locals`` come first. The share of a
    thread begins at ``source``; where rows are not evenly spaced ``row_at`` is the address of the
    row called ``row``, and the tile's first is ``first``."""

    kind: ClassVar[str] = "issue"
    guard: Code | None
    locals: tuple[Code, ...]
    tile: Code
    to: Code
    source: Code
    stride: Code
    rows: Code
    cols: Code
    row_at: Code | None = None
    way: Code = Code("issue")
    row: Code = Code("")
    first: Code = Code("0")


@dataclass(frozen=True)
class Sync(StatementView):
    """Commit, Wait or Barrier: the call."""

    kind: ClassVar[str] = "sync"
    call: Code


@dataclass(frozen=True)
class Ring:
    """The slot variable of the tiles that come in rings of ``stages``."""

    name: Code
    stages: int


@dataclass(frozen=True)
class TilesView(StatementView):
    """What loops over ``axis`` ask of a tile, as functions of its number. The first visited tiles,
    as many as loops keep track of, are called ``visits``."""

    kind: ClassVar[str] = "tiles"
    axis: Code
    tile: Code
    size: Code
    begin: Code
    end: Code
    full_begin: Code
    full_end: Code
    visible: Condition | None
    full: Condition | None
    visits: tuple[Code, ...]


@dataclass(frozen=True)
class LoopView(StatementView):
    """Tiles of ``axis``; ``partial`` is whether the body asks if a tile is full, ``first``
    whether it asks where the tile begins. ``asked``: whether a tile in the full range is full is
    a question of its own. ``upcoming`` names the current visited tile and those that copies are
    issued for, ``visits`` what they start with; empty when nothing is asked of single tiles."""

    kind: ClassVar[str] = "loop"
    axis: Code
    counter: Code
    tile: Code
    begin: Code
    end: Code
    full_begin: Code
    full_end: Code
    partial: bool
    asked: bool
    upcoming: tuple[Code, ...]
    visits: tuple[Code, ...]
    first: bool
    last: Code | None
    rings: tuple[Ring, ...]
    declared: tuple[Code, ...]
    body: tuple[StatementView, ...]
