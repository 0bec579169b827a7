"""The backward pass as math graphs, from the same scores and visibility as forward.

With p = exp(s − lse), which is recomputed, and what came back through o and lse (Dao et al. 2022,
appendix B.2; lse's cotangent joins delta because ∂lse/∂s = p):

    delta_i = Σ_e do_ie·o_ie − dlse_i
    ds_ij   = p_ij·(Σ_e do_ie·v_je − delta_i)
    dq = Σ_j (∂s/∂(q·k))·ds·k       dk = Σ_i (∂s/∂(q·k))·ds·q       dv = Σ_i p·do

and ds goes on through the scores by ``grad.derivatives``: to the product q·k, and to every captured
tensor that wants it. Dropout multiplies p in dv, and Σ_e do·v in ds, by forward's factors. No N×N
tensor is stored, unless a captured one is N×N itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..spec import AttentionSpec
from .build import build_scores, graph_of, graph_tables
from .capture import Captures
from .grad import derivatives
from .graph import Graph
from .node import Node, cast, const, contract, interning, make, param, reduce, tensor, walk
from .positions import by_head
from .tensor import Tensor

Place = str | int | tuple[int, ...]


class TableGradient(NamedTuple):
    """The gradient of one read of a captured tensor: the kernels' output ``name``, which has
    ``axes``, is yet to be summed into the elements of ``table``. Each dimension is read ``at`` the
    batch entry ("b"), the head ("h"), the position of the query ("i") or of the key ("j"), a
    number, or one for each head. Where an index is computed otherwise ``at`` is None: then another
    output, ``<name>_at``, has the element's number, -1 outside of the table, which is different
    along the axes ``moves``."""

    name: str
    table: str
    axes: tuple[str, ...]
    at: tuple[Place, ...] | None
    moves: tuple[str, ...] = ()


class Backward(NamedTuple):
    """``rows`` keeps queries and walks keys, ``columns`` the other way round; ``delta`` comes
    first. Gradients of keys and values are of query heads yet. ``pairs`` has the gradients of
    captured tensors that are read at indices computed from both."""

    delta: Graph
    rows: Graph
    columns: tuple[Graph, ...]
    pairs: Graph | None
    tables: tuple[TableGradient, ...]


def build_backward(spec: AttentionSpec, dtype: str, captures: Captures,
                   wanted: Callable[[str], bool] = lambda name: False,
                   split: bool = False, dropout: bool = False) -> Backward:
    """The backward graphs of ``spec`` for tensors of ``dtype``. ``wanted`` tells of the name of a
    captured tensor whether it requires gradients. With ``split`` dk and dv get a kernel each: p and
    ds are computed once more, where registers cannot hold both sums.

    Raises TraceError for callables that cannot be traced, VerifyError for operations without a
    derivative.
    """
    with interning():
        return _Build(spec, dtype, captures, wanted, dropout).graphs(split)


class _Build:
    def __init__(self, spec: AttentionSpec, dtype: str, captures: Captures,
                 wanted: Callable[[str], bool], dropout: bool) -> None:
        self.dtype = dtype
        self.scores = scores = build_scores(spec, dtype, captures, dropout)
        self.tables = graph_tables(captures)
        compute = scores.compute
        self.dout, self.o = tensor("dout", "bhie", dtype), tensor("o", "bhie", dtype)
        self.lse, self.delta, self.dlse = (tensor(n, "bhi", compute)
                                           for n in ("lse", "delta", "dlse"))
        self.p = make("exp", make("sub", scores.masked, make("finite_or_zero", self.lse)),
                      origin="p")
        dp = contract(self.dout, scores.v, "e", compute, origin="dp")
        self.ds = make("mul", self.p, make("sub", scores.dropped(dp), self.delta), origin="ds")
        self.reads = [n for n in walk(scores.score)
                      if n.op == "gather" and wanted(n.attr("name"))]
        self.found = derivatives(scores.score, self.ds, [scores.product, *self.reads])

    def graphs(self, split: bool) -> Backward:
        compute, dtype = self.scores.compute, self.dtype
        heads = self.scores.k.attr("map")
        kept = dtype if heads == tuple(range(len(heads))) else compute  # yet to be summed
        delta = make("sub", reduce("sum", make("mul", cast(self.dout, compute),
                                               cast(self.o, compute)), "e", origin="delta"),
                     self.dlse, origin="delta")
        rows: dict[Tensor, Node] = {}
        columns: dict[Tensor, Node] = {}
        pairs: dict[Tensor, Node] = {}
        gradients = []
        scaled, factor = self._flow(self.scores.product)
        if factor:
            def times(x: Node, name: str) -> Node:
                return make("mul", x, const(factor, compute), origin=name)
            ds = cast(scaled, dtype)
            dq = contract(ds, self.scores.k, "j", compute, origin="dq")
            dk = contract(ds, self.scores.q, "i", compute, origin="dk")
            rows[Tensor("dq", tuple("bhid"), dtype, "output")] = times(dq, "dq")
            columns[Tensor("dk", tuple("bhjd"), kept, "output")] = times(dk, "dk")
        p = self.scores.dropped(self.p)
        dv = contract(cast(p, dtype), self.dout, "i", compute, origin="dv")
        columns[Tensor("dv", tuple("bhje"), kept, "output")] = dv
        for n, read in enumerate(self.reads):
            if read not in self.found:
                continue
            name, (g, factor) = self._output_name(n), self._flow(read)
            places = [_place(x, len(heads)) for x in read.args]
            at = tuple(p for p in places if p is not None)
            computed = len(at) < len(places)
            moves = {m.attr("axis") for x in read.args for m in walk(x) if m.op == "idx"}
            if "j" not in moves and ("i" in moves or not computed):
                out, where, root = tuple("bhi"), rows, reduce("sum", g, "j", origin=name)
            elif "i" not in moves and "j" in moves:
                out, where, root = tuple("bhj"), columns, reduce("sum", g, "i", origin=name)
            else:
                out, where, root = tuple("bhij"), pairs if computed else rows, g
            where[Tensor(name, out, compute, "output")] = make(
                "mul", root, const(factor, compute), origin=name)
            if computed:
                where[Tensor(f"{name}_at", out, compute, "output")] = _number_of(name, read,
                                                                                 compute)
            gradients.append(TableGradient(
                name, read.attr("name"), out, None if computed else at,
                tuple(a for a in out if a in moves)))
        return Backward(
            self._graph("backward_delta", {Tensor("delta", tuple("bhi"), compute, "output"):
                                           delta}),
            self._graph("backward_rows", rows),
            tuple(self._graph(f"backward_{name}", part) for name, part in _parts(columns, split)),
            self._graph("backward_pairs", pairs) if pairs else None, tuple(gradients))

    def _output_name(self, n: int) -> str:
        """Of the gradient of the n-th read; users may have called a tensor so."""
        name = f"dtable_{n}"
        while any(t.name == name for t in self.tables):
            name += "_"
        return name

    def _flow(self, leaf: Node) -> tuple[Node, float]:
        """A cotangent and a constant factor that is left out of it; 0 where hidden: there p is 0,
        but a derivative may be infinite."""
        if leaf not in self.found:
            return const(0.0, self.scores.compute), 0.0
        g, factor = _factor(self.found[leaf])
        if g is self.ds:
            return g, factor
        return make("where", self.scores.visible, g, const(0.0, g.dtype), origin="ds"), factor

    def _graph(self, name: str, outputs: dict[Tensor, Node]) -> Graph:
        used = {n.attr("name") for n in walk(*outputs.values()) if n.op == "input"}
        given = (*self.scores.inputs,
                 *(Tensor(n.attr("name"), n.axes, n.dtype, "input") for n in (
                     self.o, self.dout, self.lse, self.delta, self.dlse)))
        read = {n.attr("name") for n in walk(*outputs.values()) if n.op == "gather"}
        return graph_of(name, outputs, tuple(t for t in given if t.name in used),
                        self.scores.sizes, tuple(t for t in self.tables if t.name in read))


def _parts(columns: dict[Tensor, Node], split: bool
           ) -> list[tuple[str, dict[Tensor, Node]]]:
    """All outputs together, or dv apart."""
    dv = {t: n for t, n in columns.items() if t.name == "dv"}
    rest = {t: n for t, n in columns.items() if t.name != "dv"}
    return [("columns", rest), ("values", dv)] if split and rest else [("columns", columns)]


def _place(index: Node, heads: int) -> Place | None:
    """What one dimension of a captured tensor is read at, if that is an axis, a number, or one for
    each head."""
    if index.is_const:
        return int(index.attr("value"))
    if index.op == "idx" and index.attr("axis") in "bh":
        axis: str = index.attr("axis")
        return axis
    if index.op == "add" and {a.op for a in index.args} == {"idx", "param"}:
        at, offset = sorted(index.args, key=lambda a: a.op)
        if offset.attr("name") == {"i": "q_offset", "j": "kv_offset"}.get(at.attr("axis")):
            axis = at.attr("axis")
            return axis
    values = by_head(index, heads)
    return None if values is None else tuple(int(x) for x in values)


def _number_of(name: str, read: Node, compute: str) -> Node:
    """Which element of the table is read, counted in rows, -1 outside; exact up to 2^24 elements.
    Its lengths are the parameters ``<name>_size_<dimension>``."""
    number, inside = const(0), const(True)
    for n, index in enumerate(read.args):
        size = param(f"{name}_size_{n}")
        inside = make("and", inside, make("and", make("le", const(0), index),
                                          make("lt", index, size)))
        number = make("add", make("mul", number, size), index)
    return make("where", inside, cast(number, compute), const(-1.0, compute))


def _factor(x: Node) -> tuple[Node, float]:
    """x = y·c as (y, c): a constant factor of a sum over products is applied to the sum."""
    c = 1.0
    while x.op == "mul" and x.args[1].is_const:
        c *= x.args[1].attr("value")
        x = x.args[0]
    if x.is_const:
        return x, 0.0
    return x, c
