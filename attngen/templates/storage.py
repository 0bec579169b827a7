"""Shared-memory tiles and the addresses a thread needs in them; tensors and their offsets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import VerifyError
from ..ir.bounds import SEQUENCES
from ..ir.node import Node
from ..ir.stmt import Kernel, Value
from ..ir.tensor import Table, Tensor
from .abi import stride_name
from .code import Code, comment
from .geometry import TILE, Geometry
from .names import c_name
from .statements import Line

ELEMENT = {"int8": "s8_t", "float8_e4m3": "e4m3_t", "bfloat16": "bf16_t", "float16": "f16_t",
           "float32": "float", "int32": "int"}
ITEM_BYTES = {"int8": 1, "float8_e4m3": 1, "bfloat16": 2, "float16": 2, "float32": 4,
              "int32": 4}


# Captured tensors are stored in more types than kernels compute in.
TABLE_ELEMENT = {**ELEMENT, "float64": "double", "int64": "i64", "int16": "short",
                 "int8": "signed char", "uint8": "unsigned char", "bool": "unsigned char"}


def table_field(table: Table) -> Line:
    """The member of ``Params`` that points to a captured tensor."""
    return Line(Code(f"const {TABLE_ELEMENT[table.dtype]}* {c_name(table.name)};"),
                comment(f"captured, {table.ndim}-D" if not table.of else
                        f"least and greatest of every 64 elements of {table.of}"))


@dataclass(frozen=True)
class SharedTile:
    """A ring of ``stages`` tiles in shared memory at byte ``offset``; ``type`` names its layout."""

    name: Code
    type: Code
    element: Code
    rows: Code
    cols: Code
    panel: int
    stages: int
    offset: int
    note: Code


@dataclass(frozen=True)
class LaneOffset:
    """The byte within a tile at which a thread starts when it uses the tile in one way."""

    name: Code
    start: Code
    note: Code


def shared_tile(value: Value) -> SharedTile:
    """Raises VerifyError for a panel or an offset the swizzle does not allow."""
    size = ITEM_BYTES[value.dtype]
    row_bytes = value.panel * size
    if row_bytes not in (32, 64, 128) or value.shape[1] % value.panel or value.offset % 128:
        raise VerifyError(
            f"{value.name}: panels of {value.panel} columns for {value.shape[1]} columns at byte "
            f"{value.offset}: a panel is 32, 64 or 128 bytes wide and divides the tile, which "
            "starts at a multiple of 128")
    name = c_name(value.name)
    ring = f", {value.stages} in a ring" if value.stages > 1 else ""
    return SharedTile(
        name, Code(f"{name}_t"), Code(ELEMENT[value.dtype]), TILE[value.axes[0]],
        TILE[value.axes[1]], value.panel, value.stages, value.offset,
        comment(f"({', '.join(value.axes)}){ring}"))


# How a thread addresses a tile: engine, role -> (row, column, what it is for).
_ROLES = {
    ("mma", "a"): ("warp * WARP_ROWS + lane % 16", "lane / 16 * 8", "first operand"),
    ("mma", "b"): ("lane % 8 + lane / 16 * 8", "lane / 8 % 2 * 8",
                   "second operand, its rows are columns of the product"),
    ("mma", "bt"): ("lane % 16", "lane / 16 * 8",
                    "second operand, its rows are summed over"),
    ("simt", "a"): ("row0", "0", "first operand"),
    ("simt", "b"): ("lane % 16", "0", "second operand, its rows are columns of the product"),
    ("simt", "quad"): ("0", "lane % 16 * 4", "second operand, four columns at a time"),
    ("simt", "one"): ("0", "{first} + lane % 16", "second operand, single columns"),
    ("simt", "put"): ("row0", "lane % 16", "where this thread stores its elements"),
}


def lane_offset(tile: SharedTile, role: str, shape: Geometry, first: int = 0) -> LaneOffset:
    """Where ``role`` ("a", "b", "bt", "quad", "one", "put") starts in ``tile``."""
    row, column, note = _ROLES[shape.engine, role]
    start = f"{tile.type}::at({row}, {column.format(first=first)})"
    return LaneOffset(Code(f"{tile.name}_{role}"), Code(start), comment(note))


@dataclass(frozen=True)
class TensorView:
    """A tensor's pointer, moved to this block's batch entry and head."""

    name: Code
    pointer: Code  # its type
    declaration: Line


def tensor_view(tensor: Tensor, head: str, again: bool, serial: bool) -> TensorView:
    """``head`` is the name of the block's position along ``g`` for this tensor; ``again`` and
    ``serial`` as for ``block_start``."""
    name, element = c_name(tensor.name), ELEMENT[tensor.dtype]
    pointer = Code(f"const {element}*" if tensor.role == "input" else f"{element}*")
    fixed = ("b", "h", "g") if serial else ("b", "h", "g", "split")
    within = " ".join(a for a in tensor.axes if a not in fixed)
    start = block_start(tensor, head, again, serial)
    return TensorView(name, pointer, Line(Code(f"{pointer} {name} = {start};"),
                                          comment(f"[{within}]")))


def block_start(tensor: Tensor, head: str, again: bool = False, serial: bool = False) -> Code:
    """Where the rows of this block's batch entry, head and part begin; ``again``: in a packed
    tensor the beginning is read from memory here; ``serial``: the kernel walks the parts."""
    index = {"b": "b", "h": "h", "g": head, **({} if serial else {"split": "split"})}
    placed = dict(tensor.place)
    position = {a: index[a] for a in tensor.axes if a in index and a not in placed}
    if tensor.begin:
        begin = c_name(tensor.begin)
        at = f"load_global(params.{begin}_ptr + b)" if again else begin
        position |= {a: at for a in tensor.axes if a in SEQUENCES}
    at = offset(tensor, position)
    return Code(f"params.{c_name(tensor.name)}" + (f" + {at}" if at else ""))


def begins(kernel: Kernel) -> set[str]:
    """The parameters at which packed tensors begin."""
    return {t.begin for t in kernel.tensors if t.begin}


def copy_source(tile: SharedTile, tensor: Tensor, row_axis: str) -> Line:
    """Declares where this thread's share of each copy into ``tile`` starts."""
    name = c_name(tensor.name)
    start = (f"{name} + {tile.type}::copy_row() * params.{stride_name(tensor, row_axis)} + "
             f"{tile.type}::copy_col()")
    return Line(Code(f"const {ELEMENT[tensor.dtype]}* {tile.name}_from = {start};"), Code(""))


def offset(tensor: Tensor, position: dict[str, str]) -> Code:
    """Elements to ``position`` (axis -> index expression) of ``tensor``. Axes that have a place
    are given as such, by ``place``."""
    terms = []
    for axis in tensor.axes:
        index = position.get(axis, "0")
        if index != "0":
            unit = axis == tensor.axes[-1]
            terms.append(index if unit else f"{index} * params.{stride_name(tensor, axis)}")
    return Code(" + ".join(terms))


def place(tensor: Tensor, expression: Callable[[Node], str]) -> dict[str, str]:
    """The indices along stored axes that have a place, ``expression`` giving C text whose
    variables are called as the axes are."""
    return {axis: f"({expression(n)})" for axis, n in tensor.place}


def by_head_divisor(heads: tuple[int, ...]) -> int | None:
    """k where the map is h // k, else None."""
    for k in range(1, len(heads) + 1):
        if heads == tuple(h // k for h in range(len(heads))):
            return k
    return None
