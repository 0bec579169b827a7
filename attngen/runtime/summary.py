"""What kernels are told of captured tensors besides their elements, computed at every call."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK = 64
_FAR, _UNKNOWN = 1 << 40, 1 << 50


def per_64(table: Tensor) -> Tensor:
    """int64 [..., blocks, 2]: least and greatest of every 64 entries of the last dimension.

    A block with an entry beyond 2^40 counts as holding anything from -2^50 to 2^50, so that sums
    of bounds do not overflow. An empty table counts as one of a zero.
    """
    import torch

    values = table.to(torch.int64)
    if values.numel() == 0:
        values = values.new_zeros([max(n, 1) for n in values.shape])
    length = values.shape[-1]
    if length % _BLOCK:
        more = -length % _BLOCK
        values = torch.cat([values, values[..., -1:].expand(*values.shape[:-1], more)], -1)
    low, high = torch.aminmax(values.unflatten(-1, (-1, _BLOCK)), dim=-1)
    if table.dtype == torch.int64:
        far = (low < -_FAR) | (high > _FAR)
        low, high = low.masked_fill(far, -_UNKNOWN), high.masked_fill(far, _UNKNOWN)
    return torch.stack((low, high), -1)
