"""Placed kernels for the cpu target written out by hand, and a way to call one on NumPy arrays.

``forward`` is fused attention; ``scores``, ``softmax`` and ``output`` are the same in three kernels
with the score matrix in memory; ``value_gradient`` keeps keys and walks queries.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from placed_kernels import LN2, LOG2E, Problem, Values, mask, online, ranges, visit

from attngen.ir.node import const, make, param
from attngen.ir.stmt import Copy, Fill, Grid, Kernel, Load, Loop, Map, Mma, Schedule, Stmt, Store
from attngen.ir.tensor import Param, Tensor
from attngen.runtime import cxx
from attngen.runtime.plan import Field, struct_format
from attngen.templates.render import RenderedKernel
from attngen.templates.render_cpu import render_cpu


@dataclass
class CpuProblem(Problem):
    """Tiles have their true extents; arithmetic is in ``compute``."""

    dtype: str = "float32"
    schedule: Schedule = field(default_factory=lambda: Schedule(32, 16, engine="cpu"))

    @property
    def compute(self) -> str:
        return "float64" if self.dtype == "float64" else "float32"

    @property
    def rows(self) -> str:
        """Where a tile that products read row by row lies."""
        return "view" if self.dtype == self.compute else "rows"

    @property
    def extents(self) -> dict[str, int]:
        return {"i": self.schedule.block_m, "j": self.schedule.block_n, "d": self.head_dim,
                "e": self.width}


def _finish(problem: CpuProblem, name: str, v: Values, body: list[Stmt], tensors: list[Tensor],
            keep: str = "i") -> Kernel:
    params = (Param("seqlen_q", False), Param("seqlen_k", False), Param("q_offset", True),
              Param("kv_offset", True))
    loop = "j" if keep == "i" else "i"
    grid = (Grid(keep, problem.extents[keep]), Grid("h", 1), Grid("b", 1))
    schedule = replace(problem.schedule, block_m=problem.extents[keep],
                       block_n=problem.extents[loop])
    return Kernel(name, grid, keep, loop, tuple(tensors), params, tuple(v.all.values()),
                  tuple(body), schedule, problem.sizes, stage="placed")


def _statistics(v: Values, compute: str) -> None:
    v.add("m m_prev m_scaled alpha l lse_out", "i", compute, "row")
    v.add("hi", "i", "int32", "row")
    v.add("n_begin n_end n_full_begin n_full_end", "", "int32", "scalar")


def _inputs(problem: CpuProblem, *names: str) -> list[Tensor]:
    axes = {"q": "bhid", "k": "bgjd", "v": "bgje"}
    return [Tensor(n, tuple(axes[n]), problem.dtype, "input", problem.map if n != "q" else None)
            for n in names]


def forward(problem: CpuProblem) -> Kernel:
    """Fused attention with online softmax: o and lse from q, k, v."""
    compute, scale = problem.compute, problem.head_dim ** -0.5
    v = Values(problem)
    v.add("q_s", "id", compute, "array")
    v.add("k_s", "jd", compute, problem.rows)
    v.add("v_s", "je", compute, problem.rows)
    v.add("scores p", "ij", compute, "array")
    v.add("acc o_out", "ie", compute, "array")
    _statistics(v, compute)
    lse = make("add", make("mul", v("m"), const(scale)),
               make("mul", make("log2", v("l")), const(LN2)))
    return _finish(problem, "forward", v, [
        *ranges(problem), Fill("m", float("-inf")), Fill("l", 0.0), Fill("acc", 0.0),
        Load("q_s", "q"),
        visit([Load("k_s", "k"), Mma("scores", "q_s", "k_s", "d", False), mask(v),
               *online(v, scale), Map(("acc",), (make("mul", v("acc"), v("alpha")),), ("i", "e")),
               Load("v_s", "v"), Mma("acc", "p", "v_s", "j", True)]),
        Map(("o_out",), (make("mul", v("acc"), make("recip0", v("l"))),), ("i", "e")),
        Map(("lse_out",), (lse,), ("i",)),
        Store("o", "o_out"), Store("lse", "lse_out"),
    ], [*_inputs(problem, "q", "k", "v"),
        Tensor("o", tuple("bhie"), problem.dtype, "output"),
        Tensor("lse", tuple("bhi"), compute, "output")])


def _every_tile(problem: CpuProblem) -> tuple[Map, Map]:
    bounds, hi = ranges(problem)
    width = problem.schedule.block_n
    every = make("floordiv", make("add", param("seqlen_k"), const(width - 1)), const(width))
    return replace(bounds, exprs=(const(0), every, *bounds.exprs[2:])), hi


def scores(problem: CpuProblem) -> Kernel:
    """Unfused, first kernel: the masked scores in memory. Also copies an array for no reason."""
    v = Values(problem)
    v.add("q_s", "id", problem.compute, "array")
    v.add("k_s", "jd", problem.compute, problem.rows)
    v.add("product scores", "ij", problem.compute, "array")
    _statistics(v, problem.compute)
    scaled = make("mul", v("scores"), const(problem.head_dim ** -0.5))
    return _finish(problem, "scores", v, [
        *_every_tile(problem), Load("q_s", "q"),
        visit([Load("k_s", "k"), Mma("product", "q_s", "k_s", "d", False),
               Copy("scores", "product"), Map(("scores",), (scaled,), ("i", "j")), mask(v),
               Store("s", "scores")]),
    ], [*_inputs(problem, "q", "k"), Tensor("s", tuple("bhij"), problem.compute, "workspace")])


def softmax(problem: CpuProblem) -> Kernel:
    """Unfused, second kernel: row statistics in one pass over the scores, weights in another."""
    v = Values(problem)
    v.add("scores p", "ij", problem.compute, "array")
    _statistics(v, problem.compute)
    c = const(LOG2E)
    shifted = make("sub", make("mul", v("scores"), c), v("m_scaled"))
    lse = make("add", v("m"), make("mul", make("log2", v("l")), const(LN2)))
    return _finish(problem, "softmax", v, [
        *_every_tile(problem), Fill("m", float("-inf")), Fill("l", 0.0),
        visit([Load("scores", "s"), mask(v), *online(v, 1.0)]),
        Map(("lse_out", "m_scaled", "l"), (lse, make("mul", make("finite_or_zero", v("m")), c),
                                           make("recip0", v("l"))), ("i",)),
        visit([Load("scores", "s"), mask(v),
               Map(("p",), (make("mul", make("exp2", shifted), v("l")),), ("i", "j")),
               Store("w", "p")]),
        Store("lse", "lse_out"),
    ], [Tensor("s", tuple("bhij"), problem.compute, "workspace"),
        Tensor("w", tuple("bhij"), problem.dtype, "workspace"),
        Tensor("lse", tuple("bhi"), problem.compute, "output")])


def output(problem: CpuProblem) -> Kernel:
    """Unfused, third kernel: the weighted sum of values, weights from memory."""
    v = Values(problem)
    v.add("w_s", "ij", problem.compute, "array")
    v.add("v_s", "je", problem.compute, problem.rows)
    v.add("acc", "ie", problem.compute, "array")
    _statistics(v, problem.compute)
    return _finish(problem, "output", v, [
        *ranges(problem), Fill("acc", 0.0),
        visit([Load("w_s", "w"), Load("v_s", "v"), Mma("acc", "w_s", "v_s", "j", True)]),
        Store("o", "acc"),
    ], [Tensor("w", tuple("bhij"), problem.dtype, "workspace"), *_inputs(problem, "v"),
        Tensor("o", tuple("bhie"), problem.dtype, "output")])


def value_gradient(problem: CpuProblem) -> Kernel:
    """Rows are keys: dv[j,e] = Σ_i exp(s_ij − lse_i) do[i,e] per query head, with lse a column."""
    compute, c = problem.compute, const(problem.head_dim ** -0.5 * LOG2E)
    v = Values(problem)
    v.add("k_s", "jd", compute, "array")
    v.add("q_s", "id", compute, problem.rows)
    v.add("do_s", "ie", compute, problem.rows)
    v.add("scores p", "ji", compute, "array")
    v.add("dv", "je", compute, "array")
    v.add("lse_i", "i", compute, "column")
    v.add("do", "j", compute, "row")  # a name C has taken
    v.add("n_begin n_end", "", "int32", "scalar")
    tiles = make("floordiv", make("add", param("seqlen_q"), const(problem.schedule.block_m - 1)),
                 const(problem.schedule.block_m))
    weight = make("exp2", make("sub", make("mul", v("scores"), c),
                               make("mul", v("lse_i"), const(LOG2E))))
    last_seen = make("eq", make("mod", idx_of_row(), const(5)), const(4))
    return _finish(problem, "value_gradient", v, [
        Map(("n_begin", "n_end"), (const(0), tiles), ()), Fill("dv", 0.0), Fill("do", 1.0),
        Load("k_s", "k"),
        Loop("i", "n_begin", "n_end", "n_begin", "n_end", (
            Load("q_s", "q"), Load("lse_i", "lse"), Mma("scores", "k_s", "q_s", "d", False),
            Map(("p",), (weight,), ("j", "i")), Load("do_s", "dout"),
            Mma("dv", "p", "do_s", "i", True))),
        # Every fifth row is halved, so that the row index and the row vector are used.
        Map(("do",), (make("where", last_seen, const(0.5), v("do")),), ("j",)),
        Map(("dv",), (make("mul", v("dv"), v("do")),), ("j", "e")), Store("grad", "dv"),
    ], [*_inputs(problem, "q", "k"), Tensor("dout", tuple("bhie"), problem.dtype, "input"),
        Tensor("lse", tuple("bhi"), compute, "input"),
        Tensor("grad", tuple("bhje"), compute, "output")], keep="j")


def idx_of_row() -> Any:
    from attngen.ir.node import idx
    return idx("j")


Call = Callable[..., None]


def load(kernel: Kernel, edit: Callable[[str], str] = str) -> tuple[RenderedKernel, Call]:
    """Render, compile and load. The call takes arrays by tensor name, parameters by name and the
    number of threads; strides come from the arrays."""
    rendered = render_cpu(kernel)
    library = cxx.load_text(edit(rendered.text), name=rendered.entry)
    entry = getattr(library, rendered.entry)
    entry.argtypes, entry.restype = (ctypes.c_char_p, ctypes.c_int), None
    fmt = struct_format([Field(n, c) for n, c in rendered.fields])  # type: ignore[arg-type]

    def call(threads: int = 1, batch: int = 1, **values: Any) -> None:
        numbers: dict[str, Any] = {"batch": batch, **values}
        for t in kernel.tensors:
            array: np.ndarray[Any, Any] = values[t.name]
            numbers[t.name] = array.ctypes.data
            for axis, stride in zip(t.axes, array.strides, strict=True):
                numbers[f"{t.name}_stride_{axis}"] = stride // array.itemsize
        for p in kernel.params:
            per_batch = values.get(f"{p.name}_ptr")
            numbers[f"{p.name}_ptr"] = 0 if per_batch is None else per_batch.ctypes.data
            numbers.setdefault(p.name, 0)
        entry(struct.pack(fmt, *(numbers[n] for n, _ in rendered.fields)), threads)

    return rendered, call
