"""Conditions on a tile as C: terms that are used again get a name first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..ir.node import Node, rebuild, value, walk
from .code import Code
from .expressions import c_type, print_expression


@dataclass(frozen=True)
class Condition:
    """``steps`` are declarations in order, ``result`` is an expression of them. ``first`` and
    ``last``: whether they need to know where the tile begins and ends."""

    steps: tuple[Code, ...]
    result: Code
    first: bool
    last: bool


def condition(root: Node, axis: str, leaf: Callable[[Node], str]) -> Condition:
    """C text of a condition on the tile of ``axis``. ``leaf`` names what is not of that tile.

    Raises VerifyError for an op that has no C text.
    """
    uses: dict[str, int] = {}
    for n in walk(root):
        for a in n.args:
            uses[a.key] = uses.get(a.key, 0) + 1
    own = {n.op: n for n in walk(root) if n.op in ("first", "last") and n.attr("axis") == axis}
    named: dict[str, Node] = {}  # by key: what stands for a node from here on
    steps: list[Code] = []

    def name(n: Node) -> str:
        if n.op == "value":
            return str(n.attr("name"))
        return f"{axis}_{n.op}" if n in own.values() else leaf(n)

    for n in walk(root):
        new = rebuild(n, tuple(named[a.key] for a in n.args)) if n.args else n
        if n.args and uses.get(n.key, 0) > 1:
            step = value(f"x{len(steps)}", (), n.dtype)
            text = print_expression(new, name)
            steps.append(Code(f"const {c_type(n.dtype)} {step.attr('name')} = {text};"))
            new = step
        named[n.key] = new
    return Condition(tuple(steps), Code(print_expression(named[root.key], name)),
                     "first" in own, "last" in own)
