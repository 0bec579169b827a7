"""GPU suite, part 1: which device, driver, libraries; and the speeds it reaches at its best."""

from __future__ import annotations

import subprocess
from typing import Any

from . import gpu_part, record
from .gpu_part import Progress

_QUERY = ("name", "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.limit",
          "temperature.gpu", "utilization.gpu")


def why_not() -> str:
    """Why nothing can run on a GPU here; empty when it can."""
    try:
        import torch
    except ImportError as problem:
        return f"torch cannot be imported: {problem}"
    if not torch.cuda.is_available():
        built = "is built without CUDA" if torch.version.cuda is None else "sees no CUDA device"
        return f"torch {torch.__version__} {built}"
    from attngen.runtime.targets import target_for

    capability = torch.cuda.get_device_capability()
    if target_for(capability) is None:
        return f"{torch.cuda.get_device_name()} has compute capability {capability}: no target"
    return ""


def device_facts() -> dict[str, Any]:
    """Of torch's current device."""
    import torch

    at = torch.cuda.get_device_properties(torch.cuda.current_device())
    facts = {"name": at.name, "capability": [at.major, at.minor],
             "multiprocessors": at.multi_processor_count, "memory": at.total_memory,
             "l2": at.L2_cache_size, "torch_cuda": torch.version.cuda,
             "cudnn": torch.backends.cudnn.version()}
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=20)
        values = done.stdout.strip().splitlines()[0].split(", ") if done.stdout else []
        facts["nvidia_smi"] = dict(zip(_QUERY, values, strict=False))
    except (OSError, subprocess.TimeoutExpired) as problem:
        facts["nvidia_smi"] = {"problem": str(problem)}
    return facts


def ceilings() -> dict[str, float]:
    """Bytes/s of a large copy (read and written) and FLOP/s of a large bf16 product."""
    import torch

    from attngen.runtime import timing

    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_()
    sink = torch.empty_like(source)
    n = 8192
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = timing.compare({"copy": lambda: sink.copy_(source), "product": lambda: a @ b},
                           cuda=True, rounds=11)
    return {"bytes_per_s": 2 * source.numel() / times["copy"].median,
            "bf16_flop_per_s": 2 * n**3 / times["product"].median}


def environment(progress: Progress) -> None:
    """Facts about machine, device and libraries."""
    from attngen.runtime import nvrtc
    from attngen.runtime.device_kernel import import_cupy
    from attngen.runtime.targets import default_target

    progress.put("machine", record.machine())
    progress.put("nvrtc", {"library": str(nvrtc.library()), "version": list(nvrtc.version())})
    reason = why_not()
    progress.put("available", not reason)
    progress.put("why_not", reason)
    if reason:
        return
    progress.put("device", device_facts())
    progress.put("target", default_target().name)
    cupy = import_cupy()
    progress.put("cupy", {"version": cupy.__version__,
                          "driver": cupy.cuda.runtime.driverGetVersion()})
    progress.put("ceilings", ceilings())


if __name__ == "__main__":
    gpu_part.main(environment)
