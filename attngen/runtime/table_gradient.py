"""Gradients of captured tensors: from one number per row, column or pair to the elements read."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .variant import Problem

if TYPE_CHECKING:
    from torch import Tensor


class TableGradient(NamedTuple):
    """One read of the captured tensor ``table``, whose gradient the kernels leave in ``name`` with
    ``axes``. ``at`` says what each dimension is read at: the batch entry ("b"), the head ("h"),
    the position of the query ("i") or of the key ("j"), or a number."""

    name: str
    table: str
    axes: tuple[str, ...]
    at: tuple[str | int, ...]


def accumulated(gradient: TableGradient, found: Tensor, problem: Problem) -> Tensor:
    """The gradient of the whole table. What was read outside of it was 0, and gets nothing."""
    import torch

    table = problem.tables[gradient.table]
    out = table.new_zeros(table.shape, dtype=found.dtype)
    used = {x for x in gradient.at if isinstance(x, str)}
    where = {a: _positions(a, n, problem) for a, n in zip(gradient.axes, found.shape, strict=True)}
    moving = {"b"} if any(where[x].dim() > 1 for x in used & {"i", "j"}) else set()
    kept = [a for a in gradient.axes if a in used | moving]
    found = fixed_sum(found, tuple(n for n, a in enumerate(gradient.axes) if a not in kept))
    if not found.numel():
        return out
    indices, inside = [], torch.ones((), dtype=torch.bool, device=found.device)
    for size, x in zip(table.shape, gradient.at, strict=True):
        at = torch.tensor(x) if isinstance(x, int) else _along(where[x], x, kept)
        at = at.to(found.device)
        inside = inside & (at >= 0) & (at < size)
        indices.append(at.clamp(0, max(size - 1, 0)))
    if not out.numel():
        return out
    values = torch.where(inside, found, torch.zeros((), dtype=found.dtype, device=found.device))
    shape = values.shape
    flat = torch.zeros((), dtype=torch.int64, device=found.device)
    for at, size in zip(indices, table.shape, strict=True):
        flat = flat * size + at
    _add_at(out.view(-1), flat.expand(shape).reshape(-1), values.reshape(-1))
    return out


def _positions(axis: str, count: int, problem: Problem) -> Tensor:
    """Where each entry along an axis is, [count], or [batch, count] if that differs."""
    import torch

    offset = {"i": problem.where.q_offset, "j": problem.where.kv_offset}.get(axis, 0)
    if isinstance(offset, int):
        return torch.arange(offset, offset + count)
    return offset[:, None] + torch.arange(count, device=offset.device)


def _add_at(out: Tensor, at: Tensor, values: Tensor) -> None:
    """out[at] += values, always in the same order: torch sorts on a GPU, and is not used on the
    cpu, where it adds as threads come."""
    if out.device.type == "cpu":
        np.add.at(out.numpy(), at.numpy(), values.numpy())
    else:
        out.index_put_((at,), values, accumulate=True)


def _along(where: Tensor, axis: str, kept: list[str]) -> Tensor:
    """Positions [n], or [batch, n], as they broadcast with the axes ``kept``."""
    shape = [1] * len(kept)
    own = kept.index(axis)
    if where.dim() > 1:
        shape[kept.index("b")] = where.shape[0]
    shape[own] = where.shape[-1]
    return where.reshape(shape)


def fixed_sum(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The sum along dimensions, in an order that does not depend on the number of threads."""
    if not dims:
        return x
    if x.device.type != "cpu":
        return x.sum(dims)
    import torch

    return torch.from_numpy(x.numpy().sum(axis=dims, keepdims=False)[...])
