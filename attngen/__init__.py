"""attngen: a small compiler for attention kernels.

A declarative :class:`AttentionSpec` becomes an IR graph, passes fuse and tile it, templates turn it
into readable CUDA and C++, and the result is compiled and launched at run time::

    import attngen as ag

    attn = ag.compile(ag.AttentionSpec(heads=32, groups=8, head_dim=128, causal=True))
    o = attn(q, k, v)

Names are looked up on first use, so that importing the package costs next to nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import errors, knobs, kv, masks, scores
    from .cascade import merge
    from .combined import per_head
    from .front import attention, compile
    from .number import dynamic
    from .spec import AttentionSpec

__version__ = "0.1.0"
__all__ = ["AttentionSpec", "attention", "compile", "dynamic", "errors", "knobs", "kv", "masks",
           "merge", "per_head", "scores"]

# exported name -> (module, attribute; None for the module itself)
_HOMES: dict[str, tuple[str, str | None]] = {
    "AttentionSpec": (".spec", "AttentionSpec"),
    "attention": (".front", "attention"),
    "dynamic": (".number", "dynamic"),
    "compile": (".front", "compile"),
    "errors": (".errors", None),
    "knobs": (".knobs", None),
    "kv": (".kv", None),
    "masks": (".masks", None),
    "merge": (".cascade", "merge"),
    "per_head": (".combined", "per_head"),
    "scores": (".scores", None),
}


class _Package(ModuleType):
    """Keeps ``attngen.attention`` the function: importing the submodule of the same name would
    otherwise put the module in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name == "attention" and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    found = import_module(module, __name__)
    value = found if attribute is None else getattr(found, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
