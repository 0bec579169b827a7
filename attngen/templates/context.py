"""What the views of a CUDA kernel's statements share: names, indices, bounds and addresses.

A ``Context`` also remembers what was asked of it, so that the skeleton declares just that.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import VerifyError
from ..ir import stmt as ir
from ..ir.node import Node
from ..ir.tensor import Tensor
from .code import Code
from .expressions import print_expression
from .geometry import SIZE, Geometry
from .lifetimes import stored_last
from .names import c_name
from .statements import Line, Nest
from .storage import LaneOffset, SharedTile, TensorView, lane_offset, place, shared_tile


@dataclass(frozen=True)
class Scope:
    """Where a statement stands: in the loop ``inside``, or before the loop ``upcoming``. ``path``
    numbers the bodies around it."""

    inside: ir.Loop | None
    upcoming: ir.Loop | None
    path: tuple[int, ...] = ()


@dataclass
class Context:
    """One kernel while its views are made. ``used`` holds sizes, parameters, ``<axis>_first`` and
    ``<axis>_last``, and helper functions the text refers to."""

    kernel: ir.Kernel
    shape: Geometry
    tensors: dict[str, TensorView]
    tiles: dict[str, SharedTile] = field(default_factory=dict)
    offsets: dict[str, LaneOffset] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)  # tile name -> tensor it is filled from
    used: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.tiles = {v.name: shared_tile(v) for v in self.kernel.values if v.space == "shared"}
        self.late = stored_last(self.kernel)
        self.rings = tuple(sorted({t.stages for t in self.tiles.values() if t.stages > 1}))

    def fail(self, what: str) -> VerifyError:
        """The error for a statement no CUDA kernel can hold."""
        return VerifyError(what, where=self.kernel.name)

    # -- names and expressions -----------------------------------------------------------------

    def element(self, name: str) -> Code:
        """Element (r, c) of a value, in the thread that owns it."""
        return Code(c_name(name) + self.shape.index(self.kernel.value(name)))

    def expression(self, node: Node, indices: set[str]) -> str:
        """C text of an expression; the axes whose index it reads are added to ``indices``."""
        return print_expression(node, lambda leaf: self._leaf(leaf, indices), self._parts)

    def _parts(self, node: Node) -> tuple[str, ...]:
        """What ``uniform`` takes besides, in fragments of tensor cores: the part of i and j that is
        a place in them, known when loops are unrolled."""
        if node.op != "uniform" or self.shape.engine != "mma":
            return ()
        rows, columns = "row_of(r)", f"{self.shape.columns(self.kernel.loop).function}(0, c)"
        return (rows, columns) if self.shape.keep == "i" else (columns, rows)

    def _leaf(self, leaf: Node, indices: set[str]) -> str:
        match leaf.op:
            case "value":
                return self.element(leaf.attr("name"))
            case "param":
                return self.param(leaf.attr("name"))
            case "idx":
                axis: str = leaf.attr("axis")
                indices.add(axis)
                return axis
            case "first" | "last":
                name = f"{leaf.attr('axis')}_{leaf.op}"
                self.used.add(name)
                return name
        raise self.fail(f"{leaf.op} cannot stand in a statement")

    def param(self, name: str) -> Code:
        """The local variable of a parameter."""
        self.used.add(name)
        return c_name(name)

    def size(self, axis: str) -> Code:
        """The true extent of an axis: a constant, or a parameter."""
        name = SIZE[axis]
        return Code(name) if name.isupper() else self.param(name)

    def stored_size(self, axis: str, tensor: str) -> Code:
        """The true extent of an axis at a store to ``tensor``. What packed kernels have read from
        memory is read again after the loop, so that it takes no register through it."""
        size = self.size(axis)
        again = self.kernel.packed and tensor in self.late and not size.isupper()
        return Code(f"{size}_again") if again else size

    def late_lines(self, tensor: str, axes: tuple[str, ...]) -> tuple[Line, ...]:
        """Declarations at a tensor's first store, if that is its first use: its pointer, and what
        ``stored_size`` calls its extents."""
        if tensor not in self.late or tensor in self.used:
            return ()
        lines = []
        for axis in axes:
            size, name = self.size(axis), self.stored_size(axis, tensor)
            if name != size and name not in self.used:
                self.used.add(name)
                lines.append(Line(Code(f"const int {name} = load_global(params.{size}_ptr + b);"),
                                  Code("")))
        self.used.add(tensor)
        return (*lines, self.tensors[tensor].declaration)

    def position(self, tensor: Tensor, axes: tuple[str, ...]) -> dict[str, str]:
        """Of an element whose indices along ``axes`` are called as these are."""
        walked = ("split",) if self.kernel.serial and "split" in tensor.axes else ()
        placed = place(tensor, lambda n: self.expression(n, set()))
        return {**{a: a for a in (*axes, *walked)}, **placed}

    # -- a thread's share ----------------------------------------------------------------------

    def nest(self, axes: tuple[str, ...], indices: frozenset[str] | set[str] = frozenset(),
             by_column: bool = False, rarely: bool = False) -> Nest | None:
        """Loops over a thread's share of ``axes``, declaring the ``indices`` that are needed.

        Rows go outermost. ``by_column``: columns do, so that an index along them lives only while
        all rows use it, where the other order would keep every column's index in a register.
        ``rarely``: the statement is skipped on most tiles, so row numbers are not kept for it.
        """
        made: Nest | None = None
        for axis in sorted(axes, key=lambda a: (a == self.shape.keep) != by_column):
            start = "" if axis in "de" else f"{axis}_first + "
            if axis == self.shape.keep:
                var, bound, at = "r", Code("ROWS"), "row0 + row_of(r)"
                if rarely:
                    at = "recompute(row0) + row_of(r)"
            else:
                columns = self.shape.columns(axis)
                var, bound, at = "c", columns.name, f"{columns.function}(lane, c)"
            local = (Code(f"const int {axis} = {start}{at};"),) if axis in indices else ()
            if local:
                self.used.add("row0" if var == "r" else "lane")
            made = Nest(Code(var), bound, local, made)
        return made

    def outside(self, axes: tuple[str, ...]) -> list[str]:
        """Conditions that keep an element of a padded tile inside its tensor."""
        return [f"{a} < {self.size(a)}" for a in axes if self.padded(a)]

    def padded(self, axis: str) -> bool:
        """May a thread's share of a tile reach beyond the tensor along ``axis``?"""
        size = SIZE[axis]
        return size.islower() or self.kernel.size(size.lower()) != self.shape.reach(axis)

    # -- shared tiles --------------------------------------------------------------------------

    def lane_offset(self, value: ir.Value, role: str, first: int = 0) -> Code:
        """Name of the byte at which this thread starts in a tile when it uses it as ``role``."""
        made = lane_offset(self.tiles[value.name], role, self.shape, first)
        self.offsets[made.name] = made
        self.used |= {"lane", *({"warp"} if "warp" in made.start else ()),
                      *({"row0"} if "row0" in made.start else ())}
        return made.name

    def base(self, name: str, scope: Scope, ahead: int = 0) -> Code:
        """Address of the tile ``ahead`` iterations on, in its ring."""
        tile = self.tiles[name]
        shift = ahead % tile.stages
        if tile.stages == 1:
            return tile.name
        if scope.inside is None:
            return Code(f"{tile.name} + {shift} * {tile.type}::BYTES" if shift else tile.name)
        slot = f"slot{tile.stages}"
        if shift:
            self.used.add("ring_ahead")
            slot = f"ring<{tile.stages}>({slot} + {shift})"
        return Code(f"{tile.name} + {slot} * {tile.type}::BYTES")
