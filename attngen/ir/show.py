"""Graphs and kernels as text, and the difference of two of them."""

from __future__ import annotations

import difflib
import math

import numpy as np

from .graph import Graph, Region
from .node import Node, walk
from .ops import OPS
from .stmt import (
    Barrier,
    Commit,
    Copy,
    Fill,
    Issue,
    Kernel,
    LaneReduce,
    Load,
    Loop,
    Map,
    Mma,
    Reduce,
    Stmt,
    Store,
    Value,
    Wait,
)

_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "floordiv": "//", "mod": "%", "lt": "<",
          "le": "<=", "eq": "==", "ne": "!=", "and": "&", "or": "|"}


def number(x: float | int | bool, dtype: str) -> str:
    """The shortest text that reads back as the number the type holds."""
    if not isinstance(x, float) or math.isinf(x):
        return str(x)
    text = repr(x) if dtype == "float64" else str(np.float32(x))
    return text.removesuffix(".0")


def formula(n: Node) -> str:
    """A scalar expression on one line, fully bracketed where operators nest."""
    if n.op == "const":
        return number(n.attr("value"), n.dtype)
    if n.op == "idx":
        return str(n.attr("axis"))
    if n.op in ("param", "value", "input"):
        return str(n.attr("name"))
    if n.op in ("first", "last"):
        return f"{n.op}({n.attr('axis')})"
    parts = [formula(a) for a in n.args]
    if n.op in _INFIX:
        return _infix(n, parts, [a.op in _INFIX for a in n.args])
    if n.op == "gather":
        return f"{n.attr('name')}[{', '.join(parts)}]"
    extra = [f"{k}={v}" for k, v in n.attrs if k not in ("map",)]
    if n.op == "cast":
        extra = [n.dtype]
    return f"{n.op}({', '.join([*parts, *extra])})"


def _infix(n: Node, parts: list[str], nested: list[bool]) -> str:
    a, b = (f"({p})" if deep else p for p, deep in zip(parts, nested, strict=True))
    if n.op == "add" and n.args[1].is_const and b.startswith("-"):
        return f"{a} - {b[1:]}"
    return f"{a} {_INFIX[n.op]} {b}"


def graph_text(graph: Graph, origins: bool = True) -> str:
    """The whole graph; math and fused graphs node by node, later ones statement by statement."""
    lines = [f"# {graph.stage}"]
    for kernel in graph.kernels:
        lines.append(region_text(kernel, origins) if isinstance(kernel, Region)
                     else kernel_text(kernel, origins))
    return "\n".join(lines) + "\n"


def region_text(region: Region, origins: bool = True) -> str:
    """One line a node that is used twice or is no scalar operation; the rest stand inline."""
    uses: dict[str, int] = {}
    for n in walk(*region.roots):
        for a in n.args:
            uses[a.key] = uses.get(a.key, 0) + 1
    names: dict[str, str] = {}
    lines = [f"region {region.name}({', '.join(dict.fromkeys(region.inputs))})"]

    def text(n: Node) -> str:
        if n.key in names:
            return names[n.key]
        if not n.args:
            return formula(n)
        parts = [text(a) for a in n.args]
        if n.op in _INFIX:
            return _infix(n, parts, [a.op in _INFIX and a.key not in names for a in n.args])
        if n.op == "gather":
            return f"{n.attr('name')}[{', '.join(parts)}]"
        extra = [n.dtype] if n.op == "cast" else [f"{k}={_short(v)}" for k, v in n.attrs]
        return f"{n.op}({', '.join([*parts, *extra])})"

    for n in walk(*region.roots):
        named = n.args and (uses.get(n.key, 0) != 1 or OPS[n.op].group == "tensor")
        if named:
            line = text(n)
            names[n.key] = f"%{len(names)}"
            note = f"   # {n.origin}" if origins and n.origin else ""
            lines.append(f"  {names[n.key]}: [{' '.join(n.axes)}] {n.dtype} = {line}{note}")
    for t, n in region.outputs:
        lines.append(f"  {t.name}[{' '.join(t.axes)}] {t.dtype} <- {text(n)}")
    return "\n".join(lines)


def _short(attr: object) -> str:
    text = str(attr)
    return text if len(text) <= 24 else text[:20] + "..."


def kernel_text(kernel: Kernel, origins: bool = True) -> str:
    """The kernel's grid, tensors, values and statements."""
    grid = ", ".join(f"{g.axis}/{g.tile}" if g.tile > 1 else g.axis for g in kernel.grid)
    s = kernel.schedule
    lines = [f"kernel {kernel.name}  grid({grid})  {s.engine} {s.block_m}x{s.block_n} "
             f"warps={s.warps} stages={s.stages} vector_bytes={s.vector_bytes} "
             f"min_blocks={s.min_blocks} shared={kernel.shared_bytes} "
             f"registers~{kernel.registers}"]
    lines += [f"  table {t.name}[{t.ndim}-D] {t.dtype}" for t in kernel.tables]
    lines += [f"  tensor {t.name}[{' '.join(t.axes)}] {t.dtype} {t.role}"
              + (f" by_head={t.by_head}" if t.by_head else "")
              + (f" from {t.begin}[b]" if t.begin else "") for t in kernel.tensors]
    lines += [f"  param {p.name} {p.dtype}{' per batch' if p.per_batch else ''}"
              for p in kernel.params]
    lines += [f"  value {_value_text(v)}" for v in kernel.values]
    lines += _body(kernel.body, 1, origins)
    return "\n".join(lines)


def _value_text(v: Value) -> str:
    shape = " ".join(f"{a}:{n}" for a, n in zip(v.axes, v.shape, strict=True))
    text = f"{v.name}[{shape}] {v.dtype}"
    if v.space:
        text += f" {v.space}"
    if v.space == "shared":
        text += f" stages={v.stages} offset={v.offset} panel={v.panel}"
    return text


def _body(body: tuple[Stmt, ...], depth: int, origins: bool) -> list[str]:
    lines = []
    for stmt in body:
        note = f"   # {stmt.origin}" if origins and stmt.origin else ""
        lines.append("  " * depth + statement_text(stmt) + note)
        if isinstance(stmt, Loop):
            lines += _body(stmt.body, depth + 1, origins)
    return lines


def statement_text(stmt: Stmt) -> str:
    """A statement on one line."""
    match stmt:
        case Load(dst=d, tensor=t):
            return f"{d} = load {t}"
        case Fill(dst=d, number=x):
            return f"{d} = fill {x:g}"
        case Mma(dst=d, a=a, b=b, over=o, accumulate=acc):
            return f"{d} {'+=' if acc else '='} mma {a} {b} over {o}"
        case Map(dsts=ds, exprs=es, axes=ax, when=w):
            parts = "; ".join(f"{d} = {formula(e)}" for d, e in zip(ds, es, strict=True))
            return f"map[{' '.join(ax)}]{' if partial' if w == 'partial' else ''} {parts}"
        case Reduce(dst=d, kind=k, src=s, over=o, accumulate=acc, lanes=ln):
            return f"{d} {'with' if acc else '='} {k} {s} over {o} lanes {ln}"
        case LaneReduce(dst=d, kind=k):
            return f"{d} = {k} across lanes"
        case Copy(dst=d, src=s):
            return f"{d} = copy {s}"
        case Store(tensor=t, src=s):
            return f"store {t} = {s}"
        case Loop(axis=a, begin=b, end=e, full_begin=fb, full_end=fe, visible=v, full=f):
            return (f"loop {a} in [{b}, {e}){f' where {formula(v)}' if v else ''} "
                    f"full [{fb}, {fe}){f' where {formula(f)}' if f else ''}")
        case Issue(dst=d, tensor=t, ahead=n):
            return f"issue {d} = {t}" + ("" if n is None else f" ahead {n}")
        case Commit():
            return "commit"
        case Wait(pending=n):
            return f"wait pending {n}"
        case Barrier(scope=s):
            return f"barrier {s}"
    return repr(stmt)


def diff(before: str, after: str) -> str:
    """A unified diff of two graphs' texts; empty when they are equal."""
    return "".join(difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), "before", "after", n=2))
