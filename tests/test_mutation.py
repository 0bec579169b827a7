"""Delete each synchronisation statement of a kernel: the emulator must object, every time."""

from __future__ import annotations

import deletions
import pytest
from hand_attention import Case, text

from attngen.runtime import emulator
from attngen.runtime.emulator import EmulatedModule
from attngen.runtime.emulator.mutate import Mutation, mutations, sync_functions

# The second has blocks that see nothing, so that their copies are still under way at the end.
CASES = (Case(197, 197), Case(130, 60, causal=1))


def attempt(module: EmulatedModule, seed: int) -> None:
    for case in CASES:
        case.run(module, seed=seed)


def test_every_statement_is_a_site() -> None:
    sites = list(mutations(text()))
    assert sync_functions(text()) == ("cp_async_commit", "cp_async_wait", "sync_block",
                                      "sync_warp")
    assert len(sites) == 11
    lines = text().splitlines()
    for site in sites:
        assert site.function in lines[site.line - 1]
        changed = [n for n, (a, b) in enumerate(zip(lines, site.text.splitlines(), strict=True), 1)
                   if a != b]
        assert changed == [site.line]


def test_every_deletion_is_caught() -> None:
    mutants = ((f"line {site.line} {site.function}", emulator.load(site.text))
               for site in mutations(text()))
    assert deletions.survivors(emulator.load(text()), mutants, attempt) == []


@pytest.mark.parametrize(("kernel", "sites"), [
    ("sync_block();", ["sync_block"]),
    ("if (x) cp_async_wait<0>();\nsync_warp ( ) ;", ["cp_async_wait", "sync_warp"]),
    ("// sync_block();\n/* sync_warp();\n sync_warp(); */ my_sync_block();", []),
])
def test_sites(kernel: str, sites: list[str]) -> None:
    from emulated import complete
    found: list[Mutation] = list(mutations(complete(kernel)))
    assert [m.function for m in found] == sites
