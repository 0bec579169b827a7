"""Attention as operators of ``torch.library``: for torch.compile and torch.export, which look at
tensors without memory and cannot follow a call into kernels.

    attngen::forward(q, k, v, buffers, sinks, seed, …, key) -> (o, lse)
    attngen::backward(dout, dlse, q, k, v, o, lse, buffers, sinks, seed, …, key) -> gradients

``buffers`` are the captured tensors, so that the graph sees them, their changes and their
gradients; ``key`` names the Attention, which lives as long as someone holds it.
"""

from __future__ import annotations

import itertools
import sys
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from .errors import LaunchError
from .runtime import operands
from .runtime.backward import Saved
from .runtime.dropout import Dropout

if TYPE_CHECKING:
    from torch import Tensor

    from .attention import Attention
    from .call import Ready, When

_known: WeakValueDictionary[str, Any] = WeakValueDictionary()
_count = itertools.count()


def registered(attn: Attention) -> str:
    """The key of a new Attention. Makes the operators, unless torch is not loaded yet."""
    key = f"attention {next(_count)}"
    _known[key] = attn
    if "torch" in sys.modules:
        operators()
    return key


def call(attn: Attention, q: Tensor, k: Tensor, v: Tensor, when: When, sinks: Tensor | None,
         params: dict[str, Any], drops: Dropout | None) -> tuple[Tensor, Tensor]:
    """(o, lse) by way of the operator: what torch.compile traces. ``params`` are tensors."""
    import torch

    buffers = [params.get(name, t) for name, t in attn.buffers.items()]

    offsets = [x if isinstance(x, torch.Tensor) else None for x in when[:2]]
    numbers = [None if isinstance(x, torch.Tensor) else x for x in when[:2]]
    p, seed = (0.0, None) if drops is None else drops
    o, lse = torch.ops.attngen.forward(q, k, v, buffers, sinks, seed, *offsets, *when[2:5],
                                       *numbers, *when[5:], p, attn.key)
    return o, lse


def _attention(key: str) -> Attention:
    attn = _known.get(key)
    if attn is None:
        raise LaunchError(f"the Attention of a compiled graph is gone ({key})",
                          remedy="Keep the object that ag.compile returned as long as the graph.")
    found: Attention = attn
    return found


def _ready(key: str, q: Tensor, k: Tensor, v: Tensor, buffers: list[Tensor],
           sinks: Tensor | None, seed: Tensor | None, where: tuple[Any, ...],
           dropout_p: float) -> Ready:
    from .call import When

    q_table, kv_table, seqlens_k, cu_q, cu_k, q_number, kv_number, max_q, max_k, parts = where
    when = When(q_number if q_table is None else q_table,
                kv_number if kv_table is None else kv_table, seqlens_k, cu_q, cu_k, max_q, max_k,
                parts)
    drops = None if seed is None else Dropout(dropout_p, seed)
    return _attention(key).ready(q, k, v, when, sinks, None, drops, buffers=buffers)


@cache
def operators() -> tuple[Any, Any]:
    """Define both operators, once a process."""
    import torch
    from torch import Tensor

    globals()["Tensor"] = Tensor  # custom_op reads the annotations below

    @torch.library.custom_op("attngen::forward", mutates_args=())
    def forward(q: Tensor, k: Tensor, v: Tensor, buffers: list[Tensor], sinks: Tensor | None,
                seed: Tensor | None, q_offset: Tensor | None, kv_offset: Tensor | None,
                seqlens_k: Tensor | None, cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None,
                q_number: int | None, kv_number: int | None, max_seqlen_q: int | None,
                max_seqlen_k: int | None, num_splits: int | None, dropout_p: float,
                key: str) -> tuple[Tensor, Tensor]:
        where = (q_offset, kv_offset, seqlens_k, cu_seqlens_q, cu_seqlens_k, q_number, kv_number,
                 max_seqlen_q, max_seqlen_k, num_splits)
        ready = _ready(key, q, k, v, buffers, sinks, seed, where, dropout_p)
        return ready.variant.run(q, k, v, ready.problem)

    @forward.register_fake
    def _(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        shape = (*q.shape[:3], v.shape[3])
        o = q.new_empty(shape) if q.is_contiguous() \
            else q.new_empty_strided(shape, operands.ordered_strides(q, shape))
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        return o, q.new_empty(q.shape[:3], dtype=wide)

    @torch.library.custom_op("attngen::backward", mutates_args=())
    def backward(dout: Tensor, dlse: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor,
                 lse: Tensor, buffers: list[Tensor], sinks: Tensor | None, seed: Tensor | None,
                 q_offset: Tensor | None, kv_offset: Tensor | None, seqlens_k: Tensor | None,
                 cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None,
                 q_number: int | None, kv_number: int | None, max_seqlen_q: int | None,
                 max_seqlen_k: int | None, num_splits: int | None, dropout_p: float, key: str,
                 learned: list[bool]) -> list[Tensor]:
        where = (q_offset, kv_offset, seqlens_k, cu_seqlens_q, cu_seqlens_k, q_number, kv_number,
                 max_seqlen_q, max_seqlen_k, num_splits)
        ready = _ready(key, q, k, v, buffers, sinks, seed, where, dropout_p)
        bound = [t.name for t in ready.variant.captured.tensors if t.source is not None]
        names = [n for n, wanted in zip(bound, learned, strict=True) if wanted]
        found = _attention(key).backward(ready.kind, tuple(names)).run(
            Saved(q, k, v, o, lse), dout, dlse, ready.problem)
        like = (b for b, wanted in zip(buffers, learned, strict=True) if wanted)
        tables = [found.tables.get(n, torch.zeros_like(b)).to(b.dtype)
                  for n, b in zip(names, like, strict=True)]
        of_sinks = [] if sinks is None else [found.tables["sinks"].to(sinks.dtype)]
        # One tensor may not be two results, or a part of another.
        return [t.clone(memory_format=torch.contiguous_format)
                for t in (found.q, found.k, found.v, *tables, *of_sinks)]

    @backward.register_fake
    def _(dout: Tensor, dlse: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor,
          buffers: list[Tensor], sinks: Tensor | None, *rest: Any) -> list[Tensor]:
        wanted = [b for b, learned in zip(buffers, rest[-1], strict=True) if learned]
        like = (q, k, v, *wanted, *(() if sinks is None else (sinks,)))
        return [t.new_empty(t.shape) for t in like]

    def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        q, k, v, buffers, sinks, *tensors, ctx.key = inputs
        tensors, ctx.numbers = tensors[:6], tensors[6:]
        ctx.count = len(buffers)
        ctx.learned = [b.requires_grad for b in buffers]
        ctx.save_for_backward(q, k, v, *output, *buffers, sinks, *tensors)

    def differentiate(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Any, ...]:
        q, k, v, o, lse, *rest = ctx.saved_tensors
        buffers, (sinks, *tensors) = rest[:ctx.count], rest[ctx.count:]
        dout = torch.zeros_like(o) if dout is None else dout
        dlse = torch.zeros_like(lse) if dlse is None else dlse
        dq, dk, dv, *more = torch.ops.attngen.backward(
            dout, dlse, q, k, v, o, lse, buffers, sinks, *tensors, *ctx.numbers, ctx.key,
            ctx.learned)
        of_buffers = [more.pop(0) if wanted else None for wanted in ctx.learned]
        return dq, dk, dv, of_buffers, more[0] if more else None, *(None,) * 13

    forward.register_autograd(differentiate, setup_context=setup)
    return forward, backward
