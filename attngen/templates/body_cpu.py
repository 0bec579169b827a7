"""From the statements of a placed kernel to what the CPU macros print: one method per statement.

The kept axis runs over lanes: a value (i, j) is an array ``x[column][lane]``, one number per row
``x[lane]``, one per column ``x[column]``. A tile read in place is a pointer to its first row.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from ..errors import VerifyError
from ..ir import stmt as ir
from ..ir.node import Node, make, value, walk
from ..ir.tensor import Tensor
from . import statements_cpu as out
from .abi import stride_name
from .code import Code, comment
from .conditions import condition
from .expressions import c_number, c_type, print_expression
from .geometry import SIZE
from .names import c_name
from .statements import StatementView
from .storage import offset, place

ELEMENT = {"int8": "int8_t", "float8_e4m3": "e4m3_t", "bfloat16": "bf16_t", "float16": "f16_t",
           "float32": "float", "float64": "double", "int32": "int"}
# Extent of a local array along an axis.
EXTENT = {"i": Code("BLOCK_M"), "row": Code("BLOCK_M"), "j": Code("BLOCK_N"),
          "d": Code("HEAD_DIM"), "e": Code("HEAD_DIM_V"), "split": Code("1")}

# Names this skeleton uses itself, besides those that names.py reserves for every target.
_TAKEN = frozenset("""
    rows columns lanes threads block blocks work compute_tile mma load_lanes load_rows load_row
    load_column store_lanes store_row ceil_div whole_vectors tiles
    """.split())


def local_name(name: str) -> Code:
    """``name`` as a local variable of the kernel's function."""
    taken = name in _TAKEN or name.endswith(("_f32", "_f64", "_i32"))
    return Code(f"v_{name}") if taken else c_name(name)


@dataclass
class Body:
    """Builds statement views and remembers which sizes, parameters and indices they use."""

    # What follows the name of an element at column n, by the space of its value.
    subscripts: ClassVar[dict[str, str]] = {
        "scalar": "", "row": "[lane]", "column": "[n]", "array": "[n][lane]"}

    kernel: ir.Kernel
    used: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.keep, self.loop = self.kernel.keep, self.kernel.loop
        self.writes: dict[str, int] = {}
        for stmt in ir.statements(self.kernel.body):
            for name in ir.writes(stmt):
                self.writes[name] = self.writes.get(name, 0) + 1
        self.by_column = self.kernel.schedule.lanes == "columns"
        self.at_top = {name for s in self.kernel.body for name in ir.writes(s)}

    def build(self, body: tuple[ir.Stmt, ...]) -> tuple[StatementView, ...]:
        """Views of ``body``, in order. Raises VerifyError for what no CPU kernel can hold."""
        views = []
        for stmt in body:
            method = getattr(self, f"_{type(stmt).__name__.lower()}", None)
            if method is None:
                raise VerifyError(f"a CPU kernel cannot hold a {type(stmt).__name__}",
                                  where=self.kernel.name)
            views.append(replace(method(stmt), comments=self._comments(stmt)))
        return tuple(views)

    # -- comments ------------------------------------------------------------------------------

    def _comments(self, stmt: ir.Stmt) -> tuple[Code, ...]:
        """The mathematics of a statement and, in brackets, what of the source it comes from where
        its names do not say so."""
        nodes = walk(*stmt.exprs) if isinstance(stmt, ir.Map) else ()
        named = {*ir.reads(stmt), *ir.writes(stmt), *(t.name for t in self.kernel.tensors)}
        origins = [part for text in (stmt.origin, *(n.origin for n in nodes))
                   for part in text.split(", ") if part and part not in named]
        where = ", ".join(dict.fromkeys(origins))
        text = stmt.note or self._formula(stmt)
        return (comment(text + (f" [{where}]" if where else "")),)

    def _formula(self, stmt: ir.Stmt) -> str:
        match stmt:
            case ir.Load(dst=d, tensor=t):
                how = {"view": "read in place", "rows": "converted, row by row",
                       "array": "transposed: rows become lanes"}
                space = self.kernel.value(d).space
                return f"{self._term(d)} = {t}" + (f", {how[space]}" if how.get(space) else "")
            case ir.Mma(dst=d, a=a, b=b, over=over, accumulate=acc):
                product = f"sum over {over} of {self._term(a)} {self._term(b)}"
                return f"{self._term(d)} {'+=' if acc else '='} {product}"
            case ir.Reduce(dst=d, kind=kind, src=s, over=over, accumulate=acc):
                result = f"{kind} over {over} of {self._term(s)}"
                return f"{self._term(d)} = " + (
                    result if not acc else f"max({self._term(d)}, {result})" if kind == "max"
                    else f"{self._term(d)} + {result}")
            case ir.Copy(dst=d, src=s):
                return f"{self._term(d)} = {self._term(s)}"
            case ir.Store(tensor=t, src=s):
                return f"{t} = {self._term(s)}"
            case ir.Fill(dst=d, number=x):
                return f"{self._term(d)} = {x:g}"
            case ir.Loop(axis=axis):
                return f"tiles of {EXTENT[axis]} along {axis}"
        return ", ".join(self._term(name) for name in ir.writes(stmt))

    def _term(self, name: str) -> str:
        axes = self.kernel.value(name).axes
        return f"{local_name(name)}({', '.join(axes)})" if axes else str(local_name(name))

    # -- elements ------------------------------------------------------------------------------

    def element(self, name: str) -> Code:
        """One element of a value."""
        v = self.kernel.value(name)
        if v.space not in self.subscripts:
            raise VerifyError(f"{name} lies in {v.space}: only products read it there",
                              where=self.kernel.name)
        return Code(local_name(name) + self.subscripts[v.space])

    def _elements(self, axes: tuple[str, ...], lines: tuple[Code, ...],
                  indices: frozenset[str] = frozenset(), guard: Code | None = None
                  ) -> StatementView:
        """``lines`` for every element along ``axes``, naming the indices that are needed."""
        columns, column_local, lane_local = self._indices(axes, indices, "lane")
        return out.Lines((), columns, column_local, self.keep in axes, lane_local, lines, guard)

    def _indices(self, axes: tuple[str, ...], indices: frozenset[str],
                 at: str) -> tuple[Code | None, Code | None, Code | None]:
        """How many columns there are along ``axes``, and the declarations of those ``indices``
        that follow from the column ``n``, and from the place ``at`` along the kept axis."""
        columns = [a for a in axes if a != self.keep]
        if len(columns) > 1:
            raise VerifyError(f"axes {axes}: a tile has one axis besides {self.keep}",
                              where=self.kernel.name)
        count = column_local = kept_local = None
        for axis in columns:
            count = self._count(axis)
            start = "" if axis in "de" else f"{axis}_first + "
            column_local = Code(f"const int {axis} = {start}n;") if axis in indices else None
        if self.keep in indices:
            kept_local = Code(f"const int {self.keep} = {self.keep}_first + {at};")
        return count, column_local, kept_local

    def _count(self, axis: str) -> Code:
        """How many columns along ``axis`` lie inside the tensor."""
        return Code("columns") if axis == self.loop else EXTENT[axis]

    def _fill(self, stmt: ir.Fill) -> StatementView:
        v = self.kernel.value(stmt.dst)
        line = Code(f"{self.element(stmt.dst)} = {c_number(stmt.number, v.dtype)};")
        return self._elements(v.axes, (line,))

    def _map(self, stmt: ir.Map) -> StatementView:
        indices: set[str] = set()
        lines = []
        for dst, expr in zip(stmt.dsts, stmt.exprs, strict=True):
            v = self.kernel.value(dst)
            read = [n.attr("name") for n in walk(expr) if n.op == "value"]
            stray = [name for name in read if not set(self.kernel.value(name).axes) <= {*stmt.axes}]
            if v.axes != stmt.axes or stray:
                name = stray[0] if stray else dst
                raise VerifyError(f"{name} has axes {self.kernel.value(name).axes}, the Map that "
                                  f"uses it {stmt.axes}", where=self.kernel.name)
            text = print_expression(expr, lambda leaf: self._leaf(leaf, indices))
            kind = f"const {c_type(v.dtype)} " if self.declared_at_use(v) else ""
            lines.append(Code(f"{kind}{self.element(dst)} = {text};"))
        guard = Code("partial") if stmt.when == "partial" else None
        return self._elements(stmt.axes, tuple(lines), frozenset(indices), guard)

    def declared_at_use(self, v: ir.Value) -> bool:
        """A number written once, outside loops, is a constant; others are declared on top."""
        return v.space == "scalar" and self.writes.get(v.name) == 1 and v.name in self.at_top

    def _leaf(self, leaf: Node, indices: set[str]) -> str:
        match leaf.op:
            case "value":
                return self.element(leaf.attr("name"))
            case "param":
                return self._param(leaf.attr("name"))
            case "idx":
                indices.add(leaf.attr("axis"))
                return str(leaf.attr("axis"))
            case "first" | "last":
                self.used.add(f"{leaf.attr('axis')}_{leaf.op}")
                return f"{leaf.attr('axis')}_{leaf.op}"
        raise VerifyError(f"{leaf.op} cannot stand in a statement", where=self.kernel.name)

    def _param(self, name: str) -> Code:
        self.used.add(name)
        return local_name(name)

    def size(self, axis: str) -> Code:
        """The true extent of an axis: a constant, or a parameter."""
        name = SIZE[axis]
        return self._param(name) if name.islower() else Code(name)

    def _reduce(self, stmt: ir.Reduce) -> StatementView:
        src, dst = self.kernel.value(stmt.src), self.kernel.value(stmt.dst)
        if src.axes != (self.keep, stmt.over) or dst.axes != (self.keep,):
            raise VerifyError(f"{dst.name}: only columns are reduced, and the rows of {src.name} "
                              f"are {self.keep}", where=self.kernel.name)
        if not stmt.accumulate:
            raise VerifyError(f"{dst.name}: a reduction adds to what a Fill started",
                              where=self.kernel.name)
        if stmt.kind == "sum":
            names = f"{local_name(dst.name)}, {local_name(src.name)}"
            line = Code(f"sum_columns({names}, {self._count(stmt.over)}, lanes);")
            return self._elements((), (line,))
        before, term = (value(v.name, v.axes, v.dtype) for v in (dst, src))
        text = print_expression(make("max", before, term), lambda leaf: self._leaf(leaf, set()))
        return self._elements(src.axes, (Code(f"{self.element(dst.name)} = {text};"),))

    def _copy(self, stmt: ir.Copy) -> StatementView:
        v = self.kernel.value(stmt.dst)
        line = Code(f"{self.element(stmt.dst)} = {self.element(stmt.src)};")
        return self._elements(v.axes, (line,))

    # -- memory --------------------------------------------------------------------------------

    def _place(self, tensor: Tensor, v: ir.Value) -> tuple[Code, Code | None]:
        """Address of the tile ``v`` in its tensor, and the stride from row to row. Where rows are
        not evenly spaced, a function from the row in the tile to its address, and no stride."""
        walked = {"split": "split"} if self.kernel.serial and "split" in tensor.axes else {}
        name = local_name(tensor.name)
        if tensor.place:
            placed = place(tensor, lambda n: print_expression(n, lambda x: self._leaf(x, set())))
            at, row = offset(tensor, {**walked, v.axes[0]: v.axes[0], **placed}), v.axes[0]
            where = f"{name} + {at}"
            if tensor.only is not None:
                only = print_expression(tensor.only, lambda x: self._leaf(x, set()))
                where = f"{only} ? {where} : nullptr"
            index = f"const int {row} = {row}_first + r;"
            return Code(f"[&](int r) {{ {index} return {where}; }}"), None
        at = offset(tensor, {**{a: f"{a}_first" for a in v.axes if a not in "de"}, **walked})
        start = Code(name + (f" + {at}" if at else ""))
        stride = stride_name(tensor, v.axes[0]) if len(v.axes) > 1 else ""
        return start, Code(f"params.{stride}" if stride else "1")

    def _elementwise(self, tensor: Tensor, v: ir.Value) -> StatementView:
        """A load of a row tile whose columns do not lie next to each other."""
        placed = place(tensor, lambda n: print_expression(n, lambda x: self._leaf(x, set())))
        at = offset(tensor, {**{a: a for a in v.axes}, **placed})
        inside = f"{self.keep} < {self.size(self.keep)}"
        line = f"{self.element(v.name)} = {inside} ? to_real({local_name(tensor.name)}[{at}]) : 0;"
        return self._elements(v.axes, (Code(line),), frozenset(v.axes))

    def _load(self, stmt: ir.Load) -> StatementView:
        tensor, v = self.kernel.tensor(stmt.tensor), self.kernel.value(stmt.dst)
        if v.axes[-1] in dict(tensor.place) and v.axes[-1] in "de":
            return self._elementwise(tensor, v)
        source, stride = self._place(tensor, v)
        if v.space == "view" and tensor.dtype != v.dtype and not self.by_column:
            raise VerifyError(f"{v.name}: {tensor.dtype} cannot be read in place as {v.dtype}",
                              where=self.kernel.name)
        return out.LoadView((), way=v.space, dst=local_name(v.name),
                            pointer=Code(f"const {ELEMENT[tensor.dtype]}*"), source=source,
                            stride=stride, rows=self._rows(v), columns=self._count(v.axes[-1]),
                            lanes=Code("rows" if v.space == "row" and self.by_column else "lanes"),
                            table=EXTENT[v.axes[0]] if v.space == "view" and tensor.place else None)

    def _store(self, stmt: ir.Store) -> out.StoreView:
        tensor, v = self.kernel.tensor(stmt.tensor), self.kernel.value(stmt.src)
        target, stride = self._place(tensor, v)
        return out.StoreView((), way=v.space, target=target, stride=stride, src=local_name(v.name),
                             rows=self._rows(v), columns=self._count(v.axes[-1]))

    def _rows(self, v: ir.Value) -> Code:
        return Code("rows") if v.axes[0] == self.keep else self._count(v.axes[0])

    # -- products ------------------------------------------------------------------------------

    def _mma(self, stmt: ir.Mma) -> StatementView:
        dst, a, b = (self.kernel.value(n) for n in (stmt.dst, stmt.a, stmt.b))
        other = next(axis for axis in (*dst.axes, "?") if axis != self.keep)
        fits = (set(dst.axes) == {self.keep, other} and set(a.axes) == {self.keep, stmt.over}
                and set(b.axes) == {other, stmt.over})
        if not fits or dst.space != "array" or a.space != "array":
            raise VerifyError(f"{dst.name} = {a.name} · {b.name} over {stmt.over}: the lanes of "
                              f"the product are those of {a.name}", where=self.kernel.name)
        if b.space == "view":
            loads = [s for s in ir.statements(self.kernel.body)
                     if isinstance(s, ir.Load) and s.dst == b.name]
            start = local_name(b.name)
            _, stride = self._place(self.kernel.tensor(loads[0].tensor), b)
            assert stride is not None
            row = stride
        elif b.space == "rows":
            start, row = Code(f"{local_name(b.name)}[0]"), self.pitch(b)
        else:
            raise VerifyError(f"{b.name} lies in {b.space}: a product reads rows",
                              where=self.kernel.name)
        one = Code("1")
        across = b.axes[0] == other  # a column of the product is a row of b
        return out.MmaView(
            (), accumulate=Code("true" if stmt.accumulate else "false"),
            dst=local_name(dst.name), a=local_name(a.name), b=start,
            stride_n=row if across else one, stride_k=one if across else row,
            columns=self._count(other), depth=self._count(stmt.over))

    @staticmethod
    def pitch(v: ir.Value) -> Code:
        """Elements from one row to the next of a copy."""
        return Code(f"{EXTENT[v.axes[-1]]} + ROW_PAD")

    # -- loops ---------------------------------------------------------------------------------

    def _loop(self, stmt: ir.Loop) -> out.LoopView:
        body = self.build(stmt.body)
        axis = stmt.axis
        visible, full = (n if n is None else condition(n, axis, lambda x: self._leaf(x, set()))
                         for n in (stmt.visible, stmt.full))
        return out.LoopView(
            (), axis=Code(axis), serial=self.kernel.serial, tile=EXTENT[axis], size=self.size(axis),
            begin=local_name(stmt.begin), end=local_name(stmt.end),
            full_begin=local_name(stmt.full_begin), full_end=local_name(stmt.full_end),
            partial=any(isinstance(v, out.Lines | out.RowLines) and v.guard for v in body),
            last=f"{axis}_last" in self.used or any(c and c.last for c in (visible, full)),
            visible=visible, full=full, body=body)
