"""The machines kernels are made for, with their limits and their peak rates.

Limits per compute capability are from the CUDA C++ Programming Guide, table "Technical
Specifications per Compute Capability". Peak rates are one named board's, from its maker's data
sheet or architecture white paper (dense, without sparsity), and serve reports only: no kernel's
text depends on them.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from ..errors import NotDeliveredError, UnknownTargetError


class Target(NamedTuple):
    """One machine. Sizes in bytes, ``matrix_flops`` (16-bit inputs, float32 sums) and
    ``scalar_flops`` (float32) in FLOP/s, ``bandwidth`` of device memory in bytes/s."""

    name: str
    family: Literal["cpu", "sm"]
    arch: str  # what the compiler is told: "sm_80", or the host's architecture
    board: str  # whose rates these are
    shared_limit: int  # shared memory one block may have; on the cpu, what a core's L2 holds
    shared_per_sm: int
    registers: int  # 32-bit registers per multiprocessor
    registers_per_thread: int
    threads_per_sm: int
    sms: int  # multiprocessors of the board, or cores
    matrix_flops: float
    scalar_flops: float
    bandwidth: float
    dtypes: tuple[str, ...]
    mma: bool = False  # mma.sync and ldmatrix on 16-bit operands
    cp_async: bool = False
    fp8: bool = False  # e4m3 operands of mma.sync

    @property
    def capability(self) -> int:
        """Compute capability as 10 * major + minor, 0 for the cpu."""
        return int(self.arch.removeprefix("sm_")) if self.family == "sm" else 0

    def runs_on(self, capability: int) -> bool:
        """Whether machine code for this target loads on a device of this compute capability:
        the same major version and at least the same minor one."""
        return (self.family == "sm" and capability // 10 == self.capability // 10
                and capability >= self.capability)


_GPU_DTYPES = ("float32", "float16", "bfloat16")
_KB = 1024


def _sm(number: int, board: str, shared: int, threads: int, sms: int, matrix: float,
        scalar: float, bandwidth: float) -> Target:
    """``shared`` in KiB per multiprocessor (a block may have all but one), rates in TFLOP/s and
    GB/s. All have 64 Ki registers and at most 255 a thread."""
    return Target(
        name=f"sm_{number}", family="sm", arch=f"sm_{number}", board=board,
        shared_limit=(shared - 1) * _KB, shared_per_sm=shared * _KB, registers=65536,
        registers_per_thread=255, threads_per_sm=threads, sms=sms, matrix_flops=matrix * 1e12,
        scalar_flops=scalar * 1e12, bandwidth=bandwidth * 1e9, dtypes=_GPU_DTYPES, mma=True,
        cp_async=True, fp8=number >= 89)


_GPUS: dict[str, Target] = {t.name: t for t in (
    # A100 data sheet (80 GB SXM).
    _sm(80, "A100 SXM 80GB", 164, 2048, 108, 312.0, 19.5, 2039),
    # GA102 white paper, GeForce RTX 3090, float16 with float32 accumulation.
    _sm(86, "RTX 3090", 100, 1536, 82, 71.0, 35.6, 936),
    # Ada white paper, GeForce RTX 4090, float16 with float32 accumulation.
    _sm(89, "RTX 4090", 100, 1536, 128, 165.2, 82.6, 1008),
    # H200 data sheet (SXM; halved from the figure with sparsity). Reached by wgmma, which these
    # kernels do not use: mma.sync stays well below it.
    _sm(90, "H200 SXM", 228, 2048, 132, 989.0, 67.0, 4800),
    # HGX B200 data sheet divided by eight GPUs.
    _sm(100, "B200", 228, 2048, 148, 2250.0, 75.0, 8000),
    # RTX Blackwell white paper, GeForce RTX 5090, float16 with float32 accumulation.
    _sm(120, "RTX 5090", 100, 1536, 170, 209.5, 104.8, 1792),
)}

NAMES: tuple[str, ...] = ("cpu", *_GPUS)


@cache
def get_target(name: str) -> Target:
    """The target of that name. Raises UnknownTargetError (with the nearest name), or
    NotDeliveredError for ``sm_90a``, whose instructions no kernel uses yet."""
    if name == "cpu":
        return _cpu()
    if name == "sm_90a":
        raise NotDeliveredError("target 'sm_90a' (wgmma, TMA) is not available in this version of "
                                "attngen", remedy="Use 'sm_90', which runs on the same GPUs.")
    if name not in _GPUS:
        raise UnknownTargetError(str(name), NAMES)
    return _GPUS[name]


def target_for(capability: tuple[int, int]) -> Target | None:
    """The best target whose code a device of this compute capability runs, or None."""
    number = capability[0] * 10 + capability[1]
    fitting = [t for t in _GPUS.values() if t.runs_on(number)]
    return max(fitting, key=lambda t: t.capability) if fitting else None


def default_target(device: int | None = None) -> Target:
    """The CUDA device's target where torch sees a supported one, else ``cpu``."""
    import torch

    if torch.cuda.is_available():
        found = target_for(torch.cuda.get_device_capability(device))
        if found is not None:
            return found
    return get_target("cpu")


def cpu_flags() -> tuple[str, ...]:
    """Vendor, family, model and instruction sets of this machine's first processor, sorted: what
    ``-march=native`` depends on."""
    wanted = {"vendor_id", "cpu family", "model", "model name", "flags",
              "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features"}
    found = [" ".join((key, *sorted(value.split()))) for key, value in _first_processor()
             if key in wanted]
    return tuple(sorted(found)) or (platform.machine(), platform.processor())


def _first_processor() -> Iterable[tuple[str, str]]:
    """Key and value of each line of /proc/cpuinfo up to the first blank one; the file grows with
    the cores and is slow to make, so no more of it is asked for."""
    try:
        with Path("/proc/cpuinfo").open() as lines:
            for line in lines:
                if not line.strip():
                    return
                key, _, value = line.partition(":")
                yield key.strip(), value.strip()
    except OSError:
        return


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu() -> Target:
    """This machine. Rates are nominal: cores x clock x the FLOP per cycle of its vectors (two
    fused multiply-adds), and two DDR4-3200 channels."""
    facts = dict(_first_processor())
    flags = facts.get("flags", "").split()
    lanes = 16 if "avx512f" in flags else 8 if "avx2" in flags else 4
    clock = float(facts.get("cpu MHz") or 2500) * 1e6
    cores = usable_cores()
    peak = cores * clock * lanes * 4
    return Target(
        name="cpu", family="cpu", arch=platform.machine(),
        board=facts.get("model name") or platform.machine(), shared_limit=512 * _KB,
        shared_per_sm=512 * _KB, registers=32 * lanes, registers_per_thread=32 * lanes,
        threads_per_sm=1, sms=cores, matrix_flops=peak, scalar_flops=peak, bandwidth=51.2e9,
        dtypes=("float64", *_GPU_DTYPES))
