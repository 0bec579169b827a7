"""Where queries and keys are, and how many keys can be seen, as one call says it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from . import operands

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Positions(NamedTuple):
    """Each a number, or int32 [batch]."""

    q_offset: int | Tensor
    kv_offset: int | Tensor
    kv_len: int | Tensor

    def numbers(self) -> dict[str, Any]:
        """As kernels take them: numbers, or the addresses of tensors."""
        out: dict[str, Any] = {}
        for name, value in self._asdict().items():
            if isinstance(value, int):
                out[name] = value
            else:
                out[name], out[f"{name}_ptr"] = 0, value.data_ptr()
        return out


def given(q_offset: int | Tensor | None, kv_offset: int | Tensor | None, seqlens_k: Tensor | None,
          batch: int, device: torch.device, seqlen_q: int, seqlen_k: int,
          shift: int | Tensor) -> Positions:
    """The positions a call names, checked. ``shift`` is q_offset - kv_offset by default.

    Raises ShapeError, DtypeError or DeviceError.
    """
    def checked(name: str, value: Any, span: int) -> int | Tensor:
        number, table = operands.per_batch(name, value, batch, device, span)
        return number if table is None else table

    kv = 0 if kv_offset is None else kv_offset
    keys = checked("kv_offset", kv, seqlen_k)
    queries = checked("q_offset", kv + shift if q_offset is None else q_offset, seqlen_q)
    if seqlens_k is None:
        return Positions(queries, keys, seqlen_k)
    length = checked("seqlens_k", seqlens_k, 0)
    operands.check_lengths(seqlens_k, seqlen_k)
    return Positions(queries, keys, length)
