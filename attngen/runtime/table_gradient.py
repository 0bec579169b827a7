"""Gradients of captured tensors: from one number per row, column or pair to the elements read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..errors import ShapeError
from .variant import Problem

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class TableGradient(NamedTuple):
    """One read of the captured tensor ``table``, whose gradient the kernels leave in ``name`` with
    ``axes``. ``at`` says what each dimension is read at: the batch entry ("b"), the head ("h"),
    the position of the query ("i") or of the key ("j"), a number, or one for each head; None
    where it is computed otherwise. Then ``<name>_at`` has the elements' numbers, -1 outside of the
    table; they are different along the axes ``moves``."""

    name: str
    table: str
    axes: tuple[str, ...]
    at: tuple[str | int | tuple[int, ...], ...] | None
    moves: tuple[str, ...] = ()


_MOST_COMPUTED = 1 << 24  # elements a float32 can count


def sizes_of(gradients: Iterable[TableGradient], problem: Problem) -> dict[str, int]:
    """The lengths of tables that are read at computed indices, as kernels take them. Raises
    ShapeError for one too large."""
    for g in gradients:
        count = problem.tables[g.table].numel()
        if g.at is None and count > _MOST_COMPUTED:
            raise ShapeError(
                f"{g.table} learns at computed indices and has {count} elements",
                numbers=f"at most {_MOST_COMPUTED}", remedy="detach() it, or index it by b, h, "
                "q_idx, kv_idx and numbers.")
    return {f"{g.name}_size_{n}": size for g in gradients if g.at is None
            for n, size in enumerate(problem.tables[g.table].shape)}


def scattered(gradient: TableGradient, out: Tensor, found: Tensor, at: Tensor,
              problem: Problem) -> None:
    """Add what kernels found, with the axes of ``gradient``, to the gradients of the table,
    ``out``, at the elements numbered ``at``."""
    if not (found.numel() and out.numel()):
        return
    moves = {*gradient.moves}
    if any(not isinstance(x, int) for x in problem.where[:2]):
        moves.add("b")
    same = tuple(n for n, a in enumerate(gradient.axes) if a not in moves)
    found = fixed_sum(found, same)
    for n in reversed(same):
        at = at.select(n, 0)
    at = at.reshape(-1).long()
    _add_at(out.view(-1), at.clamp(min=0), found.reshape(-1).masked_fill(at < 0, 0.0))


def accumulated(gradient: TableGradient, found: Tensor, problem: Problem) -> Tensor:
    """The gradient of the whole table, read at axes and numbers. What was read outside of it was 0,
    and gets nothing."""
    import torch

    assert gradient.at is not None
    table = problem.tables[gradient.table]
    out = table.new_zeros(table.shape, dtype=found.dtype)
    used = {"h" if isinstance(x, tuple) else x for x in gradient.at if not isinstance(x, int)}
    where = {a: _positions(a, n, problem, found.device)
             for a, n in zip(gradient.axes, found.shape, strict=True)}
    moving = {"b"} if any(where[x].dim() > 1 for x in used & {"i", "j"}) else set()
    along = {a: a for a in gradient.axes}
    if problem.packing is not None and "b" in used:  # rows tell their sequences
        (rows,) = {"i", "j"} & set(gradient.axes)
        where["b"] = _sequences(rows, where[rows], problem)
        along["b"], moving = rows, {rows}
    kept = [a for a in gradient.axes if a in used | moving]
    found = fixed_sum(found, tuple(n for n, a in enumerate(gradient.axes) if a not in kept))
    if not found.numel():
        return out
    indices, inside = [], torch.ones((), dtype=torch.bool, device=found.device)
    for size, x in zip(table.shape, gradient.at, strict=True):
        at = torch.tensor(x) if isinstance(x, int) else _along(
            torch.tensor(x), "h", kept) if isinstance(x, tuple) else _along(
            where[x], along[x], kept)
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


def _positions(axis: str, count: int, problem: Problem, device: torch.device) -> Tensor:
    """Where each entry along an axis is, [count], or [batch, count] if that differs. Packed rows
    that no sequence has, whose gradients are 0, may be anywhere."""
    import torch

    offset = {"i": problem.where.q_offset, "j": problem.where.kv_offset}.get(axis, 0)
    at = torch.arange(count, device=device)
    if problem.packing is not None and axis in "ij":
        sequences = problem.packing.q if axis == "i" else problem.packing.k
        number = _sequences(axis, at, problem)
        at = at - sequences.begin[number]
        return at + (offset if isinstance(offset, int) else offset[number])
    return at + offset if isinstance(offset, int) else offset[:, None] + at


def _sequences(axis: str, rows: Tensor, problem: Problem) -> Tensor:
    """The sequence of each packed row."""
    import torch

    assert problem.packing is not None
    begin = (problem.packing.q if axis == "i" else problem.packing.k).begin
    rows = torch.arange(rows.shape[0], device=begin.device, dtype=begin.dtype)
    return (torch.searchsorted(begin, rows, right=True) - 1).clamp(min=0)


def _add_at(out: Tensor, at: Tensor, values: Tensor) -> None:
    """out[at] += values, the same bits every time: on the cpu in float64, one after another."""
    if out.device.type == "cpu":
        out.numpy()[...] += np.bincount(at.numpy(), values.numpy(), out.numel())
    else:
        add_exactly(out, at, values)


def add_exactly(out: Tensor, at: Tensor, values: Tensor) -> None:
    """out[at] += values, in whatever order threads come: as multiples of a power of two, whose sums
    in int64 are exact. Of the largest value that keeps at least 62 - log2(count) bits."""
    import torch

    top = values.abs().amax().double()
    bits = 62 - values.numel().bit_length() - torch.frexp(top).exponent
    scale = torch.exp2(bits.double())
    whole = (values.double() * scale).round().long()
    sums = torch.zeros(out.shape, dtype=torch.int64, device=out.device).scatter_add_(0, at, whole)
    out += (sums / scale + (top - top)).to(out.dtype)  # NaN and infinities stay seen


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
