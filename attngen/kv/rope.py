"""Rotary position embeddings for queries, and the tables that ``append`` takes for keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import DeviceError, DtypeError, ShapeError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..runtime.variant import Cached


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

    @property
    def style(self) -> str:
        """As ``ir.rotary`` has it."""
        return "interleaved" if self.interleaved else "half"

    def of(self, cached: Cached) -> Cached:
        """That kind of cache, its keys turned by these."""
        return cached._replace(rope=self.style, rotary=self.rotary_dim)

    def tables(self) -> dict[str, Tensor]:
        """As kernels know them."""
        return {"rope_cos": self.cos, "rope_sin": self.sin}

    def check(self, columns: int, device: torch.device) -> None:
        """Raises ShapeError, DtypeError or DeviceError for keys of so many columns there."""
        for name, t in (("cos", self.cos), ("sin", self.sin)):
            if t.dim() != 2 or t.shape != self.cos.shape or self.rotary_dim > columns:
                raise ShapeError(f"{name} has shape {tuple(t.shape)}", numbers="expected "
                                 f"(positions, at most {columns // 2})",
                                 remedy="One angle for each position and pair of columns.")
            if str(t.dtype) != "torch.float32":
                raise DtypeError(f"{name} is {t.dtype}", remedy="Tables are float32.")
            if t.device != device:
                raise DeviceError(f"{name} is on {t.device}, the cache on {device}",
                                  remedy="Move it with .to().")

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
