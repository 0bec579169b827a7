"""Kernels with one synchronisation statement deleted, and those whose loss nobody notices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from attngen.errors import EmulatorError
from attngen.runtime.emulator.mutate import mutations
from attngen.runtime.plan import Plan

SEEDS = range(8)
Run = TypeVar("Run")


def of_plan(plan: Plan) -> Iterator[tuple[str, Plan]]:
    """Every deletion in every kernel: what it is, and the plan with it."""
    for n, kernel in enumerate(plan.kernels):
        for site in mutations(kernel.text):
            changed = kernel._replace(text=site.text)
            yield (f"{kernel.kind} line {site.line} {site.function}",
                   plan._replace(kernels=(*plan.kernels[:n], changed, *plan.kernels[n + 1:])))


def functions(plan: Plan) -> list[str]:
    """What can be deleted, by the functions called."""
    return [site.function for kernel in plan.kernels for site in mutations(kernel.text)]


def survivors(whole: Run, mutants: Iterable[tuple[str, Run]],
              attempt: Callable[[Run, int], None]) -> list[str]:
    """Mutants that some seed lets pass, the ``whole`` passing with every one. ``attempt`` runs one
    with a seed, all calls that it takes to use every statement, and raises EmulatorError when one
    of them fails."""
    for seed in SEEDS:
        attempt(whole, seed)
    return [f"{what}: seeds {missed}" for what, mutant in mutants
            if (missed := [seed for seed in SEEDS if _passes(mutant, attempt, seed)])]


def _passes(mutant: Run, attempt: Callable[[Run, int], None], seed: int) -> bool:
    try:
        attempt(mutant, seed)
    except EmulatorError:
        return False
    return True
