"""Delete each synchronisation statement of a kernel: the emulator must object, every time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hand_attention import Case, text

from attngen.errors import EmulatorError
from attngen.runtime import emulator
from attngen.runtime.emulator import EmulatedModule
from attngen.runtime.emulator.mutate import Mutation, mutations, sync_functions

SEEDS = range(8)


def survivors(kernel: str, attempt: Callable[[EmulatedModule, int], object]) -> list[str]:
    """Mutations that some seed let pass. ``attempt`` runs a module with a seed, all cases that it
    takes to use every statement, and raises EmulatorError when one of them fails."""
    alive = []
    for mutation in mutations(kernel):
        module = emulator.load(mutation.text)
        missed = [seed for seed in SEEDS if _passes(module, attempt, seed)]
        if missed:
            alive.append(f"line {mutation.line}, {mutation.function}: seeds {missed}")
    return alive


def _passes(module: EmulatedModule, attempt: Callable[[EmulatedModule, int], object],
            seed: int) -> bool:
    try:
        attempt(module, seed)
    except EmulatorError:
        return False
    return True


# The second has blocks that see nothing, so that their copies are still under way at the end.
CASES = (Case(197, 197), Case(130, 60, causal=1))


def attempt(module: EmulatedModule, seed: int) -> None:
    for case in CASES:
        case.run(module, seed=seed)


def test_unchanged_kernel_passes() -> None:
    for seed in SEEDS:
        attempt(emulator.load(text()), seed)


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


def test_every_mutation_is_caught() -> None:
    assert survivors(text(), attempt) == []


@pytest.mark.parametrize(("kernel", "sites"), [
    ("sync_block();", ["sync_block"]),
    ("if (x) cp_async_wait<0>();\nsync_warp ( ) ;", ["cp_async_wait", "sync_warp"]),
    ("// sync_block();\n/* sync_warp();\n sync_warp(); */ my_sync_block();", []),
])
def test_sites(kernel: str, sites: list[str]) -> None:
    from emulated import complete
    found: list[Mutation] = list(mutations(complete(kernel)))
    assert [m.function for m in found] == sites
