"""The passes of the pipeline as ``Graph -> Graph`` functions, and how each one is run.

After every pass the stage's invariants are checked (``ATTNGEN_VERIFY`` ≥ 1) and, at level 2, the
graph is interpreted before and after on small random inputs and the results compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from .algebra import FOLD, REBASE
from .graph import Graph
from .logic import normal_form
from .node import interning
from .rewrite import Rule, rewrite
from .show import diff, graph_text
from .verify import verify


@dataclass(frozen=True)
class PassRecord:
    """What one pass did: the graphs' text before and after, and its time."""

    name: str
    before: str
    after: str
    milliseconds: float

    @property
    def changes(self) -> str:
        """A unified diff; empty when nothing changed."""
        return diff(self.before, self.after)


def _rewritten(graph: Graph, rules: tuple[Rule, ...]) -> Graph:
    before = [n for r in graph.regions for n in r.roots]
    with interning(*before):
        roots = rewrite(before, rules)
    rest = iter(roots)
    return graph.with_regions(tuple(r.with_roots(islice(rest, len(r.outputs)))
                                    for r in graph.regions))


def canonicalise(graph: Graph) -> Graph:
    """Fold constants, drop identities, turn negated comparisons round, masks in normal form.

        (x·2)·3 + 0   →   x·6;      ~(k > q)   →   k <= q;      (a ∧ b) ∨ (a ∧ c)   →   a ∧ (b ∨ c)
    """
    return _rewritten(graph, (*FOLD, normal_form))


def rebase(graph: Graph) -> Graph:
    """Exponentials in base 2, the scale folded into one multiply-add per score.

        m = max(s·c);  exp(s·c − m)   →   m' = max(s);  exp2(s·c' − m'·c'),  c' = c·log2(e)
    """
    return _rewritten(graph, REBASE)


def run_pass(name: str, step: Callable[[Graph], Graph], graph: Graph, level: int = 1,
             trace: list[PassRecord] | None = None) -> Graph:
    """Run one pass, verify its result, and record it when asked.

    Raises VerifyError when the result breaks an invariant of its stage, or (level 2) when it
    computes something else than before.
    """
    start = time.perf_counter()
    result = step(graph)
    elapsed = (time.perf_counter() - start) * 1e3
    if level >= 1:
        verify(result)
    if level >= 2:
        from .validate import check_same
        check_same(name, graph, result)
    if trace is not None:
        trace.append(PassRecord(name, graph_text(graph), graph_text(result), elapsed))
    return result
