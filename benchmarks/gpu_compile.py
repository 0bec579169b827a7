"""GPU suite, part 2: compile the kernels of all later parts, on every core of the machine.

They land in the disk cache, so that the later parts spend their time on the device. A kernel that
spills, or whose assembler log has a remark, fails this part.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import attngen as ag
from attngen.backward import backward_plans
from attngen.compiler import Options, plan_for
from attngen.errors import ScheduleError
from attngen.runtime.device_kernel import DeviceKernel

from . import (
    gpu_backward,
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
    """One variant: rows read 16 bytes at a time, unless some call of it cannot."""

    name: str
    spec: ag.AttentionSpec
    dtype: str
    vectorized: bool = True
    fuse: bool = True
    schedule: dict[str, Any] | None = None
    packed: bool = False
    backward: bool = False


def jobs() -> Iterator[Job]:
    """Every variant of the later parts, those needed first coming first."""
    cases = gpu_forward.cases
    for name, case, fuse in gpu_forward.named():
        for vectorized in (True, False) if "layouts" in name else (True,):
            yield Job(name, case.spec, case.dtype, vectorized, fuse)
    for name, case in gpu_patterns.named("cpu"):
        yield Job(name, case.spec, case.dtype)
    for name, spec, dtype, vectorized in gpu_packed.variants():
        yield Job(name, spec, dtype, vectorized, packed=True)
    for case in gpu_backward.named("cpu"):
        yield Job(f"backward {case}", case.spec, case.dtype,
                  case.layout not in ("odd_rows", "unaligned"), backward=True)
    for problem in gpu_speed.problems():
        yield Job(str(problem), problem.spec(), "bfloat16")
    for masked in gpu_mask_speed.problems("cpu"):
        yield Job(masked.name, masked.spec(), "bfloat16")
    for problem, schedules in gpu_speed.trials():
        for schedule in schedules:
            yield Job(f"{problem} {schedule}", problem.spec(), "bfloat16", schedule=schedule)
    for seed in range(RANDOM_SPECS):
        drawn = cases.random_spec(random.Random(seed), gpu_forward.DTYPES)
        for vectorized in (True, False):
            yield Job(f"random {seed}", drawn.spec, drawn.dtype, vectorized, seed % 5 > 0)


def compiled(n: int) -> dict[str, Any]:
    """Job ``n`` in a worker process, as a row. It must not touch the device: the process it was
    forked from may have."""
    job = _JOBS[n]
    row: dict[str, Any] = {"name": f"{job.name} {job.dtype}", "ok": True, "wrong": []}
    options = Options(_TARGET, job.dtype, job.vectorized, job.fuse,
                      tuple(sorted((job.schedule or {}).items())), packed=job.packed)
    try:
        plans = backward_plans(job.spec, options).all() if job.backward else (
            plan_for(job.spec, options)[0],)
        for kernel in (k for plan in plans for k in plan.kernels):
            cubin = DeviceKernel(kernel).compiled()
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
    seen: dict[str, Job] = {}
    for job in jobs():
        seen.setdefault(repr(job[1:]), job)
    _JOBS[:] = seen.values()
    start = time.monotonic()
    done = 0
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        results = pool.imap_unordered(compiled, range(len(_JOBS)))
        while done < len(_JOBS):
            try:
                row = results.next(timeout=max(0.1, progress.left() - 2.0))
            except multiprocessing.TimeoutError:
                progress.note(f"out of time: {len(_JOBS) - done} of {len(_JOBS)} not compiled")
                break
            done += 1
            if row["wrong"] or "refused" in row:
                progress.add("kernels", row)
        pool.terminate()
    progress.put("compiled", {"variants": done, "seconds": round(time.monotonic() - start, 1)})


if __name__ == "__main__":
    gpu_part.main(part)
