"""A placed kernel in, a complete C++ source and everything needed to call it out."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from ..errors import VerifyError
from ..ir.evaluated import calls
from ..ir.stmt import Kernel
from .device import BEGIN, END
from .environment import render_template
from .render import RenderedKernel, launch_grid
from .view_cpu import cpu_fields, view_cpu

# Files of the device layer, each may use those before it.
_LAYER = ("types", "math", "tiles", "matrix")


def render_cpu(kernel: Kernel) -> RenderedKernel:
    """The C++ source of a placed kernel, device layer included, the same bytes every time. Its
    entry is ``void entry(const Params*, int threads)``.

    Raises VerifyError for a kernel that is not placed or holds what CPU kernels cannot,
    ScheduleError for tiles the lanes or the stack do not take, and TemplateError when a template
    fails.
    """
    if kernel.stage != "placed" or kernel.schedule.engine != "cpu":
        raise VerifyError(f"{kernel.name} is {kernel.stage} for engine {kernel.schedule.engine}: "
                          "place it for cpu first")
    view = view_cpu(kernel)
    files = ["few_rows"] if kernel.schedule.lanes == "columns" else []
    files += ["table"] if kernel.tables else []
    layer = device_layer((*files, *(["philox"] if calls(kernel, "uniform") else ())))
    text = layer + "\n" + render_template("cpu/kernel.cpp.jinja", k=view)
    grid = launch_grid(kernel, (kernel.keep, kernel.head, "b"))
    return RenderedKernel(view.entry, text, cpu_fields(kernel), grid, 1, 0)


@cache
def device_layer(more: tuple[str, ...] = ()) -> str:
    """The text every CPU kernel starts with, and the files only some need: "table" for captured
    tensors, "philox" for dropout, "few_rows" where columns are the lanes."""
    layer = (*_LAYER, *more)
    folder = Path(__file__).parent / "device" / "cpu"
    parts = [f"// -- device/cpu/{name}\n{(folder / f'{name}.h').read_text()}" for name in layer]
    return "\n".join([BEGIN, *parts, END]) + "\n"
