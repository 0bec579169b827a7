"""Named masks against their definitions, written out pair by pair."""

from __future__ import annotations

import copy
import inspect
import itertools
import pickle
import re
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch

from attngen import AttentionSpec, masks, reference, scores
from attngen.errors import PatternError, SpecJsonError, UnknownNameError
from attngen.masks import Mask

N, BATCH, HEADS = 23, 2, 3
# (seqlen_q, seqlen_k, q_offset, kv_offset): positions may be negative or beyond a mask's tensor
CALLS = ((N, N, -7, -7), (17, N, None, 0), (N, 9, 4, 3), (1, N, N, 0))

FORMULAS: list[tuple[Mask, Callable[[int, int], bool]]] = [
    (masks.causal(), lambda i, j: j <= i),
    (masks.sliding_window((3, 2)), lambda i, j: -2 <= i - j <= 3),
    (masks.sliding_window((0, 5)), lambda i, j: i <= j <= i + 5),
    (masks.sliding_window(4), lambda i, j: j in (i - 3, i - 2, i - 1, i)),
    (masks.prefix_lm(5), lambda i, j: j <= i or j < 5),
    (masks.chunked(4), lambda i, j: any(s <= i < s + 4 and s <= j < s + 4
                                        for s in range(-8, 2 * N, 4))),
    (masks.attention_sinks(3), lambda i, j: j < 3),
    (masks.dilated_window(2, 3), lambda i, j: i - j in (-6, -3, 0, 3, 6)),
    (masks.strided(4), lambda i, j: j <= i and (i - j <= 4 or (i - j) % 4 == 0)),
    (masks.strided(4, part="local"), lambda i, j: 0 <= i - j <= 4),
    (masks.strided(4, part="stride"), lambda i, j: i - j in range(0, 2 * N, 4)),
    (masks.fixed(5, 2), lambda i, j: j <= i and (any(
        s <= i < s + 5 and s <= j < s + 5 for s in range(-10, 2 * N, 5)) or j % 5 in (3, 4))),
    (masks.fixed(5, 2, part="local"), lambda i, j: j <= i and any(
        s <= i < s + 5 and s <= j < s + 5 for s in range(-10, 2 * N, 5))),
    (masks.fixed(5, 2, part="stride"), lambda i, j: j <= i and j % 5 in (3, 4)),
    (masks.causal() & masks.chunked(4), lambda i, j: j <= i and i // 4 == j // 4),
    (masks.sliding_window(2) | masks.attention_sinks(1), lambda i, j: 0 <= i - j < 2 or j < 1),
    (~masks.causal(), lambda i, j: j > i),
    (masks.causal() & (lambda b, h, q, k: (q + k) % 2 == 0),
     lambda i, j: j <= i and (i + j) % 2 == 0),
    ((lambda b, h, q, k: q == k) | masks.attention_sinks(1), lambda i, j: i == j or j < 1),
]

IDS = torch.tensor([[1, 1, 1, 2, 2, 5, 5, 5, 5, 9, 9, 1, 1, 3], [4] * 6 + [2] * 8])
LENGTHS = torch.tensor([9, 0])
KEEP = torch.arange(2 * 13).reshape(2, 13) % 5 != 2
PARENTS = (-1, 0, 0, 1, 1, 2, 5, 6, 3, -1, 9, 10, 9)
LAYOUT = torch.arange(4 * 5).reshape(4, 5) % 3 != 1
HEAD_LAYOUT = torch.arange(HEADS * 4 * 5).reshape(HEADS, 4, 5) % 4 < 2
BATCH_LAYOUT = torch.arange(BATCH * 16).reshape(BATCH, 1, 4, 4) % 7 < 4
DENSE = torch.arange(15 * 15).reshape(15, 15) % 11 < 6
WIDE = torch.arange(BATCH * HEADS * 6 * 15).reshape(BATCH, HEADS, 6, 15) % 13 < 6
MANY = (0, 2, 3, 5, 7, 11, 13, 14, 15, 19)


def read(table: torch.Tensor, *at: int) -> int:
    """The element of a tensor, 0 outside it."""
    inside = all(0 <= i < n for i, n in zip(at, table.shape, strict=True))
    return int(table[at]) if inside else 0


def ancestors(i: int) -> set[int]:
    seen = set()
    while 0 <= i < len(PARENTS):
        seen.add(i)
        i = PARENTS[i]
    return seen


def sees(i: int, j: int, size: int, kernel: int, dilation: int) -> bool:
    """One dimension of a neighborhood: of the tokens with i's remainder, the ``kernel`` in a row
    that have i as near their middle as the border allows."""
    group = range(i % dilation, size, dilation)
    first = min(max(group.index(i) - kernel // 2, 0), len(group) - kernel)
    return j in group[first:first + kernel]


def grid(i: int, j: int, shape: tuple[int, ...], kernel: tuple[int, ...],
         dilation: tuple[int, ...]) -> bool:
    tokens = list(itertools.product(*(range(n) for n in shape)))
    if not (0 <= i < len(tokens) and 0 <= j < len(tokens)):
        return False
    return all(map(sees, tokens[i], tokens[j], shape, kernel, dilation))


def big_bird(i: int, j: int, block: int, num: int, window: int, global_blocks: int, seed: int,
             seqlen: int) -> bool:
    n = (seqlen + block - 1) // block

    def structured(r: int, c: int) -> bool:
        return abs(r - c) <= window // 2 or r < global_blocks or c < global_blocks

    def mix(x: int) -> int:
        x %= 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    r, c = i // block, j // block
    if not (0 <= r < n and 0 <= c < n):
        return False
    free = sorted((k for k in range(n) if not structured(r, k)),
                  key=lambda k: mix(n * n * seed + n * r + k))
    return structured(r, c) or c in free[:num]


# With batch entry b and head h.
TABLES: list[tuple[Mask, Callable[[int, int, int, int], bool]]] = [
    (masks.global_tokens(3), lambda b, h, i, j: i < 3 or j < 3),
    (masks.global_tokens([7, 2, 2]), lambda b, h, i, j: i in (2, 7) or j in (2, 7)),
    (masks.global_tokens([]), lambda b, h, i, j: False),
    (masks.global_tokens(torch.tensor([5, 1])), lambda b, h, i, j: {i, j} & {1, 5} != set()),
    (masks.global_tokens(MANY), lambda b, h, i, j: i in MANY or j in MANY),
    (masks.global_tokens(KEEP), lambda b, h, i, j: bool(read(KEEP, b, i) or read(KEEP, b, j))),
    (masks.document(IDS[0]), lambda b, h, i, j: read(IDS[0], i) == read(IDS[0], j)),
    (masks.document(IDS), lambda b, h, i, j: read(IDS, b, i) == read(IDS, b, j)),
    (masks.document(IDS[1:].to(torch.int8)),
     lambda b, h, i, j: read(IDS[1], i) == read(IDS[1], j)),
    (masks.padding(LENGTHS), lambda b, h, i, j: j < int(LENGTHS[b])),
    (masks.padding(KEEP), lambda b, h, i, j: bool(read(KEEP, b, j))),
    (masks.tree(PARENTS), lambda b, h, i, j: j in ancestors(i)),
    (masks.tree(torch.tensor([1, 2, -1])),
     lambda b, h, i, j: (i, j) in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))),
    (masks.block_sparse(LAYOUT, 3), lambda b, h, i, j: bool(read(LAYOUT, i // 3, j // 3))),
    (masks.block_sparse(HEAD_LAYOUT, 4),
     lambda b, h, i, j: bool(read(HEAD_LAYOUT, h, i // 4, j // 4))),
    (masks.block_sparse(BATCH_LAYOUT, 5),
     lambda b, h, i, j: bool(read(BATCH_LAYOUT, b, 0, i // 5, j // 5))),
    (masks.random_blocks(3, 1, window=1, global_blocks=1, seed=7, seqlen=20),
     lambda b, h, i, j: big_bird(i, j, 3, 1, 1, 1, 7, 20)),
    (masks.random_blocks(2, 3, window=3, global_blocks=0, seed=2**32 - 1, seqlen=N),
     lambda b, h, i, j: big_bird(i, j, 2, 3, 3, 0, 2**32 - 1, N)),
    (masks.random_blocks(4, 9, window=0, global_blocks=2, seqlen=16),
     lambda b, h, i, j: big_bird(i, j, 4, 9, 0, 2, 0, 16)),
    (masks.from_dense(DENSE), lambda b, h, i, j: bool(read(DENSE, i, j))),
    (masks.from_dense(WIDE), lambda b, h, i, j: bool(read(WIDE, b, h, i - 9, j))),
    (masks.from_dense(WIDE[:, :1, :1]), lambda b, h, i, j: bool(read(WIDE, b, 0, 0, j))),
    (masks.neighborhood(13, 5), lambda b, h, i, j: grid(i, j, (13,), (5,), (1,))),
    (masks.neighborhood(13, 4, 3), lambda b, h, i, j: grid(i, j, (13,), (4,), (3,))),
    (masks.neighborhood(7, 7), lambda b, h, i, j: 0 <= i < 7 and 0 <= j < 7),
    (masks.neighborhood((4, 5), 3), lambda b, h, i, j: grid(i, j, (4, 5), (3, 3), (1, 1))),
    (masks.neighborhood((2, 7), (1, 3), (2, 2)),
     lambda b, h, i, j: grid(i, j, (2, 7), (1, 3), (2, 2))),
    (masks.neighborhood((2, 3, 4), (2, 1, 3)),
     lambda b, h, i, j: grid(i, j, (2, 3, 4), (2, 1, 3), (1, 1, 1))),
]
LITERAL: list[tuple[Mask, Callable[[int, int, int, int], bool]]] = [
    *((mask, lambda b, h, i, j, pair=pair: pair(i, j)) for mask, pair in FORMULAS), *TABLES]
NAMES = [re.sub(r" at 0x\w+", "", repr(mask)) for mask, _ in LITERAL]


@pytest.mark.parametrize("mask, literal", LITERAL, ids=NAMES)
def test_mask_matches_its_definition_pair_by_pair(
        mask: Mask, literal: Callable[[int, int, int, int], bool]) -> None:
    spec = AttentionSpec(heads=HEADS, head_dim=8, mask=mask)
    some = False
    for seqlen_q, seqlen_k, q_offset, kv_offset in CALLS:
        got = reference.visible(spec, BATCH, seqlen_q, seqlen_k, q_offset=q_offset,
                                kv_offset=kv_offset)
        first = kv_offset + seqlen_k - seqlen_q if q_offset is None else q_offset
        expected = torch.tensor([[[[literal(b, h, first + i, kv_offset + j)
                                    for j in range(seqlen_k)] for i in range(seqlen_q)]
                                  for h in range(HEADS)] for b in range(BATCH)])
        assert torch.equal(got, expected), (seqlen_q, seqlen_k, q_offset, kv_offset)
        some = some or bool(expected.any())
    assert some or mask == masks.global_tokens([])  # the case tests something


def test_every_named_mask_has_a_literal_definition() -> None:
    tested = {m.name for m, _ in LITERAL} | {"per_head"}  # in test_per_head.py
    assert tested == set(masks.NAMED)


@pytest.mark.parametrize("shape, kernel, dilation", [
    (9, 4, 2), ((5, 6), (3, 2), (1, 3)), ((3, 4, 2), (3, 2, 1), (1, 2, 2))])
def test_every_token_of_a_neighborhood_sees_a_whole_kernel(shape: Any, kernel: Any,
                                                           dilation: Any) -> None:
    mask = masks.neighborhood(shape, kernel, dilation)
    tokens, count = (int(torch.tensor(x).prod()) for x in (shape, kernel))
    seen = reference.visible(AttentionSpec(heads=1, head_dim=8, mask=mask), 1, tokens, tokens)
    assert seen.sum(-1).unique().tolist() == [count] and bool(seen[0, 0].diagonal().all())


def test_random_blocks_are_as_many_as_asked_and_follow_the_seed() -> None:
    def seen(seed: int) -> torch.Tensor:
        mask = masks.random_blocks(1, 3, window=3, global_blocks=2, seed=seed, seqlen=40)
        return reference.visible(AttentionSpec(heads=1, head_dim=8, mask=mask), 1, 40, 40)[0, 0]
    assert seen(1)[4:39].sum(-1).unique().tolist() == [2 + 3 + 3]
    assert torch.equal(seen(1), seen(1)) and not torch.equal(seen(1), seen(2))


def test_a_tensor_is_read_at_each_call_and_compared_as_the_object_it_is() -> None:
    ids = torch.tensor([1, 1, 2, 2])
    spec = AttentionSpec(heads=1, head_dim=8, mask=masks.document(ids))
    before = reference.visible(spec, 1, 4, 4)
    ids[1] = 2
    assert not torch.equal(reference.visible(spec, 1, 4, 4), before)
    assert masks.document(ids) == masks.document(ids) != masks.document(ids.clone())
    assert hash(masks.document(ids)) == hash(masks.document(ids))
    assert "int64 [4]" in repr(masks.document(ids))
    with pytest.raises(SpecJsonError, match="Build the pattern again"):
        spec.to_json()
    assert spec.cache_key() is None


def test_a_tree_below_a_context_sees_all_of_it() -> None:
    mask = masks.tree([-1, 0, 0]) | masks.attention_sinks(0)
    seen = reference.visible(AttentionSpec(heads=1, head_dim=8, mask=mask), 1, 3, 5, q_offset=0,
                             kv_offset=-2)
    assert seen[0, 0].int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 0, 1]]


def test_patterns_are_frozen_and_bind_like_functions() -> None:
    window = masks.sliding_window((1, 2))
    with pytest.raises(FrozenInstanceError, match="window"):
        window.window = 3  # type: ignore[misc]
    assert repr(masks.fixed(4, c=2)) == "fixed(l=4, c=2, part=None)"
    assert str(inspect.signature(masks.fixed)) == "(l, c, part=None)"
    assert list(inspect.signature(masks.causal()).parameters) == list(masks.ARGUMENTS)
    assert pickle.loads(pickle.dumps(window)) == window == copy.copy(window)
    for make, text in ((lambda: masks.fixed(4), "fixed() lacks c"),
                       (lambda: masks.fixed(4, 2, None, 5), "takes 3 arguments, got 4"),
                       (lambda: masks.fixed(4, 2, l=3), "got argument 'l' twice"),
                       (lambda: masks.causal(top=1), "causal() has no argument 'top'")):
        with pytest.raises(TypeError, match=re.escape(text)):
            make()


def test_int_window_is_the_pair_to_its_left() -> None:
    assert masks.sliding_window(4) == masks.sliding_window((3, 0))


@pytest.mark.parametrize("make, text", [
    (lambda: masks.sliding_window(0), "window must be a whole number of at least 1, got 0"),
    (lambda: masks.sliding_window((1, -1)), "right must be a whole number of at least 0, got -1"),
    (lambda: masks.sliding_window((1, 2, 3)), "has 3 sides"),
    (lambda: masks.chunked(0), "c must be a whole number of at least 1"),
    (lambda: masks.prefix_lm(1.5), "n must be a whole number of at least 0, got 1.5"),
    (lambda: masks.dilated_window(2, True), "step must be a whole number"),
    (lambda: masks.fixed(4, 5), "c=5 summary columns do not fit in blocks of l=4"),
    (lambda: masks.causal() & 3, "mask is a int, not a pattern or callable"),
    (lambda: masks.causal() | masks.chunked, "Call it: chunked(...)"),
    (lambda: masks.causal() & (lambda q, k: q < k), "cannot take the arguments of mask_mod"),
    (lambda: masks.causal() & scores.softcap(3), "softcap is a score, given as a mask"),
    (lambda: masks.global_tokens([3, -1]), "at least 0, got -1"),
    (lambda: masks.global_tokens("a"), "tokens must be a sequence of whole numbers"),
    (lambda: masks.global_tokens(torch.ones(1, 2, 3) > 0), "has 3 dimensions, not 1 or 2"),
    (lambda: masks.document(3), "ids must be a tensor, got 3"),
    (lambda: masks.document(torch.ones(4)), "ids is float32, not int8 or int16"),
    (lambda: masks.document([[[1]]]), "ids of shape [1, 1, 1] has 3 dimensions"),
    (lambda: masks.document([[1], [1, 2]]), "ids is no tensor"),
    (lambda: masks.padding(torch.ones(2, 3, dtype=torch.int32)), "integer keep of shape [2, 3]"),
    (lambda: masks.padding(torch.ones(3) > 0), "bool keep of shape [3]"),
    (lambda: masks.tree([-1, 7]), "token 1 has the parent 7, there are 2 tokens"),
    (lambda: masks.tree([-1, 2, 1]), "token 1 is its own ancestor"),
    (lambda: masks.tree([-2]), "at least -1, got -2"),
    (lambda: masks.block_sparse(torch.ones(2, 2), 4), "layout is float32, not bool"),
    (lambda: masks.block_sparse(LAYOUT, 0), "block must be a whole number of at least 1"),
    (lambda: masks.random_blocks(4, -1), "num_blocks must be a whole number of at least 0"),
    (lambda: masks.random_blocks(4, 1, seed=2**32), "has more than 32 bits"),
    (lambda: masks.from_dense(torch.ones(4) > 0), "mask of shape [4] has 1 dimensions"),
    (lambda: masks.neighborhood((4, 4, 4, 4), 1), "has 4 dimensions, not 1, 2 or 3"),
    (lambda: masks.neighborhood((4, 9), (3, 3, 3)), "has 3 entries for 2 dimensions"),
    (lambda: masks.neighborhood((4, 9), 3, 2), "kernel 3 with dilation 2 does not fit"),
])
def test_bad_arguments_are_refused_with_the_argument_named(make: Callable[[], Mask],
                                                           text: str) -> None:
    with pytest.raises(PatternError) as error:
        make()
    assert text in str(error.value)


def test_unknown_part_suggests_the_known_one() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'local'"):
        masks.strided(4, part="lokal")


@pytest.mark.parametrize("mask", [
    masks.block_sparse(HEAD_LAYOUT, 4), masks.from_dense(WIDE),
    ~masks.from_dense(WIDE) & masks.causal()])
def test_a_table_for_another_number_of_heads_is_refused(mask: Mask) -> None:
    with pytest.raises(PatternError, match="is for 3 heads, the spec has 4"):
        AttentionSpec(heads=4, head_dim=8, mask=mask)


def test_unknown_names_do_not_exist() -> None:
    assert not hasattr(masks, "nothing_of_the_kind")
