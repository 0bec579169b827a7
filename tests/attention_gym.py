"""The masks that meta-pytorch/attention-gym (7fdb85d) publishes, written anew.

Each entry is a callable in FlexAttention's form, with the constructs of the original that matter to
a tracer: captured tensors of every shape, rows compared and reduced, bit operations, clamps,
``noop_mask`` and the combinators of torch. Where the original only works one pair at a time
(``torch.dot``, a row indexed twice), ``wide`` is the same for index tensors that broadcast.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import and_masks, noop_mask, or_masks

Mod = Callable[..., Any]
BATCH, HEADS, N = 2, 2, 96


@dataclass(frozen=True)
class Published:
    """``mod`` as one writes it; ``wide`` for index tensors; the sizes it is meant for."""

    mod: Mod
    wide: Mod | None = None
    seqlen_q: int = N
    seqlen_k: int = N

    @property
    def oracle(self) -> Mod:
        return self.wide or self.mod


def choices(below: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(below + len(shape))
    return torch.randint(0, below, shape, generator=generator)


def causal(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx >= kv_idx


def lookback(width: int) -> Mod:
    return and_masks(lambda b, h, q, k: q - k <= width, causal)


def prefix(length: int) -> Mod:
    return or_masks(lambda b, h, q, k: k < length, causal)


def within_groups(inner: Mod, size: int) -> Mod:
    """Consecutive groups of ``size`` tokens, each with the inner mask."""
    def mask(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (q // size == k // size) & inner(b, h, q % size, k % size)
    return mask


# -- neighbourhoods on a canvas -------------------------------------------------------------------


def _near(place: Callable[[Any], tuple[Any, Any]], canvas: tuple[int, int],
          kernel: tuple[int, int]) -> Mod:
    """Keys in a window around the query; at the edges the window is moved inside."""
    def mask(b: Any, h: Any, q: Any, k: Any) -> Any:
        seen: Any = True
        for at_q, at_k, size, width in zip(place(q), place(k), canvas, kernel, strict=True):
            centre = at_q.clamp(width // 2, size - 1 - width // 2)
            seen = ((centre - at_k).abs() <= width // 2) & seen
        return seen
    return mask


def _row_major(width: int) -> Callable[[Any], tuple[Any, Any]]:
    return lambda n: (n // width, n % width)


def _in_tiles(width: int, tile: tuple[int, int]) -> Callable[[Any], tuple[Any, Any]]:
    """(x, y) of tokens stored tile after tile, row-major inside and outside."""
    def place(n: Any) -> tuple[Any, Any]:
        which, inside = n // (tile[0] * tile[1]), n % (tile[0] * tile[1])
        across = width // tile[0]
        return which % across * tile[0] + inside % tile[0], which // across * tile[1] \
            + inside // tile[0]
    return place


def _z_order(n: Any) -> tuple[Any, Any]:
    """(x, y) of a Morton code: the even bits and the odd bits."""
    def even(code: Any) -> Any:
        code = code & 0x55555555
        for shift, keep in ((1, 0x33333333), (2, 0x0F0F0F0F), (4, 0x00FF00FF), (8, 0x0000FFFF)):
            code = (code | (code >> shift)) & keep
        return code
    return even(n), even(n >> 1)


def tiled_window(canvas: tuple[int, ...], kernel: tuple[int, ...], tile: tuple[int, ...],
                 text: int = 0) -> Mod:
    """Sliding tiles in two or three dimensions, and text tokens behind the canvas."""
    tiles = tuple(c // t for c, t in zip(canvas, tile, strict=True))
    reach = tuple(k // t for k, t in zip(kernel, tile, strict=True))
    vision, volume = math.prod(canvas), math.prod(tile)

    def coordinates(n: Any) -> list[Any]:
        which, out = n // volume, []
        for size in reversed(tiles[1:]):
            out.append(which % size)
            which = which // size
        return [which, *reversed(out)]

    def mask(b: Any, h: Any, q: Any, k: Any) -> Any:
        near = (q < vision) & (k < vision)
        for at_q, at_k, size, width in zip(coordinates(q), coordinates(k), tiles, reach,
                                           strict=True):
            left = width // 2
            right = left + width % 2 - 1
            centre = at_q.clamp(left, size - 1 - right)
            near = near & (at_k >= centre - left) & (at_k <= centre + right)
        texts = k < vision + text
        return near | ((q < vision) & (k >= vision) & texts) | ((q >= vision) & texts)
    return mask


# -- language -------------------------------------------------------------------------------------


def block_diffusion(length: int, block: int) -> Mod:
    """Noised tokens, then as many clean ones."""
    def mask(b: Any, h: Any, q: Any, k: Any) -> Any:
        noised_q, noised_k = q < length, k < length
        block_q, block_k = q % length // block, k % length // block
        own = (block_q == block_k) & (noised_q == noised_k)
        before = (block_q > block_k) & noised_q & ~noised_k
        return own | before | ((block_q >= block_k) & ~noised_q & ~noised_k)
    return mask


def drafts(prefix_length: int, block: int) -> Mod:
    """A prefix, then blocks that see it and themselves causally; queries are the blocks alone."""
    def mask(b: Any, h: Any, q: Any, k: Any) -> Any:
        at = k - prefix_length
        own = (at >= 0) & (at // block == q // block) & (at % block <= q % block)
        return (k < prefix_length) | own
    return mask


def draft_tree(prefix_length: int, parents: list[int]) -> Mod:
    """A prefix, then a tree of drafts whose nodes see their ancestors."""
    nodes = len(parents)
    ancestor = torch.eye(nodes, dtype=torch.bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            ancestor[node] |= ancestor[parent]

    def mask(b: Any, h: Any, q: Any, k: Any) -> Any:
        at = (k - prefix_length).clamp(min=0, max=nodes - 1)
        inside = (k >= prefix_length) & (k < prefix_length + nodes)
        return (k < prefix_length) | (inside & ancestor[q, at])
    return mask


def _ids(offsets: Tensor) -> Tensor:
    lengths = offsets.diff()
    return torch.repeat_interleave(torch.arange(len(lengths), dtype=torch.int32), lengths)


def documents(inner: Mod, offsets: Tensor) -> Mod:
    """The inner mask inside each document, positions counted from its beginning."""
    ids = _ids(offsets)

    def mask(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (ids[q] == ids[k]) & inner(b, h, q - offsets[ids[q]], k - offsets[ids[k]])
    return mask


def packed_causal(offsets: Tensor) -> Mod:
    ids = _ids(offsets)
    return lambda b, h, q, k: (k >= offsets[ids[q]]) & causal(b, h, q, k)


def shared_prefix(offsets: Tensor, prefix_of: Tensor) -> Mod:
    """Documents that continue another: they see all of it, and themselves causally."""
    ids = _ids(offsets)

    def mask(b: Any, h: Any, q: Any, k: Any) -> Any:
        own = ids[q]
        before = prefix_of[own]
        return ((k >= offsets[own]) & causal(b, h, q, k)) | (
            (own != before) & (k >= offsets[before]) & (k < offsets[before + 1]))
    return mask


def with_globals(width: int, is_global: Tensor) -> Mod:
    return or_masks(lambda b, h, q, k: (q - k).abs() <= width,
                    lambda b, h, q, k: is_global[q] | is_global[k])


# -- images and video -----------------------------------------------------------------------------


def images_in_text(spans: Tensor, tokens: int) -> Published:
    """Image tokens are seen by the span of text that follows the image."""
    image = torch.repeat_interleave(torch.arange(len(spans)), tokens)

    def mask(b: Any, h: Any, q: Any, k: Any) -> Any:
        span = spans[image[k]]
        return (q >= span[0]) & (q < span[1])

    def wide(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (q >= spans[image[k], 0]) & (q < spans[image[k], 1])
    return Published(mask, wide, seqlen_k=len(image))


def video_spatial(prompt: int, frame: int, width: int, rounded_to: int, sink: bool) -> Mod:
    def mask(b: Any, h: Any, q: Any, k: Any) -> Any:
        reach = math.floor(width * frame / rounded_to) * rounded_to
        first = k < (prompt + frame if sink else prompt)
        return first | (q < prompt) | (torch.abs(q - k) < reach)
    return mask


def video_temporal(prompt: int, frames: int, frame: int, width: int) -> Mod:
    def mask(b: Any, h: Any, q: Any, k: Any) -> Any:
        apart = torch.abs((q - prompt) % frame - (k - prompt) % frame)
        return (k < prompt) | (q < prompt) | (apart < width * frame // frames)
    return mask


def chosen_tiles(chosen: Tensor, tile: int, sizes: Tensor | None = None) -> Mod:
    """Each tile of queries has a list of tiles of keys, of which some are not full."""
    def mask(b: Any, h: Any, q: Any, k: Any) -> Any:
        which = k // tile
        listed = (chosen[b, h, q // tile] == which.unsqueeze(-1)).any(dim=-1)
        return listed if sizes is None else listed & (k % tile < sizes[which])
    return mask


def mapped_tiles(chosen: Tensor, tile: int, sizes: Tensor) -> Mod:
    return lambda b, h, q, k: (chosen[b, h, q // tile, k // tile]
                               & (k % tile < sizes[k // tile]))


_OFFSETS = torch.tensor([0, 20, 21, 58, 96])
_SIZES = torch.tensor([16, 9, 16, 1, 0, 16])

MASKS: dict[str, Published] = {
    "noop": Published(noop_mask), "causal": Published(causal),
    "sliding_window": Published(lookback(20)), "prefix_lm": Published(prefix(30)),
    "batchify": Published(within_groups(causal, 24)),
    "natten": Published(_near(_row_major(10), (10, 10), (5, 3)), seqlen_q=100, seqlen_k=100),
    "tiled_natten": Published(_near(_in_tiles(12, (4, 2)), (12, 8), (5, 3))),
    "morton_natten": Published(_near(_z_order, (16, 8), (5, 3)), seqlen_q=128, seqlen_k=128),
    "sta_2d": Published(tiled_window((12, 8), (8, 6), (4, 2))),
    "sta_2d_text": Published(tiled_window((12, 8), (8, 2), (4, 2), 9), seqlen_q=108, seqlen_k=108),
    "sta_3d": Published(tiled_window((6, 4, 4), (6, 2, 4), (2, 2, 2), 5), seqlen_q=103,
                        seqlen_k=103),
    "block_diffusion": Published(block_diffusion(48, 12)),
    "jetspec_train": Published(drafts(30, 11), seqlen_q=66, seqlen_k=96),
    "dilated_sliding_window": Published(lambda b, h, q, k: (torch.abs(q - k) <= 20)
                                        & (torch.abs(q - k) % 3 == 0)),
    "svg_spatial": Published(video_spatial(10, 18, 2, 8, sink=False)),
    "svg_spatial_sink": Published(video_spatial(10, 9, 3, 4, sink=True)),
    "svg_temporal": Published(video_temporal(7, 5, 18, 2)),
    "global_sliding_window": Published(with_globals(9, torch.arange(N) % 31 == 5)),
    "document": Published(documents(noop_mask, _OFFSETS.int())),
    "document_causal": Published(documents(causal, _OFFSETS)),
    "document_prefix": Published(documents(prefix(5), _OFFSETS)),
    "packed_causal_document": Published(packed_causal(_OFFSETS.int())),
    "flamingo": images_in_text(torch.tensor([[4, 30], [30, 31], [31, 90]]), 20),
    "shared_prefix": Published(shared_prefix(_OFFSETS, torch.tensor([0, 0, 2, 2]))),
    "jetspec_tree": Published(draft_tree(40, [-1, *(n * 5 % (n + 1) for n in range(40))]),
                              seqlen_q=41, seqlen_k=85),
    "vsa_topk": Published(chosen_tiles(choices(6, BATCH, HEADS, 6, 3), 16)),
    "vsa_topk_padded": Published(chosen_tiles(choices(6, BATCH, HEADS, 6, 3), 16, _SIZES)),
    "vsa_block_map": Published(mapped_tiles(choices(2, BATCH, HEADS, 6, 6).bool(), 16, _SIZES)),
}
