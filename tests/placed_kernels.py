"""Placed kernels written out by hand, as the passes make them, for tests of what follows.

``forward`` is fused attention on tensor cores or CUDA cores; ``scores``, ``softmax`` and ``output``
are the same attention in three kernels with the score matrix in device memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from attngen.ir.node import Node, const, first, idx, last, make, param, value
from attngen.ir.stmt import (
    Barrier,
    Commit,
    Copy,
    Fill,
    Grid,
    Issue,
    Kernel,
    LaneReduce,
    Load,
    Loop,
    Map,
    Mma,
    Reduce,
    Schedule,
    Stmt,
    Store,
    Value,
    Wait,
)
from attngen.ir.tensor import Param, Tensor

LOG2E, LN2 = math.log2(math.e), math.log(2.0)
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass
class Problem:
    """What a hand-written kernel is for. ``by_head`` defaults to ``h // (heads / groups)``."""

    heads: int = 2
    groups: int = 1
    head_dim: int = 64
    head_dim_v: int | None = None
    dtype: str = "bfloat16"
    causal: bool = True
    schedule: Schedule = field(default_factory=lambda: Schedule(64, 64))
    by_head: tuple[int, ...] | None = None

    @property
    def width(self) -> int:
        return self.head_dim_v or self.head_dim

    @property
    def map(self) -> tuple[int, ...]:
        return self.by_head or tuple(h * self.groups // self.heads for h in range(self.heads))

    @property
    def sizes(self) -> tuple[tuple[str, int], ...]:
        return (("heads", self.heads), ("groups", self.groups), ("head_dim", self.head_dim),
                ("head_dim_v", self.width))

    @property
    def extents(self) -> dict[str, int]:
        s = self.schedule
        return {"i": s.block_m, "j": s.block_n, "d": padded(self.head_dim),
                "e": padded(self.width)}

    def grid(self) -> tuple[Grid, ...]:
        return (Grid("i", self.schedule.block_m), Grid("h", 1), Grid("b", 1))


def padded(columns: int) -> int:
    """Columns in shared memory: whole matrix tiles."""
    return -(-columns // 16) * 16


def panel(columns: int, dtype: str) -> int:
    """The widest panel of 128, 64 or 32 bytes that divides the tile."""
    size = BYTES[dtype]
    return next(w // size for w in (128, 64, 32) if columns % (w // size) == 0)


class Values:
    """Collects the values of a kernel, laying shared tiles out one after another."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.all: dict[str, Value] = {}
        self.shared = 0

    def add(self, names: str, axes: str, dtype: str, space: str, stages: int = 1) -> None:
        shape = tuple(self.problem.extents[a] for a in axes)
        for name in names.split():
            width, offset = 0, 0
            if space == "shared":
                width, offset = panel(shape[1], dtype), self.shared
                self.shared += stages * shape[0] * shape[1] * BYTES[dtype]
            self.all[name] = Value(name, tuple(axes), dtype, shape, space, stages, offset, width)

    def __call__(self, name: str) -> Node:
        v = self.all[name]
        return value(name, v.axes, v.dtype)


def visible(causal: bool) -> tuple[Node, Node, Node]:
    """Per row, and over the row tile: one past the last visible key."""
    keys = param("seqlen_k")

    def limit(row: Node) -> Node:
        if not causal:
            return keys
        shift = make("sub", param("q_offset", "b"), param("kv_offset", "b"))
        reach = make("add", make("add", row, shift), const(1), origin="causal")
        return make("min", reach, keys)

    return limit(idx("i")), limit(first("i")), limit(last("i"))


def ranges(problem: Problem) -> tuple[Map, Map]:
    """The tile ranges of a block, and each row's limit."""
    row, lowest, highest = visible(problem.causal)
    width, up = const(problem.schedule.block_n), const(problem.schedule.block_n - 1)
    bounds = Map(("n_begin", "n_end", "n_full_begin", "n_full_end"),
                 (const(0), make("floordiv", make("add", highest, up), width), const(0),
                  make("floordiv", lowest, width)), (), note="tiles of keys to visit")
    return bounds, Map(("hi",), (row,), ("i",), note="keys below hi are visible")


def visit(body: list[Stmt]) -> Loop:
    return Loop("j", "n_begin", "n_end", "n_full_begin", "n_full_end", tuple(body))


def mask(v: Values) -> Map:
    shown = make("lt", idx("j"), v("hi"))
    return Map(("scores",), (make("where", shown, v("scores"), const(float("-inf"))),),
               ("i", "j"), when="partial", note="hidden keys count nothing")


def online(v: Values, scale: float) -> list[Stmt]:
    """Running maximum, weights and sum of a tile of scores."""
    c = const(scale * LOG2E)
    shifted = make("sub", make("mul", v("scores"), c), v("m_scaled"))
    return [
        Map(("m_prev",), (v("m"),), ("i",)),
        Reduce("m", "max", "scores", "j", True, note="m = max(m, max_j scores)"),
        Map(("m_scaled", "alpha"),
            (make("mul", make("finite_or_zero", v("m")), c),
             make("exp2", make("sub", make("mul", v("m_prev"), c), v("m_scaled")))),
            ("i",), note="alpha = exp(old m - new m)"),
        Map(("p",), (make("exp2", shifted),), ("i", "j"), note="p = exp(scores - m)"),
        Map(("l",), (make("mul", v("l"), v("alpha")),), ("i",)),
        Reduce("l", "sum", "p", "j", True, lanes="later", note="l = l alpha + sum_j p"),
    ]


def copies(k: int, v: int) -> tuple[list[Stmt], list[Stmt], list[Stmt]]:
    """Prologue, start of a step and middle of a step, for rings of ``k`` key and ``v`` value tiles.

    Keys run ``k`` steps ahead. With one value tile its copy starts at the top of the step that
    uses it, with more it runs ``v - 1`` steps ahead.
    """
    before: list[Stmt] = [Issue("q_s", "q", None)]
    for n in range(k):
        before += [Issue("k_s", "k", n)]
        if n < v - 1:
            before += [Issue("v_s", "v", n)]
        before += [Commit()]
    top: list[Stmt] = [Wait(k - 1), Barrier(), Issue("v_s", "v", v - 1), Commit()]
    middle: list[Stmt] = [Wait(0 if v == 1 else 1), Barrier(), Issue("k_s", "k", k), Commit()]
    return before, top, middle


def forward(problem: Problem, name: str = "forward") -> Kernel:
    """Fused attention with online softmax: o and lse from q, k, v."""
    schedule = problem.schedule
    mma = schedule.engine == "mma"
    dtype, scale = problem.dtype, problem.head_dim ** -0.5
    k_stages, v_stages = schedule.stages
    v = Values(problem)
    v.add("q_s", "id", dtype, "shared")
    v.add("k_s", "jd", dtype, "shared", k_stages)
    v.add("v_s", "je", dtype, "shared", v_stages)
    if not mma:
        v.add("p_s", "ij", dtype, "shared")
    v.add("scores p", "ij", "float32", "fragment")
    v.add("acc o_out", "ie", "float32", "fragment")
    v.add("m m_prev m_scaled alpha l lse_out", "i", "float32", "row")
    v.add("hi", "i", "int32", "row")
    v.add("n_begin n_end n_full_begin n_full_end", "", "int32", "scalar")
    if mma:
        v.add("p_op", "ij", dtype, "operand")

    before, top, middle = copies(k_stages, v_stages)
    weights = "p_op" if mma else "p_s"
    step: list[Stmt] = [
        *top,
        Mma("scores", "q_s", "k_s", "d", False, note="scores = q k^T"),
        mask(v), *online(v, scale),
        Map(("acc",), (make("mul", v("acc"), v("alpha")),), ("i", "e")),
        Copy(weights, "p"), *([] if mma else [Barrier("warp")]),
        *middle,
        Mma("acc", weights, "v_s", "j", True, note="acc = acc alpha + p v"),
    ]
    lse = make("add", make("mul", v("m"), const(scale)),
               make("mul", make("log2", v("l")), const(LN2)))
    body: list[Stmt] = [
        *ranges(problem),
        Fill("m", float("-inf")), Fill("l", 0.0), Fill("acc", 0.0),
        *before, visit(step), LaneReduce("l", "sum"),
        Map(("o_out",), (make("mul", v("acc"), make("recip0", v("l"))),), ("i", "e"),
            note="o = acc / l"),
        Map(("lse_out",), (lse,), ("i",), note="lse = m + log l"),
        Store("o", "o_out"), Store("lse", "lse_out"),
    ]
    return finish(problem, name, v, body, [
        Tensor("q", tuple("bhid"), dtype, "input"),
        Tensor("k", tuple("bgjd"), dtype, "input", problem.map),
        Tensor("v", tuple("bgje"), dtype, "input", problem.map),
        Tensor("o", tuple("bhie"), dtype, "output"),
        Tensor("lse", tuple("bhi"), "float32", "output"),
    ])


def finish(problem: Problem, name: str, v: Values, body: list[Stmt],
           tensors: list[Tensor]) -> Kernel:
    params = (Param("seqlen_q", False), Param("seqlen_k", False), Param("q_offset", True),
              Param("kv_offset", True))
    return Kernel(name, problem.grid(), "i", "j", tuple(tensors), params, tuple(v.all.values()),
                  tuple(body), problem.schedule, problem.sizes, v.shared, stage="placed")


def scores(problem: Problem) -> Kernel:
    """Unfused, first kernel: the masked score matrix, float32 in device memory."""
    v = Values(problem)
    v.add("q_s", "id", problem.dtype, "shared")
    v.add("k_s", "jd", problem.dtype, "shared", problem.schedule.stages[0])
    v.add("scores", "ij", "float32", "fragment")
    v.add("hi", "i", "int32", "row")
    v.add("n_begin n_end n_full_begin n_full_end", "", "int32", "scalar")
    ahead = problem.schedule.stages[0] - 1
    bounds, hi = ranges(problem)
    every = make("floordiv", make("add", param("seqlen_k"), const(problem.schedule.block_n - 1)),
                 const(problem.schedule.block_n))
    bounds = Map(bounds.dsts, (const(0), every, *bounds.exprs[2:]), ())
    body: list[Stmt] = [bounds, hi, Issue("q_s", "q", None)]
    for n in range(ahead):
        body += [Issue("k_s", "k", n), Commit()]
    scaled = make("mul", v("scores"), const(problem.head_dim ** -0.5))
    body.append(visit([
        Barrier(), Issue("k_s", "k", ahead), Commit(), Wait(ahead), Barrier(),
        Mma("scores", "q_s", "k_s", "d", False, note="scores = q k^T"),
        Map(("scores",), (scaled,), ("i", "j")), mask(v), Store("s", "scores"),
    ]))
    return finish(problem, "scores", v, body, [
        Tensor("q", tuple("bhid"), problem.dtype, "input"),
        Tensor("k", tuple("bgjd"), problem.dtype, "input", problem.map),
        Tensor("s", tuple("bhij"), "float32", "workspace"),
    ])


def softmax(problem: Problem) -> Kernel:
    """Unfused, second kernel: row statistics in one pass over the scores, weights in another."""
    v = Values(problem)
    v.add("scores p", "ij", "float32", "fragment")
    v.add("m m_prev m_scaled alpha l lse_out", "i", "float32", "row")
    v.add("hi", "i", "int32", "row")
    v.add("n_begin n_end n_full_begin n_full_end", "", "int32", "scalar")
    bounds, hi = ranges(problem)
    every = make("floordiv", make("add", param("seqlen_k"), const(problem.schedule.block_n - 1)),
                 const(problem.schedule.block_n))
    bounds = Map(bounds.dsts, (const(0), every, *bounds.exprs[2:]), ())
    c = const(LOG2E)
    shifted = make("sub", make("mul", v("scores"), c), v("m_scaled"))
    body: list[Stmt] = [
        bounds, hi, Fill("m", float("-inf")), Fill("l", 0.0),
        visit([Load("scores", "s"), mask(v), *online(v, 1.0)]),
        LaneReduce("l", "sum"),
        Map(("m_scaled", "l"), (make("mul", make("finite_or_zero", v("m")), c),
                                make("recip0", v("l"))), ("i",)),
        Map(("lse_out",), (make("sub", v("m"), make("mul", make("log2", v("l")), const(LN2))),),
            ("i",), note="l is already its reciprocal"),
        visit([Load("scores", "s"), mask(v),
               Map(("p",), (make("mul", make("exp2", shifted), v("l")),), ("i", "j")),
               Store("w", "p")]),
        Store("lse", "lse_out"),
    ]
    return finish(problem, "softmax", v, body, [
        Tensor("s", tuple("bhij"), "float32", "workspace"),
        Tensor("w", tuple("bhij"), problem.dtype, "workspace"),
        Tensor("lse", tuple("bhi"), "float32", "output"),
    ])


def output(problem: Problem) -> Kernel:
    """Unfused, third kernel: the weighted sum of values, weights from device memory."""
    v = Values(problem)
    stages = problem.schedule.stages[0]
    v.add("w_s", "ij", problem.dtype, "shared", stages)
    v.add("v_s", "je", problem.dtype, "shared", stages)
    v.add("acc", "ie", "float32", "fragment")
    v.add("hi", "i", "int32", "row")
    v.add("n_begin n_end n_full_begin n_full_end", "", "int32", "scalar")
    ahead = stages - 1
    body: list[Stmt] = [ranges(problem)[0], Fill("acc", 0.0)]
    for n in range(ahead):
        body += [Issue("w_s", "w", n), Issue("v_s", "v", n), Commit()]
    body += [visit([
        Barrier(), Issue("w_s", "w", ahead), Issue("v_s", "v", ahead), Commit(), Wait(ahead),
        Barrier(), Mma("acc", "w_s", "v_s", "j", True, note="acc = acc + w v"),
    ]), Store("o", "acc")]
    return finish(problem, "output", v, body, [
        Tensor("w", tuple("bhij"), problem.dtype, "workspace"),
        Tensor("v", tuple("bgje"), problem.dtype, "input", problem.map),
        Tensor("o", tuple("bhie"), problem.dtype, "output"),
    ])
