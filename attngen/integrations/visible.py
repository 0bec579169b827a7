"""What a Transformers model may attend to, in attngen's terms.

``Visible`` is what our mask function hands to a model and the model hands back to our attention
function: fields of an AttentionSpec, and where queries and keys sit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from .. import masks
from ..errors import NotDeliveredError, ShapeError
from .recorded import Tree, record, recorded

Q, K = "q_idx", "kv_idx"
# Hides the keys at negative positions, where left padding is put.
_FROM_ZERO = ~masks.attention_sinks(0)


class Visible(BlockMask):
    """A mask that is never a tensor.

    fields     causal, window and mask of the spec
    q_offset   position of the first query, an int or int32 [batch]
    kv_offset  position of the first key, an int or int32 [batch]
    seqlens_k  keys that are there, int32 [batch], or None for all

    Models pass masks through untouched but for a few checks. Those ask for a BlockMask, with four
    sizes, so that masks made ahead of a compiled step are not made again; BlockMask's own state is
    not there.
    """

    def __init__(self, sizes: tuple[int, int, int], fields: dict[str, Any],
                 q_offset: int | Tensor, kv_offset: int | Tensor,
                 seqlens_k: Tensor | None) -> None:
        self.sizes = sizes  # batch, q_length, kv_length
        self.fields = fields
        self.q_offset = q_offset
        self.kv_offset = kv_offset
        self.seqlens_k = seqlens_k

    @property
    def shape(self) -> tuple[int, ...]:
        batch, q_length, kv_length = self.sizes
        return batch, 1, q_length, kv_length

    @property
    def ndim(self) -> int:
        return 4

    def contiguous(self) -> Visible:
        """Itself, for models that ask."""
        return self

    def to(self, *args: Any, **kwargs: Any) -> Visible:
        """On another device."""
        def moved(x: Any) -> Any:
            return x.to(*args, **kwargs) if isinstance(x, Tensor) else x
        return Visible(self.sizes, self.fields, moved(self.q_offset), moved(self.kv_offset),
                       moved(self.seqlens_k))

    def __getitem__(self, index: Any) -> Visible:
        raise NotDeliveredError("this model slices its attention mask, and attngen's is no tensor",
                                remedy='Use attn_implementation="sdpa" for this model.')

    def __repr__(self) -> str:
        return f"Visible(shape={self.shape}, {self.fields})"

    __str__ = __repr__

    def call_arguments(self, query: Tensor, key: Tensor) -> dict[str, Any]:
        """What to add to an attention call on these tensors. Raises ShapeError when the mask was
        made for others."""
        batch, q_length, kv_length = self.sizes
        if query.shape[2] != q_length or key.shape[2] > kv_length:
            raise ShapeError("the attention mask does not fit the queries and keys",
                             where="transformers attention", numbers=f"mask {self.shape}, q "
                             f"{tuple(query.shape)}, k {tuple(key.shape)}",
                             remedy="This model needs a mask attngen does not know how to make: "
                                    'use attn_implementation="sdpa".')
        lengths = self.seqlens_k
        if lengths is not None and key.shape[2] < kv_length:
            lengths = lengths.clamp(max=key.shape[2])
        return {**self.fields, "q_offset": self.q_offset, "kv_offset": self.kv_offset,
                "seqlens_k": lengths}


def visible(mask_function: Callable[..., Any], padding: Tensor | None, batch: int, q_length: int,
            kv_length: int, q_offset: int | Tensor, kv_offset: int) -> Visible:
    """A model's mask: its function on positions, and its 2-D padding mask [batch, positions].

    Padding may be at either end of each sequence. Raises NotDeliveredError for padding in the
    middle and masks that read tensors.
    """
    fields, shiftable = spec_fields(record(mask_function))
    start, end = _run_of_keys(padding, kv_length, kv_offset)
    if start is not None:
        if not shiftable:
            raise NotDeliveredError(
                "left padding together with a mask that depends on more than the distance of query "
                "and key is not available in this version of attngen",
                remedy='Pad on the right, or use attn_implementation="sdpa" for this input.')
        # Positions count from each sequence's own first token, so padding sits below zero.
        fields = {**fields, "mask": _FROM_ZERO if fields.get("mask") is None
                  else fields["mask"] & _FROM_ZERO}
        q_start = q_offset if isinstance(q_offset, int) else q_offset.to(start.device)
        q_place: int | Tensor = (q_start - kv_offset - start).to(torch.int32)
        kv_place: int | Tensor = -start
    else:
        kv_place = kv_offset
        q_place = q_offset if isinstance(q_offset, int) else _per_batch(q_offset, batch)
    return Visible((batch, q_length, kv_length), fields, q_place, kv_place, end)


def _per_batch(position: Tensor, batch: int) -> int | Tensor:
    """A cache's own counter, as it is now: it moves on before the mask is used."""
    if position.device.type == "cpu":
        return int(position)
    return position.reshape(1).expand(batch).to(torch.int32, copy=True)


def _run_of_keys(padding: Tensor | None, kv_length: int,
                 kv_offset: int) -> tuple[Tensor | None, Tensor | None]:
    """Index of each sequence's first key, and one past its last, int32 [batch]; None where no
    sequence is shortened at that end. Raises NotDeliveredError for gaps."""
    if padding is None:
        return None, None
    there = padding[:, kv_offset:kv_offset + kv_length].to(torch.int32)
    missing = kv_length - there.shape[1]
    if missing > 0:  # a static cache reserves keys beyond the mask
        there = torch.nn.functional.pad(there, (0, missing))
    count = there.sum(1, dtype=torch.int32)
    if bool((count == kv_length).all()):
        return None, None
    start = torch.where(count > 0, there.argmax(1), 0).to(torch.int32)
    end = start + count
    index = torch.arange(kv_length, device=there.device)
    run = (index >= start[:, None]) & (index < end[:, None])
    if not bool((run == there.bool()).all()):
        raise NotDeliveredError(
            "the attention mask hides tokens between visible ones, and masks that read tensors are "
            "not available in this version of attngen", where="attention_mask",
            numbers=f"row {int((run != there.bool()).any(1).nonzero()[0])} has gaps",
            remedy='Pad at the ends only, or use attn_implementation="sdpa" for this input.')
    return (start if bool((start > 0).any()) else None,
            end if bool((end < kv_length).any()) else None)


# -- from trees to fields of the spec -------------------------------------------------------------


def spec_fields(tree: Tree) -> tuple[dict[str, Any], bool]:
    """The fields of an AttentionSpec for a recorded mask function, and whether the mask depends on
    the distance of query and key alone. Positions are not negative."""
    causal, left, sides = False, None, None
    rest: list[masks.Mask] = []
    for part in _conjuncts(tree):
        match part:
            case True | ("ge", "q_idx" | "kv_idx", 0):
                pass
            case ("le", "kv_idx", "q_idx") | ("ge", "q_idx", "kv_idx"):
                causal = True
            case ("gt", "kv_idx", ("sub", "q_idx", int(width))) if width >= 1:
                left = width - 1 if left is None else min(left, width - 1)
            case ("le", ("abs", ("sub", "q_idx", "kv_idx")), int(width)) if width >= 0:
                sides = width if sides is None else min(sides, width)
            case ("eq", ("floor_divide", "kv_idx", int(size)),
                  ("floor_divide", "q_idx", int(other))) if size == other >= 1:
                rest.append(masks.chunked(size))
            case _:
                rest.append(recorded(part))
    if left is not None and not causal:
        rest.append(recorded(("gt", K, ("sub", Q, left + 1))))
        left = None
    fields: dict[str, Any] = {"causal": causal}
    shiftable = not rest
    if left is not None or sides is not None:
        reach = min(x for x in (left, sides) if x is not None)
        fields["window"] = (reach, 0) if causal else (reach, reach)
    for mask in rest:
        fields["mask"] = mask if "mask" not in fields else fields["mask"] & mask
    return fields, shiftable


def _conjuncts(tree: Tree) -> Iterator[Tree]:
    if isinstance(tree, tuple) and tree[0] == "bitwise_and":
        for part in tree[1:]:
            yield from _conjuncts(part)
    else:
        yield tree
