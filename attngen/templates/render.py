"""A placed kernel in, a complete CUDA source and everything needed to launch it out."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import VerifyError
from ..ir.evaluated import calls
from ..ir.ops import EIGHT_BIT
from ..ir.stmt import Kernel
from .abi import Pairs, params_fields
from .block_order import block_order
from .device import device_text
from .environment import render_template
from .geometry import SIZE
from .view import view_cuda


@dataclass(frozen=True)
class RenderedKernel:
    """Source text and how to launch it. ``fields`` are the members of ``Params`` as (name, type),
    type one of "pointer", "int64", "int32", "float32". ``grid`` gives, for x, y and z, the name of
    the extent, the tile that covers it, and the size that says how many blocks are counted for
    each tile ("": one). ``shared_bytes`` is dynamic shared memory."""

    entry: str
    text: str
    fields: Pairs
    grid: tuple[tuple[str, int, str], ...]
    threads: int
    shared_bytes: int


# Extents of grid axes, by the name the host knows them under.
_EXTENT = {"b": "batch", "h": "heads", "g": "groups", **SIZE}


def render_cuda(kernel: Kernel, target: str) -> RenderedKernel:
    """The CUDA source of a placed kernel, device layer included, the same bytes every time.

    Raises VerifyError for a kernel that is not placed or holds what CUDA kernels cannot, and
    TemplateError when a template fails.
    """
    if kernel.stage != "placed" or kernel.schedule.engine not in ("mma", "simt"):
        raise VerifyError(f"{kernel.name} is {kernel.stage} for engine {kernel.schedule.engine}: "
                          "place it for mma or simt first")
    view = view_cuda(kernel, target)
    own = _used_constants(render_template("cuda/kernel.cu.jinja", k=view))
    text = device_text(_files(kernel)) + "\n" + own
    return RenderedKernel(view.entry, text, params_fields(kernel),
                          launch_grid(kernel, block_order(kernel).axes),
                          32 * kernel.schedule.warps, kernel.shared_bytes)


def _used_constants(text: str) -> str:
    """The text without constants that nothing in it names: not every kernel multiplies."""
    for name in re.findall(r"^constexpr int (\w+) = ", text, re.MULTILINE):
        if len(re.findall(rf"\b{name}\b", re.sub("//.*", "", text))) == 1:
            return _used_constants(re.sub(rf"^constexpr int {name} = .*\n", "", text,
                                          flags=re.MULTILINE))
    return text


def launch_grid(kernel: Kernel, axes: tuple[str, str, str]) -> tuple[tuple[str, int, str], ...]:
    """The grid for blocks that count ``axes``, and parts of the keys with the kept one. Raises
    VerifyError for another grid."""
    tile = {g.axis: g.tile for g in kernel.grid}
    if set(tile) - {"split"} != {*axes}:
        raise VerifyError(f"{kernel.name}: the grid of a kernel is {', '.join(axes)}")
    return tuple((_EXTENT[a], tile[a], "num_splits" if kernel.split and a == kernel.keep else "")
                 for a in axes)


def _files(kernel: Kernel) -> tuple[str, ...]:
    files = ["thread", "convert", "global", "math", "ops"]
    if kernel.tables:
        files.append("table")
    if any(v.space == "shared" for v in kernel.values):
        files += ["shared", "async_copy"]
    if kernel.schedule.engine == "mma":
        files.append("matrix")
    if calls(kernel, "uniform"):
        files.append("philox")
    if any(t.dtype in EIGHT_BIT for t in kernel.tensors):
        files.append("eight_bit")
    return tuple(files)
