"""GPU suite, part 2: compile the kernels of all later parts, on every core of the machine.

They land in the disk cache, so that the later parts spend their time on the device. A kernel that
spills, or whose assembler log has a remark, fails this part.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import attngen as ag
from attngen.attention import Attention
from attngen.backward import backward_plans
from attngen.compiler import Options, plan_for
from attngen.errors import ScheduleError
from attngen.runtime.captured import Captured
from attngen.runtime.device_kernel import DeviceKernel
from attngen.runtime.plan import Plan, TensorArg
from attngen.runtime.variant import Kind

from . import (
    gpu_backward,
    gpu_decode,
    gpu_decode_cases,
    gpu_forward,
    gpu_mask_speed,
    gpu_packed,
    gpu_part,
    gpu_patterns,
    gpu_speed,
)
from .gpu_part import Progress

RANDOM_SPECS = 60


class Job(NamedTuple):
    """One variant, of ``phase`` "forward" or "backward", or what is done to a cache ("append").
    Its rows are read 16 bytes at a time, unless some call of it cannot."""

    name: str
    spec: ag.AttentionSpec
    kind: Kind
    phase: str = "forward"
    fuse: bool = True
    schedule: dict[str, Any] | None = None


# -- what later parts need ------------------------------------------------------------------------


def _forward() -> Iterator[Job]:
    for name, case, fuse in gpu_forward.named():
        for vectorized in (True, False) if "layouts" in name else (True,):
            yield Job(name, case.spec, Kind(case.dtype, vectorized), fuse=fuse)


def _patterns() -> Iterator[Job]:
    for name, case in gpu_patterns.named("cpu"):
        yield Job(name, case.spec, Kind(case.dtype))


def _packed() -> Iterator[Job]:
    for name, spec, dtype, vectorized in gpu_packed.variants():
        yield Job(name, spec, Kind(dtype, vectorized, packed=True))


def _backward() -> Iterator[Job]:
    for case in gpu_backward.named("cpu"):
        kind = Kind(case.dtype, case.layout not in ("odd_rows", "unaligned"))
        yield Job(f"backward {case}", case.spec, kind, "backward")


def _speed() -> Iterator[Job]:
    for problem in gpu_speed.problems():
        yield Job(str(problem), problem.spec(), Kind("bfloat16"))


def _mask_speed() -> Iterator[Job]:
    for masked in gpu_mask_speed.problems("cpu"):
        yield Job(masked.name, masked.spec(), Kind("bfloat16"))


def _decode() -> Iterator[Job]:
    for phase, kind in asked(gpu_decode_cases.SPEC, gpu_decode.rehearse):
        how = ", ".join(f"{n} {x}" for n, x in {**kind._asdict(), **kind.cached._asdict()}.items()
                        if x and n not in ("dtype", "vectorized", "cached"))
        yield Job(f"{phase} {how}", gpu_decode_cases.SPEC, kind, phase)


def _trials() -> Iterator[Job]:
    for problem, schedules in gpu_speed.trials():
        for schedule in schedules:
            yield Job(f"{problem} {schedule}", problem.spec(), Kind("bfloat16"), schedule=schedule)


def _random() -> Iterator[Job]:
    for seed in range(RANDOM_SPECS):
        drawn = gpu_forward.cases.random_spec(random.Random(seed), gpu_forward.DTYPES)
        for vectorized in (True, False):
            yield Job(f"random {seed}", drawn.spec, Kind(drawn.dtype, vectorized),
                      fuse=seed % 5 > 0)


# By the part that runs them, those needed most coming first.
NEEDED: tuple[tuple[str, Callable[[], Iterator[Job]]], ...] = (
    ("forward", _forward), ("patterns", _patterns), ("packed", _packed), ("backward", _backward),
    ("speed", _speed), ("mask_speed", _mask_speed), ("decode", _decode), ("speed", _trials),
    ("forward", _random))


def jobs(parts: tuple[str, ...] = ()) -> list[Job]:
    """Every variant of those parts, or of all, once."""
    seen: dict[str, Job] = {}
    for part_name, needed in NEEDED:
        if part_name in parts or not parts:
            for job in needed():
                seen.setdefault(repr(job[1:]), job)
    return list(seen.values())


def asked(spec: ag.AttentionSpec, use: Callable[[Any], None]) -> list[tuple[str, Kind]]:
    """(phase, kind) of everything that ``use`` runs on the attention it is given, which runs
    nothing: its plans have no kernels, so they take any tensors."""
    found: dict[tuple[str, Kind], None] = {}
    q, lse = (TensorArg(name, ("b",), "float32", "output") for name in ("q", "lse"))
    nothing = Plan(None, _TARGET, "forward", (q, lse), (), {}, {})

    def of_call(kind: Kind) -> tuple[Plan, Captured]:
        found["forward", kind] = None
        return nothing, Captured()

    def of_cache(name: str, kind: Kind) -> Plan:
        found[name, kind] = None
        return nothing

    def of_gradients(kind: Kind, wanted: frozenset[str]) -> Any:
        raise AssertionError("nothing is trained here")

    use(Attention(spec, _TARGET, True, of_call, of_gradients, of_cache, SimpleNamespace()))
    return list(found)


# -- compiling ------------------------------------------------------------------------------------


def _plans(job: Job) -> tuple[Plan, ...]:
    options = Options(_TARGET, fuse=job.fuse, schedule=tuple(sorted((job.schedule or {}).items())),
                      **job.kind._asdict())
    if job.phase == "forward":
        return (plan_for(job.spec, options)[0],)
    if job.phase == "backward":
        return backward_plans(job.spec, options).all()
    return (ag.compile(job.spec, _TARGET).cache_plan(job.phase, job.kind),)


def compiled(n: int) -> dict[str, Any]:
    """Job ``n`` in a worker process, as a row. It must not touch the device: the process it was
    forked from may have."""
    job = _JOBS[n]
    row: dict[str, Any] = {"name": f"{job.name} {job.kind.dtype}", "ok": True, "wrong": [],
                           "new": 0}
    try:
        for kernel in (k for plan in _plans(job) for k in plan.kernels):
            cubin = DeviceKernel(kernel).compiled()
            row["new"] += not cubin.cached
            row["wrong"] += [f"{kernel.name}: {line}" for line in cubin.remarks]
            row["wrong"] += [f"{name}: {used}" for name, used in cubin.resources.items()
                             if used.spill_loads or used.spill_stores]
    except ScheduleError as refused:
        return row | {"refused": str(refused)[:200]}
    except Exception as problem:  # a row of the report, like any other
        row["wrong"].append(f"{type(problem).__name__}: {problem}"[:1000])
    # What is tried on purpose may be a bad idea.
    return row | {"ok": not row["wrong"] or job.schedule is not None}


_JOBS: list[Job] = []
_TARGET = ""


def part(progress: Progress) -> None:
    """All of them while time is left."""
    from attngen.runtime.targets import default_target

    global _TARGET
    _TARGET = default_target().name
    _JOBS[:] = jobs(progress.parts)
    start = time.monotonic()
    done = new = 0
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        results = pool.imap_unordered(compiled, range(len(_JOBS)))
        while done < len(_JOBS):
            try:
                row = results.next(timeout=max(0.1, progress.left() - 2.0))
            except multiprocessing.TimeoutError:
                progress.note(f"out of time: {len(_JOBS) - done} of {len(_JOBS)} not compiled")
                break
            done, new = done + 1, new + row["new"]
            if row["wrong"] or "refused" in row:
                progress.add("kernels", row)
        pool.terminate()
    progress.put("compiled", {"variants": done, "new_kernels": new,
                              "seconds": round(time.monotonic() - start, 1)})


if __name__ == "__main__":
    gpu_part.main(part)
