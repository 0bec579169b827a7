"""Delete each synchronisation statement of the backward kernels: the emulator must object."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial

import deletions
import forward_cases as cases
import pytest
import torch
from forward_cases import Case

from attngen import AttentionSpec, knobs, masks, reference
from attngen.backward import backward_plans
from attngen.compiler import Options
from attngen.runtime.backward import BackwardPlans, BackwardVariant, Saved
from attngen.runtime.dropout import Dropout
from attngen.runtime.operands import Heads
from attngen.runtime.positions import Positions
from attngen.runtime.variant import Problem

# At least three tiles along either axis, a last one cut short; then blocks that see nothing, rows
# here and columns there, whose copies would be under way at the end.
CALLS = (Case(heads=1, batch=1, causal=True, seqlen_q=230, seqlen_k=300),
         Case(heads=1, batch=1, causal=True, seqlen_q=230, seqlen_k=60),
         Case(heads=1, batch=1, causal=True, seqlen_q=60, seqlen_k=230, q_offset=0))
CYCLE = torch.arange(9) * 0.1
LEARNING = {"score": lambda s, b, h, i, j: s + CYCLE[(i - j) % 9]}
SKIPPING = {"mask": masks.sliding_window(70) | masks.attention_sinks(3)}
# dtype, 16-byte copies, head_dim, what else the spec says
KERNELS = {"bfloat16": ("bfloat16", True, 64, {}), "float32": ("float32", True, 64, {}),
           "bfloat16 scalar": ("bfloat16", False, 64, {}),
           "bfloat16 128": ("bfloat16", True, 128, {}),
           "bfloat16 256": ("bfloat16", True, 256, {}),
           "skipping": ("bfloat16", True, 64, SKIPPING),
           "dropout": ("bfloat16", True, 64, {}), "pairs": ("bfloat16", True, 64, LEARNING),
           "pairs float32": ("float32", True, 64, LEARNING),
           "float32 128": ("float32", True, 128, {})}
QUICK = ("bfloat16", "skipping")


@cache
def plans_of(name: str) -> BackwardPlans:
    dtype, vectorized, dim, more = KERNELS[name]
    spec = AttentionSpec(heads=1, head_dim=dim, causal=True, **more)  # type: ignore[arg-type]
    return backward_plans(spec, Options("sm_80", dtype, vectorized, dropout=name == "dropout"),
                          frozenset({"cycle"} if more is LEARNING else ()))


@cache
def problems(name: str) -> tuple[tuple[Saved, torch.Tensor, Problem], ...]:
    """What forward leaves, and the numbers of each call."""
    dtype, _, dim, more = KERNELS[name]
    spec = AttentionSpec(heads=1, head_dim=dim, causal=True, **more)  # type: ignore[arg-type]
    found = []
    for case in CALLS:
        data = cases.inputs(Case(**{**vars(case), "dtype": dtype, "head_dim": dim}))
        o, lse = reference.attention(spec, data.q, data.k, data.v, kv_offset=0, **data.where)
        shift = data.where.get("q_offset", case.seqlen_k - case.seqlen_q)
        where, drops = Positions(shift, 0, case.seqlen_k), Dropout(0.2, torch.tensor([3]))
        tables = {"dropout_seed": drops.seed} if name == "dropout" else {"cycle": CYCLE}
        found.append((Saved(data.q, data.k, data.v, o.to(data.q.dtype), lse.float()),
                      torch.ones_like(data.q), Problem(1, case.seqlen_q, case.seqlen_k,
                                                       where.numbers() | drops.numbers(), tables,
                                                       None, where)))
    return tuple(found)


def attempt(name: str, plans: BackwardPlans, seed: int) -> None:
    dim = KERNELS[name][2]
    variant = BackwardVariant(plans, Heads(1, 1, dim, dim), emulate=True, packed=False)
    for saved, dout, problem in problems(name):
        with knobs.scope(seed=seed):
            variant.run(saved, dout, None, problem)


def mutants(plans: BackwardPlans) -> Iterator[tuple[str, BackwardPlans]]:
    """Every deletion in every kernel: what it is, and the plans with it."""
    for what, plan in deletions.of_plan(plans.rows):
        yield what, plans._replace(rows=plan)
    for n, part in enumerate(plans.columns):
        for what, plan in deletions.of_plan(part):
            yield what, plans._replace(columns=(*plans.columns[:n], plan, *plans.columns[n + 1:]))
    if plans.pairs is not None:
        for what, plan in deletions.of_plan(plans.pairs):
            yield what, plans._replace(pairs=plan)


def survivors(name: str) -> list[str]:
    plans = plans_of(name)
    return deletions.survivors(plans, mutants(plans), partial(attempt, name))


@pytest.mark.parametrize("name", QUICK)
def test_every_deletion_is_caught(name: str) -> None:
    assert survivors(name) == []


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(set(KERNELS) - set(QUICK)))
def test_every_deletion_is_caught_in_the_other_kernels(name: str) -> None:
    assert survivors(name) == []


def test_the_kernels_have_something_to_delete() -> None:
    sites = [name for plan in plans_of("bfloat16").all() for name in deletions.functions(plan)]
    assert {"cp_async_commit", "cp_async_wait", "sync_block"} <= set(sites)
    assert not deletions.functions(plans_of("bfloat16").delta)
