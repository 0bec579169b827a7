"""Jagged nested tensors: packed sequences that know where they begin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ShapeError
from .packed import Packing, Sequences

if TYPE_CHECKING:
    from torch import Tensor


class Jagged(NamedTuple):
    """q, k and v as packed tensors [1, heads, total, ·], their packing, and the nested q, whose
    sequences the results have."""

    q: Tensor
    k: Tensor
    v: Tensor
    packing: Packing
    like: Any  # torch's type of it has offsets() and lengths(), which Tensor has not

    def nested(self, result: Tensor) -> Tensor:
        """A result [1, heads, total_q, ...] with the sequences of q."""
        import torch

        return torch.nested.nested_tensor_from_jagged(
            result[0], offsets=self.like.offsets(), lengths=self.like.lengths(), jagged_dim=2,
            max_seqlen=self.packing.q.longest)


def unpacked(q: Tensor, k: Tensor, v: Tensor) -> Jagged:
    """What lies in nested q, k and v [batch, heads, ragged, ·] of layout torch.jagged.

    Raises ShapeError for other nested tensors, and for keys and values of different sequences.
    """
    for name, t in (("q", q), ("k", k), ("v", v)):
        _check(name, t)
    queries = _sequences(q)
    aligned = _same(q, k)
    keys = queries if aligned else _sequences(k)
    if not _same(k, v):
        raise ShapeError("k and v are jagged in different ways",
                         numbers=f"shapes {_shape(k)} and {_shape(v)}",
                         remedy="Make both with the same offsets tensor: torch.nested."
                                "nested_tensor_from_jagged(..., offsets=offsets).")
    if len(queries.begin) != len(keys.begin):
        raise ShapeError("q and k differ in batch",
                         numbers=f"{len(queries.begin)} and {len(keys.begin)} sequences",
                         remedy="Sequence n of the queries attends to sequence n of the keys.")
    return Jagged(q.values()[None], k.values()[None], v.values()[None],
                  Packing(queries, keys, aligned), q)


def _check(name: str, t: Any) -> None:
    import torch

    if not (getattr(t, "is_nested", False) and t.layout == torch.jagged):
        raise ShapeError(f"{name} is no jagged tensor, others of q, k and v are",
                         remedy="Pass all of them with layout=torch.jagged, or none.")
    ragged = [n for n, size in enumerate(t.shape) if isinstance(size, torch.SymInt)]
    if t.dim() != 4 or ragged != [2]:
        raise ShapeError(f"{name} has shape {_shape(t)}, expected [batch, heads, ragged, head_dim]",
                         remedy=f"Heads come before the jagged dimension: {name}.transpose(1, 2) "
                                "copies nothing.")


def _same(a: Any, b: Any) -> bool:
    """Whether two tensors have their sequences at the same places. Told by torch; on the cpu the
    numbers are looked at too."""
    import torch

    if a.shape[2] == b.shape[2]:
        return True
    (at, lengths_a), (bt, lengths_b) = ((t.offsets(), t.lengths()) for t in (a, b))
    return (at.device.type == bt.device.type == "cpu" and torch.equal(at, bt)
            and (lengths_a is None) == (lengths_b is None)
            and (lengths_a is None or torch.equal(lengths_a, lengths_b)))


def _sequences(t: Any) -> Sequences:
    import torch

    offsets, lengths = t.offsets(), t.lengths()
    if lengths is None:
        lengths = offsets[1:] - offsets[:-1]
    longest = t._get_max_seqlen()  # torch keeps it; nothing public tells
    return Sequences(offsets[:-1].to(torch.int32), lengths.to(torch.int32), int(longest))


def _shape(t: Any) -> str:
    return f"[{', '.join(map(str, t.shape))}]"
