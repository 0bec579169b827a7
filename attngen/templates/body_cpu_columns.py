"""Statements of kernels with few rows: columns are the lanes of vectors, tiles are row-major.

A tile (row, j) is an array ``x[row][column]``. Rows of k and v are read where they lie, whatever
their type and order: a loaded tile of theirs is a function from a row to its address.
"""

from __future__ import annotations

from typing import ClassVar

from ..errors import VerifyError
from ..ir import stmt as ir
from ..ir.tensor import Tensor
from . import statements_cpu as out
from .body_cpu import Body, local_name
from .code import Code
from .storage import offset


class ColumnBody(Body):
    """As ``Body``, with the other orientation."""

    subscripts: ClassVar[dict[str, str]] = {
        "scalar": "", "row": "[r]", "column": "[n]", "lines": "[r][n]"}

    def _elements(self, axes: tuple[str, ...], lines: tuple[Code, ...],
                  indices: frozenset[str] = frozenset(), guard: Code | None = None
                  ) -> out.RowLines:
        columns, column_local, row_local = self._indices(axes, indices, "r")
        return out.RowLines((), self.keep in axes, row_local, columns, column_local, lines, guard)

    def _reduce(self, stmt: ir.Reduce) -> out.RowLines:
        src, dst = self.kernel.value(stmt.src), self.kernel.value(stmt.dst)
        if src.axes != (self.keep, stmt.over) or dst.axes != (self.keep,) or not stmt.accumulate:
            raise VerifyError(f"{dst.name}: only columns are reduced, into what a Fill started",
                              where=self.kernel.name)
        name, count = self.element(dst.name), self._count(stmt.over)
        found = f"{stmt.kind}_row({local_name(src.name)}[r], {count})"
        suffix = "f64" if dst.dtype == "float64" else "f32"
        line = f"{name} += {found};" if stmt.kind == "sum" else (
            f"{name} = max_{suffix}({name}, {found});")
        return self._elements((self.keep,), (Code(line),))

    def _place(self, tensor: Tensor, v: ir.Value) -> tuple[Code, Code | None]:
        start, stride = super()._place(tensor, v)
        if v.space != "view" or stride is None:
            return start, stride
        axis = v.axes[0]
        at = offset(tensor, {axis: f"({axis}_first + r)"})
        return Code(f"[&](int r) {{ return {local_name(tensor.name)} + {at}; }}"), None

    def _mma(self, stmt: ir.Mma) -> out.RowsMmaView:
        dst, a, b = (self.kernel.value(n) for n in (stmt.dst, stmt.a, stmt.b))
        other = next(axis for axis in (*dst.axes, "?") if axis != self.keep)
        fits = (dst.axes == (self.keep, other) and a.axes == (self.keep, stmt.over)
                and set(b.axes) == {other, stmt.over} and b.space == "view")
        if not fits or dst.space != "lines" or a.space != "lines":
            raise VerifyError(f"{dst.name} = {a.name} · {b.name} over {stmt.over}: the rows of the "
                              f"product are those of {a.name}, {b.name} is read where it lies",
                              where=self.kernel.name)
        across = b.axes[0] == other  # a column of the product is a row of b
        return out.RowsMmaView(
            (), function=Code("dot_rows" if across else "weigh_rows"),
            accumulate=Code("true" if stmt.accumulate else "false"), dst=local_name(dst.name),
            a=local_name(a.name), b=local_name(b.name),
            count=self._count(other if across else stmt.over))
