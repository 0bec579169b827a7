"""The cpu target's templates: hand-written placed kernels, rendered, compiled and run against
float64 NumPy, and what the emitted text promises its reader."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import placed_cpu
import pytest
from helpers import run_python
from placed_cpu import CpuProblem

from attngen.errors import ScheduleError, VerifyError
from attngen.ir.node import const, value
from attngen.ir.stmt import Barrier, Fill, Kernel, LaneReduce, Load, Map, Mma, Reduce, Schedule
from attngen.templates.render_cpu import render_cpu

Array = np.ndarray[Any, Any]
# Relative to the size of the result: rounding of the inputs is not counted, they are rounded first.
TOLERANCE = {"float64": 1e-14, "float32": 2e-6, "float16": 1e-3, "bfloat16": 8e-3}


def stored(x: Array, dtype: str) -> Array:
    """``x`` as the kernel's storage type; bfloat16, which NumPy lacks, as its sixteen bits."""
    if dtype != "bfloat16":
        return np.ascontiguousarray(x, dtype)
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def exact(x: Array, dtype: str) -> Array:
    """The numbers that storage holds, in float64."""
    if dtype == "bfloat16":
        x = (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float64)


def make_inputs(p: CpuProblem, batch: int, seqlen_q: int, seqlen_k: int) -> dict[str, Array]:
    rng = np.random.default_rng(seqlen_q * 1000 + seqlen_k)
    shapes = {"q": (batch, p.heads, seqlen_q, p.head_dim),
              "k": (batch, p.groups, seqlen_k, p.head_dim),
              "v": (batch, p.groups, seqlen_k, p.width)}
    return {name: stored(rng.standard_normal(shape), p.dtype) for name, shape in shapes.items()}


def attention(p: CpuProblem, x: dict[str, Array], offset: Array) -> tuple[Array, ...]:
    """Scores, weights, o and lse in float64, one row at a time; query i sits at offset + i."""
    q, k, v = (exact(x[n], p.dtype) for n in "qkv")
    batch, heads, rows, _ = q.shape
    s = np.full((batch, heads, rows, k.shape[2]), -np.inf)
    w, o = np.zeros(s.shape), np.zeros((batch, heads, rows, p.width))
    lse = np.full((batch, heads, rows), -np.inf)
    for b, h, i in np.ndindex(batch, heads, rows):
        seen = k.shape[2] if not p.causal else min(max(offset[b] + i + 1, 0), k.shape[2])
        if seen:
            g = p.map[h]
            s[b, h, i, :seen] = k[b, g, :seen] @ q[b, h, i] / np.sqrt(p.head_dim)
            top = s[b, h, i].max()
            lse[b, h, i] = top + np.log(np.exp(s[b, h, i] - top).sum())
            w[b, h, i] = np.exp(s[b, h, i] - lse[b, h, i])
            o[b, h, i] = w[b, h, i] @ v[b, g]
    return s, w, o, lse


def assert_near(ours: Array, ref: Array, dtype: str) -> None:
    hidden = np.isneginf(ref)
    assert (np.isneginf(ours) == hidden).all()
    ours, ref = np.where(hidden, 0, ours), np.where(hidden, 0, ref)
    assert np.isfinite(ours).all()
    worst = np.abs(ours - ref).max(initial=0.0) / max(1.0, np.abs(ref).max(initial=0.0))
    assert worst <= TOLERANCE[dtype], f"off by {worst:.2e}, {TOLERANCE[dtype]:.0e} allowed"


def empty(shape: tuple[int, ...], dtype: str) -> Array:
    """Memory full of NaN."""
    return stored(np.full(shape, np.nan), dtype)


def check_forward(p: CpuProblem, call: placed_cpu.Call, seqlen_q: int, seqlen_k: int,
                  batch: int = 1, threads: int = 1, offsets: Array | None = None,
                  transposed: bool = False) -> None:
    x = make_inputs(p, batch, seqlen_q, seqlen_k)
    # Three more rows and eight more columns than there are results: nothing may be written there.
    room = empty((batch, p.heads, seqlen_q + 3, p.width + 8), p.dtype)
    if transposed:  # [batch, seqlen, heads, head_dim] in memory
        x = {n: np.ascontiguousarray(a.swapaxes(1, 2)).swapaxes(1, 2) for n, a in x.items()}
        room = np.ascontiguousarray(room.swapaxes(1, 2)).swapaxes(1, 2)
    lse_room = empty(room.shape[:3], p.compute)
    o, lse = room[:, :, :seqlen_q, :p.width], lse_room[:, :, :seqlen_q]
    where = {"q_offset": seqlen_k - seqlen_q} if offsets is None else {"q_offset_ptr": offsets}
    call(threads, batch, **x, o=o, lse=lse, seqlen_q=seqlen_q, seqlen_k=seqlen_k, **where)
    offset = np.full(batch, seqlen_k - seqlen_q) if offsets is None else offsets
    _, _, ref_o, ref_lse = attention(p, x, offset)
    assert_near(exact(o, p.dtype), ref_o, p.dtype)
    assert_near(lse, ref_lse, p.compute)
    room, lse_room = exact(room, p.dtype), lse_room.copy()
    room[:, :, :seqlen_q, :p.width] = lse_room[:, :, :seqlen_q] = np.nan
    assert np.isnan(room).all() and np.isnan(lse_room).all(), "written past the end"


LENGTHS = [(0, 5), (1, 1), (1, 63), (17, 17), (63, 100), (33, 0), (65, 130)]
FORWARD = {
    "float32": CpuProblem(2, 1, 8, 24),
    "float64": CpuProblem(2, 2, 40, 16, "float64", causal=False),
    "bfloat16": CpuProblem(3, 3, 24, 40, "bfloat16", schedule=Schedule(64, 64, engine="cpu")),
    "float16": CpuProblem(2, 1, 16, 8, "float16", schedule=Schedule(48, 32, engine="cpu")),
    "narrow": CpuProblem(1, 1, 8, 8, schedule=Schedule(8, 7, engine="cpu")),
    "wide": CpuProblem(1, 1, 256, 200, causal=False, schedule=Schedule(40, 24, engine="cpu")),
    "uneven": CpuProblem(4, 3, 8, by_head=(0, 2, 2, 1)),
}


@pytest.mark.parametrize("name", FORWARD)
def test_forward_agrees_with_numpy(name: str) -> None:
    problem = FORWARD[name]
    _, call = placed_cpu.load(placed_cpu.forward(problem))
    for seqlen_q, seqlen_k in LENGTHS:
        check_forward(problem, call, seqlen_q, seqlen_k, batch=2)
    check_forward(problem, call, 50, 41, batch=2, transposed=True)


def test_forward_with_offsets_threads_and_hidden_rows() -> None:
    problem = FORWARD["float32"]
    _, call = placed_cpu.load(placed_cpu.forward(problem))
    offsets = np.array([-40, 0, 55], np.int32)  # of the first batch entry 40 queries see nothing
    check_forward(problem, call, 70, 90, batch=3, offsets=offsets)
    check_forward(problem, call, 300, 400, batch=2, threads=2)
    x = make_inputs(problem, 2, 300, 300)
    results = []
    for threads in (1, 2, 2):
        o = empty((2, 2, 300, 24), "float32")
        lse = empty((2, 2, 300), "float32")
        call(threads, 2, **x, o=o, lse=lse, seqlen_q=300, seqlen_k=300)
        results.append(o.tobytes() + lse.tobytes())
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_unfused_agrees_with_numpy(dtype: str) -> None:
    p = CpuProblem(2, 1, 16, 24, dtype)
    steps = [placed_cpu.load(make(p))[1]
             for make in (placed_cpu.scores, placed_cpu.softmax, placed_cpu.output)]
    for seqlen_q, seqlen_k in [(1, 1), (33, 17), (40, 70)]:
        x = make_inputs(p, 1, seqlen_q, seqlen_k)
        sizes = {"seqlen_q": seqlen_q, "seqlen_k": seqlen_k, "q_offset": seqlen_k - seqlen_q}
        grid = (1, p.heads, seqlen_q, seqlen_k)
        s, w = empty(grid, p.compute), empty(grid, dtype)
        o, lse = empty((*grid[:3], p.width), dtype), empty(grid[:3], p.compute)
        steps[0](q=x["q"], k=x["k"], s=s, **sizes)
        steps[1](s=s, w=w, lse=lse, **sizes)
        steps[2](w=w, v=x["v"], o=o, **sizes)
        ref_s, ref_w, ref_o, ref_lse = attention(p, x, np.array([seqlen_k - seqlen_q]))
        assert_near(s, ref_s, p.compute)
        assert_near(exact(w, dtype), ref_w, dtype)
        assert_near(exact(o, dtype), ref_o, dtype)
        assert_near(lse, ref_lse, p.compute)


def test_keys_may_be_the_lanes() -> None:
    p = CpuProblem(2, 2, 16, 24, causal=False, schedule=Schedule(16, 32, engine="cpu"))
    rendered, call = placed_cpu.load(placed_cpu.value_gradient(p))
    assert "v_do[LANES]" in rendered.text
    x = make_inputs(p, 2, 45, 70)
    _, w, _, lse = attention(p, x, np.zeros(2, int))
    dout = np.random.default_rng(0).standard_normal((2, 2, 45, 24)).astype(np.float32)
    grad = empty((2, 2, 70, 24), "float32")
    call(2, 2, q=x["q"], k=x["k"], dout=dout, lse=lse.astype(np.float32), grad=grad, seqlen_q=45,
         seqlen_k=70)
    ref = np.einsum("bhij,bhie->bhje", w, dout)
    ref[:, :, 4::5] *= 0.5
    assert_near(grad, ref, "float32")


@pytest.mark.parametrize(("registers", "width"), [(32, 32), (16, 16), (32, 16)])
def test_blocking_of_other_machines(registers: int, width: int) -> None:
    """Machines with more registers or narrower vectors multiply in other blocks."""
    def other(text: str) -> str:
        text = re.sub(r"VECTOR_REGISTERS = \d+;", f"VECTOR_REGISTERS = {registers};", text)
        return re.sub(r"VECTOR_BYTES = \d+;", f"VECTOR_BYTES = {width};", text)

    problem = replace(FORWARD["float32"], schedule=Schedule(48, 30, engine="cpu"))
    _, call = placed_cpu.load(placed_cpu.forward(problem), other)
    for seqlen_q, seqlen_k in LENGTHS[3:]:
        check_forward(problem, call, seqlen_q, seqlen_k)


# -- the text --------------------------------------------------------------------------------------


def test_text_is_complete_and_explains_itself() -> None:
    text = render_cpu(placed_cpu.forward(FORWARD["bfloat16"])).text
    assert re.findall(r"#include.*", text) == ["#include <stdint.h>"]
    assert "// scores(i, j) = sum over d of q_s(i, d) k_s(j, d)" in text
    assert "// m = max(m, max_j scores)" in text  # a statement's own note goes first
    assert "const int g = h;" in text and "HEADS = 3;" in text
    assert "tiles - 1 - (int)(block % tiles)" in text  # causal: the longest loops first
    assert max(map(len, text.splitlines())) <= 120
    plain = render_cpu(placed_cpu.forward(FORWARD["float64"])).text
    assert "tiles - 1 -" not in plain
    assert "static constexpr int g_of[HEADS] = { 0, 2, 2, 1, };" in render_cpu(
        placed_cpu.forward(FORWARD["uneven"])).text


def test_text_is_the_same_in_every_process() -> None:
    code = ("import sys; sys.path.insert(0, 'tests'); import placed_cpu; from placed_cpu import *;"
            "print(render_cpu(forward(CpuProblem(4, 2, 32))).text, end='')")
    ours = render_cpu(placed_cpu.forward(CpuProblem(4, 2, 32))).text
    assert run_python(code, PYTHONHASHSEED="1") == ours
    assert run_python(code, PYTHONHASHSEED="2") == ours


def test_names_the_skeleton_uses_are_left_to_it() -> None:
    kernel = placed_cpu.forward(FORWARD["float32"])
    values = tuple(replace(v, name="rows") if v.name == "hi" else v for v in kernel.values)
    shown = values[[v.name for v in values].index("rows")]

    def renamed(stmt: Any) -> Any:
        if isinstance(stmt, Map) and stmt.dsts == ("hi",):
            return replace(stmt, dsts=("rows",))
        if isinstance(stmt, Map) and stmt.when == "partial":
            hidden = stmt.exprs[0]
            from attngen.ir.node import substitute
            return replace(stmt, exprs=(substitute(hidden, {
                value("hi", ("i",), "int32"): value("rows", ("i",), shown.dtype)}),))
        return replace(stmt, body=tuple(map(renamed, stmt.body))) if hasattr(stmt, "body") else stmt

    kernel = replace(kernel, values=values, body=tuple(map(renamed, kernel.body)))
    rendered, call = placed_cpu.load(kernel)
    assert "int v_rows[LANES];" in rendered.text
    check_forward(FORWARD["float32"], call, 40, 40)


# -- refusals --------------------------------------------------------------------------------------


def changed(**parts: Any) -> Kernel:
    return replace(placed_cpu.forward(FORWARD["float32"]), **parts)


def with_space(name: str, space: str) -> Kernel:
    kernel = changed()
    return replace(kernel, values=tuple(
        replace(v, space=space) if v.name == name else v for v in kernel.values))


BFLOAT16_VIEW = replace(placed_cpu.forward(FORWARD["bfloat16"]), values=tuple(
    replace(v, space="view") if v.name == "k_s" else v
    for v in placed_cpu.forward(FORWARD["bfloat16"]).values))


@pytest.mark.parametrize(("kernel", "message"), [
    (changed(stage="tiled"), "place it for cpu first"),
    (changed(schedule=Schedule(32, 16)), "place it for cpu first"),
    (changed(body=(Barrier(),)), "a CPU kernel cannot hold a Barrier"),
    (changed(body=(LaneReduce("l", "sum"),)), "cannot hold a LaneReduce"),
    (changed(schedule=Schedule(64, 16, engine="cpu")), "has 32 elements along i"),
    (changed(grid=placed_cpu.forward(FORWARD["float32"]).grid[:2]), "the grid of a kernel is"),
    (changed(body=(Mma("acc", "p", "k_s", "j", True),)), "the lanes of the product"),
    (changed(body=(Reduce("m", "max", "scores", "i", True),)), "only columns are reduced"),
    (changed(body=(Reduce("m", "max", "scores", "j", False),)), "what a Fill started"),
    (changed(body=(Map(("m",), (const(0.0),), ("i", "j")),)), "m has axes ('i',), the Map"),
    (changed(body=(Fill("k_s", 0.0),)), "only products read it there"),
    (with_space("k_s", "array"), "a product reads rows"),
    (BFLOAT16_VIEW, "cannot be read in place as float32"),
    (changed(body=(Load("k_s", "k"), Map(("m",), (value("q_s", "id", "float32"),), ("i",)))),
     "q_s has axes ('i', 'd')"),
])
def test_what_no_cpu_kernel_can_hold_is_refused(kernel: Kernel, message: str) -> None:
    with pytest.raises(VerifyError, match=re.escape(message)):
        render_cpu(kernel)


def test_tiles_for_no_vector_or_no_stack_are_refused() -> None:
    with pytest.raises(ScheduleError, match="12 rows a tile do not fill vectors"):
        render_cpu(placed_cpu.forward(CpuProblem(schedule=Schedule(12, 16, engine="cpu"))))
    big = CpuProblem(head_dim=256, dtype="float64", schedule=Schedule(256, 512, engine="cpu"))
    with pytest.raises(ScheduleError, match=r"needs \d+ B of local arrays") as refusal:
        render_cpu(placed_cpu.forward(big))
    assert "scores 1048576" in str(refusal.value) and "smaller block_m" in str(refusal.value)
