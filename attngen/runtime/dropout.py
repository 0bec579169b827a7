"""Dropout of one call: its probability and the seed that all kernels of the call share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import DeviceError, DropoutError, DtypeError, ShapeError

if TYPE_CHECKING:
    from torch import Tensor


class Dropout(NamedTuple):
    """``seed`` is int64 [1] on the device of the call: a captured CUDA graph reads it anew."""

    p: float
    seed: Tensor

    def numbers(self) -> dict[str, int | float]:
        """As kernels take them. With p = 1 nothing is kept and nothing scaled."""
        scale = 0.0 if self.p == 1 else 1 / (1 - self.p)
        return {"dropout_p": self.p, "dropout_scale": scale}


def drawn(p: float, seed: int | Tensor | None, like: Tensor) -> Dropout | None:
    """The dropout a call asks for, None for p = 0. Without ``seed`` one is drawn from torch's
    default generator of the device of ``like``, which a CUDA graph advances at every replay.

    Raises DropoutError for p outside of 0 ... 1 or a seed no int64 holds; DtypeError, ShapeError
    and DeviceError for a seed tensor other than one int64.
    """
    if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p <= 1:
        raise DropoutError(f"dropout_p is {p!r}", remedy="It is a probability, 0 to 1.")
    if p == 0:
        return None
    import torch

    how: dict[str, Any] = {"dtype": torch.int64, "device": like.device}
    if seed is None:
        return Dropout(float(p), torch.randint(2**62, (1,), **how))
    if isinstance(seed, torch.Tensor):
        return Dropout(float(p), _checked(seed, like))
    if isinstance(seed, bool) or not isinstance(seed, int) or not -2**63 <= seed < 2**64:
        raise DropoutError(f"seed is {seed!r}", remedy="Give an int of at most 64 bits, or an "
                           "int64 tensor of one element.")
    return Dropout(float(p), torch.full((1,), seed if seed < 2**63 else seed - 2**64, **how))


def _checked(seed: Tensor, like: Tensor) -> Tensor:
    import torch

    if seed.dtype != torch.int64:
        raise DtypeError(f"seed is {seed.dtype}", remedy="Convert it with .to(torch.int64).")
    if seed.numel() != 1:
        raise ShapeError(f"seed has shape {tuple(seed.shape)}", remedy="One element is a seed.")
    if seed.device != like.device:
        raise DeviceError(f"seed is on {seed.device}, q is on {like.device}",
                          remedy=f"Move it with .to({str(like.device)!r}).")
    return seed.reshape(1)
