"""The backward pass of a variant: three plans, then what is left of sums over heads and tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from . import operands
from .operands import Heads
from .plan import Plan
from .runner import Runner
from .table_gradient import TableGradient, accumulated, scattered, sizes_of
from .variant import Problem

if TYPE_CHECKING:
    from torch import Tensor


# Of gradients of pairs and their places in a table, this much is in memory at once, or so many
# queries' if that is more.
_PAIR_BYTES, _ROWS_AT_ONCE = 1 << 26, 64


class BackwardPlans(NamedTuple):
    """``delta`` runs first. ``rows`` gives dq and what is kept by query, ``columns`` dk, dv and
    what is kept by key, ``pairs`` the gradients of tables read at computed indices; ``head_map``
    has the key/value head of each query head."""

    delta: Plan
    rows: Plan
    columns: tuple[Plan, ...]
    pairs: Plan | None
    tables: tuple[TableGradient, ...]
    head_map: tuple[int, ...]

    def all(self) -> tuple[Plan, ...]:
        """In launch order."""
        return self.delta, self.rows, *self.columns, *([self.pairs] if self.pairs else [])


class Saved(NamedTuple):
    """What forward leaves for backward."""

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    lse: Tensor


class Gradients(NamedTuple):
    """``tables`` by the kernels' names; what no score depends on is absent."""

    q: Tensor
    k: Tensor
    v: Tensor
    tables: dict[str, Tensor]


class BackwardVariant:
    """The backward kernels for one dtype and alignment."""

    def __init__(self, plans: BackwardPlans, fixed: Heads, *, emulate: bool,
                 packed: bool) -> None:
        self.plans = plans
        self._fixed = fixed
        self._packed = packed
        runners = tuple(Runner(p, emulate=emulate) for p in plans.all())
        self.executables = tuple(r.executable for r in runners)
        self._delta, *self._once = runners[:2 + len(plans.columns)]
        self._pairs = runners[-1] if plans.pairs else None

    def run(self, saved: Saved, dout: Tensor | None, dlse: Tensor | None,
            problem: Problem) -> Gradients:
        """Gradients of q, k, v, and of those captured tensors the plans were made for. ``dout``
        and ``dlse`` may have any strides; None is zero."""
        q, k, v, o, lse = saved
        dout = o.new_zeros(o.shape) if dout is None else _readable(dout)
        dlse = lse.new_zeros(lse.shape) if dlse is None else _readable(dlse)
        delta = lse.new_zeros(lse.shape)  # rows that no packed sequence has are not written
        sizes, work = problem.sizes(self._fixed), problem.work(self._fixed)
        lengths = sizes_of(self.plans.tables, problem)
        params = problem.params | lengths
        outputs: dict[str, Tensor] = {}

        def launch(runner: Runner, **given: Tensor) -> None:
            names = {a.name for a in runner.plan.tensors if a.role == "input"}
            made = {a.name: self._output(a.name, a.axes, a.dtype, problem, saved)
                    for a in runner.plan.tensors if a.role == "output"}
            tensors = {n: t for n, t in given.items() if n in names} | made
            if "delta" in made:
                tensors["delta"] = delta
            outputs.update(tensors)
            if self._packed:
                tensors = {n: t[0] for n, t in tensors.items()}
            tables = {a.name: problem.tables[a.name] for a in runner.plan.tensors
                      if a.role == "table" and not a.of}
            runner.run(tensors, tables, sizes, params, work)

        if problem.batch and problem.seqlen_q:
            launch(self._delta, dout=dout, o=o, dlse=dlse)
        for runner in self._once:
            launch(runner, q=q, k=k, v=v, dout=dout, lse=lse, delta=delta)
        dk, dv = (self._of_groups(outputs[n], like) if n in outputs else like.new_zeros(like.shape)
                  for n, like in (("dk", k), ("dv", v)))
        dq = outputs["dq"] if "dq" in outputs else q.new_zeros(q.shape)
        tables: dict[str, Tensor] = {}
        for g in self.plans.tables:
            if g.table not in tables:
                table = problem.tables[g.table]
                tables[g.table] = table.new_zeros(table.shape, dtype=lse.dtype)
            if g.name in outputs and g.at is None:
                scattered(g, tables[g.table], outputs[g.name], outputs[f"{g.name}_at"], problem)
            elif g.name in outputs:
                found = outputs[g.name]
                tables[g.table] += accumulated(g, found if "b" in g.axes else found[0], problem)
        if self._pairs is not None and q.numel() and k.numel():
            self._scatter(self._pairs, saved, dout, delta, problem, lengths, tables)
        if "sinks" in problem.tables:
            tables["sinks"] = _of_sinks(problem.tables["sinks"], lse, delta)
        return Gradients(dq, dk, dv, tables)

    def _scatter(self, runner: Runner, saved: Saved, dout: Tensor, delta: Tensor, problem: Problem,
                 lengths: dict[str, int], tables: dict[str, Tensor]) -> None:
        """Gradients of tables read at indices computed from both positions, a few queries at a
        time: those of all their pairs are stored, and added up in order."""
        q, k, v, _, lse = saved
        used = {a.name: a for a in runner.plan.tensors}
        gradients = [g for g in self.plans.tables if g.name in used]
        row = problem.batch * self._fixed.heads * problem.seqlen_k * lse.element_size()
        many = max(_ROWS_AT_ONCE, _PAIR_BYTES // (2 * row) // _ROWS_AT_ONCE * _ROWS_AT_ONCE)
        for first in range(0, problem.seqlen_q, many):
            part = problem.queries(first, min(many, problem.seqlen_q - first))
            rows = slice(first, first + part.seqlen_q)
            shape = (problem.batch, self._fixed.heads, part.seqlen_q, problem.seqlen_k)
            pairs = {name: lse.new_empty(shape) for name, a in used.items() if a.role == "output"}
            given = {"q": q[:, :, rows], "k": k, "v": v, "dout": dout[:, :, rows],
                     "lse": lse[:, :, rows], "delta": delta[:, :, rows]}
            runner.run({n: t for n, t in given.items() if n in used} | pairs,
                       {n: problem.tables[n] for n, a in used.items()
                        if a.role == "table" and not a.of},
                       part.sizes(self._fixed), part.params | lengths, part.work(self._fixed))
            for g in gradients:
                scattered(g, tables[g.table], pairs[g.name], pairs[f"{g.name}_at"], part)

    def _output(self, name: str, axes: tuple[str, ...], dtype: str, problem: Problem,
                saved: Saved) -> Tensor:
        import torch

        q, k, v = saved[:3]
        rows = {"i": q.shape[2], "j": k.shape[2]}
        sizes = {"b": q.shape[0], "h": self._fixed.heads, "d": q.shape[3], "e": v.shape[3], **rows}
        shape = tuple(sizes[a] for a in (axes if "b" in axes else ("b", *axes)))
        kind = getattr(torch, dtype)
        if self._packed:  # rows that no sequence has are not written
            return q.new_zeros(shape, dtype=kind)
        if name == "dq" and not q.is_contiguous():
            return q.new_empty_strided(shape, operands.ordered_strides(q, shape))  # type: ignore[arg-type]
        return q.new_empty(shape, dtype=kind)

    def _of_groups(self, by_head: Tensor, like: Tensor) -> Tensor:
        """Gradients of query heads summed over those that share a key/value head."""
        heads, groups = self.plans.head_map, like.shape[1]
        if heads == tuple(range(groups)):
            return by_head
        import torch

        size = len(heads) // groups if groups else 0
        if heads == tuple(h // size for h in range(len(heads))):
            b, _, n, d = by_head.shape
            return by_head.view(b, groups, size, n, d).sum(2).to(like.dtype)
        return torch.stack([by_head[:, [h for h, of in enumerate(heads) if of == g]].sum(1)
                            for g in range(groups)], 1).to(like.dtype)


def _readable(x: Tensor) -> Tensor:
    """A gradient as kernels read it: rows one after another, 16-byte aligned."""
    itemsize = x.element_size()
    if x.stride(-1) == 1 or not x.numel():
        outer = [n for n, size in zip(x.stride()[:-1], x.shape, strict=False) if size > 1]
        if x.dim() < 4 or not any(n % 16 for n in (
                x.data_ptr(), *(n * itemsize for n in outer))):
            return x
    import torch

    return x.clone(memory_format=torch.contiguous_format)


def _of_sinks(sinks: Tensor, lse: Tensor, delta: Tensor) -> Tensor:
    """A sink is one more score of every row, whose value is 0: its ds is −exp(sink − lse)·delta."""
    import torch

    from .table_gradient import fixed_sum

    p = torch.exp(sinks[None, :, None].to(lse.dtype) - lse.masked_fill(lse == -torch.inf, 0.0))
    p = p.masked_fill((sinks == -torch.inf)[None, :, None], 0.0)
    return fixed_sum(torch.where(delta == 0, 0.0, -(p * delta)), (0, 2))
