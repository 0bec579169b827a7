"""Filling the C struct ``Params`` from the values of one call."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from ..errors import LaunchError, ShapeError
from .plan import SIZE_OF, KernelPlan, TensorArg, struct_format

if TYPE_CHECKING:
    from .launch import Buffer

class Packer:
    """Packs one kernel's ``Params``. Fields are found by name among tensors (``q``,
    ``q_stride_b``), parameters (``q_offset``, ``q_offset_ptr``) and sizes (``batch``).

    Names are resolved here, once: a call lines its values up in one flat row (sizes, parameters,
    then address and strides of each tensor) from which the fields are picked by position.
    """

    def __init__(self, kernel: KernelPlan, tensors: Sequence[TensorArg]) -> None:
        self.kernel = kernel
        self._struct = struct.Struct(struct_format(kernel.fields))
        self.size = self._struct.size
        used = [t for t in tensors if t.name in kernel.tensors]
        # A size given as a parameter is still a size; null is the default of every pointer.
        params = [p for p in kernel.params if p.name not in SIZE_OF.values()]
        self._nulls = {f"{p.name}_ptr": 0 for p in kernel.params if p.per_batch}
        names = (*(p.name for p in params), *self._nulls)
        sizes = tuple(n for n in SIZE_OF.values() if n in {f.name for f in kernel.fields})
        row = [*sizes, *names, *chain.from_iterable(
            (t.name, *(f"{t.name}_stride_{axis}" for axis in t.axes),
             *(f"{t.name}_size_{axis}" for axis in t.axes if t.role == "table")) for t in used)]
        unknown = [f.name for f in kernel.fields if f.name not in row]
        if unknown:
            raise LaunchError(f"kernel {kernel.name} wants arguments nobody provides",
                              numbers=", ".join(unknown),
                              remedy="Each field of Params is a tensor, one of its strides, a "
                                     "parameter or a size.")
        self._pick_sizes = _picker(sizes)
        self._pick_params = _picker(names)
        self._pick_buffers = _picker([t.name for t in used])
        self._width = len(row)
        self._pick = _picker([row.index(f.name) for f in kernel.fields])

    def pack(self, buffers: Mapping[str, Buffer], sizes: Mapping[str, int],
             params: Mapping[str, int | float]) -> bytes:
        """The bytes of ``Params``. Raises ShapeError for a number its field cannot hold and
        LaunchError for a missing one."""
        try:
            row = [*self._pick_sizes(sizes), *self._pick_params({**self._nulls, **params})]
            for buffer in self._pick_buffers(buffers):
                row.append(buffer[0])
                row += buffer[1]
                row += buffer[3]
        except KeyError as missing:
            raise LaunchError(f"kernel {self.kernel.name} was given no value for {missing}"
                              ) from None
        if len(row) != self._width:
            raise LaunchError(
                f"kernel {self.kernel.name} was given {len(row)} numbers, expected {self._width}",
                remedy="A buffer has one stride per axis, and as many lengths if it is a captured "
                       "tensor's.")
        values = self._pick(row)
        try:
            return self._struct.pack(*values)
        except struct.error:
            raise self._misfit(values) from None

    def _misfit(self, values: tuple[Any, ...]) -> ShapeError:
        for field, value in zip(self.kernel.fields, values, strict=True):
            try:
                struct.pack(struct_format([field]), value)
            except struct.error as problem:
                return ShapeError(f"{field.name}={value!r} does not fit {field.ctype}",
                                  where=f"kernel {self.kernel.name}", numbers=str(problem),
                                  remedy="Split the call.")
        raise AssertionError("every field fits alone but not together")


def _picker(keys: Sequence[Any]) -> Any:
    """As ``itemgetter``, but giving a tuple for any number of keys."""
    if len(keys) > 1:
        return itemgetter(*keys)
    return lambda source: tuple(source[key] for key in keys)
