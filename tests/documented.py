"""Text blocks of the documentation that the program itself makes.

A page marks such a block with a comment, ``<!-- name -->``, before a fenced ``text`` block. The
test that owns it says what it must hold; ``pytest --update-golden`` writes it.
"""

from __future__ import annotations

import difflib
import re

import pytest
from helpers import ROOT


def check_block(page: str, name: str, text: str, update: bool) -> None:
    """Fails, with a diff, unless block ``name`` of ``docs/page`` holds ``text``."""
    path = ROOT / "docs" / page
    whole, text = path.read_text(), text.rstrip("\n") + "\n"
    found = re.search(rf"(<!-- {re.escape(name)} -->\s*```text\n)(.*?)(```)", whole, re.DOTALL)
    assert found, f"docs/{page} has no block {name!r}"
    if update:
        path.write_text(whole[:found.start(2)] + text + whole[found.end(2):])
    elif found[2] != text:
        diff = difflib.unified_diff(found[2].splitlines(), text.splitlines(), f"docs/{page}",
                                    "this run", lineterm="", n=2)
        pytest.fail("\n".join([f"block {name!r} is out of date; if the change is meant, run "
                               "pytest --update-golden", *diff]), pytrace=False)


def blocks(page: str) -> set[str]:
    """Names of all the marked blocks of a page."""
    return set(re.findall(r"<!-- ([\w ]+) -->\s*```text\n", (ROOT / "docs" / page).read_text()))
