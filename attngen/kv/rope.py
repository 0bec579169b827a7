"""Rotary position embeddings for queries, and the tables that ``append`` takes for keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ShapeError

if TYPE_CHECKING:
    from torch import Tensor


class Rope(NamedTuple):
    """``cos`` and ``sin``, float32 [positions, rotary_dim / 2]. ``interleaved`` pairs neighbouring
    columns, the default columns rotary_dim / 2 apart."""

    cos: Tensor
    sin: Tensor
    interleaved: bool = False

    @property
    def rotary_dim(self) -> int:
        """How many columns are turned, from the first on."""
        return 2 * int(self.cos.shape[1])

    def rotate(self, x: Tensor, positions: Any) -> Tensor:
        """x [batch, heads, n, head_dim] turned by ``positions``, [n] or [batch, n], in torch; what
        queries need. Raises ShapeError."""
        import torch

        n = self.rotary_dim
        if n > x.shape[-1]:
            raise ShapeError(f"rotary_dim {n} for {x.shape[-1]} columns")
        at = torch.as_tensor(positions, device=x.device)
        at = at if at.dim() == 2 else at[None]
        cos, sin = (t[at][:, None] for t in (self.cos, self.sin))
        turned, rest = x[..., :n].float(), x[..., n:]
        if self.interleaved:
            a, b = turned[..., 0::2], turned[..., 1::2]
            turned = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
        else:
            a, b = turned[..., :n // 2], turned[..., n // 2:]
            turned = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
        return torch.cat((turned.to(x.dtype), rest), -1)


def rope(positions: int, rotary_dim: int, *, base: float = 10000.0, interleaved: bool = False,
         device: Any = None) -> Rope:
    """Tables for positions 0 … ``positions`` − 1: angles position · base^(−2f / rotary_dim).

    Raises ShapeError for an odd ``rotary_dim``.
    """
    import torch

    if rotary_dim < 2 or rotary_dim % 2 or positions < 1:
        raise ShapeError(f"tables of {positions} positions for rotary_dim {rotary_dim}",
                         remedy="Columns are turned in pairs.")
    frequency = base ** (-torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim)
    angle = torch.arange(positions, dtype=torch.float64)[:, None] * frequency
    return Rope(angle.cos().float().to(device), angle.sin().float().to(device), interleaved)
