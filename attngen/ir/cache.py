"""Where a cache keeps keys and values, and what that says about positions.

Slots of a ring keep tokens as ``rolling`` says; masks and scores see the tokens' positions, or, for
scores, those inside the ring (``streaming``).

In pages, key j of sequence b is row j mod P of page ``page_table[b, j // P]``; kernels see the axes
b and j they always do.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from . import rolling, streaming
from .capture import Captures
from .node import Node, const, idx, make, param
from .tensor import Tensor


class Cache(NamedTuple):
    """``page`` is the number of tokens of a page, 0 without pages; ``stored`` the type of stored
    elements where that is not the tensors' own: of eight bits, multiplied by a number for each
    token and head, ``k_scale`` and ``v_scale``. New keys are turned by their positions in the style
    ``rope``, ``rotary`` of their columns (``rotary``). ``inside`` a ring, positions for that and
    for scores are those of ``streaming``."""

    ring: bool = False
    page: int = 0
    stored: str = ""
    rope: str = ""
    rotary: int = 0
    inside: bool = False

    def queries(self, dtype: str) -> Tensor:
        """As kernels read them: one for each zone where keys of zones are turned differently."""
        axes = tuple("bhid")
        if not (self.inside and self.rope):
            return Tensor("q", axes, dtype, "input")
        return Tensor("q", ("zone", *axes), dtype, "input", view=axes,
                      place=(("zone", rolling.zone()),))

    def tensors(self, dtype: str) -> tuple[tuple[str, tuple[str, ...], str], ...]:
        """Name, axes and type of what is kept, for tensors of ``dtype``."""
        kind = self.stored or dtype
        scales = ((f"{name}_scale", ("b", "g", "j"), "float32") for name in ("k", "v"))
        return (("k", ("b", "g", "j", "d"), kind), ("v", ("b", "g", "j", "e"), kind),
                *(scales if self.stored else ()))

    def position(self) -> Node:
        """Of key j."""
        if self.ring:
            return rolling.position()
        return make("add", idx("j"), param("kv_offset", "b"), origin="kv_idx")

    def places(self, q_idx: Node, kv_idx: Node) -> tuple[Node, Node]:
        """What scores see as positions of the query and of key j."""
        return streaming.places(q_idx, kv_idx) if self.inside else (q_idx, kv_idx)

    def key_angle(self, position: Node) -> Node:
        """The position that a new key is turned by."""
        return streaming.key_angle(position) if self.inside else position

    def query_angles(self, q_idx: Node) -> tuple[Node, ...]:
        """Those that a query is turned by, for each zone or for all keys."""
        return streaming.query_angles(q_idx) if self.inside else (q_idx,)

    def holds(self, q_idx: Node, kv_idx: Node) -> Node:
        """Whether key j is one, and near enough to the query."""
        if self.ring:
            return rolling.holds(q_idx, kv_idx)
        return make("lt", idx("j"), param("kv_len", "b"), origin="kv_len")

    def read(self, t: Tensor, captures: Captures) -> Tensor:
        """A tensor with axes b and j, as it lies in the cache."""
        return self._paged(t, idx("j"), captures) if self.page else t

    def write(self, t: Tensor, start: Node, count: Node, captures: Captures) -> Tensor:
        """The cache's tensor ``t`` [b g j …] as the new tokens i < ``count`` see it, that come
        after the first ``start``. What does not fit is not stored."""
        i = idx("i")
        position = make("add", start, i, origin="kv_idx")
        fits = make("lt", i, count)
        view = tuple("i" if a == "j" else a for a in t.axes)
        if self.ring:
            first, slot = make("lt", position, param("ring_sinks")), rolling.slot(position)
            later = make("sub", count, i)  # one of them would overwrite it
            kept = make("le", later, rolling.size())
            fits = make("and", fits, make("or", first, kept))
        else:
            slot = position
            fits = make("and", fits, make("lt", position, param("seqlen_k")))
        fits = make("and", fits, make("le", const(0), start))
        if self.page:
            fits = make("and", fits, self._entry(slot, captures)[1])
        t = self._paged(t, slot, captures) if self.page else replace(t, place=(("j", slot),))
        return replace(t, view=view, only=fits)

    def _paged(self, t: Tensor, slot: Node, captures: Captures) -> Tensor:
        axes = ("page", *(a for a in t.axes if a != "b"))
        entry, known = self._entry(slot, captures)
        page = make("where", known, entry, const(0), origin="page")  # page 0 is nobody's
        return replace(t, axes=axes, view=t.axes, place=(
            ("page", page), ("j", make("mod", slot, const(self.page)))))

    def _entry(self, slot: Node, captures: Captures) -> tuple[Node, Node]:
        """The page table's entry for a slot, and whether that is a page that sequences may hold."""
        captures.argument("page_table", "int32", 2)
        entry = make("gather", idx("b"), make("floordiv", slot, const(self.page)),
                     name="page_table", dtype="int32", origin="page")
        return entry, make("and", make("le", const(1), entry),
                           make("lt", entry, param("num_pages")))
