"""Attention in parts: the results over separate sets of keys are the result over all of them.

    lse = log(Σ_n exp(lse_n)),     o = Σ_n exp(lse_n − lse)·o_n

Cascades over shared prefixes (Juravsky et al. 2024, "Hydragen"; Ye et al. 2024), rings of devices
(Liu et al. 2023) and keys split over blocks (Dao et al. 2023) are made of this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import DtypeError, ShapeError

if TYPE_CHECKING:
    from torch import Tensor


def merge(o: Tensor, lse: Tensor, *more: Tensor) -> tuple[Tensor, Tensor]:
    """(o, lse) of attention over all keys, from those over parts of them: o₁, lse₁, o₂, lse₂, …

    Every key must be in one part alone, and a sink too: as ``sinks=`` of one of the calls. o
    [..., seqlen_q, head_dim_v] in any floating dtype, lse [..., seqlen_q] as a call returns it,
    -inf where a part sees nothing; where none sees anything o is 0 and lse -inf. Sums are in the
    type of lse and in the order given. Gradients flow through o and lse of every part.

    Raises ShapeError for parts that do not fit each other, DtypeError for an lse that is not a
    float of at least 32 bits.
    """
    import torch

    if len(more) % 2:
        raise ShapeError(f"merge was given {2 + len(more)} tensors",
                         remedy="Pass an lse after each o: merge(o1, lse1, o2, lse2).")
    outputs, logs = (o, *more[::2]), (lse, *more[1::2])
    for n, (x, log) in enumerate(zip(outputs, logs, strict=True), 1):
        if x.shape != o.shape or log.shape != o.shape[:-1]:
            raise ShapeError(f"part {n} has o {tuple(x.shape)} and lse {tuple(log.shape)}",
                             numbers=f"expected {tuple(o.shape)} and {tuple(o.shape[:-1])}",
                             remedy="Parts are of the same queries.")
        if log.dtype not in (torch.float32, torch.float64) or log.dtype != lse.dtype:
            raise DtypeError(f"part {n} has lse of {log.dtype}, expected "
                             f"{'float32 or float64' if log is lse else lse.dtype}",
                             remedy="Pass lse as return_lse=True gave it.")
    top = torch.stack(logs).detach().amax(0)
    blind = top == -torch.inf
    shift = top.masked_fill(blind, 0.0)
    weights = [torch.exp(log - shift) for log in logs]
    total = weights[0]
    for weight in weights[1:]:
        total = total + weight
    total = total.masked_fill(blind, 1.0)
    joined = weights[0].unsqueeze(-1) * outputs[0]
    for weight, x in zip(weights[1:], outputs[1:], strict=True):
        joined = joined + weight.unsqueeze(-1) * x
    whole = (shift + torch.log(total)).masked_fill(blind, -torch.inf)
    return (joined / total.unsqueeze(-1)).to(o.dtype), whole
