"""Rewriting: apply a list of rules bottom-up until none applies.

A rule is a function ``Node -> Node | None``; None means "no match". Rule lists are named after what
they establish, and each rule's docstring shows its rewrite before → after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..errors import VerifyError
from .node import Node, rebuild, walk

Rule = Callable[[Node], Node | None]
_MAX_ROUNDS = 64


def rewrite(roots: Sequence[Node], rules: Sequence[Rule]) -> tuple[Node, ...]:
    """The roots with every rule applied everywhere until nothing changes.

    Raises VerifyError when rules undo each other.
    """
    done: dict[str, Node] = {}
    for root in roots:
        for node in walk(root):
            if node.key not in done:
                new = rebuild(node, tuple(done[a.key] for a in node.args))
                done[node.key] = _settle(new, rules, done)
    return tuple(done[r.key] for r in roots)


def _settle(node: Node, rules: Sequence[Rule], done: dict[str, Node]) -> Node:
    for _ in range(_MAX_ROUNDS):
        known = done.get(node.key)
        if known is not None:
            return known
        for rule in rules:
            new = rule(node)
            if new is not None and new is not node:
                break
        else:
            return node
        # The result may hold new operands that match in turn.
        args = tuple(_settle_new(a, rules, done) for a in new.args)
        node = rebuild(new, args)
    raise VerifyError(f"rewriting did not settle after {_MAX_ROUNDS} rounds at {node!r}: "
                      "two rules undo each other")


def _settle_new(node: Node, rules: Sequence[Rule], done: dict[str, Node]) -> Node:
    known = done.get(node.key)
    if known is not None:
        return known
    args = tuple(_settle_new(a, rules, done) for a in node.args)
    result = _settle(rebuild(node, args), rules, done)
    done[node.key] = result
    done[result.key] = result
    return result
