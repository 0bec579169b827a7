"""Named masks against their definitions, written out pair by pair."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch

from attngen import masks
from attngen.errors import PatternError, UnknownNameError
from attngen.masks import Mask

N = 23
POSITIONS = range(-7, N - 7)  # positions may be negative; // and % round down

LITERAL: list[tuple[Mask, Callable[[int, int], bool]]] = [
    (masks.causal(), lambda i, j: j <= i),
    (masks.sliding_window((3, 2)), lambda i, j: -2 <= i - j <= 3),
    (masks.sliding_window((0, 5)), lambda i, j: i <= j <= i + 5),
    (masks.sliding_window(4), lambda i, j: j in (i - 3, i - 2, i - 1, i)),
    (masks.prefix_lm(5), lambda i, j: j <= i or j < 5),
    (masks.chunked(4), lambda i, j: any(s <= i < s + 4 and s <= j < s + 4
                                        for s in range(-8, N, 4))),
    (masks.attention_sinks(3), lambda i, j: j < 3),
    (masks.dilated_window(2, 3), lambda i, j: i - j in (-6, -3, 0, 3, 6)),
    (masks.strided(4), lambda i, j: j <= i and (i - j <= 4 or (i - j) % 4 == 0)),
    (masks.strided(4, part="local"), lambda i, j: 0 <= i - j <= 4),
    (masks.strided(4, part="stride"), lambda i, j: i - j in range(0, 2 * N, 4)),
    (masks.fixed(5, 2), lambda i, j: j <= i and (any(
        s <= i < s + 5 and s <= j < s + 5 for s in range(-10, N, 5)) or j % 5 in (3, 4))),
    (masks.fixed(5, 2, part="local"), lambda i, j: j <= i and any(
        s <= i < s + 5 and s <= j < s + 5 for s in range(-10, N, 5))),
    (masks.fixed(5, 2, part="stride"), lambda i, j: j <= i and j % 5 in (3, 4)),
    (masks.causal() & masks.chunked(4), lambda i, j: j <= i and i // 4 == j // 4),
    (masks.sliding_window(2) | masks.attention_sinks(1), lambda i, j: 0 <= i - j < 2 or j < 1),
    (~masks.causal(), lambda i, j: j > i),
    (masks.causal() & (lambda b, h, q, k: (q + k) % 2 == 0),
     lambda i, j: j <= i and (i + j) % 2 == 0),
    ((lambda b, h, q, k: q == k) | masks.attention_sinks(1), lambda i, j: i == j or j < 1),
]


NAMES = [re.sub(r" at 0x\w+", "", repr(mask)) for mask, _ in LITERAL]


@pytest.mark.parametrize("mask, literal", LITERAL, ids=NAMES)
def test_mask_matches_its_definition_pair_by_pair(mask: Mask,
                                                  literal: Callable[[int, int], bool]) -> None:
    at = torch.tensor(list(POSITIONS))
    got = mask(0, 0, at.reshape(-1, 1), at.reshape(1, -1)).expand(N, N)
    expected = torch.tensor([[literal(i, j) for j in POSITIONS] for i in POSITIONS])
    assert torch.equal(got, expected)
    assert any(literal(i, j) for i in POSITIONS for j in POSITIONS)  # the case tests something


def test_every_named_mask_has_a_literal_definition() -> None:
    tested = {type(m).__name__ for m, _ in LITERAL}
    assert tested == set(masks.NAMED)


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
])
def test_bad_arguments_are_refused_with_the_argument_named(make: Callable[[], Mask],
                                                           text: str) -> None:
    with pytest.raises(PatternError) as error:
        make()
    assert text in str(error.value)


def test_unknown_part_suggests_the_known_one() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'local'"):
        masks.strided(4, part="lokal")


def test_names_to_come_say_so_and_others_do_not_exist() -> None:
    with pytest.raises(AttributeError, match="not available in this version"):
        masks.document  # noqa: B018
    assert not hasattr(masks, "global_tokens") and not hasattr(masks, "nothing_of_the_kind")
