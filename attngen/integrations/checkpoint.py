"""Checkpoints with fewer key/value heads: the heads that a group of query heads will share become
their mean, as in "GQA: Training Generalized Multi-Query Transformer Models" (Ainslie et al. 2023,
section 2.1).

    state = to_grouped(model.state_dict(), heads=32, groups=8)
    smaller.load_state_dict(state)  # the same model, configured with 8 key/value heads

Where the heads of a group were equal, the converted model computes the same; elsewhere it needs
some training first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DtypeError, GroupsError, ShapeError, UnknownNameError
from ..spec import DTYPES, AttentionSpec

Groups = int | tuple[int, ...]


def pool_heads(weight: Tensor, heads: int, groups: Groups, *, kv_heads: Groups | None = None,
               dim: int = 0) -> Tensor:
    """A key or value projection for fewer heads.

    weight    [kv_heads·head_dim, ...], the weight or bias of a torch Linear: a row for each output
              feature, head by head
    heads     query heads
    groups    key/value heads wanted, as ``AttentionSpec.groups``: an int that divides heads, or a
              tuple of length heads that gives the key/value head of each query head
    kv_heads  those the weight has, written in the same way; default one for each query head. The
              query heads that share one must go on to share one.
    dim       where the output features are; -1 for Transformers' Conv1D, whose weight is
              [inputs, outputs], and for its bias

    Returns [groups·head_dim, ...] of the same dtype, a new tensor without gradients. The mean is
    taken over the query heads of a group, each with the key/value head it reads now, in float32
    (float64 for float64). So two conversions, one after the other, are the same as one.

    Raises ShapeError when the rows are no whole number of heads or there is no dimension ``dim``,
    DtypeError for quantised weights, GroupsError for groups that do not fit heads or that part
    query heads which share a key/value head, SpecError for what are no numbers of heads.
    """
    return _pooling(heads, groups, kv_heads).pool(weight, dim, "weight")


def to_grouped(state_dict: Mapping[str, Tensor], heads: int, groups: Groups, *,
               names: Sequence[str] = ("k_proj", "v_proj"), fused: bool = False,
               kv_heads: Groups | None = None, dim: int = 0) -> dict[str, Tensor]:
    """A state dict for fewer key/value heads: what ``names`` say is pooled, all else is the very
    same tensors. ``state_dict`` stays as it is.

    A name is the end of a path: of a module, whose weight and bias are meant, or of a tensor. With
    ``fused`` each of those tensors holds q, k and v one after the other along ``dim``, all with the
    same head_dim: [(heads + 2·kv_heads)·head_dim, ...] becomes [(heads + 2·groups)·head_dim, ...],
    and q in it stays. heads, groups, kv_heads and dim are those of ``pool_heads``.

        to_grouped(llama, 32, 8)
        to_grouped(gpt2, 12, 4, names=["c_attn"], fused=True, dim=-1)
        to_grouped(nn_multihead_attention, 8, 2, names=["in_proj_weight", "in_proj_bias"],
                   fused=True)

    Raises UnknownNameError when a name is nowhere in the state dict, and what ``pool_heads`` does.
    """
    pooling = _pooling(heads, groups, kv_heads)
    convert = pooling.pool_fused if fused else pooling.pool
    converted, unused = dict(state_dict), set(names)
    for key, tensor in state_dict.items():
        path = f".{_path(key)}"
        meant = {name for name in names if path.endswith(f".{name}")}
        if meant:
            converted[key] = convert(tensor, dim, key)
            unused -= meant
    if unused:
        known = {_path(key).rpartition(".")[2] for key in state_dict}
        raise UnknownNameError("module or tensor", min(unused), known, where="names")
    return converted


def _path(key: str) -> str:
    """The module of a weight or bias; the key itself for other tensors."""
    return key.removesuffix(".weight").removesuffix(".bias")


@dataclass(frozen=True)
class _Pooling:
    """Which heads become one. ``members[g]``: what key/value head each query head of the new group
    g reads now."""

    heads: int
    kv_heads: int
    members: tuple[tuple[int, ...], ...]

    def pool(self, weight: Tensor, dim: int, where: str) -> Tensor:
        head_dim = _head_dim(weight, dim, self.kv_heads, f"{self.kv_heads} heads", where)
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        with torch.no_grad():
            each = weight.movedim(dim, 0).unflatten(0, (self.kv_heads, head_dim))
            pooled = torch.stack([each[list(m)].to(wide).mean(0) for m in self.members])
            return pooled.flatten(0, 1).to(weight.dtype).movedim(0, dim).contiguous()

    def pool_fused(self, weight: Tensor, dim: int, where: str) -> Tensor:
        count = self.heads + 2 * self.kv_heads
        head_dim = _head_dim(weight, dim, count, f"q, k and v: {self.heads} + 2 * {self.kv_heads} "
                             "heads", where)
        with torch.no_grad():
            q, k, v = weight.split([n * head_dim for n in (self.heads, self.kv_heads,
                                                           self.kv_heads)], dim)
            return torch.cat((q, self.pool(k, dim, where), self.pool(v, dim, where)), dim)


def _pooling(heads: int, groups: Groups, kv_heads: Groups | None) -> _Pooling:
    """Raises GroupsError and SpecError."""
    # A spec says what groups mean; the size of a head plays no part.
    before, after = (AttentionSpec(heads=heads, head_dim=8, groups=g) for g in (kv_heads, groups))
    members: list[list[int]] = [[] for _ in range(after.kv_heads)]
    first: dict[int, int] = {}  # by present key/value head: the first query head that reads it
    for h in range(before.heads):
        now, new = before.kv_head(h), after.kv_head(h)
        other = first.setdefault(now, h)
        if after.kv_head(other) != new:
            raise GroupsError(
                f"groups={groups} parts query heads that share a key/value head",
                where=f"kv_heads={kv_heads}",
                numbers=f"query heads {other} and {h} read head {now} now, and would read "
                        f"{after.kv_head(other)} and {new}",
                remedy="Pooling only merges heads: choose groups that keep them together.")
        members[new].append(now)
    return _Pooling(before.heads, before.kv_heads, tuple(map(tuple, members)))


def _head_dim(weight: Tensor, dim: int, count: int, what: str, where: str) -> int:
    """Rows of each of ``count`` heads. Raises DtypeError and ShapeError."""
    dtype = str(weight.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise DtypeError(f"{where} is {dtype}, and means have no place in it",
                         remedy=f"Convert it to one of {', '.join(DTYPES)} first.")
    if not -weight.dim() <= dim < weight.dim():
        raise ShapeError(f"{where} has no dimension {dim}", numbers=f"shape {tuple(weight.shape)}",
                         remedy="dim=0 is right for a Linear and dim=-1 for a Conv1D, weights and "
                                "biases alike.")
    rows = weight.shape[dim]
    if rows % count:
        raise ShapeError(f"{where} has {rows} output features, which are no whole heads",
                         where=f"dimension {dim} of {tuple(weight.shape)}",
                         numbers=f"{what}: {rows} = {rows // count} * {count} + {rows % count}",
                         remedy="Check heads, kv_heads, dim and fused.")
    return rows // count
