"""Functions that masks and scores may use. Each works on whatever it is given: the expression being
traced, a torch tensor, or a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .patterns import is_tensor


def _function(name: str, on_number: Callable[[float], float]) -> Callable[[Any], Any]:
    def apply(x: Any) -> Any:
        method = getattr(x, name, None)
        return on_number(x) if method is None else method()
    apply.__name__ = apply.__qualname__ = name
    apply.__doc__ = f"``{name}(x)``, element by element."
    return apply


exp = _function("exp", math.exp)
exp2 = _function("exp2", lambda x: 2.0 ** x)
log = _function("log", math.log)
sigmoid = _function("sigmoid", lambda x: 1.0 / (1.0 + math.exp(-x)))
sqrt = _function("sqrt", math.sqrt)
tanh = _function("tanh", math.tanh)


def where(condition: Any, x: Any, y: Any) -> Any:
    """``x`` where the condition holds, else ``y``."""
    if isinstance(condition, bool):
        return x if condition else y
    import torch

    return torch.where(condition, x, y)


def minimum(x: Any, y: Any) -> Any:
    """The smaller of two."""
    return where(x < y, x, y)


def maximum(x: Any, y: Any) -> Any:
    """The larger of two."""
    return where(x < y, y, x)


def clamp(x: Any, low: Any, high: Any) -> Any:
    """``x`` within low ... high."""
    return minimum(maximum(x, low), high)


def take(table: Any, *indices: Any) -> Any:
    """The elements of a tensor at ``indices``, one for each of its dimensions; 0 (false) where an
    index is negative or beyond the dimension, as in kernels.

    Traced indices give the read itself, torch tensors and numbers its value, on their device.
    """
    import torch

    if not all(isinstance(i, int) or is_tensor(i) for i in indices):
        return table[indices[0] if len(indices) == 1 else indices]
    device = next((i.device for i in indices if is_tensor(i)), table.device)
    positions = torch.broadcast_tensors(*(torch.as_tensor(i, device=device) for i in indices))
    if table.numel() == 0:
        return torch.zeros(positions[0].shape, dtype=table.dtype, device=device)
    inside = torch.ones(positions[0].shape, dtype=torch.bool, device=device)
    for position, size in zip(positions, table.shape, strict=True):
        inside &= (position >= 0) & (position < size)
    found = table.to(device)[tuple(torch.where(inside, p, 0) for p in positions)]
    if found.is_floating_point():
        # As exact as index arithmetic is here, which yields torch's default dtype.
        found = found.to(torch.promote_types(found.dtype, torch.get_default_dtype()))
    return torch.where(inside, found, torch.zeros((), dtype=found.dtype, device=device))


def take_broadcast(table: Any, *indices: Any) -> Any:
    """``take`` of a tensor whose dimensions are the last of ``indices``; one of size 1 is the same
    at every index."""
    last = indices[len(indices) - table.ndim:]
    return take(table, *(0 if size == 1 else i for i, size in zip(last, table.shape, strict=True)))
