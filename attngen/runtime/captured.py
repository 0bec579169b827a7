"""What masks and scores captured: tensors and numbers, bound by reference, read at each call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import (
    CapturedError,
    DeviceError,
    DtypeError,
    ShapeError,
    UnknownNameError,
)

if TYPE_CHECKING:
    from torch import Tensor

_INT32 = 2**31


class CapturedTensor(NamedTuple):
    """A tensor argument beside q, k and v. ``name`` is the kernel's, ``spoken`` the user's;
    ``source`` is the tensor bound, None for one that every call must give. ``batch_dims`` are
    the dimensions read at the batch entry."""

    name: str
    dtype: str
    ndim: int
    source: Any
    spoken: str
    batch_dims: tuple[int, ...] = ()


class CapturedNumber(NamedTuple):
    """A number argument; ``source`` has its present ``value``."""

    name: str
    dtype: str
    source: Any
    spoken: str


class Captured(NamedTuple):
    """All of them, for one variant."""

    tensors: tuple[CapturedTensor, ...] = ()
    numbers: tuple[CapturedNumber, ...] = ()

    def bind(self, like: Tensor, given: Mapping[str, Any], batch: int = 1,
             buffers: Sequence[Tensor] | None = None,
             arguments: Mapping[str, Tensor] | None = None
             ) -> tuple[dict[str, Tensor], dict[str, int | float]]:
        """Tensors and numbers by the kernel's names, ``given`` ones (by the user's names) in place
        of those bound. ``like`` is q, ``batch`` the number of batch entries or sequences,
        ``buffers`` other tensors in place of all that are bound, in order, ``arguments`` those
        that every call must give.

        Raises UnknownNameError for a name nobody captured, CapturedError for one that several did
        or that is missing, DtypeError, ShapeError and DeviceError.
        """
        spoken: dict[str, list[str]] = {}
        items: list[CapturedTensor | CapturedNumber] = [
            *(t for t in self.tensors if t.source is not None), *self.numbers]
        for item in items:
            spoken.setdefault(item.spoken or item.name, []).append(item.name)
        chosen: dict[str, Any] = dict(arguments or {})
        for name, value in given.items():
            if name not in spoken:
                raise UnknownNameError("captured name", name, spoken, where="params")
            if len(spoken[name]) > 1:
                raise CapturedError(f"{len(spoken[name])} captured objects are called {name!r}",
                                    where="params", remedy="Give them different names in the "
                                    "mask or score, or change the objects themselves.")
            chosen[spoken[name][0]] = value
        if buffers is not None:
            bound = (t.name for t in self.tensors if t.source is not None)
            chosen |= dict(zip(bound, buffers, strict=True))
        tensors = {t.name: _checked(t, chosen.get(t.name, t.source), like, batch)
                   for t in self.tensors}
        return tensors, {n.name: _number(n, chosen) for n in self.numbers}


def _checked(wanted: CapturedTensor, tensor: Any, like: Tensor, batch: int) -> Tensor:
    name = wanted.spoken or wanted.name
    if not hasattr(tensor, "data_ptr"):
        raise CapturedError(f"{name} is missing" if tensor is None else
                            f"{name} is a {type(tensor).__name__}, expected a torch.Tensor",
                            remedy=f"Pass {name}=, a {wanted.ndim}-D {wanted.dtype} tensor.")
    if str(tensor.dtype) != f"torch.{wanted.dtype}":
        raise DtypeError(f"{name} is {tensor.dtype}, the kernel was compiled for {wanted.dtype}",
                         remedy=f"Convert it with .to(torch.{wanted.dtype}).")
    if tensor.dim() != wanted.ndim or any(n >= _INT32 for n in tensor.shape):
        raise ShapeError(f"{name} has shape {tuple(tensor.shape)}",
                         numbers=f"expected {wanted.ndim} dimensions, each below 2^31",
                         remedy="Lengths may change between calls, dimensions may not.")
    for dim in wanted.batch_dims:
        if tensor.shape[dim] < batch:
            raise ShapeError(
                f"{name} has {tensor.shape[dim]} entries along dimension {dim}, which is read at "
                "the batch entry", numbers=f"shape {tuple(tensor.shape)}, the call has {batch}",
                remedy="Give it an entry for each, or do not index it by b.")
    copies = getattr(tensor, "attngen_copies", None)
    if copies is not None and tensor.device != like.device:  # a table that a pattern made
        if like.device not in copies:
            copies[like.device] = tensor.to(like.device)
        tensor = copies[like.device]
    if tensor.device != like.device:
        raise DeviceError(f"{name} is on {tensor.device}, q is on {like.device}",
                          remedy=f"Move it with .to({str(like.device)!r}).")
    found: Tensor = tensor
    return found


def _number(wanted: CapturedNumber, chosen: Mapping[str, Any]) -> int | float:
    value = chosen.get(wanted.name, wanted.source)
    value = getattr(value, "value", value)
    kinds = (int,) if wanted.dtype == "int32" else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise DtypeError(f"{wanted.spoken or wanted.name} is {value!r}, the kernel was compiled "
                         f"for {'a whole number' if kinds == (int,) else 'a number'}",
                         remedy="Compile again for a number of another kind.")
    return value
