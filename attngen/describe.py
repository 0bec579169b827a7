"""What a compiled attention tells of itself: its graphs, and a report of what it costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .errors import ShapeError
from .runtime.targets import Target

if TYPE_CHECKING:
    from .compiler import Lowered
    from .ir.cost import KernelCost
    from .ir.graph import Graph
    from .ir.node import Node
    from .ir.tilemap import TileMap
    from .runtime.captured import Captured


class Description:
    """Answers ``Attention.ir`` and ``Attention.explain``; lowers again on demand, since a plan
    from the cache carries no graph. ``lower(dtype)`` does that; without one, ``dtype`` or the
    target's usual type is meant."""

    def __init__(self, lower: Callable[[str], Lowered], target: Target,
                 dtype: str | None = None) -> None:
        self._lower, self.target = lower, target
        self._dtype = dtype or ("float32" if target.family == "cpu" else "bfloat16")
        self._mask: tuple[Node, int, Captured] | None = None

    def ir(self, stage: str, dtype: str | None = None) -> Graph:
        """The graph at a stage; ``str()`` of it is its text. Raises UnknownNameError."""
        return self._lower(dtype or self._dtype).stage(stage)

    def tiles(self, seqlen_q: int, seqlen_k: int, block: tuple[int, int] = (128, 128), *,
              batch: int = 1, q_offset: Any = None, kv_offset: Any = 0,
              seqlens_k: Any = None) -> TileMap:
        """The tiles of the mask: see ``Attention.tiles``."""
        from .ir.tilemap import prove

        for name, number, least in (("seqlen_q", seqlen_q, 0), ("seqlen_k", seqlen_k, 0),
                                    ("batch", batch, 1), ("block", min(block), 1)):
            if number < least:
                raise ShapeError(f"{name} is too small", numbers=f"{name} {number}, at least "
                                 f"{least}", remedy="Give lengths and tile sizes of a call.")
        given = {"kv_offset": kv_offset, "kv_len": seqlen_k if seqlens_k is None else seqlens_k}
        given = {name: _per_batch(name, value, batch) for name, value in given.items()}
        given["q_offset"] = (given["kv_offset"] + (seqlen_k - seqlen_q) if q_offset is None
                             else _per_batch("q_offset", q_offset, batch))
        mask, heads, captured = self._visible()
        given |= {n.name: getattr(n.source, "value", n.source) for n in captured.numbers}
        tables = {t.name: _values(t.source) for t in captured.tensors if t.source is not None}
        return prove(mask, seqlen_q, seqlen_k, block, given, batch=batch, heads=heads,
                     tables=tables)

    def _visible(self) -> tuple[Node, int, Captured]:
        """The mask of the math graph, lengths included, the number of heads, and what the masks
        captured."""
        if self._mask is None:
            from .ir.node import walk

            lowered = self._lower(self._dtype)
            graph = lowered.stage("math")
            roots = [n for region in graph.regions for n in region.roots]
            mask = next(n for n in walk(*roots) if n.op == "visible").args[0]
            self._mask = mask, dict(graph.sizes)["heads"], lowered.captured
        return self._mask

    def costs(self, dtype: str | None = None, *, batch: int = 1, seqlen_q: int = 2048,
              seqlen_k: int | None = None) -> tuple[KernelCost, ...]:
        """Predicted work and traffic of each kernel for lengths with default positions."""
        from .ir.cost import predict

        placed = self._lower(dtype or self._dtype).placed
        keys = seqlen_q if seqlen_k is None else seqlen_k
        extents, params = lengths(dict(placed.sizes), batch, seqlen_q, keys)
        return predict(placed, extents, params)

    def explain(self, dtype: str | None = None, *, batch: int = 1, seqlen_q: int = 2048,
                seqlen_k: int | None = None) -> str:
        """The formulas, parts that are used twice named once; then kernel by kernel: schedule,
        shared memory, registers, tiles, FLOPs, bytes, roofline."""
        from .ir.show import formula
        from .ir.stmt import Map, statements

        chosen = dtype or self._dtype
        lowered = self._lower(chosen)
        placed = lowered.placed
        keys = seqlen_q if seqlen_k is None else seqlen_k
        lines = [f"{self.target.name} ({self.target.board}), {chosen}, batch {batch}, "
                 f"seqlen_q {seqlen_q}, seqlen_k {keys}", "",
                 *str(lowered.math).rstrip("\n").splitlines()[1:]]
        costs = self.costs(chosen, batch=batch, seqlen_q=seqlen_q, seqlen_k=keys)
        for kernel, cost in zip(placed.tiles, costs, strict=True):
            s = kernel.schedule
            lines += ["", f"kernel {kernel.name}: {s.engine}, tiles {s.block_m} x {s.block_n}, "
                      f"{s.warps} warps, stages {s.stages}"]
            if kernel.shared_bytes:
                parts = [f"{v.name} {v.stages}x{v.shape[0]}x{v.shape[1]} {v.dtype}"
                         for v in kernel.values if v.space == "shared"]
                lines.append(f"  shared memory  {kernel.shared_bytes} B of "
                             f"{self.target.shared_limit} ({', '.join(parts)})")
                lines.append(f"  registers      about {kernel.registers} a thread (estimate)")
            for stmt in statements(kernel.body):
                if isinstance(stmt, Map) and stmt.origin == "tiles":
                    lines += [f"  {d:<14} {formula(e)}"
                              for d, e in zip(stmt.dsts, stmt.exprs, strict=True)]
            lines += self._numbers(cost)
        return "\n".join(lines) + "\n"

    def _numbers(self, cost: KernelCost) -> list[str]:
        roof, seconds = cost.bound(self.target.matrix_flops, self.target.bandwidth)
        moved = ", ".join(f"{n} {_size(b)}" for book in (cost.read, cost.written)
                          for n, b in book.items())
        return [
            f"  blocks         {cost.blocks}, tiles visited {cost.tiles} ({cost.full_tiles} full)",
            f"  FLOPs          {cost.flops:.3e}"
            + (f", {cost.matrix_instructions} mma.m16n8k16" if cost.matrix_instructions else ""),
            f"  device memory  {_size(cost.bytes)} ({moved})",
            f"  roofline       {cost.intensity:.1f} FLOP/B, {roof} bound, "
            f"{seconds * 1e6:.1f} us at best",
        ]


def lengths(sizes: dict[str, int], batch: int, seqlen_q: int, seqlen_k: int,
            num_splits: int = 1) -> tuple[dict[str, int], dict[str, Any]]:
    """Axis lengths and run-time numbers of a call with default positions."""
    extents = {"b": batch, "h": sizes["heads"], "g": sizes["groups"], "i": seqlen_q,
               "j": seqlen_k, "d": sizes["head_dim"], "e": sizes["head_dim_v"],
               "row": seqlen_q * (sizes["heads"] // sizes["groups"]), "split": num_splits}
    return extents, {"q_offset": seqlen_k - seqlen_q, "kv_offset": 0, "kv_len": seqlen_k}


def _values(source: Any) -> Any:
    """A captured tensor as a NumPy array, which has no bfloat16."""
    source = source.detach().cpu()
    return (source.float() if source.is_floating_point() else source).numpy()


def _per_batch(name: str, value: Any, batch: int) -> Any:
    """A number, or an int64 array [batch]. Raises ShapeError."""
    import numpy as np

    numbers = np.asarray(value.cpu() if hasattr(value, "cpu") else value, np.int64)
    if numbers.shape not in ((), (batch,)):
        raise ShapeError(f"{name} has shape {numbers.shape}", numbers=f"batch {batch}",
                         remedy=f"Give one number, or a tensor [{batch}].")
    return numbers


def _size(count: int) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 10_000 or unit == "GB":
            return f"{count} {unit}"
        count //= 1000
    raise AssertionError(count)
