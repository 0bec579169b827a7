"""The front doors: ``compile`` and ``attention``, which makes and keeps one by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .attention import Attention
from .errors import SpecError
from .runtime import operands
from .runtime.operands import Heads
from .runtime.targets import default_target

if TYPE_CHECKING:
    from torch import Tensor

    from .spec import AttentionSpec


def compile(spec: AttentionSpec, target: str | None = None, **options: Any) -> Attention:
    """Compile ``spec`` for ``target``, the machine's best by default. See
    ``attngen.compiler.compile``, which this loads on first use."""
    from .compiler import compile as pipeline

    return pipeline(spec, target, **options)


def attention(q: Tensor, k: Tensor, v: Tensor, *, return_lse: bool = False,
              dropout_p: float = 0.0, seed: int | Tensor | None = None,
              q_offset: int | Tensor | None = None, kv_offset: int | Tensor | None = None,
              seqlens_k: Tensor | None = None, cu_seqlens_q: Tensor | None = None,
              cu_seqlens_k: Tensor | None = None, max_seqlen_q: int | None = None,
              max_seqlen_k: int | None = None, **fields: Any) -> Tensor | tuple[Tensor, Tensor]:
    """Attention with the spec read off the tensors; ``fields`` are those of ``AttentionSpec``
    (``causal=True, window=128, ...``). Shapes, positions, packed sequences, dropout and results
    as for ``Attention``.

    The compiled attention is kept for the next call with equal fields, unless a mask or score is a
    Python callable, whose meaning may change: compile those once yourself. Raises what
    ``AttentionSpec``, ``attngen.compile`` and calling an ``Attention`` raise.
    """
    sizes = operands.sizes_of(q, k, v)
    fields.setdefault("groups", sizes.groups)
    key: Any = (sizes, q.device, *sorted(fields.items()))
    try:
        attn = _kept.get(key)
    except TypeError:  # a list among the fields
        key = attn = None
    if attn is None:
        attn = _compiled_for(q, sizes, fields)
        if key is not None and attn.spec.cache_key() is not None:
            while len(_kept) >= _MOST_KEPT:
                del _kept[next(iter(_kept))]
            _kept[key] = attn
    return attn(q, k, v, return_lse=return_lse, dropout_p=dropout_p, seed=seed,
                q_offset=q_offset, kv_offset=kv_offset,
                seqlens_k=seqlens_k, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k,
                max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k)


_kept: dict[Any, Attention] = {}
_MOST_KEPT = 256


def _compiled_for(q: Tensor, sizes: Heads, fields: dict[str, Any]) -> Attention:
    from .spec import AttentionSpec

    for name in ("heads", "head_dim", "head_dim_v"):
        if name in fields:
            raise SpecError(f"{name} is read off the tensors", remedy="Leave it out.")
    spec = AttentionSpec(heads=sizes.heads, head_dim=sizes.head_dim, head_dim_v=sizes.head_dim_v,
                         **fields)
    return compile(spec, default_target(q.device.index).name if q.is_cuda else "cpu")
