"""Where in a kernel a node can be computed: before, in or after which of its loops."""

from __future__ import annotations

from .node import Node, walk

# Operations that sum or compare along an axis, in the order one loop body computes them.
REDUCTIONS = {"reduce": 0, "stream_sum": 1, "stream_contract": 2, "contract": 3}


class Loops:
    """Nodes against successive loops along one axis."""

    def __init__(self, axis: str) -> None:
        self.axis = axis
        self._levels: dict[str, int] = {}
        self._moving: dict[str, bool] = {}

    def over(self, n: Node) -> bool:
        """True for a reduction along the axis, which a loop finishes."""
        return n.op in REDUCTIONS and n.attr("over") == self.axis

    def level(self, n: Node) -> int:
        """How many loops must have finished before ``n`` can be computed."""
        if n.key not in self._levels:
            for m in walk(n):
                used = m.args
                if m.op.startswith("stream_"):  # of the maximum they read what it is so far
                    used = (*m.args[:-1], m.args[-1].args[0])
                level = max((self._levels[a.key] for a in used), default=0)
                self._levels[m.key] = level + self.over(m)
        return self._levels[n.key]

    def moves(self, n: Node) -> bool:
        """True when ``n`` changes from one loop iteration to the next."""
        if n.key not in self._moving:
            for m in walk(n):
                self._moving[m.key] = not self.over(m) and (
                    self.axis in m.axes or m.op == "value"
                    or any(self._moving[a.key] for a in m.args))
        return self._moving[n.key]
