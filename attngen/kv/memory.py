"""Memory of caches on a CPU."""

from __future__ import annotations

import math

import numpy as np
import torch

_LARGE = 2 * 2**20  # bytes of a large page


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """As ``torch.zeros``. On a CPU what is large lies in large pages where the system has some:
    decoding reads all of it every time, and with usual pages a tenth of that time goes into finding
    them. (numpy asks for them, torch does not.)"""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < 2 * _LARGE:
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = np.zeros(size + _LARGE, np.uint8)
    start = -memory.ctypes.data % _LARGE
    return torch.from_numpy(memory[start:start + size]).view(dtype).view(shape)
