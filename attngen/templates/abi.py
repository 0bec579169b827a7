"""The struct ``Params`` through which a kernel is called, as (name, type) pairs.

Per tensor a pointer ``<name>``, then one int64 stride in elements ``<name>_stride_<axis>`` for each
axis but the last (whose stride is one). Per captured tensor a pointer and the strides of all its
dimensions. Then a pointer ``<name>_ptr`` for every parameter that may
differ per batch entry (null: it does not). Last the numbers: float64, then int32 (sizes of captured
tensors among them) and float32. Widest first, so the struct has no holes.
"""

from __future__ import annotations

from ..ir.stmt import Kernel
from ..ir.tensor import Tensor
from .names import c_name

Pairs = tuple[tuple[str, str], ...]


def stride_name(tensor: Tensor, axis: str) -> str:
    """Name of the field that holds the stride of ``axis``."""
    return f"{c_name(tensor.name)}_stride_{axis}"


def table_stride_name(table: str, dimension: int) -> str:
    """Name of the field that holds a stride of a captured tensor."""
    return f"{c_name(table)}_stride_{dimension}"


def size_name(table: str, dimension: int) -> str:
    """Name of the field that holds a length of a captured tensor."""
    return f"{c_name(table)}_size_{dimension}"


def params_fields(kernel: Kernel) -> Pairs:
    """The fields in order. Types are "pointer", "int64", "float64", "int32" and "float32"."""
    wide: list[tuple[str, str]] = []
    for tensor in kernel.tensors:
        wide.append((c_name(tensor.name), "pointer"))
        wide += [(stride_name(tensor, axis), "int64") for axis in tensor.axes[:-1]]
    for table in kernel.tables:
        wide.append((c_name(table.name), "pointer"))
        wide += [(table_stride_name(table.name, n), "int64") for n in range(table.ndim)]
    wide += [(f"{c_name(p.name)}_ptr", "pointer") for p in kernel.params if p.per_batch]
    numbers = [(c_name(p.name), p.dtype) for p in kernel.params]
    sizes = [(size_name(t.name, n), "int32") for t in kernel.tables for n in range(t.ndim)]
    doubles = [pair for pair in numbers if pair[1] == "float64"]
    return (*wide, *doubles, *(pair for pair in numbers if pair[1] != "float64"), *sizes)
