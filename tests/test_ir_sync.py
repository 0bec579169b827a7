"""The copy ring and the judge of its synchronisation: nothing may be missing, nothing too much."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import product

import pytest
from ir_problem import only, placed, schedule

from attngen.errors import VerifyError
from attngen.ir import sync
from attngen.ir.stmt import (
    Barrier,
    Commit,
    Issue,
    Kernel,
    Load,
    Loop,
    Stmt,
    Wait,
    rewrite_body,
    statements,
)
from attngen.ir.sync import minimise, sync_problem
from attngen.ir.verify import verify
from attngen.spec import AttentionSpec

SPEC = AttentionSpec(heads=1, head_dim=16, head_dim_v=32, causal=True)
RINGS = list(product((1, 2, 3), repeat=2)) + [(4, 1), (4, 3), (2, 4)]
VARIANTS = [(engine, fused, stages, width) for engine, narrow in (("mma", 2), ("simt", 4))
            for fused in (True, False) for stages in RINGS for width in (16, narrow)]


@cache
def kernels(engine: str, fused: bool, stages: tuple[int, int], width: int) -> tuple[Kernel, ...]:
    plan = schedule(engine, 16, 16, stages, vector_bytes=width)
    return placed(SPEC, engine, fused, plan=plan).tiles


def every_kernel() -> Iterator[Kernel]:
    for variant in VARIANTS:
        yield from kernels(*variant)


def without(kernel: Kernel, number: int) -> Kernel:
    """The kernel less its statement ``number`` in program order."""
    target = list(statements(kernel.body))[number]
    count = -1

    def change(stmt: Stmt) -> tuple[Stmt, ...]:
        nonlocal count
        count += isinstance(stmt, type(target)) and stmt == target
        return () if stmt == target and count == same_before else (stmt,)

    same_before = sum(s == target for s in list(statements(kernel.body))[:number])
    return replace(kernel, body=rewrite_body(kernel.body, change))


def syncs(kernel: Kernel) -> list[int]:
    return [n for n, s in enumerate(statements(kernel.body))
            if isinstance(s, Barrier | Wait | Commit)]


def test_placed_kernels_are_synchronised() -> None:
    found = [sync_problem(k) for k in every_kernel()]
    assert found == [None] * len(found) and len(found) > 100


def test_every_synchronisation_statement_is_needed() -> None:
    """None can be deleted, so none was left in for nothing; and the verifier objects to each."""
    count = 0
    for kernel in every_kernel():
        for number in syncs(kernel):
            assert sync_problem(without(kernel, number)) is not None, (kernel.schedule, number)
            count += 1
        assert minimise(kernel) == kernel
    assert count > 500


def test_no_wait_can_wait_for_less() -> None:
    for kernel in every_kernel():
        for number, stmt in enumerate(statements(kernel.body)):
            if isinstance(stmt, Wait):
                weaker = replaced(kernel, number, replace(stmt, pending=stmt.pending + 1))
                assert sync_problem(weaker) is not None, (kernel.schedule, number)


def replaced(kernel: Kernel, number: int, new: Stmt) -> Kernel:
    """The kernel with another statement ``number`` (loops are not replaced)."""
    count = iter(range(10**6))

    def visit(body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        out = []
        for stmt in body:
            mine = next(count)
            inner = replace(stmt, body=visit(stmt.body)) if isinstance(stmt, Loop) else stmt
            out.append(new if mine == number else inner)
        return tuple(out)

    return replace(kernel, body=visit(kernel.body))


def test_a_block_barrier_cannot_become_a_warp_barrier() -> None:
    for kernel in every_kernel():
        for number, stmt in enumerate(statements(kernel.body)):
            if stmt == Barrier("block"):
                assert sync_problem(replaced(kernel, number, Barrier("warp"))) is not None


def test_an_issue_cannot_move_before_the_barrier_that_frees_its_slot() -> None:
    count = 0
    for kernel in every_kernel():
        for loop in (s for s in kernel.body if isinstance(s, Loop)):
            for position, stmt in enumerate(loop.body):
                if not isinstance(stmt, Issue):
                    continue
                barrier = max(n for n, s in enumerate(loop.body[:position])
                              if isinstance(s, Barrier))
                body = (*loop.body[:barrier], stmt, *loop.body[barrier:position],
                        *loop.body[position + 1:])
                moved = replace(kernel, body=tuple(
                    replace(loop, body=body) if s is loop else s for s in kernel.body))
                assert "is overwritten while other warps may read it" in str(
                    sync_problem(moved)), (kernel.schedule, stmt)
                count += 1
    assert count > 100


def test_a_copy_that_runs_too_far_ahead_is_found() -> None:
    for kernel in every_kernel():
        for number, stmt in enumerate(statements(kernel.body)):
            if isinstance(stmt, Issue) and stmt.ahead is not None:
                wrong = replaced(kernel, number, replace(stmt, ahead=stmt.ahead + 1))
                assert sync_problem(wrong) is not None, (kernel.schedule, stmt)


def test_longer_runs_find_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven trip counts decide: what passes them passes thirty."""
    passed = []
    for kernel in every_kernel():
        mutants = [replaced(kernel, n, replace(s, ahead=s.ahead + delta))
                   for n, s in enumerate(statements(kernel.body)) if isinstance(s, Issue)
                   and s.ahead is not None for delta in (1, 2)]
        passed += [k for k in (kernel, *mutants) if sync_problem(k) is None]
    monkeypatch.setattr(sync, "_TRIPS", range(30))
    assert [sync_problem(k) for k in passed] == [None] * len(passed)


def test_what_the_judge_says() -> None:
    kernel = only(placed(SPEC, plan=schedule("mma", 16, 16, (2, 1))))
    said = {type(list(statements(kernel.body))[n]).__name__: sync_problem(without(kernel, n))
            for n in syncs(kernel)}
    assert said["Wait"] == "v_tile is read while flying (1 tiles)"
    assert said["Barrier"] == "v_tile is read while arrived (1 tiles)"
    assert said["Commit"] == "v_tile is read while flying (1 tiles)"
    number = next(n for n in syncs(kernel) if isinstance(list(statements(kernel.body))[n], Wait))
    with pytest.raises(VerifyError, match="forward: q_tile is read while flying"):
        verify(replace(placed(SPEC, plan=schedule("mma", 16, 16, (2, 1))),
                       kernels=(without(kernel, number),)))


# -- what the ring looks like -------------------------------------------------------------------


def shape(body: tuple[Stmt, ...]) -> list[str]:
    """The asynchronous part of a body in short."""
    out: list[str] = []
    for s in body:
        match s:
            case Issue(dst=d, ahead=n):
                out.append(f"{d[0]}{'' if n is None else n}")
            case Commit() | Barrier():
                out.append(type(s).__name__.lower())
            case Wait(pending=n):
                out.append(f"wait {n}")
    return out


def loop_of(kernel: Kernel) -> Loop:
    return next(s for s in kernel.body if isinstance(s, Loop))


@pytest.mark.parametrize(("stages", "before", "inside"), [
    ((2, 1), ["q", "k0", "commit", "k1", "commit"],
     ["wait 1", "barrier", "v0", "commit", "wait 0", "barrier", "k2"]),
    ((1, 1), ["q", "k0", "commit"],
     ["wait 0", "barrier", "v0", "commit", "wait 0", "barrier", "k1", "commit"]),
    ((2, 2), ["q", "k0", "v0", "commit"],
     ["wait 0", "barrier", "k1", "v1", "commit"]),
])
def test_rings(stages: tuple[int, int], before: list[str], inside: list[str]) -> None:
    kernel = only(placed(SPEC, plan=schedule("mma", 16, 16, stages)))
    assert (shape(kernel.body), shape(loop_of(kernel).body)) == (before, inside)


def test_no_load_into_shared_memory_is_left_synchronous() -> None:
    for kernel in every_kernel():
        shared = {v.name for v in kernel.values if v.space == "shared"}
        assert not any(isinstance(s, Load) and s.dst in shared for s in statements(kernel.body))


def test_narrow_copies_need_barriers_only() -> None:
    for engine, fused, stages, width in VARIANTS:
        for kernel in kernels(engine, fused, stages, width):
            kinds = {type(s) for s in statements(kernel.body)}
            assert bool(kinds & {Wait, Commit}) == (width == 16 and Issue in kinds)
