"""What a Python callable means at this moment, as a key: its code and everything it reaches.

    def mask(b, h, i, j): return (i - j < window) & (ids[i] == ids[j])
    →  (code, window=8, ids=tensor 0: int32 [512])

Numbers count by value; tensors by dtype, shape and device, as kernels read them anew at each call.
"""

from __future__ import annotations

import dis
import enum
import functools
import types
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..number import Dynamic

_MOST_VISITS = 4000
_MOST_BYTES = 1 << 14
_LIBRARIES = {"torch", "math", "builtins", "numpy", "operator", "functools"}
_PLAIN = (bool, int, str, bytes, complex, type(None), type(Ellipsis), torch.dtype, torch.device,
          torch.Size, slice, range)
# Objects that mean the same as long as they live.
_FIXED = (type, enum.Enum, types.BuiltinFunctionType, types.MethodDescriptorType,
          types.WrapperDescriptorType, Dynamic)


@dataclass(frozen=True, eq=False)
class Closure:
    """``key`` is equal for callables that trace to the same, but for which tensors they read:
    ``tensors``, in the order met. ``objects`` are those the key holds the addresses of."""

    key: Hashable
    tensors: tuple[Tensor, ...]
    objects: tuple[Any, ...]


def closure_of(*callables: Callable[..., Any]) -> Closure | None:
    """The meaning of the callables together; None where something they reach cannot be told, as an
    extension's objects."""
    reader = _Reader()
    try:
        key = tuple(reader.read(c) for c in callables)
    except _UnknownError:
        return None
    return Closure(key, tuple(reader.tensors), tuple(reader.objects))


class _UnknownError(Exception):
    """Something was met whose state cannot be told."""


class _Reader:
    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.objects: list[Any] = []
        self._met: dict[int, int] = {}  # by id: the place in ``objects``

    def read(self, value: Any) -> Hashable:
        if isinstance(value, float):
            return "float", value.hex()
        if isinstance(value, _PLAIN):
            return type(value).__name__, str(value)
        if isinstance(value, np.generic):
            return type(value).__name__, value.tobytes()
        known = self._met.get(id(value))
        if known is not None:
            return "again", known
        if len(self.objects) >= _MOST_VISITS:
            raise _UnknownError
        self._met[id(value)] = len(self.objects)
        self.objects.append(value)
        return type(value).__name__, *self._parts(value)

    def _parts(self, value: Any) -> Iterator[Hashable]:
        if isinstance(value, Tensor):
            self.tensors.append(value)
            yield from (value.dtype, tuple(value.shape), str(value.device))
        elif isinstance(value, _FIXED):
            yield id(value)
        elif isinstance(value, types.ModuleType):
            yield value.__name__
        elif isinstance(value, types.FunctionType):
            yield from self._function(value)
        elif isinstance(value, types.MethodType):
            yield from (self.read(value.__func__), self.read(value.__self__))
        elif isinstance(value, functools.partial):
            yield from map(self.read, (value.func, value.args, value.keywords))
        elif isinstance(value, tuple | list):
            yield from map(self.read, value)
        elif isinstance(value, dict):
            yield from map(self.read, (x for item in value.items() for x in item))
        elif isinstance(value, set | frozenset) and all(isinstance(x, _PLAIN) for x in value):
            yield frozenset(map(self.read, value))
        elif isinstance(value, np.ndarray) and value.nbytes <= _MOST_BYTES and not \
                value.dtype.hasobject:
            yield from (value.shape, value.dtype.str, value.tobytes())
        elif type(value).__module__.partition(".")[0] not in _LIBRARIES \
                and hasattr(value, "__dict__"):
            yield id(type(value))
            yield self.read(vars(value))
            yield from map(self.read, _methods(type(value)))  # type: ignore[arg-type]
        else:
            raise _UnknownError

    def _function(self, function: types.FunctionType) -> Iterator[Hashable]:
        yield id(function.__code__)
        for cell in function.__closure__ or ():
            try:
                yield self.read(cell.cell_contents)
            except ValueError:  # not assigned yet
                yield "empty"
        yield self.read(function.__defaults__)
        yield self.read(function.__kwdefaults__)
        if (function.__module__ or "").partition(".")[0] in _LIBRARIES:
            return
        names, attributes = _names(function.__code__)
        for name in names:
            if name not in function.__globals__:
                continue
            value = function.__globals__[name]
            yield self.read(value)
            if isinstance(value, types.ModuleType) \
                    and value.__name__.partition(".")[0] not in _LIBRARIES:
                yield from (self.read(vars(value)[a]) for a in attributes if a in vars(value))


@functools.lru_cache(1024)
def _names(code: types.CodeType) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names a function takes from its globals, and those of attributes it asks for."""
    found: dict[str, None] = {}
    attributes: dict[str, None] = {}
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            found[step.argval] = None
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            attributes[step.argval] = None
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            names, asked = _names(inner)
            found |= dict.fromkeys(names)
            attributes |= dict.fromkeys(asked)
    return tuple(found), tuple(attributes)


@functools.lru_cache(1024)
def _methods(kind: type) -> tuple[types.FunctionType, ...]:
    """The Python functions of a class and its bases, but for those of libraries."""
    return tuple(f for base in kind.__mro__
                 if base.__module__.partition(".")[0] not in _LIBRARIES
                 for f in vars(base).values() if isinstance(f, types.FunctionType))
