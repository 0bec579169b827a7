"""docs/patterns.md: a section for each named pattern, with the picture that its own call draws."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from documented import blocks, check_block
from helpers import ROOT

import attngen as ag
from attngen import masks, reference, scores

N = 16
IDS = torch.tensor([1] * 5 + [2] * 3 + [3] * 8)
LAYOUT = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 1]]) > 0
DENSE = torch.arange(N * N).reshape(N, N) % 5 < 2
T5 = torch.arange(8.0).reshape(8, 1)
SWIN = torch.arange(49.0).reshape(49, 1)

# Written as in the page; the names above are the tensors it speaks of.
MASKS = ["causal()", "sliding_window(4)", "sliding_window((2, 5))", "dilated_window(2, 3)",
         "global_tokens(2)", "global_tokens([3, 9])", "attention_sinks(2)", "prefix_lm(5)",
         "document(IDS)", "padding(torch.tensor([11]))", "chunked(4)", "strided(4)",
         "strided(4, part='stride')", "fixed(4, 1)", "neighborhood(16, 5)",
         "neighborhood(16, 3, 2)", "neighborhood((4, 4), 3)",
         "tree([-1, 0, 0, 0, 1, 1, 2, 3, 4, 4, 5, 6, 8, 8, 10, 11])", "block_sparse(LAYOUT, 4)",
         "random_blocks(2, 1, seqlen=16)", "from_dense(DENSE)",
         "sliding_window(4) | attention_sinks(2)", "causal() & document(IDS)", "none_of(causal())"]
MAPS = ["alibi(slopes=[1])", "bias(DENSE.float())",
        "relative_position_bias(T5, max_distance=16)", "swin_bias(SWIN, (4, 4))"]
CURVES = ["softcap(2.0)", "temperature(0.5)", *(f"activation({f!r})" for f in (
    "relu", "tanh", "sigmoid", "silu", "gelu"))]
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def made(text: str, module: Any) -> Any:
    return eval(text, {**globals(), **vars(module)})


def name_of(text: str) -> str:
    """The name of a block: the call with nothing but its words."""
    return " ".join(re.findall(r"\w+", text))


def picture(mask: Any) -> str:
    """A row for each query, a column for each key: # where it is visible."""
    heads = 2 if isinstance(mask, masks.per_head) else 1
    seen = reference.visible(ag.AttentionSpec(heads=heads, head_dim=8, mask=mask), 1, N, N)[0]
    rows = [[" ".join("#" if x else "." for x in row) for row in head] for head in seen.tolist()]
    return "\n".join("      ".join(head[i] for head in rows) for i in range(N))


def value_map(score: Any) -> str:
    """What a score adds to each of 16 x 16 scores, whole numbers as digits."""
    i, j = torch.arange(N)[:, None], torch.arange(N)
    added = score(torch.zeros(N, N), 0, torch.tensor(0), i, j).abs().int().tolist()
    return "\n".join(" ".join(DIGITS[x] for x in row) for row in added)


def curve(score: Any) -> str:
    """The new score at some scores."""
    at = (-8.0, -2.0, -0.5, 0.0, 0.5, 2.0, 8.0)
    values = [score(x, 0, 0, 0, 0) for x in at]
    return "\n".join(label + "".join(f"{v + 0.0:9.4f}" for v in row)
                     for label, row in (("score", at), ("new  ", values)))


@pytest.mark.parametrize("text", MASKS)
def test_picture_of_a_mask(text: str, request: pytest.FixtureRequest) -> None:
    check_block("patterns.md", name_of(text), picture(made(text, masks)),
                request.config.getoption("--update-golden"))


def test_picture_of_one_mask_for_each_head(request: pytest.FixtureRequest) -> None:
    mask = ag.per_head([masks.dilated_window(2, 1), masks.dilated_window(2, 3)])
    check_block("patterns.md", "per_head", picture(mask),
                request.config.getoption("--update-golden"))


@pytest.mark.parametrize("text", MAPS)
def test_map_of_a_score(text: str, request: pytest.FixtureRequest) -> None:
    check_block("patterns.md", name_of(text), value_map(made(text, scores)),
                request.config.getoption("--update-golden"))


@pytest.mark.parametrize("text", CURVES)
def test_curve_of_a_score(text: str, request: pytest.FixtureRequest) -> None:
    check_block("patterns.md", name_of(text), curve(made(text, scores)),
                request.config.getoption("--update-golden"))


def test_every_block_is_drawn_and_every_pattern_has_one() -> None:
    texts = [*MASKS, *MAPS, *CURVES, "per_head"]
    assert blocks("patterns.md") == {name_of(t) for t in texts}
    drawn = {word for t in texts for word in re.findall(r"[a-z]\w+", t)}
    assert {*masks.NAMED, *scores.NAMED} - {"all_of", "any_of", "none_of"} <= drawn


def test_every_call_of_the_page_is_the_one_drawn() -> None:
    page = (ROOT / "docs" / "patterns.md").read_text()
    shown = re.findall(r"`([^`\n]+)`:\n\n<!-- ([\w ]+) -->", page)
    assert {name_of(call) for call, _ in shown} == blocks("patterns.md") - {"per_head"}
    assert all(name_of(call) == name for call, name in shown)
