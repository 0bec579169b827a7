"""docs/decode.md: its code runs, and what it says of sizes is so."""

from __future__ import annotations

import re
from typing import Any

import torch
from helpers import ROOT

from attngen import kv

PAGE = (ROOT / "docs" / "decode.md").read_text()


def test_the_code_runs() -> None:
    made: dict[str, Any] = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)), made)
    assert made["o"].shape == (2, 8, 1, 64)
    assert made["cache"].lengths.tolist() == [103, 103]


def test_the_table_of_bytes() -> None:
    import attngen as ag

    attn = ag.compile(ag.AttentionSpec(heads=1, head_dim=128), target="cpu")
    for stored, size in re.findall(r"^\| (\w+) \| [\d. %]+ \| ([\d,]+) \|$", PAGE, re.MULTILINE):
        kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
        cache = kv.KVCache(attn, 1, 4, dtype=kinds.get(stored), quantize=None if stored in kinds
                           else stored)
        assert cache.bytes_per_token == int(size.replace(",", "")), stored


def test_every_cache_is_named() -> None:
    assert all(f"ag.kv.{name}(" in PAGE for name in kv.__all__)
