"""What a callable captures: tensors it indexes and numbers marked dynamic become arguments of the
kernel, so that other values or lengths of them never compile anything.

    ids[q_idx] == ids[kv_idx]   →   gather(ids, i) == gather(ids, j),  Table(ids, int32, 1)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import TraceError
from .naming import kernel_name
from .node import Node, make, param, walk

_REGISTER = {"bool": "bool", "uint8": "int32", "int8": "int32", "int16": "int32", "int32": "int32",
             "int64": "int64", "float16": "float", "bfloat16": "float", "float32": "float",
             "float64": "float"}


@dataclass(frozen=True)
class Table:
    """A captured tensor: its name in the graph, storage type and number of dimensions. ``source``
    is the tensor itself, read again at every call; ``spoken`` is what the user calls it."""

    name: str
    dtype: str
    ndim: int
    source: Any = field(compare=False, repr=False)
    spoken: str = ""


@dataclass(frozen=True)
class Number:
    """A captured ``ag.dynamic``: its parameter's name and type, and the object itself."""

    name: str
    dtype: str
    source: Any = field(compare=False, repr=False)
    spoken: str = ""


def batch_dimensions(*roots: Node) -> dict[str, tuple[int, ...]]:
    """By name of a captured tensor, its dimensions that are read at the batch entry: they need as
    many entries as there are in a call."""
    found: dict[str, set[int]] = {}
    for n in walk(*roots):
        if n.op == "gather":
            found.setdefault(n.attr("name"), set()).update(
                d for d, at in enumerate(n.args) if at.op == "idx" and at.attr("axis") == "b")
    return {name: tuple(sorted(dims)) for name, dims in found.items()}


# What kernels call their own arguments, now or in phases to come.
_RESERVED = frozenset("""
    q k v o lse do dout dq dk dv delta dlse sinks batch heads groups head_dim head_dim_v
    seqlen_q seqlen_k q_offset kv_offset kv_len q_begin k_begin params dropout_p dropout_scale
    dropout_seed page_table ring_sinks ring_reach kv_start new_len k_new v_new k_pair k_scale
    v_scale rope_cos rope_sin num_pages zone q_new q_pair
    """.split())


class Captures:
    """The captured tensors and numbers of one graph, in order of first use.

    Names are ``spoken`` as far as a kernel can have it (``naming.py``), else ``table`` or
    ``number``; a number is appended where several objects share one, or the kernel has the name.
    """

    def __init__(self) -> None:
        self._tables: dict[int | str, Table] = {}  # by identity, or name of an argument
        self._numbers: dict[int, Number] = {}

    def argument(self, name: str, dtype: str, ndim: int) -> Table:
        """The table of a tensor that every call gives by name."""
        table = self._tables.get(name)
        if table is None:
            table = self._tables[name] = Table(name, dtype, ndim, None, name)
        return table

    @property
    def tables(self) -> tuple[Table, ...]:
        return tuple(self._tables.values())

    @property
    def numbers(self) -> tuple[Number, ...]:
        return tuple(self._numbers.values())

    def table(self, source: Any, spoken: str = "") -> Table:
        """The table of a tensor, the same for the same object. Raises TraceError for a dtype no
        kernel reads."""
        known = self._tables.get(id(source))
        if known is None:
            dtype = str(source.dtype).removeprefix("torch.")
            if dtype not in _REGISTER:
                raise TraceError(f"the captured tensor {spoken or 'of an expression'} is {dtype}",
                                 remedy=f"Kernels read {', '.join(_REGISTER)}.")
            known = Table(self._name(spoken, "table"), dtype, source.ndim, source, spoken)
            self._tables[id(source)] = known
        return known

    def read(self, source: Any, indices: Sequence[Node], compute: str, spoken: str = "") -> Node:
        """The element of a captured tensor at ``indices``, one per dimension; floating tensors are
        read as ``compute``. Raises TraceError."""
        table = self.table(source, spoken)
        register = _REGISTER[table.dtype]
        return make("gather", *indices, name=table.name, origin=table.name,
                    dtype=compute if register == "float" else register)

    def number(self, source: Any, value: int | float, compute: str, spoken: str = "") -> Node:
        """The parameter of a dynamic number: int32 for whole numbers, else ``compute``."""
        known = self._numbers.get(id(source))
        if known is None:
            dtype = "int32" if isinstance(value, int) else compute
            known = Number(self._name(spoken, "number"), dtype, source, spoken)
            self._numbers[id(source)] = known
        return param(known.name, (), known.dtype)

    def _name(self, spoken: str, fallback: str) -> str:
        base = kernel_name(spoken, fallback)
        taken = _RESERVED | {t.name for t in self.tables} | {n.name for n in self.numbers}
        name, count = base, 2
        while name in taken:
            name, count = f"{base}_{count}", count + 1
        return name
