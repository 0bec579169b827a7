"""GPU suite, part 3: every function of the device layer, on the device and in the emulator.

Same text, same words in, answers compared bit by bit (a few units in the last place where the
hardware approximates). What the device answered is kept, so that machines without a GPU can hold
their emulator against real hardware: ``replay``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from . import gpu_part, primitives
from .gpu_part import Progress
from .primitives import PRIMITIVES, Primitive, Words


def on_device(primitive: Primitive, given: Words) -> Words:
    """The device's answers."""
    import torch

    from attngen.runtime.device_kernel import DeviceKernel
    from attngen.runtime.launch import Call
    from attngen.runtime.plan import KernelPlan
    from attngen.runtime.targets import default_target

    source = torch.from_numpy(given.view(np.int32)).cuda()
    sink = torch.from_numpy(primitives.outputs(primitive).view(np.int32)).cuda()
    plan = KernelPlan(f"check_{primitive.name}", "check", "cuda", default_target().name,
                      primitives.text(), (), (), (), {}, threads=primitive.threads,
                      shared_bytes=primitive.shared)
    packed = primitives.params(primitive, source.data_ptr(), sink.data_ptr())
    DeviceKernel(plan).launch(packed, primitive.grid, Call({}, {}, {}, None, 1))
    torch.cuda.synchronize()
    return sink.cpu().numpy().view(np.uint32)


def save_golden(file: Path, answers: dict[str, tuple[Words, Words]]) -> None:
    """Inputs and device answers by primitive, as an ``.npz`` file."""
    arrays: dict[str, Any] = {}
    for name, (given, answer) in answers.items():
        arrays[f"{name}.in"], arrays[f"{name}.out"] = given, answer
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file, **arrays)


def replay(file: Path) -> dict[str, str]:
    """Give the emulator a golden file's inputs; how its answers differ from the device's, by
    primitive ("" where they agree)."""
    found = {}
    with np.load(file) as golden:
        for name in sorted({key.rpartition(".")[0] for key in golden.files}):
            ours = primitives.emulated(PRIMITIVES[name], golden[f"{name}.in"])
            found[name] = primitives.differences(PRIMITIVES[name], golden[f"{name}.out"], ours)
    return found


def part(progress: Progress) -> None:
    """Every primitive on the device against the emulator."""
    answers = {}
    for name, primitive in PRIMITIVES.items():
        if progress.left() < 2.0:
            progress.note(f"out of time before {name}")
            break
        given = primitive.inputs()
        real, ours = on_device(primitive, given), primitives.emulated(primitive, given)
        difference = primitives.differences(primitive, real, ours)
        answers[name] = (given, real)
        progress.add("primitives", {"name": name, "ok": not difference, "difference": difference,
                                    "same_bits": bool((real == ours).all())})
    golden = progress.file.with_suffix(".npz")
    save_golden(golden, answers)
    progress.put("golden", golden.name)


if __name__ == "__main__":
    gpu_part.main(part)
