"""Names in emitted source: kept from the graph unless C, or the skeleton, has taken them."""

from __future__ import annotations

import hashlib
import re
from dataclasses import fields, is_dataclass

from ..errors import VerifyError
from ..ir.node import Node
from ..ir.stmt import Kernel
from .code import Code

_KEYWORDS = frozenset("""
    alignas alignof and asm auto bitand bitor bool break case catch char class compl const constexpr
    continue decltype default delete do double else enum explicit export extern false float for
    friend goto if inline int long mutable namespace new noexcept not nullptr operator or private
    protected public register return short signed sizeof static struct switch template this throw
    true try typedef typeid typename union unsigned using virtual void volatile while xor
    """.split())

# Names of the skeletons: grid and thread position, loop counters, the parameter struct.
_SKELETON = frozenset("""
    b h g i j d e r c n t x kk lane warp row row0 split partial params shared a_part b_part
    """.split())
_NUMBERED = re.compile(r"([ij]|row)_(first|last|from|visible|full|tile\d?|visit\d)|(slot|x)\d+")


def c_name(name: str) -> Code:
    """``name`` as an identifier no skeleton or language uses: ``do`` becomes ``v_do``.

    Raises VerifyError for text that is no identifier.
    """
    if not name.isidentifier() or not name.isascii():
        raise VerifyError(f"{name!r} cannot be a name in emitted source")
    taken = name in _KEYWORDS or name in _SKELETON or _NUMBERED.fullmatch(name)
    return Code(f"v_{name}" if taken else name)


def kernel_key(kernel: Kernel) -> str:
    """Eight hex digits of everything about the kernel that means something (not its comments)."""
    return hashlib.sha256(_encode(kernel).encode()).hexdigest()[:8]


def entry_name(kernel: Kernel) -> Code:
    """The kernel's ``extern "C"`` name: its own, then the key."""
    stem = kernel.name if kernel.name.startswith("attngen_") else f"attngen_{kernel.name}"
    return c_name(f"{stem}_{kernel_key(kernel)}")


def _encode(item: object) -> str:
    if isinstance(item, Node):
        return item.key
    if isinstance(item, tuple):
        return f"({','.join(_encode(x) for x in item)})"
    if is_dataclass(item):
        parts = [f"{f.name}={_encode(getattr(item, f.name))}" for f in fields(item)
                 if f.name not in ("origin", "note")]
        return f"{type(item).__name__}[{';'.join(parts)}]"
    return repr(item)
