"""The object users call: ``Attention``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from . import decoding, library
from .autograd import Recorded, recorded
from .call import Description, Key, Ready, When
from .errors import (
    CapturedError,
    DtypeError,
    NotDeliveredError,
    ShapeError,
)
from .phases import kernels_of
from .runtime import dropout, jagged, operands, packed, positions, splits
from .runtime.backward import BackwardPlans, BackwardVariant
from .runtime.captured import Captured
from .runtime.dropout import Dropout
from .runtime.operands import Heads
from .runtime.plan import KernelPlan, Plan
from .runtime.positions import Positions
from .runtime.splits import MOST_SPLITS
from .runtime.targets import Target, get_target
from .runtime.variant import Cached, Kind, Problem, Variant

if TYPE_CHECKING:
    from torch import Tensor

    from .kv.cache import Cache
    from .kv.rope import Rope
    from .spec import AttentionSpec


PlanFor = Callable[[Kind], tuple[Plan, Captured]]
BackwardFor = Callable[[Kind, frozenset[str]], BackwardPlans]
CacheFor = Callable[[str, Kind], Plan]
_PLAIN = Cached()


class Attention:
    """A compiled attention variant, called with tensors.

    Made by ``attngen.compile``. ``target`` is where it runs; with ``emulate`` the CUDA text of that
    target is executed on the CPU, on CPU tensors. ``plan_for(kind)`` gives the kernels of one
    variant and what they captured; ``cache_for``
    the one called "append" that fills a cache, or "rotate" that turns queries; ``backward_for``
    those of its gradients, also by the names of the captured tensors that want some. ``decodes``:
    there are kernels for few queries and for parts of the keys. ``buffers`` are the tensors that
    masks and scores captured, as ``params`` names them; ``key`` is what ``library`` knows it by.
    """

    def __init__(self, spec: AttentionSpec, target: str | Target, emulate: bool, plan_for: PlanFor,
                 backward_for: BackwardFor, cache_for: CacheFor, describe: Description,
                 decodes: bool = True) -> None:
        self.spec = spec
        self.target = get_target(target) if isinstance(target, str) else target
        self.emulate = emulate
        self._plan_for, self._backward_for, self._cache_for = plan_for, backward_for, cache_for
        self._describe = describe
        assert spec.head_dim_v is not None
        self.decodes = decodes
        self.group = spec.heads // spec.kv_heads
        self._fixed = Heads(spec.heads, spec.kv_heads, spec.head_dim, spec.head_dim_v)
        self.device_type = "cpu" if emulate or self.target.family == "cpu" else "cuda"
        self._variants: dict[Key, Variant] = {}
        self._backwards: dict[tuple[Any, ...], BackwardVariant] = {}
        self._latest: Variant | None = None
        self.buffers: dict[str, Tensor] = {}
        self.key = library.registered(self)

    def __call__(
            self, q: Tensor, k: Tensor, v: Tensor, *, return_lse: bool = False,
            sinks: Tensor | None = None, dropout_p: float = 0.0,
            seed: int | Tensor | None = None,
            q_offset: int | Tensor | None = None, kv_offset: int | Tensor | None = None,
            seqlens_k: Tensor | None = None, cu_seqlens_q: Tensor | None = None,
            cu_seqlens_k: Tensor | None = None, max_seqlen_q: int | None = None,
            max_seqlen_k: int | None = None, num_splits: int | None = None,
            params: dict[str, Any] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attention of q over k and v.

        q [batch, heads, seqlen_q, head_dim], k [batch, groups, seqlen_k, head_dim],
        v [batch, groups, seqlen_k, head_dim_v], of one dtype and device; only the last dimension
        must be contiguous, nothing is copied. Query i sits at position ``q_offset + i`` and key j
        at ``kv_offset + j``; the defaults, 0 for kv_offset and kv_offset + seqlen_k - seqlen_q for
        q_offset, align the ends. Either is an int or an int32 tensor [batch]. ``seqlens_k``, int32
        [batch], hides the keys from there on. Queries that see no key give 0. v must be finite for
        hidden keys too: they are multiplied by 0, and 0 * NaN is NaN.

        Packed sequences: q [1, heads, total_q, head_dim] holds n of them end to end, and
        ``cu_seqlens_q``, int32 [n + 1], their boundaries from 0 to total_q; ``cu_seqlens_k`` those
        of k and v, by default the same. Positions are counted in each sequence, a mask's b is its
        number, and what is said per batch entry is said per sequence. ``max_seqlen_q`` and
        ``max_seqlen_k`` are the longest lengths, or more; left out they are read from cu_seqlens,
        for which a GPU has to be waited for. Boundaries on a GPU are not checked. Nested tensors
        of layout torch.jagged, [n, heads, ragged, head_dim], are taken as they are and give such.

        ``dropout_p`` is the probability with which a key is dropped after the softmax, for each
        query and head by itself; what stays is divided by 1 - dropout_p. ``seed``, an int or int64
        tensor of one element, fixes which: they follow from it, the batch entry, the head, and the
        positions, counted from offsets rounded down to multiples of 16, on every target alike.
        Without it one is drawn from torch's generator.

        Calls with few queries run kernels made for them: rows of a tile are those of all query
        heads of a key/value head, and the keys are cut into ``num_splits`` parts, which run side
        by side and are joined in order. Left out, it follows from shapes and the machine.

        Returns o, like q with head_dim_v and in q's order of strides; with ``return_lse`` also the
        natural log of the softmax denominators [batch, heads, seqlen_q], float32 (float64 for
        float64), -inf where nothing is visible. With ``spec.sinks``, ``sinks`` [heads] is one more
        term in each denominator, and part of lse.

        Tensors and dynamic numbers that the mask or scores captured are read at each call;
        ``params`` gives others in their place, by the name of the variable or argument.

        Raises the classes of ``attngen.errors`` for what does not fit: ShapeError, HeadsError,
        DtypeError, DeviceError, NonUnitStrideError, CapturedError, UnknownNameError,
        DropoutError; the first call may also raise CompileError or NoCompilerError.
        """
        import torch

        where = When(q_offset, kv_offset, seqlens_k, cu_seqlens_q, cu_seqlens_k, max_seqlen_q,
                     max_seqlen_k, num_splits)
        drops = dropout.drawn(dropout_p, seed, q) if dropout_p != 0 else None
        if torch.compiler.is_compiling():
            o, lse = library.call(self, q, k, v, where, sinks, params or {}, drops)
            return (o, lse) if return_lse else o
        nested = None
        if getattr(q, "is_nested", False):
            nested = jagged.unpacked(q, k, v)
            if where.packed:
                raise ShapeError("cu_seqlens and max_seqlen were given with jagged tensors",
                                 remedy="Leave them out: jagged tensors have them.")
            q, k, v, packing, _ = nested
            ready = self.ready(q, k, v, where, sinks, params, drops, packing)
        else:
            ready = self.ready(q, k, v, where, sinks, params, drops)
        learned = tuple(n for n, t in ready.problem.tables.items() if t.requires_grad)
        if (q.requires_grad or k.requires_grad or v.requires_grad or learned) \
                and torch.is_grad_enabled():
            o, lse = recorded(Recorded(ready.variant, partial(self.backward, ready.kind, learned),
                                       ready.problem, learned), q, k, v)
        else:
            o, lse = ready.variant.run(q, k, v, ready.problem)
        if nested is not None:
            o, lse = nested.nested(o), nested.nested(lse)
        return (o, lse) if return_lse else o

    def decode(self, q: Tensor, cache: Cache, *, return_lse: bool = False,
               sinks: Tensor | None = None, num_splits: int | None = None,
               params: dict[str, Any] | None = None,
               rope: Rope | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Attention of the newest tokens of ``cache`` over all of it, without gradients.

        q [batch, heads, n, head_dim] belongs to the last n tokens that were appended to each
        sequence. Masks, scores and positions are as in a call with all keys; the result and
        ``num_splits`` too. Lengths are read on the device: nothing waits for it. With ``rope``
        queries are turned by their positions first, as ``append`` turns keys.

        Raises ShapeError, HeadsError, DtypeError and DeviceError for what does not fit the cache,
        and what a call raises.
        """
        found, queries = decoding.ready(self, q, cache, sinks, num_splits, params, rope)
        self._latest = found.variant
        o, lse = found.variant.run(q, cache.k, cache.v, found.problem,
                                   {"q": queries, **cache.scales})
        return (o, lse) if return_lse else o

    def cache_plan(self, name: str, kind: Kind) -> Plan:
        """The kernel that writes new keys and values into a cache of a kind, "append", or turns
        queries for one, "rotate"."""
        return self._cache_for(name, kind)

    def ready(self, q: Tensor, k: Tensor, v: Tensor, when: When, sinks: Tensor | None,
              params: dict[str, Any] | None = None, drops: Dropout | None = None,
              packing: packed.Packing | None = None,
              buffers: Sequence[Tensor] | None = None) -> Ready:
        """A call's kernels and numbers; everything is checked. ``buffers`` stand for the captured
        tensors, in the order of ``self.buffers``. Raises as a call does."""
        batch, seqlen_q, seqlen_k = operands.check_tensors(q, k, v, self._fixed, self.device_type)
        itemsize = q.element_size()
        vectorized = operands.is_vectorized(q, itemsize, "q")
        vectorized &= operands.is_vectorized(k, itemsize, "k")
        vectorized &= operands.is_vectorized(v, itemsize, "v")
        if when.packed:
            packing = packed.packing(q, k, *when[3:7])
        kind = q.dtype, vectorized, packing is not None, drops is not None, 0, False, _PLAIN
        own, parts = kind, 1
        if packing is None and drops is None and self.decodes:
            rows = splits.tile_rows(seqlen_q, self.group)
            parts = self.parts(when.num_splits, rows, batch, seqlen_q, seqlen_k, q)
            own = *kind[:4], rows, parts > 1, _PLAIN
        elif when.num_splits not in (None, 1):
            raise NotDeliveredError(
                f"num_splits={when.num_splits} with packed sequences, dropout, fuse=False or a "
                "schedule", remedy="Leave num_splits out.")
        variant = self.variant(own)

        shift: int | Tensor = seqlen_k - seqlen_q
        if packing is not None:
            batch, seqlen_q, seqlen_k = packing.batch, packing.q.longest, packing.k.longest
            shift = packing.shift()
        if when[:3] == (None, None, None) and packing is None:
            where = Positions(shift, 0, seqlen_k)
        else:
            where = positions.given(*when[:3], batch, q.device, seqlen_q, seqlen_k, shift)
        numbers = where.numbers()
        if packing is not None:
            numbers |= packing.numbers()
        tables: dict[str, Tensor] = {}
        if variant.captures or params or sinks is not None:
            arguments = self.arguments(q, sinks)
            if drops is not None:
                arguments["dropout_seed"] = drops.seed
                numbers |= drops.numbers()
            tables, values = variant.captured.bind(q, params or {}, batch, buffers, arguments)
            numbers |= values
        self._latest = variant
        return Ready(kind, variant, Problem(batch, seqlen_q, seqlen_k, numbers, tables, packing,
                                            where, parts))

    def parts(self, wanted: int | None, rows: int, batch: int, seqlen_q: int, seqlen_k: int,
               q: Tensor) -> int:
        """Into how many parts the keys of a call are cut."""
        if wanted is not None:
            if wanted < 1 or wanted > MOST_SPLITS:
                raise ShapeError(f"num_splits is {wanted}", numbers=f"1 ... {MOST_SPLITS}",
                                 remedy="Leave it out: it follows from the shapes.")
            return wanted
        blocks = batch * (self._fixed.groups * -(-seqlen_q * self.group // rows) if rows
                          else self._fixed.heads * -(-seqlen_q // 128))
        return splits.num_splits(self.target, blocks, seqlen_k, q, rows > 0)

    def backward(self, kind: Key, learned: tuple[str, ...]) -> BackwardVariant:
        """The backward kernels for tensors of a kind, with gradients of ``learned``."""
        key = *kind, learned
        if key not in self._backwards:
            of = _named(kind)
            self._backwards[key] = BackwardVariant(
                self._backward_for(of, frozenset(learned)), self._fixed, emulate=self.emulate,
                packed=of.packed)
        return self._backwards[key]

    def arguments(self, q: Tensor, sinks: Tensor | None) -> dict[str, Tensor]:
        """The tensors that calls give by name: the sinks, checked, in the type of the arithmetic.
        Raises CapturedError and ShapeError."""
        if self.spec.sinks and sinks is None:
            raise CapturedError("sinks is missing", remedy="The spec says sinks=True: pass "
                                f"sinks=, one logit for each of {self.spec.heads} heads.")
        if sinks is None:
            return {}
        if not self.spec.sinks:
            raise CapturedError("sinks= was given, the spec has none",
                                remedy="Write AttentionSpec(..., sinks=True).")
        if tuple(sinks.shape) != (self.spec.heads,):
            raise ShapeError(f"sinks has shape {tuple(sinks.shape)}, expected "
                             f"({self.spec.heads},)", remedy="One logit for each query head.")
        import torch

        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        return {"sinks": sinks.to(wide)}

    def variant(self, kind: Key) -> Variant:
        """The forward kernels of a kind. Raises DtypeError for one the spec or target has not."""
        return self._variants.get(kind) or self._variant(kind)

    def _variant(self, kind: Key) -> Variant:
        of = _named(kind)
        name = of.dtype
        if self.spec.dtype is not None and name != self.spec.dtype:
            raise DtypeError(f"q, k and v are {name}, the spec says {self.spec.dtype}",
                             remedy="Convert them, or leave dtype out of the spec.")
        if name not in self.target.dtypes:
            raise DtypeError(f"target {self.target.name} has no kernels for {name}",
                             remedy=f"It takes {', '.join(self.target.dtypes)}.")
        plan, captured = self._plan_for(of)
        variant = Variant(plan, self._fixed, emulate=self.emulate, captured=captured)
        self._variants[kind] = variant
        return variant

    # -- without calling --------------------------------------------------------------------------

    @property
    def dtype(self) -> str:
        """The dtype assumed without tensors: the spec's, else float32 on the cpu and bfloat16 on
        CUDA."""
        return self.spec.dtype or ("float32" if self.target.family == "cpu" else "bfloat16")

    def build(self, dtype: str | None = None, vectorized: bool = True, packed: bool = False,
              dropout: bool = False) -> tuple[Any, ...]:
        """Compile now what a call with such tensors would; returns what the compilers made, one
        per kernel (``runtime.nvrtc.Cubin`` for CUDA)."""
        import torch

        kind = getattr(torch, dtype or self.dtype), vectorized, packed, dropout, 0, False, _PLAIN
        variant = self.variant(kind)
        return variant.executable.build()

    def source(self, kind: str = "forward", dtype: str | None = None, vectorized: bool = True,
               packed: bool = False, dropout: bool = False) -> str:
        """The emitted text of one kind of kernel, complete and compilable by itself: "forward",
        "backward", "decode" or "append" for all of its kernels, or one of them. Raises
        UnknownNameError for others."""
        kernels = self.kernels(kind, Kind(dtype or self.dtype, vectorized, packed, dropout))
        return "\n".join(dict.fromkeys(k.text for k in kernels))

    def kernels(self, kind: str, of: Kind, where: str = "") -> list[KernelPlan]:
        """As ``source``, with what launching takes besides; ``where`` a kind was named."""
        return kernels_of(kind, of, self._plan_for, self._backward_for, self._cache_for, where)

    def captured(self, dtype: str | None = None) -> tuple[tuple[str, Any], ...]:
        """What masks and scores captured: (name, as ``params`` takes it; the tensor or number)."""
        _, found = self._plan_for(Kind(dtype or self.dtype))
        return (*((t.spoken or t.name, t.source) for t in found.tensors),
                *((n.spoken or n.name, n.source) for n in found.numbers))

    def ir(self, stage: str) -> Any:
        """The printable graph at a stage: "math", "fused", "tiled" or "placed"."""
        return self._describe.ir(stage)

    def explain(self) -> Any:
        """Kernel family, tiles, bytes, FLOPs, registers, spills, shared memory, roofline."""
        return self._describe.explain()

    def tiles(self, seqlen_q: int, seqlen_k: int, block: tuple[int, int] = (128, 128), *,
              batch: int = 1, q_offset: int | Tensor | None = None, kv_offset: int | Tensor = 0,
              seqlens_k: Tensor | None = None) -> Any:
        """Which tiles of ``block`` = (queries, keys) the mask leaves empty, partial or full, as an
        ``ir.tilemap.TileMap``: proved from the mask's expression, nothing is compiled or run.
        Positions and lengths as for a call. Raises ShapeError."""
        return self._describe.tiles(seqlen_q, seqlen_k, block, batch=batch, q_offset=q_offset,
                                    kv_offset=kv_offset, seqlens_k=seqlens_k)

    @property
    def counters(self) -> tuple[Any, ...]:
        """With ``emulate``: what the emulator counted in the last call, one per kernel."""
        return self._latest.executable.counters if self._latest else ()

    def __repr__(self) -> str:
        where = f"{self.target.name}, emulated" if self.emulate else self.target.name
        return f"Attention({self.spec!r}, target={where})"


def _named(kind: Key) -> Kind:
    return Kind(str(kind[0]).removeprefix("torch."), *kind[1:])
