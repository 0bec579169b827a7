"""GPU suite, part 10: decoding from every kind of cache, first right, then fast."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from . import gpu_decode_cases, gpu_decode_speed, gpu_forward, gpu_part
from .gpu_part import Progress

_FOR_SPEED = 20.0  # seconds


def rehearse(attn: Any) -> None:
    """Everything this part asks of its attention, on tensors without memory."""
    for case in gpu_decode_cases.cases():
        gpu_decode_cases.attended(attn, case, "meta")
    for dtype in gpu_decode_cases.LIMIT:
        for stream in gpu_decode_cases.streams(dtype):
            stream.decoded(attn, "meta")
    token = gpu_decode_cases.newest(gpu_decode_cases.START, "meta")
    for kind in gpu_decode_cases.KINDS:
        gpu_decode_cases.step(attn, gpu_decode_cases.started(attn, kind, "meta"), token)
    for shape in gpu_decode_speed.shapes():
        q, caches = gpu_decode_speed.operands(attn, shape, "meta")
        for cache in caches.values():
            attn.decode(q, cache)


def part(progress: Progress) -> None:
    """Right first, then fast, while time is left."""
    attn = gpu_forward.compiled(gpu_decode_cases.SPEC, True)
    with torch.no_grad():
        for name, run in gpu_decode_cases.SPECIAL.items():
            found = gpu_forward.guarded(partial(run, attn))
            progress.add("device", {"name": name, "ok": not found, "complaints": found})
        gpu_forward.judge_all(
            progress, ((case, case) for case in gpu_decode_cases.cases()),
            lambda here, there: gpu_decode_cases.check(attn, there), _FOR_SPEED)
        gpu_decode_speed.part(progress, attn)


if __name__ == "__main__":
    gpu_part.main(part)
