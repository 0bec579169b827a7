"""The struct ``Params`` through which a kernel is called, as (name, type) pairs.

Per tensor a pointer ``<name>``, then one int64 stride in elements ``<name>_stride_<axis>`` for each
axis but the last (whose stride is one). Then a pointer ``<name>_ptr`` for every parameter that may
differ per batch entry (null: it does not). Last the int32 parameters. Widest first, so the
struct has no holes.
"""

from __future__ import annotations

from ..ir.stmt import Kernel, Tensor
from .names import c_name

Pairs = tuple[tuple[str, str], ...]


def stride_name(tensor: Tensor, axis: str) -> str:
    """Name of the field that holds the stride of ``axis``."""
    return f"{c_name(tensor.name)}_stride_{axis}"


def params_fields(kernel: Kernel) -> Pairs:
    """The fields in order. Types are "pointer", "int64" and "int32"."""
    wide: list[tuple[str, str]] = []
    for tensor in kernel.tensors:
        wide.append((c_name(tensor.name), "pointer"))
        wide += [(stride_name(tensor, axis), "int64") for axis in tensor.axes[:-1]]
    wide += [(f"{c_name(p.name)}_ptr", "pointer") for p in kernel.params if p.per_batch]
    return (*wide, *((c_name(p.name), p.dtype) for p in kernel.params))
