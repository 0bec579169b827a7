"""Tile statements: the short program a kernel is, and the values it computes.

A kernel owns one tile of its kept axis (the rows: fragment rows on a GPU, lanes on a CPU) and
walks tiles of its loop axis. Every statement names the values it touches; a value has named axes,
a type and, once placed, a space. The same list is interpreted, counted, and rendered by one macro
per statement on each target.

=============  ==================================================================================
statement      meaning
=============  ==================================================================================
Load           dst ← the tensor's tile at the current grid and loop position; zero outside it
Fill           dst ← a constant
Mma            dst (+)= Σ_over a·b
Map            each dst ← an expression of values, element by element, over ``axes``
Reduce         dst ← (dst and) the sum or maximum of src along ``over``
LaneReduce     finish a Reduce whose last step, across lanes, was deferred
Copy           dst ← src in another space or type
Store          the tensor's tile ← src, rows and columns inside the tensor only
Loop           the body for every visited tile of ``axis``; ``full`` ones skip "partial" statements
Issue          start the asynchronous Load of the tile ``ahead`` iterations on, if there is one
Commit         close the group of copies issued since the last Commit
Wait           until at most ``pending`` groups are in flight
Barrier        every thread of the block arrives; shared memory written before is visible after
=============  ==================================================================================
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace

from .node import Node, walk
from .tensor import Param, Table, Tensor


@dataclass(frozen=True)
class Value:
    """A tile value.

    ``axes``: () scalar, (i) one per row, (j) one per column, (i, j) a tile... ``shape`` is the tile
    extent per axis, padded as the target needs. ``space`` (empty before placement):

    - ``scalar``    one number per block, the same in every thread
    - ``row``       one per row of the thread's fragment (GPU) or an array over lanes (CPU)
    - ``column``    one per column, likewise
    - ``fragment``  rows × columns spread over the block's threads (GPU)
    - ``operand``   a fragment packed as the A operand of a matrix instruction (GPU)
    - ``shared``    shared memory: ``stages`` tiles at byte ``offset``, ``panel`` columns a panel
    - ``array``     a local array, lanes innermost (CPU); ``rows`` and ``lines`` are row-major, the
      second operand of a product and any other tile
    - ``view``      the tensor read in place (CPU)
    """

    name: str
    axes: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]
    space: str = ""
    stages: int = 1
    offset: int = 0
    panel: int = 0
    origin: str = ""


@dataclass(frozen=True)
class Stmt:
    """Base of all statements; ``origin`` names the source construct, ``note`` the mathematics."""

    origin: str = field(default="", kw_only=True)
    note: str = field(default="", kw_only=True)


@dataclass(frozen=True)
class Load(Stmt):
    dst: str
    tensor: str


@dataclass(frozen=True)
class Fill(Stmt):
    dst: str
    number: float


@dataclass(frozen=True)
class Mma(Stmt):
    dst: str
    a: str
    b: str
    over: str
    accumulate: bool


@dataclass(frozen=True)
class Map(Stmt):
    """Assignments in order: an expression sees the values assigned before it in the same element.
    ``when`` is "always" or "partial" (skipped on tiles proved full)."""

    dsts: tuple[str, ...]
    exprs: tuple[Node, ...]
    axes: tuple[str, ...]
    when: str = "always"


@dataclass(frozen=True)
class Reduce(Stmt):
    """``lanes`` is "now", or "later": a LaneReduce after the loop finishes the work."""

    dst: str
    kind: str
    src: str
    over: str
    accumulate: bool
    lanes: str = "now"


@dataclass(frozen=True)
class LaneReduce(Stmt):
    dst: str
    kind: str


@dataclass(frozen=True)
class Copy(Stmt):
    dst: str
    src: str


@dataclass(frozen=True)
class Store(Stmt):
    tensor: str
    src: str


@dataclass(frozen=True)
class Loop(Stmt):
    """Tiles ``begin`` ≤ n < ``end`` of ``axis``, in order; those in [full_begin, full_end) are
    full. The four bounds are names of scalar values.

    What no range expresses is asked of each tile: with ``visible`` only those are visited for
    which it is true, with ``full`` only those are full. Both are conditions on ``first`` and
    ``last`` of the two sequence axes.
    """

    axis: str
    begin: str
    end: str
    full_begin: str
    full_end: str
    body: tuple[Stmt, ...]
    visible: Node | None = None
    full: Node | None = None

    @property
    def asks(self) -> bool:
        """Whether anything is asked of single tiles."""
        return self.visible is not None or self.full is not None


@dataclass(frozen=True)
class Issue(Stmt):
    """Inside a loop: load the tile ``ahead`` iterations on, if the loop has it. Before a loop:
    ``ahead`` counts from the loop's first tile, and None is a tile that does not move with the
    loop. Nothing is issued where the tile would not be used (an empty loop uses none)."""

    dst: str
    tensor: str
    ahead: int | None


@dataclass(frozen=True)
class Commit(Stmt):
    pass


@dataclass(frozen=True)
class Wait(Stmt):
    pending: int


@dataclass(frozen=True)
class Barrier(Stmt):
    """``scope`` is "block", or "warp" where producer and consumer are lanes of one warp."""

    scope: str = "block"


@dataclass(frozen=True)
class Grid:
    """One grid axis: tile ``axis`` by ``tile`` (1: one block per index)."""

    axis: str
    tile: int


@dataclass(frozen=True)
class Schedule:
    """The choices a kernel is built with; legality is checked in ``schedule.py``.

    ``warps`` split the rows; ``stages`` is the ring depth of each loaded loop operand in the order
    of first use; ``vector_bytes`` is 16 (rows aligned to 16 bytes) or the element size;
    ``min_blocks`` is the number of blocks per multiprocessor registers are budgeted for. ``lanes``
    are what the vectors of a CPU run along: "rows", or "columns" where rows are few.
    """

    block_m: int
    block_n: int
    warps: int = 4
    stages: tuple[int, ...] = (2, 1)
    vector_bytes: int = 16
    min_blocks: int = 1
    engine: str = "mma"  # "mma" (tensor cores), "simt" (float32 on CUDA cores), "cpu"
    lanes: str = "rows"


@dataclass(frozen=True)
class Kernel:
    """A kernel: its grid, what it reads and writes, its values and its statements."""

    name: str
    grid: tuple[Grid, ...]
    keep: str
    loop: str
    tensors: tuple[Tensor, ...]
    params: tuple[Param, ...]
    values: tuple[Value, ...]
    body: tuple[Stmt, ...]
    schedule: Schedule
    sizes: tuple[tuple[str, int], ...]  # compile-time: heads groups head_dim head_dim_v
    shared_bytes: int = 0
    registers: int = 0  # estimate per thread
    stage: str = "tiled"
    tables: tuple[Table, ...] = ()

    def value(self, name: str) -> Value:
        """The value called ``name``. Raises KeyError."""
        for v in self.values:
            if v.name == name:
                return v
        raise KeyError(name)

    def tensor(self, name: str) -> Tensor:
        """The tensor called ``name``. Raises KeyError."""
        for t in self.tensors:
            if t.name == name:
                return t
        raise KeyError(name)

    @property
    def head(self) -> str:
        """The grid's axis of heads: query heads, or key/value heads with all of theirs in rows."""
        return next(g.axis for g in self.grid if g.axis in ("h", "g"))

    @property
    def split(self) -> bool:
        """Does each block walk one part of the keys (``split_kv.py``)?"""
        return any(g.axis == "split" for g in self.grid)

    @property
    def serial(self) -> bool:
        """Is the loop's axis walked one index at a time, so that tiles do not have it?"""
        return self.loop == "split"

    @property
    def loop_tile(self) -> int:
        """How many indices of its axis the loop takes at a time."""
        return 1 if self.serial else self.schedule.block_n

    @property
    def packed(self) -> bool:
        """Do sequences of different lengths lie end to end in its tensors (``pack.py``)?"""
        return any(t.begin for t in self.tensors)

    def size(self, name: str) -> int:
        """A compile-time size. Raises KeyError."""
        return dict(self.sizes)[name]


def tile_axes(axes: tuple[str, ...], keep: str, loop: str) -> tuple[str, ...]:
    """The axes a tile value has of these: none of the grid's, rows first, then the loop's where
    that is walked in tiles."""
    return tuple(a for a in (keep, loop, "d", "e") if a in axes and a != "split")


def statements(body: tuple[Stmt, ...]) -> Iterator[Stmt]:
    """Every statement, loop bodies included, in program order."""
    for stmt in body:
        yield stmt
        if isinstance(stmt, Loop):
            yield from statements(stmt.body)


def reads(stmt: Stmt) -> tuple[str, ...]:
    """Names of the values a statement reads (not those of a loop's body)."""
    match stmt:
        case Mma(dst=d, a=a, b=b, accumulate=acc):
            return (a, b, d) if acc else (a, b)
        case Map(dsts=dsts, exprs=exprs):
            seen: dict[str, None] = {}
            for n, expr in enumerate(exprs):
                seen.update((m.attr("name"), None) for m in walk(expr)
                            if m.op == "value" and m.attr("name") not in dsts[:n])
            return tuple(seen)
        case Reduce(dst=d, src=s, accumulate=acc):
            return (s, d) if acc else (s,)
        case LaneReduce(dst=d):
            return (d,)
        case Copy(src=s) | Store(src=s):
            return (s,)
        case Loop(begin=a, end=b, full_begin=c, full_end=d):
            return (a, b, c, d)
    return ()


def writes(stmt: Stmt) -> tuple[str, ...]:
    """Names of the values a statement writes (not those of a loop's body)."""
    if isinstance(stmt, Map):
        return stmt.dsts
    dst = getattr(stmt, "dst", None)
    return (dst,) if dst is not None else ()


def rewrite_body(body: tuple[Stmt, ...], change) -> tuple[Stmt, ...]:  # type: ignore[no-untyped-def]
    """Apply ``change(stmt) -> tuple of statements`` everywhere, innermost first."""
    out: list[Stmt] = []
    for stmt in body:
        if isinstance(stmt, Loop):
            stmt = replace(stmt, body=rewrite_body(stmt.body, change))
        out.extend(change(stmt))
    return tuple(out)


def attributes(stmt: Stmt) -> dict[str, object]:
    """The attributes that carry meaning (everything but origin and note)."""
    return {f.name: getattr(stmt, f.name) for f in fields(stmt) if f.name not in ("origin", "note")}
