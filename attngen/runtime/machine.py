"""What a measurement was made on, for the JSON beside it."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

from ..errors import AttngenError
from .targets import get_target, usable_cores

_PACKAGES = ("torch", "numpy", "cupy-cuda13x", "nvidia-cuda-nvrtc", "transformers", "triton")


def describe() -> dict[str, Any]:
    """Processor, cores, system, compilers, package versions and GPU (None without one)."""
    return {
        "cpu": get_target("cpu").board,
        "cores": usable_cores(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "cxx": _cxx(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "gpu": _gpu(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cxx() -> str | None:
    from . import cxx

    try:
        return cxx.compiler().version
    except AttngenError:
        return None


def _gpu() -> dict[str, Any] | None:
    import torch

    if not torch.cuda.is_available():
        return None
    device = torch.cuda.current_device()
    facts = torch.cuda.get_device_properties(device)
    return {
        "name": facts.name,
        "capability": f"{facts.major}.{facts.minor}",
        "multiprocessors": facts.multi_processor_count,
        "memory_bytes": facts.total_memory,
        "cuda": torch.version.cuda,
        "driver": _driver(),
    }


def _driver() -> str | None:
    from .device_kernel import import_cupy

    try:
        number = import_cupy().cuda.runtime.driverGetVersion()
    except AttngenError:
        return None
    return f"{number // 1000}.{number % 1000 // 10}"
