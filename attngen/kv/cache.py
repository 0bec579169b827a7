"""What all caches share, and the contiguous one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import (
    DeviceError,
    DtypeError,
    HeadsError,
    KVCacheFullError,
    ShapeError,
    UnknownNameError,
)
from ..runtime import operands
from ..runtime.runner import Runner
from ..runtime.variant import Cached, Kind
from .memory import zeros

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..attention import Attention
    from .rope import Rope


class Cache:
    """Keys and values of ``batch`` sequences, the newest last.

    ``lengths``, int32 [batch], says how many tokens each sequence has had. It lives on the device,
    and so does everything kernels read: appending and decoding can be captured in a CUDA graph.
    When such a graph is replayed, tell the host with ``advance``.

    ``k`` and ``v`` hold the elements, their last dimension head_dim or head_dim_v; how the others
    lie is the kind's own. ``seqlen_k`` is how many keys kernels are to look at.

    With ``quantize``, "int8" or "float8_e4m3", elements take eight bits and are multiples of a
    float32 for each token and head, in ``scales``: the largest is 127 or 448 times that.
    """

    def __init__(self, attn: Attention, batch: int, shape: tuple[int, int, int], seqlen_k: int,
                 dtype: torch.dtype | None, device: Any, quantize: str | None,
                 cached: Cached) -> None:
        import torch

        spec = attn.spec
        self.attn, self.batch, self.seqlen_k = attn, batch, seqlen_k
        self.dtype = dtype or getattr(torch, attn.dtype)
        self.device = torch.device(device or attn.device_type)
        stored = self.dtype if quantize is None else _eight_bits(quantize)
        self.cached = cached._replace(stored=quantize or "")
        self.k = zeros((*shape, spec.head_dim), stored, self.device)
        self.v = zeros((*shape, spec.head_dim_v or 0), stored, self.device)
        self.scales: dict[str, Tensor] = {} if quantize is None else {
            name: torch.zeros(shape, device=self.device) for name in ("k_scale", "v_scale")}
        self.lengths = torch.zeros(batch, dtype=torch.int32, device=self.device)
        self._longest = [0] * batch  # lengths, or more where only the device knows
        self._runners: dict[tuple[Any, str, Kind], Runner] = {}

    # -- what kinds differ in ---------------------------------------------------------------------

    zones = 1  # stretches of keys, which are different parts of them

    def numbers(self) -> dict[str, int]:
        """Arguments of kernels beside lengths."""
        return {}

    def tables(self) -> dict[str, Tensor]:
        """Tensor arguments of kernels beside k and v."""
        return {}

    def make_room(self, counts: Sequence[int]) -> None:
        """Before so many tokens are written. Raises KVCacheFullError, having changed nothing."""
        most = max(range(self.batch), key=lambda b: self._longest[b] + counts[b], default=0)
        if self.batch and self._longest[most] + counts[most] > self.seqlen_k:
            raise KVCacheFullError(
                f"{counts[most]} tokens do not fit into sequence {most}",
                numbers=f"it has {self._longest[most]} of {self.seqlen_k}",
                remedy="Make the cache with a larger capacity, or clear() the sequence.")

    def check_queries(self, seqlen_q: int) -> None:
        """Raises ShapeError for more queries than the cache can answer."""

    def check_rope(self, rope: Rope | None, new: Sequence[int] | None = None) -> None:
        """Raises ShapeError, DtypeError or DeviceError for tables that do not fit, or do not reach
        the last token of each sequence, ``new`` ones included."""
        if rope is None:
            return
        rope.check(int(self.k.shape[-1]), self.k.device)
        more = new or [0] * self.batch
        last = max((a + b for a, b in zip(self._longest, more, strict=True)), default=0)
        if rope.cos.shape[0] < self.angles(last):
            raise ShapeError(f"rope has tables of {rope.cos.shape[0]} positions",
                             numbers=f"{self.angles(last)} are wanted",
                             remedy="Make them longer: ag.kv.rope(positions, ...).")

    def angles(self, tokens: int) -> int:
        """How many positions keys and queries of so many tokens are turned by."""
        return tokens

    # -- use --------------------------------------------------------------------------------------

    def append(self, k: Tensor, v: Tensor, counts: Sequence[int] | Tensor | None = None, *,
               rope: Rope | None = None) -> None:
        """Write new tokens behind those there are: k [batch, groups, n, head_dim],
        v [batch, groups, n, head_dim_v], of the cache's dtype and device.

        ``counts``, one for each sequence, says how many of the n are meant, from the first on; the
        default is all. An int32 tensor on a GPU is not looked at: then n must fit. With ``rope``
        keys are turned by their positions, the sequence's length counting on, before they are
        written. Tables have a row for every position.

        Raises KVCacheFullError, ShapeError, HeadsError, DtypeError or DeviceError before anything
        is written.
        """
        n = self._check_new(k, v)
        known, given = self._counts(counts, n)
        self.check_rope(rope, known)
        self.make_room(known)
        if n and self.batch:
            self._launch(k, v, n, given, rope)
        self.lengths += given
        self._longest = [a + b for a, b in zip(self._longest, known, strict=True)]

    def advance(self, count: int) -> None:
        """A captured graph that appends ``count`` tokens to every sequence was replayed."""
        self._longest = [n + count for n in self._longest]

    def clear(self, sequence: int | None = None) -> None:
        """Forget one sequence, or all."""
        if sequence is None:
            self.lengths.zero_()
            self._longest = [0] * self.batch
        else:
            self.lengths[sequence] = 0
            self._longest[sequence] = 0

    @property
    def bytes_per_token(self) -> int:
        """Of one sequence, over all key/value heads, scales included."""
        elements = (self.k.shape[-1] + self.v.shape[-1]) * self.k.element_size()
        return (elements + 4 * len(self.scales)) * int(self.k.shape[1])

    def vectorized(self) -> bool:
        """Whether rows of k and v begin on 16-byte boundaries."""
        return all(operands.is_vectorized(x, x.element_size(), "the cache")
                   for x in (self.k, self.v))

    # -- checks and kernels -----------------------------------------------------------------------

    def _check_new(self, k: Tensor, v: Tensor) -> int:
        spec = self.attn.spec
        for name, x, dim in (("k", k, spec.head_dim), ("v", v, spec.head_dim_v)):
            if x.dim() != 4 or x.shape[0] != self.batch or x.shape[3] != dim \
                    or x.shape[2] != k.shape[2]:
                raise ShapeError(f"{name} has shape {tuple(x.shape)}", numbers=f"expected "
                                 f"({self.batch}, {spec.kv_heads}, n, {dim})",
                                 remedy="New tokens come for every sequence of the cache.")
            if x.shape[1] != spec.kv_heads:
                raise HeadsError(f"{name} has {x.shape[1]} heads, the cache {spec.kv_heads}",
                                 remedy="Those are the key/value heads of the spec.")
            self.check_kind(name, x)
        return int(k.shape[2])

    def check_kind(self, name: str, x: Tensor) -> None:
        """Raises DtypeError or DeviceError for a tensor that is not as the cache's are."""
        if x.dtype != self.dtype:
            raise DtypeError(f"{name} is {x.dtype}, the cache takes {self.dtype}",
                             remedy="Convert it with .to().")
        if x.device != self.k.device:
            raise DeviceError(f"{name} is on {x.device}, the cache on {self.k.device}",
                              remedy="Move it with .to().")

    def _counts(self, counts: Sequence[int] | Tensor | None,
                n: int) -> tuple[list[int], int | Tensor]:
        """How many tokens each sequence gets: at most, as the host knows, and for the device."""
        import torch

        if counts is None:
            return [n] * self.batch, n
        if isinstance(counts, torch.Tensor) and counts.device.type != "cpu":
            _, given = operands.per_batch("counts", counts, self.batch, self.k.device, 0)
            assert given is not None
            return [n] * self.batch, given
        known = [int(x) for x in counts]
        if len(known) != self.batch or any(not 0 <= x <= n for x in known):
            raise ShapeError(f"counts are {known}", numbers=f"expected {self.batch} of 0 ... {n}",
                             remedy="One for each sequence, of the new tokens k and v hold.")
        return known, torch.tensor(known, dtype=torch.int32, device=self.k.device)

    def rotate(self, attn: Attention, q: Tensor, rope: Rope, numbers: dict[str, Any]) -> Tensor:
        """Queries of ``attn``, q [batch, heads, n, head_dim], turned by their positions, which
        ``numbers`` give as kernels take them: with positions in the cache [zones, batch, heads, n,
        head_dim], for the keys of each."""
        import torch

        n, heads = q.shape[2], q.shape[1]
        cached = rope.of(Cached(inside=self.cached.inside))
        kind = Kind(str(self.dtype).removeprefix("torch."), operands.is_vectorized(
            q, q.element_size(), "q"), cached=cached, rows=_tile_rows(n))
        runner = self._runner(attn, "rotate", kind)
        names = [t.name for t in runner.plan.tensors if t.role == "output"]
        turned = torch.empty(len(names), *q.shape, dtype=q.dtype, device=q.device)
        sizes = {"batch": self.batch, "heads": heads, "seqlen_q": n, "seqlen_k": self.seqlen_k}
        if self.batch and n:
            runner.run({"q_new": q, "q_pair": q, **dict(zip(names, turned, strict=True))},
                       rope.tables(), sizes, {**numbers, **self.numbers()}, self.batch * heads * n)
        return turned if self.cached.inside else turned[0]

    def _runner(self, attn: Attention, name: str, kind: Kind) -> Runner:
        key = attn.key, name, kind
        if key not in self._runners:
            self._runners[key] = Runner(attn.cache_plan(name, kind), emulate=attn.emulate)
        return self._runners[key]

    def _launch(self, k: Tensor, v: Tensor, n: int, count: int | Tensor,
                rope: Rope | None = None) -> None:
        size = k.element_size()
        vectorized = all([operands.is_vectorized(k, size, "k"), self.vectorized(),
                          operands.is_vectorized(v, size, "v")])
        cached, tables, tensors = self.cached, self.tables(), {"k_new": k, "v_new": v}
        if rope is not None:
            cached = rope.of(cached)
            tables |= rope.tables()
            tensors["k_pair"] = k
        kind = Kind(str(self.dtype).removeprefix("torch."), vectorized, cached=cached,
                    rows=_tile_rows(n))
        numbers: dict[str, Any] = {"kv_start": 0, "kv_start_ptr": self.lengths.data_ptr()}
        numbers |= {"new_len": count} if isinstance(count, int) else {
            "new_len": 0, "new_len_ptr": count.data_ptr()}
        spec = self.attn.spec
        sizes = {"batch": self.batch, "groups": spec.kv_heads, "seqlen_q": n,
                 "seqlen_k": self.seqlen_k}
        self._runner(self.attn, "append", kind).run(
            {**tensors, "k": self.k, "v": self.v, **self.scales}, tables, sizes,
            {**numbers, **self.numbers()}, self.batch * spec.kv_heads * n)


class KVCache(Cache):
    """One stretch of memory a sequence: k [batch, groups, capacity, head_dim] and v likewise.

    ``attn`` is what decodes from it; dtype and device are by default those of its tensors.
    """

    def __init__(self, attn: Attention, batch: int, capacity: int, *,
                 dtype: torch.dtype | None = None, device: Any = None,
                 quantize: str | None = None) -> None:
        if batch < 0 or capacity < 1:
            raise ShapeError(f"a cache for {batch} sequences of {capacity} tokens",
                             remedy="At least one token, and no negative number of sequences.")
        super().__init__(attn, batch, (batch, attn.spec.kv_heads, capacity), capacity, dtype,
                         device, quantize, Cached())


def _tile_rows(n: int) -> int:
    """Rows of a tile for n tokens."""
    return 8 if n <= 8 else 32


def _eight_bits(name: str) -> torch.dtype:
    """torch's type of that name. Raises UnknownNameError."""
    import torch

    kinds = {"int8": torch.int8, "float8_e4m3": torch.float8_e4m3fn}
    if name not in kinds:
        raise UnknownNameError("quantised type", name, kinds, where="quantize")
    return kinds[name]
