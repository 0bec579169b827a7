"""Schedules: which tile sizes a kernel is built with, and which of them a target can run.

A heuristic only ever picks legal schedules; an explicit one that is not legal is refused with the
arithmetic when it is placed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from .graph import Region
from .node import Node, walk
from .ops import EIGHT_BIT
from .ranges import solve
from .stmt import Schedule


@dataclass(frozen=True)
class Limits:
    """What a target offers: shared memory per block and per multiprocessor, in bytes."""

    shared_bytes: int
    shared_per_sm: int
    tensor_cores: bool = True


def engine_for(dtype: str, cpu: bool) -> str:
    """The engine that multiplies tensors of ``dtype``."""
    if cpu:
        return "cpu"
    return "mma" if dtype in ("float16", "bfloat16") else "simt"


def shared_need(schedule: Schedule, head_dim: int, head_dim_v: int) -> int:
    """Shared memory of the fused forward kernel, in bytes."""
    size, pad = (2, 16) if schedule.engine == "mma" else (4, 8)
    d, e = -(-head_dim // pad) * pad, -(-head_dim_v // pad) * pad
    k_stages, v_stages = schedule.stages[0], schedule.stages[-1]
    through = schedule.block_m * schedule.block_n if schedule.engine == "simt" else 0
    return size * (schedule.block_m * d + schedule.block_n * (k_stages * d + v_stages * e)
                   + through)


_LARGE = 200 * 1024  # shared memory of the largest multiprocessors

# (widest head_dim, least shared memory of a multiprocessor, schedules by how much a kernel computes
# of a pair: "plain", "busy", "asking"), best first; the first that fits the target is taken.
# Measured on an H200 (benchmarks/results/2026-11-27-gpu.json); where a thread uses all 255
# registers, the number of stages is the one that no architecture spills with
# (tests/test_compile_matrix.py).
_MMA = (
    (32, 0, (Schedule(128, 128, 4, (2, 1)), Schedule(128, 64, 4, (2, 2)),
             Schedule(64, 64, 4, (2, 2)))),
    (64, 0, (Schedule(128, 128, 4, (1, 1)), Schedule(128, 64, 4, (2, 1)),
             Schedule(64, 64, 4, (2, 2)))),
    (96, _LARGE, (Schedule(128, 48, 4, (2, 1)), Schedule(128, 32, 4, (2, 2)),
                  Schedule(64, 64, 4, (2, 2)))),
    (96, 0, (Schedule(128, 64, 4, (2, 1)), Schedule(128, 32, 4, (1, 1)),
             Schedule(64, 64, 4, (1, 1)))),
    (128, _LARGE, (Schedule(128, 64, 4, (1, 1)), Schedule(64, 64, 4, (2, 2)),
                   Schedule(64, 64, 4, (2, 2)))),
    (128, 0, (Schedule(128, 64, 4, (2, 1)), Schedule(64, 64, 4, (1, 1)),
              Schedule(64, 64, 4, (1, 1)))),
    (192, 0, (Schedule(128, 64, 8, (2, 1)), Schedule(128, 64, 8, (1, 1)),
              Schedule(64, 32, 4, (2, 1)))),
    (256, _LARGE, (Schedule(64, 64, 4, (1, 1)), Schedule(64, 64, 4, (1, 1)),
                   Schedule(64, 32, 4, (2, 1)))),
    (256, 0, (Schedule(128, 64, 8, (2, 1)), Schedule(128, 64, 8, (1, 1)),
              Schedule(64, 32, 4, (2, 1)))),
    (256, 0, (Schedule(128, 64, 8, (1, 1)), Schedule(64, 64, 4, (1, 1)),
              Schedule(64, 32, 4, (1, 1)))),
    (256, 0, (Schedule(64, 64, 4, (1, 1)),) * 2 + (Schedule(64, 32, 4, (1, 1)),)),
    (256, 0, (Schedule(64, 32, 4, (1, 1)),) * 3),
)
_SIMT = (
    (64, 0, (Schedule(64, 64, 4, (1, 1), engine="simt"),) * 2
     + (Schedule(64, 32, 8, (1, 1), engine="simt"),)),
    (128, 0, (Schedule(64, 32, 4, (1, 1), engine="simt"),) * 2
     + (Schedule(64, 32, 8, (1, 1), engine="simt"),)),
    (256, 0, (Schedule(32, 32, 4, (1, 1), engine="simt"),) * 2
     + (Schedule(32, 16, 4, (1, 1), engine="simt"),)),
    (256, 0, (Schedule(32, 16, 4, (1, 1), engine="simt"),) * 3),
)
# Backward: two products of each pair, and one ("rows", "split") or two ("both") accumulators.
# (widest head_dim, schedules of one accumulator, of two: plain, busy, with drawn numbers), best
# first; where there are two, the second stands for the third as well.
_MMA_BACKWARD = (
    (64, (Schedule(128, 64, 8, (2, 1)), Schedule(64, 64, 4, (2, 1))),
     (Schedule(128, 64, 8, (1, 1)), Schedule(64, 32, 4, (2, 1)))),
    (128, (Schedule(128, 64, 8, (1, 1)), Schedule(64, 32, 4, (2, 1))),
     (Schedule(64, 32, 4, (1, 1)), Schedule(64, 16, 4, (1, 1)))),
    (256, (Schedule(64, 32, 4, (1, 1)), Schedule(64, 16, 4, (1, 1))), None),
)
_SIMT_BACKWARD = (
    (64, (Schedule(64, 32, 4, (1, 1), engine="simt"), Schedule(32, 16, 4, (1, 1), engine="simt")),
     (Schedule(32, 32, 4, (1, 1), engine="simt"), Schedule(32, 16, 4, (1, 1), engine="simt"),
      Schedule(16, 16, 8, (1, 1), engine="simt"))),
    (128, (Schedule(32, 32, 4, (1, 1), engine="simt"), Schedule(16, 16, 4, (1, 1), engine="simt")),
     (Schedule(32, 16, 4, (1, 1), engine="simt"), Schedule(16, 16, 8, (1, 1), engine="simt"))),
    (256, (Schedule(32, 16, 4, (1, 1), engine="simt"), Schedule(32, 16, 8, (1, 1), engine="simt"),
           Schedule(16, 16, 8, (1, 1), engine="simt")), None),
)
# Gradients of pairs are stored, not summed: no accumulator, so any tiles do.
_PAIRS = {"mma": Schedule(64, 32, 4, (1, 1)), "simt": Schedule(32, 16, 4, (1, 1), engine="simt")}
_WIDEST_BOTH = 128  # a thread's registers do not hold two wider accumulators
_PLAIN_BACKWARD = 12  # values of a pair without a score, under one bound
_PACKED_COLUMNS = 112
_UNALIGNED = 32  # columns of a tile whose copies pass through registers
_WIDE = 192  # above, an accumulator leaves so few that asking kernels take half of those columns
_ELEMENTWISE = Schedule(64, 64, 4, (1,))  # kernels without products only move tiles
_ROWS = Schedule(32, 32, 4, (1,), engine="simt")  # sums along rows of tensors: many small parts
_APPEND = Schedule(8, 32, 4, (1,), engine="simt")  # of a cache's new tokens: often one a sequence
_CPU = Schedule(64, 64, 1, (1,), engine="cpu")
_COMBINE = Schedule(8, 16, 1, (1,), engine="simt")  # rows of all parts, joined one after the other
# Few rows (decode): one warp for every 16 of them, 8 without tensor cores, and tiles of keys of
# about this size, so that several blocks share a multiprocessor and copies are under way in each.
_DECODE_BYTES, _DECODE_STAGES = {"mma": 8192, "simt": 16384}, {"mma": (2, 2), "simt": (1, 1)}
_MANY_COLUMNS = 256  # where keys are seen from the first on: fewer turns from k to v
_FEW_ROWS = 16  # of a CPU: vectors of rows would be half empty, or each number of k used once
_POSITIONS = {"i", "row", "j"}


_PLAIN, _BUSY, _ASKING = range(3)  # of forward's schedules
_DRAWING = 2  # the last of backward's, which has plain ones and busy ones too
_PLAIN_VALUES = 9  # computed of a pair with one bound
_PLAIN_SCORES = 7  # of which outside of masks: the product, its scale, and the softmax
_CROWDED_VALUES = 64  # as of many heads with a mask each; half the columns leave room for these
_HELD_VALUES = 8  # looked up per row or column, and kept for the pairs: a rotary embedding's, say


def _is_pair(n: Node) -> bool:
    return len(set(n.axes) & _POSITIONS) > 1


def _of_pairs(*roots: Node) -> int:
    """How many values are computed of every pair."""
    return sum(_is_pair(n) for n in walk(*roots))


def _columns(region: Region, block_n: int) -> int:
    """``block_n``, or fewer where a pair takes so many values that registers do not hold more."""
    nodes = list(walk(*region.roots))
    if sum(n.op == "gather" and len(set(n.axes) & _POSITIONS) == 1 for n in nodes) > _HELD_VALUES:
        return 16
    return max(16, block_n // 2) if _of_pairs(*region.roots) > _CROWDED_VALUES else block_n


def _kind(region: Region) -> int:
    """What registers a kernel needs beside its products. Most values of a pair live at once:
    windows with two sides and scores are busy. Reading captured tensors at positions takes
    addresses; what a mask says beyond bounds takes questions about tiles, and most is asked of
    every element: those are asking. So are drawn numbers, many products each."""
    nodes = list(walk(*region.roots))
    rests = [(solve(n.args[0], axis).rest, axis)
             for n in nodes if n.op == "visible" for axis in sorted(_POSITIONS)]
    if any(n.op == "gather" and set(n.axes) & _POSITIONS or n.op == "uniform"
           for n in nodes) or any(
            rest is not None and axis in rest.axes for rest, axis in rests):
        return _ASKING
    all_of = _of_pairs(*region.roots)
    masks = _of_pairs(*(n.args[0] for n in nodes if n.op == "visible"))
    return _BUSY if all_of > _PLAIN_VALUES or all_of - masks > _PLAIN_SCORES else _PLAIN


def one_accumulator(engine: str, head_dim: int, head_dim_v: int) -> bool:
    """Whether dk and dv need a kernel each."""
    return engine != "cpu" and max(head_dim, head_dim_v) > _WIDEST_BOTH


def _backward(engine: str, region: Region, sizes: Mapping[str, int], limits: Limits,
              vector_bytes: int, packed: bool) -> Schedule:
    """As ``choose``, for a region that takes two products of every pair."""
    widest = max(sizes["head_dim"], sizes["head_dim_v"])
    sums = sum(n.op == "contract" and n.attr("over") in _POSITIONS for n in walk(*region.roots))
    if not sums and all(_is_pair(n) for n in region.roots):
        return replace(_PAIRS[engine], vector_bytes=vector_bytes)
    asking = any(n.op == "gather" and set(n.axes) & _POSITIONS for n in walk(*region.roots))
    kind = _PLAIN
    if any(n.op == "uniform" for n in walk(*region.roots)):
        kind = _DRAWING
    elif asking or packed or _kind(region) == _ASKING \
            or _of_pairs(*region.roots) > _PLAIN_BACKWARD:
        kind = _BUSY
    for limit, one, both in _MMA_BACKWARD if engine == "mma" else _SIMT_BACKWARD:
        pair = both if sums > 1 else one
        if widest > limit or pair is None:
            continue
        for schedule in pair[min(kind, len(pair) - 1):]:
            if vector_bytes != 16:
                schedule = replace(schedule, block_n=min(schedule.block_n, _UNALIGNED))
            schedule = replace(schedule, block_n=_columns(region, schedule.block_n),
                               vector_bytes=vector_bytes)
            if _backward_need(schedule, sizes) <= limits.shared_bytes:
                return schedule
    return replace(schedule, vector_bytes=vector_bytes)  # refused when it is placed


def _backward_need(schedule: Schedule, sizes: Mapping[str, int]) -> int:
    """Shared memory of a backward kernel, in bytes: two tiles of each axis."""
    size, pad = (2, 16) if schedule.engine == "mma" else (4, 8)
    d, e = (-(-sizes[n] // pad) * pad for n in ("head_dim", "head_dim_v"))
    through = schedule.block_m * schedule.block_n * 2 if schedule.engine == "simt" else 0
    return size * (schedule.block_m * (d + e) + schedule.block_n * (
        schedule.stages[0] * d + schedule.stages[-1] * e) + through)


def _few_rows(engine: str, rows: int, region: Region, sizes: Mapping[str, int], limits: Limits,
              vector_bytes: int) -> Schedule:
    """For kernels that wait for keys and values more than they compute. Copies that pass through
    registers are not under way while others are used, so one tile of them will do. Rows that do
    not fit into shared memory are divided among blocks."""
    unit, item = (16, 2) if engine == "mma" else (8, 4)
    rows = max(rows, unit)
    row_bytes = item * max(sizes["head_dim"], sizes["head_dim_v"])
    columns = _DECODE_BYTES[engine] // row_bytes // 16 * 16
    if engine == "simt" and _kind(region) == _ASKING:
        columns = 16
    columns = min(max(columns, 16), 64 if vector_bytes == 16 else _UNALIGNED)
    stages = _DECODE_STAGES[engine] if vector_bytes == 16 else (1, 1)
    schedule = Schedule(rows, columns, rows // unit, stages, vector_bytes, engine=engine)
    while schedule.block_m > unit and limits.shared_bytes < shared_need(
            schedule, sizes["head_dim"], sizes["head_dim_v"]):
        half = schedule.block_m // 2
        schedule = replace(schedule, block_m=half, warps=half // unit)
    return schedule


def choose(engine: str, region: Region, sizes: Mapping[str, int], limits: Limits,
           vector_bytes: int = 16, packed: bool = False, rows: int = 0) -> Schedule:
    """The first legal schedule of the engine's table for what the region computes. ``packed``:
    lengths take registers, which the largest tiles have not to spare. ``rows``: there are at most
    so many, 0 for any number."""
    if engine == "cpu":
        if not 0 < rows <= _FEW_ROWS:
            return replace(_CPU, block_m=rows or _CPU.block_m)
        begins = any(solve(n.args[0], "j").lower is not None
                     for n in walk(*region.roots) if n.op == "visible")
        return replace(_CPU, block_m=rows, lanes="columns",
                       block_n=_CPU.block_n if begins else _MANY_COLUMNS)
    if region.loop == "split":
        return _COMBINE
    if any(n.dtype in EIGHT_BIT for n in walk(*region.roots)):
        vector_bytes = 2 if engine == "mma" else 4  # widened on their way through registers
    if not any(n.op in ("contract", "stream_contract") for n in walk(*region.roots)):
        summed = any(n.op == "reduce" for n in walk(*region.roots))
        along = any(set(n.axes) & set("de") for n in walk(*region.roots))
        if all(t.place for t, _ in region.outputs) or (along and not summed):
            return _APPEND
        if along:
            return replace(_ROWS, vector_bytes=16 if vector_bytes == 16 else 4)
        return replace(_ELEMENTWISE, engine=engine, vector_bytes=vector_bytes)
    if rows:
        return _few_rows(engine, rows, region, sizes, limits, vector_bytes)
    if sum(n.op == "contract" and n.attr("over") in "de" for n in walk(*region.roots)) > 1:
        return _backward(engine, region, sizes, limits, vector_bytes, packed)
    head_dim, head_dim_v = sizes["head_dim"], sizes["head_dim_v"]
    table = _MMA if engine == "mma" else _SIMT
    kind = _kind(region)
    for widest, least, schedules in table:
        schedule = schedules[kind]
        if vector_bytes != 16:
            crowded = kind == _ASKING and max(head_dim, head_dim_v) > _WIDE
            schedule = replace(schedule, block_n=min(
                schedule.block_n, _UNALIGNED // 2 if crowded else _UNALIGNED))
        schedule = replace(schedule, block_n=_columns(region, schedule.block_n))
        if packed:
            schedule = replace(schedule, block_n=min(schedule.block_n, _PACKED_COLUMNS))
        if max(head_dim, head_dim_v) <= widest and limits.shared_per_sm >= least \
                and shared_need(schedule, head_dim, head_dim_v) <= limits.shared_bytes:
            return replace(schedule, vector_bytes=vector_bytes)
    return replace(table[-1][2][kind], vector_bytes=vector_bytes)  # refused when it is placed
