"""Packed sequences: where each one begins in q, k and v, and how long it is.

``cu_seqlens`` holds the n + 1 boundaries of n sequences that lie end to end. Kernels read
beginnings and lengths on the device, so a call waits for nothing as long as the longest length is
given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..errors import DeviceError, DtypeError, ShapeError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Sequences(NamedTuple):
    """Sequences along one axis: int32 tensors [n], and the length of the longest."""

    begin: Tensor
    length: Tensor
    longest: int


class Packing(NamedTuple):
    """The sequences of queries and of keys, which belong together one by one. ``aligned``: each is
    as long as its partner."""

    q: Sequences
    k: Sequences
    aligned: bool

    @property
    def batch(self) -> int:
        """How many sequences there are."""
        return int(self.q.begin.shape[0])

    def numbers(self) -> dict[str, int]:
        """The addresses kernels find them at."""
        return {f"{name}_ptr": t.data_ptr() for name, t in (
            ("q_begin", self.q.begin), ("seqlen_q", self.q.length),
            ("k_begin", self.k.begin), ("seqlen_k", self.k.length))} | {"q_begin": 0, "k_begin": 0}

    def shift(self) -> int | Tensor:
        """How many keys each sequence has more than queries."""
        return 0 if self.aligned else self.k.length - self.q.length


def packing(q: Tensor, k: Tensor, cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None,
            max_seqlen_q: int | None, max_seqlen_k: int | None) -> Packing:
    """The packing of q [1, heads, total_q, ·] and k [1, groups, total_k, ·]. Keys are packed as
    queries are unless ``cu_seqlens_k`` is given.

    On the cpu boundaries are checked; those on a device are not looked at, but for the longest
    length if it is left out. Raises ShapeError, DtypeError or DeviceError.
    """
    if cu_seqlens_q is None:
        given = {"cu_seqlens_k": cu_seqlens_k, "max_seqlen_q": max_seqlen_q,
                 "max_seqlen_k": max_seqlen_k}
        names = " and ".join(name for name, value in given.items() if value is not None)
        raise ShapeError(f"{names} without cu_seqlens_q",
                         remedy="Packed queries need cu_seqlens_q, int32 [n + 1].")
    if q.shape[0] != 1:
        raise ShapeError(f"packed q has batch {q.shape[0]}, expected 1",
                         numbers=f"shape {tuple(q.shape)}",
                         remedy="Sequences lie end to end in q [1, heads, total_q, head_dim].")
    aligned = cu_seqlens_k is None or cu_seqlens_k is cu_seqlens_q
    queries = _sequences("q", cu_seqlens_q, max_seqlen_q, q.shape[2], q.device)
    keys = _sequences("k", cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k,
                      max_seqlen_q if aligned and max_seqlen_k is None else max_seqlen_k,
                      k.shape[2], q.device)
    if keys.begin.shape != queries.begin.shape:
        raise ShapeError("cu_seqlens_q and cu_seqlens_k differ in length",
                         numbers=f"{len(queries.begin)} and {len(keys.begin)} sequences",
                         remedy="Sequence n of the queries attends to sequence n of the keys.")
    return Packing(queries, keys, aligned)


def _sequences(of: str, cu: Tensor, longest: int | None, total: int,
               device: torch.device) -> Sequences:
    name = f"cu_seqlens_{of}"
    if not hasattr(cu, "data_ptr") or str(cu.dtype) != "torch.int32":
        raise DtypeError(f"{name} is {getattr(cu, 'dtype', type(cu).__name__)}",
                         remedy="Pass an int32 tensor [n + 1].")
    if cu.dim() != 1 or not cu.shape[0]:
        raise ShapeError(f"{name} has shape {tuple(cu.shape)}, expected (n + 1,)",
                         remedy="The boundaries of n sequences: 0, ..., the length of the tensor.")
    if cu.device != device:
        raise DeviceError(f"{name} is on {cu.device}, q is on {device}",
                          remedy=f"Pass .to({str(device)!r}).")
    cu = cu.contiguous()
    lengths = cu[1:] - cu[:-1]
    if device.type == "cpu":
        _check(name, cu, lengths, total)
    known = _longest(lengths) if longest is None or device.type == "cpu" else longest
    if longest is not None and not known <= longest:
        raise ShapeError(f"max_seqlen_{of}={longest} is too short",
                         numbers=f"the longest sequence of {name} has {known}",
                         remedy="Pass the longest length or more, or leave it out.")
    return Sequences(cu[:-1], lengths, known if longest is None else longest)


def _longest(lengths: Tensor) -> int:
    return int(lengths.max()) if lengths.shape[0] else 0


def _check(name: str, cu: Tensor, lengths: Tensor, total: int) -> None:
    """Raises ShapeError unless the boundaries go from 0 up to ``total``."""
    if int(cu[0]) != 0 or int(cu[-1]) != total:
        raise ShapeError(f"{name} goes from {int(cu[0])} to {int(cu[-1])}, expected 0 to {total}",
                         remedy="Its last element is the packed length of the tensor.")
    if lengths.shape[0] and int(lengths.min()) < 0:
        at = int(lengths.argmin())
        raise ShapeError(f"{name} decreases", numbers=f"element {at} is {int(cu[at])}, the next "
                         f"is {int(cu[at + 1])}", remedy="Boundaries ascend; equal ones are an "
                         "empty sequence.")
