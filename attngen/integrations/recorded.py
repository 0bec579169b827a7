"""Foreign mask functions as data.

Other libraries hand over masks as Python functions of FlexAttention's signature, a new function
object at each step of a model. ``record`` runs such a function once on symbols and keeps what it
did as a tree of tuples: equal for equal masks, so that kernels are found again, and a mask itself.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import NotDeliveredError, TraceError
from ..masks import ARGUMENTS, Mask

Tree = Any  # an argument's name, a number, or (operation, tree, ...)

_OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul,
    "floor_divide": operator.floordiv, "remainder": operator.mod, "neg": operator.neg,
    "abs": abs, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
    "eq": operator.eq, "ne": operator.ne, "bitwise_and": operator.and_,
    "bitwise_or": operator.or_, "bitwise_not": operator.invert,
}
_ALIASES = {"logical_and": "bitwise_and", "logical_or": "bitwise_or", "logical_not": "bitwise_not",
            "subtract": "sub", "multiply": "mul", "negative": "neg", "__and__": "bitwise_and",
            "__or__": "bitwise_or", "__invert__": "bitwise_not"}


@dataclass(frozen=True)
class recorded(Mask):
    """The mask that a recorded function computes."""

    tree: Tree

    def __call__(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return _evaluate(self.tree, dict(zip(ARGUMENTS, (b, h, q_idx, kv_idx), strict=True)))


def _evaluate(tree: Tree, values: dict[str, Any]) -> Any:
    if isinstance(tree, str):
        return values[tree]
    if not isinstance(tree, tuple):
        return tree
    return _OPERATIONS[tree[0]](*(_evaluate(t, values) for t in tree[1:]))


def record(function: Callable[..., Any]) -> Tree:
    """What ``function(b, h, q_idx, kv_idx)`` computes, as a tree; ``True`` for a mask that hides
    nothing.

    Raises NotDeliveredError when it reads a tensor (one whose elements are all equal is a number)
    and TraceError for what else cannot be a kernel's mask.
    """
    try:
        return _tree(function(*(_Symbol(name) for name in ARGUMENTS)))
    except (NotDeliveredError, TraceError):
        raise
    except Exception as error:
        name = getattr(function, "__qualname__", type(function).__name__)
        raise TraceError(f"mask function {name}: {type(error).__name__}: {error}") from error


class _Symbol:
    """An argument of the function, or what it computed from them."""

    device = None

    def __init__(self, tree: Tree) -> None:
        self.tree = tree

    def to(self, *args: Any, **kwargs: Any) -> _Symbol:
        """Itself: a symbol is on no device."""
        return self

    def new_ones(self, *args: Any, **kwargs: Any) -> _Symbol:
        """True, with which conjunctions begin."""
        return _Symbol(True)

    def new_zeros(self, *args: Any, **kwargs: Any) -> _Symbol:
        """False, with which disjunctions begin."""
        return _Symbol(False)

    def __bool__(self) -> bool:
        raise TraceError("a mask function used the truth value of an expression")

    def __index__(self) -> int:
        raise TraceError("a mask function used an index as a Python int")

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        if name == "__getitem__":
            return _read(args[0])
        name = _ALIASES.get(name, name)
        if name not in _OPERATIONS:
            raise TraceError(f"a mask function used torch.{name}, which no mask can")
        return _apply(name, *args)


def _method(name: str, swapped: bool) -> Any:
    def method(self: _Symbol, *others: Any) -> _Symbol:
        return _apply(name, *((*others, self) if swapped else (self, *others)))
    return method


for _name, _spelling in {"add": "add", "sub": "sub", "mul": "mul", "floor_divide": "floordiv",
                         "remainder": "mod", "bitwise_and": "and", "bitwise_or": "or"}.items():
    setattr(_Symbol, f"__{_spelling}__", _method(_name, False))
    setattr(_Symbol, f"__r{_spelling}__", _method(_name, True))
for _name in ("neg", "abs", "lt", "le", "gt", "ge", "eq", "ne"):
    setattr(_Symbol, f"__{_name}__", _method(_name, False))
setattr(_Symbol, "__invert__", _method("bitwise_not", False))  # noqa: B010
setattr(_Symbol, "abs", _method("abs", False))  # noqa: B010


def _tree(x: Any) -> Tree:
    if isinstance(x, _Symbol):
        return x.tree
    if isinstance(x, torch.Tensor):
        return _read(x).tree
    if isinstance(x, bool | int | float):
        return x
    raise TraceError(f"a mask function used a {type(x).__name__}")


def _read(tensor: Any) -> _Symbol:
    """An element of a tensor, wherever: known when all are equal."""
    if isinstance(tensor, torch.Tensor) and tensor.numel():
        first = tensor.flatten()[0]
        if bool((tensor == first).all()):
            return _Symbol(first.item())
    raise NotDeliveredError(
        "the mask reads a tensor, and masks that read tensors are not available in this version "
        "of attngen", numbers=f"a {tuple(getattr(tensor, 'shape', ()))} tensor of several values",
        remedy='Use attn_implementation="sdpa" for this input; padding at either end of a '
               "sequence is fine as a 2-D attention_mask.")


def _apply(name: str, *args: Any) -> _Symbol:
    """One more operation; the neutral elements that libraries begin with are left out."""
    trees = tuple(_tree(a) for a in args)
    neutral: dict[str, Any] = {"bitwise_and": True, "bitwise_or": False}
    if name in neutral:
        for one, other in (trees, trees[::-1]):
            if one is neutral[name]:
                return _Symbol(other)
            if one is (not neutral[name]):
                return _Symbol(one)
    if name in ("add", "sub") and trees[1] == 0 and not isinstance(trees[1], bool):
        return _Symbol(trees[0])
    if not any(isinstance(t, str | tuple) for t in trees):
        return _Symbol(_OPERATIONS[name](*trees))
    return _Symbol((name, *trees))
