"""Gradients through an ``Attention``: torch's view of the forward and backward kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import NotDeliveredError
from .runtime.backward import BackwardVariant, Saved
from .runtime.variant import Problem, Variant

if TYPE_CHECKING:
    from torch import Tensor


class Recorded(NamedTuple):
    """One call whose gradients are wanted. ``learned`` are the kernels' names of the captured
    tensors that require gradients, in the order in which they are passed."""

    variant: Variant
    backward: Callable[[], BackwardVariant]
    problem: Problem
    learned: tuple[str, ...]


def recorded(call: Recorded, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """(o, lse) of a call, on torch's tape: gradients reach q, k, v and every learned tensor."""
    o, lse = _function().apply(call, q, k, v, *(call.problem.tables[n] for n in call.learned))
    return o, lse


_made: Any = None


def _function() -> Any:
    """The autograd function; torch is not loaded before it is needed."""
    global _made
    if _made is not None:
        return _made
    import torch

    class _Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, call: Recorded, q: Tensor, k: Tensor, v: Tensor,
                    *learned: Tensor) -> tuple[Tensor, Tensor]:
            o, lse = call.variant.run(q, k, v, call.problem)
            # What kernels read again is saved too, so that torch notices when it was changed.
            read = (*call.problem.tables.values(), *(
                t for t in call.problem.where if isinstance(t, torch.Tensor)))
            ctx.save_for_backward(q, k, v, o, lse, *learned, *read)
            ctx.call = call
            ctx.set_materialize_grads(False)
            return o, lse

        @staticmethod
        def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> Any:
            call: Recorded = ctx.call
            if dout is None and dlse is None:
                return (None,) * (4 + len(call.learned))
            q, k, v, o, lse, *learned = ctx.saved_tensors[:5 + len(call.learned)]
            tables = {**call.problem.tables, **dict(zip(call.learned, learned, strict=True))}
            with torch.no_grad():
                found = call.backward().run(Saved(q, k, v, o, lse), dout, dlse,
                                            call.problem._replace(tables=tables))
                made = [found.q, found.k, found.v,
                        *(found.tables.get(n, torch.zeros_like(t)).to(t.dtype) for n, t in
                          zip(call.learned, learned, strict=True))]
            if torch.is_grad_enabled():  # create_graph=True: to say no where it would be used
                made = list(_Once.apply(len(made), *made, q, k, v, *learned, dout, dlse))
            return None, *(g if needed else None for g, needed in
                           zip(made, ctx.needs_input_grad[1:], strict=True))

    class _Once(torch.autograd.Function):
        """Gradients that depend on what they were computed from, and cannot say how."""

        @staticmethod
        def forward(ctx: Any, count: int, *tensors: Tensor | None) -> tuple[Tensor, ...]:
            return tuple(t.view_as(t) for t in tensors[:count] if t is not None)

        @staticmethod
        def backward(ctx: Any, *cotangents: Tensor) -> Any:
            raise NotDeliveredError(
                "the second derivative of attention", where="backward of a gradient",
                remedy="Call without create_graph=True, or detach() the gradient.")

    _made = _Attention
    return _made
