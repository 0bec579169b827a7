"""Who owns what: how the threads of a block share the rows and columns of a fragment.

Warps split the rows. Within a warp, tensor-core fragments follow the accumulator layout of
``mma.m16n8k16``: eight groups of four lanes span eight rows, two neighbouring columns a lane.
Without tensor cores two half-warps span the rows and sixteen lanes the columns.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import VerifyError
from ..ir.bounds import EXTENTS
from ..ir.stmt import Copy, Kernel, Value, statements
from .code import Code

TILE = {"i": Code("BLOCK_M"), "row": Code("BLOCK_M"), "j": Code("BLOCK_N"), "d": Code("TILE_D"),
        "e": Code("TILE_E"), "split": Code("1")}
SIZE = {**EXTENTS, "d": "HEAD_DIM", "e": "HEAD_DIM_V"}
# How the axes of tensors and values are told of.
AXIS_NOTES = {
    "b": "batch entry", "h": "query head", "g": "key/value head", "i": "query", "j": "key",
    "row": "query, of all heads that share keys", "split": "part of the keys",
    "d": "column of q and k", "e": "column of v and o"}


@dataclass(frozen=True)
class Columns:
    """How a thread's columns along ``axis`` lie: ``count`` of them, named by ``function``; the
    first 4 * ``quads`` come in fours of neighbours, ``singles`` follow."""

    axis: str
    count: int
    name: Code
    function: Code
    quads: int = 0

    @property
    def singles(self) -> int:
        return self.count - 4 * self.quads


@dataclass(frozen=True)
class Geometry:
    """The block's shape: tile extents per axis, warps, and each thread's share."""

    engine: str
    keep: str
    loop: str
    extents: tuple[tuple[str, int], ...]
    warps: int
    row_group: int

    def extent(self, axis: str) -> int:
        """Padded tile extent. Raises VerifyError for an axis no value has."""
        for name, extent in self.extents:
            if name == axis:
                return extent
        raise VerifyError(f"no value of this kernel has the axis {axis!r}")

    @property
    def warp_rows(self) -> int:
        return self.extent(self.keep) // self.warps

    @property
    def rows(self) -> int:
        """Rows of a fragment in one thread."""
        return self.warp_rows // (8 if self.engine == "mma" else 2)

    def columns(self, axis: str) -> Columns:
        """A thread's columns along ``axis``."""
        extent = self.extent(axis)
        name = Code(f"COLS_{axis.upper()}")
        if self.engine == "mma":
            return Columns(axis, extent // 4, name, Code("col_of"))
        if axis == self.loop:
            return Columns(axis, extent // 16, name, Code("col_of"))
        # Four neighbours at a time, so that a thread reads 16 bytes of the second operand at once.
        # Panels narrower than 128 bytes would put two such reads into one bank.
        quads = extent // 64 if extent % 32 == 0 else 0
        return Columns(axis, 4 * quads + -(-(extent - 64 * quads) // 16), name,
                       Code("quad_col_of") if quads else Code("col_of"), quads)

    def reach(self, axis: str) -> int:
        """Columns along ``axis`` that the lanes of a row own together; may exceed the tile."""
        return self.columns(axis).count * (4 if self.engine == "mma" else 16)

    def dims(self, value: Value) -> Code:
        """The array dimensions a thread's part of ``value`` has, ``[ROWS][COLS_J]``."""
        if value.space == "operand":
            return Code(f"[ROWS / 2][{TILE[value.axes[1]]} / 16][4]")
        return Code("".join("[ROWS]" if axis == self.keep else f"[{self.columns(axis).name}]"
                            for axis in self.ordered(value)))

    def index(self, value: Value) -> Code:
        """Element (r, c) of a thread's part."""
        return Code("".join("[r]" if axis == self.keep else "[c]" for axis in self.ordered(value)))

    def ordered(self, value: Value) -> tuple[str, ...]:
        """The axes of a value, rows first."""
        return tuple(sorted(value.axes, key=lambda axis: axis != self.keep))


def geometry(kernel: Kernel) -> Geometry:
    """The block shape of a placed kernel.

    Raises VerifyError when values disagree about an extent or the warps do not divide the rows.
    """
    extents: dict[str, int] = {}
    for value in kernel.values:
        for axis, extent in zip(value.axes, value.shape, strict=True):
            if extents.setdefault(axis, extent) != extent:
                raise VerifyError(f"axis {axis} is {extents[axis]} long in one value and {extent} "
                                  f"in {value.name}", where=kernel.name)
    schedule = kernel.schedule
    shape = Geometry(schedule.engine, kernel.keep, kernel.loop, tuple(sorted(extents.items())),
                     schedule.warps, _row_group(kernel))
    step = 16 if schedule.engine == "mma" else 2 * shape.row_group
    if shape.extent(kernel.keep) % (schedule.warps * step):
        raise VerifyError(
            f"{shape.extent(kernel.keep)} rows do not split over {schedule.warps} warps in steps "
            f"of {step}", where=kernel.name)
    for axis in extents:
        if axis != kernel.keep and extents[axis] % (16 if schedule.engine == "mma" else 8):
            raise VerifyError(f"axis {axis}: {extents[axis]} columns are no whole number of "
                              "matrix tiles", where=kernel.name)
    return shape


def _row_group(kernel: Kernel) -> int:
    """Neighbouring rows in one half-warp (CUDA cores only). Both halves store fragments to shared
    memory at once: four rows apart they hit different banks in 128-byte panels, one row apart in
    64-byte ones."""
    targets = [kernel.value(s.dst) for s in statements(kernel.body) if isinstance(s, Copy)]
    whole = kernel.schedule.block_m % (8 * kernel.schedule.warps) == 0 or any(
        v.space == "shared" for v in targets)
    return 4 if whole and not any(v.space == "shared" and v.panel == 16 for v in targets) else 1
