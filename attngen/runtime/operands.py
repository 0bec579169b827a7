"""The tensors of one attention call: checks on what comes in, memory for what goes out.

Everything here sees torch tensors only through their methods, on the path of every call; what torch
itself is needed for is handed in.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import (
    DeviceError,
    DtypeError,
    HeadsError,
    NonUnitStrideError,
    ShapeError,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_INT32 = 2**31
_ALIGNMENT = 16  # bytes of one vector load

_LAYOUT = {
    "q": "[batch, heads, seqlen_q, head_dim]",
    "k": "[batch, groups, seqlen_k, head_dim]",
    "v": "[batch, groups, seqlen_k, head_dim_v]",
}


class Heads(NamedTuple):
    """The sizes a spec fixes."""

    heads: int
    groups: int
    head_dim: int
    head_dim_v: int


def sizes_of(q: Tensor, k: Tensor, v: Tensor) -> Heads:
    """The sizes of a spec that fits these tensors. Raises ShapeError unless each has four
    dimensions, DtypeError for what is no tensor."""
    try:
        _, heads, _, head_dim = q.shape
        _, groups, _, _ = k.shape
        _, _, _, head_dim_v = v.shape
    except (ValueError, AttributeError, RuntimeError, TypeError):
        raise _not_four(q, k, v) from None
    return Heads(heads, groups, head_dim, head_dim_v)


def check_tensors(q: Tensor, k: Tensor, v: Tensor, fixed: Heads,
                  device_type: str) -> tuple[int, int, int]:
    """(batch, seqlen_q, seqlen_k) of valid operands.

    Raises ShapeError, HeadsError, DtypeError, DeviceError or NonUnitStrideError, naming the tensor.
    """
    try:
        batch, heads, seqlen_q, head_dim = q.shape
        batch_k, groups, seqlen_k, head_dim_k = k.shape
        batch_v, groups_v, seqlen_v, head_dim_v = v.shape
        device = q.device
        found_type = device.type
        nested = q.is_nested or k.is_nested or v.is_nested  # these may have four dimensions too
    except (ValueError, AttributeError, RuntimeError, TypeError):
        raise _not_four(q, k, v) from None
    if nested:
        raise _not_four(q, k, v)
    if not (heads == fixed.heads and groups == groups_v == fixed.groups):
        raise _wrong_heads(q, k, v, fixed)
    if not (head_dim == head_dim_k == fixed.head_dim and head_dim_v == fixed.head_dim_v):
        raise _wrong_dim(q, k, v, fixed)
    if not batch == batch_k == batch_v:
        raise ShapeError("q, k and v differ in batch", numbers=f"{batch}, {batch_k}, {batch_v}",
                         remedy="expand() the smaller ones; nothing is copied.")
    if seqlen_k != seqlen_v:
        raise ShapeError("k and v differ in length", numbers=f"seqlen_k {seqlen_k}, v has "
                         f"{seqlen_v}", remedy="Pass keys and values of the same positions.")
    if not (q.dtype is k.dtype and q.dtype is v.dtype):
        raise _no_tensor(q, k, v) or DtypeError(
            "q, k and v differ in dtype", numbers=f"{q.dtype}, {k.dtype}, {v.dtype}",
            remedy="Convert them to one dtype with .to().")
    if not (device == k.device and device == v.device):
        raise DeviceError("q, k and v are on different devices",
                          numbers=f"{q.device}, {k.device}, {v.device}",
                          remedy="Move them to one device with .to().")
    if found_type != device_type:
        raise DeviceError(f"q is on {device}, the kernels run on {device_type}",
                          remedy=f"Move q, k, v with .to({device_type!r}), or compile for another "
                                 f"target.")
    return batch, seqlen_q, seqlen_k


def is_vectorized(tensor: Tensor, itemsize: int, name: str) -> bool:
    """Whether every row begins on a 16-byte boundary. Raises NonUnitStrideError unless the last
    dimension is contiguous."""
    *outer, last = tensor.stride()
    if last != 1 and tensor.numel():
        raise NonUnitStrideError(
            f"{name} has stride {last} in its last dimension", numbers=f"shape "
            f"{tuple(tensor.shape)}, strides {tensor.stride()}",
            remedy=f"Pass {name}.contiguous(), or keep head_dim the innermost dimension.")
    bits: int = tensor.data_ptr() | (outer[0] | outer[1] | outer[2]) * itemsize
    if bits % _ALIGNMENT == 0:
        return True
    # The stride of a dimension of one entry leads nowhere, and may be anything.
    used = [stride for stride, size in zip(outer, tensor.shape, strict=False) if size > 1]
    return not any(n % _ALIGNMENT for n in (tensor.data_ptr(), *(s * itemsize for s in used)))


def per_batch(name: str, value: Any, batch: int, device: torch.device,
              span: int) -> tuple[int, Tensor | None]:
    """A position as (number, None) or (0, int32 tensor of one per batch entry).

    ``span`` is how far positions reach beyond it. Raises ShapeError, DtypeError or DeviceError.
    """
    if not hasattr(value, "data_ptr"):
        try:
            number = operator.index(value)
        except TypeError:
            raise DtypeError(f"{name} is a {type(value).__name__}",
                             remedy="Pass an int or an int32 tensor [batch].") from None
        if isinstance(value, bool) or not -_INT32 <= number < _INT32 - span:
            raise ShapeError(f"{name}={value} is not a position", numbers=f"it must lie in "
                             f"[{-_INT32}, {_INT32 - span})", remedy="Positions are 32-bit.")
        return number, None
    if str(value.dtype) != "torch.int32":
        raise DtypeError(f"{name} has dtype {value.dtype}", remedy="Pass .to(torch.int32).")
    if tuple(value.shape) != (batch,):
        raise ShapeError(f"{name} has shape {tuple(value.shape)}, expected ({batch},)",
                         remedy="One number per batch entry, or an int for all.")
    if value.device != device:
        raise DeviceError(f"{name} is on {value.device}, q is on {device}",
                          remedy=f"Pass .to({str(device)!r}).")
    return 0, value.contiguous()


def check_lengths(lengths: int | Tensor, seqlen_k: int) -> None:
    """Raises ShapeError for visible lengths outside 0 ... seqlen_k. Tensors on a device are not
    looked at, since reading them would wait for it; kernels clamp instead."""
    if isinstance(lengths, int):
        low = high = lengths
    elif lengths.device.type == "cpu" and lengths.numel():
        low, high = int(lengths.min()), int(lengths.max())
    else:
        return
    if low < 0 or high > seqlen_k:
        raise ShapeError("seqlens_k does not fit k", numbers=f"lengths {low} ... {high}, "
                         f"seqlen_k {seqlen_k}", remedy="Lengths lie in 0 ... seqlen_k.")


def ordered_strides(like: Tensor, shape: tuple[int, int, int, int]) -> tuple[int, ...]:
    """Dense strides for ``shape`` whose dimensions nest as those of ``like`` do, the last one
    innermost. Expanded dimensions have no place in that order, and give the standard one."""
    given = like.stride()
    order = [0, 1, 2] if 0 in given[:3] else sorted((0, 1, 2), key=lambda axis: -given[axis])
    strides, step = [0, 0, 0, 1], shape[3]
    for axis in reversed(order):
        strides[axis] = step
        step *= max(1, shape[axis])
    return tuple(strides)


def padded_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Dense strides for ``shape`` with the last dimension padded to 16 bytes."""
    row = max(1, _ALIGNMENT // itemsize)
    strides, step = [1], -(-max(1, shape[-1]) // row) * row
    for size in reversed(shape[:-1]):
        strides.append(step)
        step *= max(1, size)
    return tuple(reversed(strides))


def span_bytes(tensor: Tensor) -> int:
    """Bytes from the first element's start to the last one's end."""
    if not tensor.numel():
        return 0
    reach = sum((size - 1) * stride
                for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (reach + 1) * tensor.element_size()


# -- the errors in full, off the path of good calls -----------------------------------------------


def _no_tensor(*given: Any) -> DtypeError | None:
    for name, value in zip(_LAYOUT, given, strict=True):
        if not hasattr(value, "data_ptr"):
            return DtypeError(f"{name} is a {type(value).__name__}, expected a torch.Tensor",
                              remedy="torch.as_tensor() takes arrays and lists.")
    return None


def _not_four(*given: Any) -> ShapeError | DtypeError:
    if error := _no_tensor(*given):
        return error
    for (name, layout), tensor in zip(_LAYOUT.items(), given, strict=True):
        if tensor.is_nested:
            return ShapeError(f"{name} is a nested tensor, expected a dense one {layout}",
                              remedy="Make all three with layout=torch.jagged, or pass "
                                     ".to_padded_tensor(0.0) and seqlens_k.")
        if tensor.dim() != 4:
            return ShapeError(f"{name} has {tensor.dim()} dimensions, expected 4 {layout}",
                              numbers=f"shape {tuple(tensor.shape)}",
                              remedy="unsqueeze() what is missing; a batch of one is a dimension.")
    raise AssertionError("three tensors of four dimensions each")


def _wrong_heads(q: Tensor, k: Tensor, v: Tensor, fixed: Heads) -> HeadsError:
    for name, tensor, expected, word in (("q", q, fixed.heads, "heads"),
                                         ("k", k, fixed.groups, "groups"),
                                         ("v", v, fixed.groups, "groups")):
        if tensor.shape[1] != expected:
            remedy = f"Expected {_LAYOUT[name]} with {word}={expected}."
            if tensor.shape[2] == expected:
                remedy += f" {name} looks like [batch, seqlen, {word}, ...]: pass " \
                          f"{name}.transpose(1, 2), which copies nothing."
            return HeadsError(f"{name} has {tensor.shape[1]} heads, the spec has {word}="
                              f"{expected}", numbers=f"shape {tuple(tensor.shape)}", remedy=remedy)
    raise AssertionError("all head counts fit")


def _wrong_dim(q: Tensor, k: Tensor, v: Tensor, fixed: Heads) -> ShapeError:
    for name, tensor, expected, word in (("q", q, fixed.head_dim, "head_dim"),
                                         ("k", k, fixed.head_dim, "head_dim"),
                                         ("v", v, fixed.head_dim_v, "head_dim_v")):
        if tensor.shape[3] != expected:
            return ShapeError(f"{name} has {word} {tensor.shape[3]}, the spec has {expected}",
                              numbers=f"shape {tuple(tensor.shape)}",
                              remedy=f"Expected {_LAYOUT[name]}.")
    raise AssertionError("all head sizes fit")
