"""Plans: everything the runtime needs to know about kernels, as named tuples.

A plan is made once from the placed graph and then travels alone, through the disk cache as JSON,
so a process that finds its plan there never loads the compiler. A ``Plan`` names the tensors of one
problem and the kernels to run on them, in order; a ``KernelPlan`` holds one kernel's text and the C
struct ``Params`` through which it is called.

Axes: ``b`` batch, ``h`` query heads, ``g`` key/value heads, ``i`` queries, ``row`` queries of all
heads of a group, ``j`` keys, ``split`` parts of them, ``d`` head_dim, ``e`` head_dim_v. Extents
known only at the call carry the names of ``SIZE_OF``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

Role = Literal["input", "output", "workspace", "table"]
Ctype = Literal["pointer", "int64", "int32", "float32", "float64"]
Language = Literal["cuda", "cpp"]

SCHEMA = 5

SIZE_OF: dict[str, str] = {
    "b": "batch", "h": "heads", "g": "groups", "i": "seqlen_q", "j": "seqlen_k", "row": "rows",
    "split": "num_splits", "d": "head_dim", "e": "head_dim_v",
}
ITEMSIZE: dict[str, int] = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2,
    "int8": 1, "uint8": 1, "bool": 1, "float8_e4m3": 1,
}

_CODE: dict[str, str] = {"pointer": "Q", "int64": "q", "int32": "i", "float32": "f", "float64": "d"}
_WIDTH: dict[str, int] = {"pointer": 8, "int64": 8, "int32": 4, "float32": 4, "float64": 8}


class TensorArg(NamedTuple):
    """A tensor the kernels read or write; its strides are given in the order of ``axes``. Axes of a
    captured tensor (role "table") are numbered, and its lengths are arguments too. With ``of`` it
    is that one's summary (``summary.per_64``), made at each call."""

    name: str
    axes: tuple[str, ...]
    dtype: str
    role: Role
    of: str = ""


class ParamArg(NamedTuple):
    """A number given at each call. ``per_batch``: either one value for the whole batch (field
    ``name``, used while the field ``name_ptr`` is null) or a device pointer to int32 [batch]."""

    name: str
    dtype: Literal["int32", "float32", "float64"]
    per_batch: bool = False


class Field(NamedTuple):
    """One member of the C struct ``Params``."""

    name: str
    ctype: Ctype


class GridDim(NamedTuple):
    """Blocks along one grid axis: ceil(extent / tile), times as many as the size ``each`` says if
    that is not empty. ``axis_extent`` is the name of a run-time size (``"seqlen_q"``) or a
    constant."""

    axis_extent: str | int
    tile: int = 1
    each: str = ""

    def blocks(self, sizes: Mapping[str, int]) -> int:
        """The number of blocks for these run-time sizes, 0 when the extent is 0."""
        extent = self.axis_extent
        blocks = -(-(sizes[extent] if isinstance(extent, str) else extent) // self.tile)
        return blocks * sizes[self.each] if self.each else blocks


ONE = GridDim(1, 1)


class KernelPlan(NamedTuple):
    """One kernel: text, entry point, arguments and launch shape.

    ``name`` is the ``extern "C"`` entry: for ``cuda`` ``__global__ void name(Params)``, for ``cpp``
    ``void name(const Params*, int threads)``. ``kind`` says what it computes (``"forward"``).
    ``tensors`` and ``params`` are the names it uses, ``threads`` are per block, ``shared_bytes`` is
    dynamic shared memory, ``flags`` go to the compiler, ``meta`` is for people and reports.
    """

    name: str
    kind: str
    language: Language
    target: str
    text: str
    fields: tuple[Field, ...]
    tensors: tuple[str, ...]
    params: tuple[ParamArg, ...]
    meta: dict[str, Any]
    grid: tuple[GridDim, GridDim, GridDim] = (ONE, ONE, ONE)
    threads: int = 1
    shared_bytes: int = 0
    flags: tuple[str, ...] = ()


class Plan(NamedTuple):
    """The kernels that together compute one variant for one dtype and alignment.

    ``sizes`` holds what is fixed at compile time (heads, groups, head_dim, head_dim_v, the
    key/value head of each query head); ``variant`` says which of the spec's variants this is.
    Use lists, not tuples, in ``sizes``, ``variant`` and ``meta``: they come back from JSON as such.
    """

    spec_json: str | None
    target: str
    kind: str
    tensors: tuple[TensorArg, ...]
    kernels: tuple[KernelPlan, ...]
    sizes: dict[str, Any]
    variant: dict[str, Any]

    def tensor(self, name: str) -> TensorArg:
        """The tensor called ``name``. Raises KeyError."""
        for arg in self.tensors:
            if arg.name == name:
                return arg
        raise KeyError(name)

    def to_json(self) -> str:
        """Canonical JSON: equal plans give equal text in every process."""
        return json.dumps([SCHEMA, *self], sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Plan:
        """The plan ``to_json`` wrote. Raises ValueError when the text is not one."""
        try:
            schema, *values = json.loads(text)
            if schema != SCHEMA:
                raise ValueError("written by another version of attngen")
            plan = cls(*values)
            return plan._replace(
                tensors=tuple(TensorArg(name, tuple(axes), *rest)  # type: ignore[arg-type]
                              for name, axes, *rest in plan.tensors),
                kernels=tuple(_kernel(values) for values in plan.kernels))
        except (TypeError, ValueError) as error:
            raise ValueError(f"not a plan: {error}") from None

    def key(self) -> str:
        """sha256 of the canonical JSON, in hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def _kernel(values: Iterable[Any]) -> KernelPlan:
    kernel = KernelPlan(*values)
    x, y, z = (GridDim(*dim) for dim in kernel.grid)
    return kernel._replace(
        fields=tuple(Field(*f) for f in kernel.fields), tensors=tuple(kernel.tensors),
        params=tuple(ParamArg(*p) for p in kernel.params), grid=(x, y, z),
        flags=tuple(kernel.flags))


def struct_format(fields: Iterable[Field]) -> str:
    """The ``struct`` format of ``Params`` as C lays it out: each member aligned to its own size and
    the whole to the largest. Little-endian, as every target is."""
    parts, offset, align = ["<"], 0, 1
    for member in fields:
        width = _WIDTH[member.ctype]
        padding = -offset % width
        parts.append(f"{padding}x" if padding else "")
        parts.append(_CODE[member.ctype])
        offset += padding + width
        align = max(align, width)
    tail = -offset % align
    parts.append(f"{tail}x" if tail else "")
    return "".join(parts)
