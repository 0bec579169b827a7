"""Online softmax, derived: reductions relative to a log-sum-exp become one streaming pass.

    r = lse_j(s);  p = exp(s − r);  o = Σ_j p·w·v
  →
    m = max_j s;  e = exp(s − m);  l = Σ_j e;  r = m + log l;  o = (Σ_j e·w·v) / l

The sums are marked as relative to ``m``: on whole tensors ``m`` is the final maximum, a loop
rescales what it has whenever ``m`` grows (Milakov & Gimelshein 2018; Dao et al. 2022).
"""

from __future__ import annotations

from ..errors import VerifyError
from .node import Node, cast, make, rebuild, reduce, substitute, walk


def stream_region(roots: tuple[Node, ...], loop: str) -> tuple[Node, ...]:
    """Rewrite every log-sum-exp along ``loop`` and the products relative to it."""
    for node in walk(*roots):
        if node.op == "reduce" and node.attr("kind") == "lse" and node.attr("over") == loop:
            return stream_region(_stream(roots, node, loop), loop)
    return roots


def _stream(roots: tuple[Node, ...], lse: Node, loop: str) -> tuple[Node, ...]:
    s = lse.args[0]
    m = reduce("max", s, loop, origin="m")
    e = make("exp", make("sub", s, make("finite_or_zero", m)), origin="p")
    total = make("stream_sum", e, m, axes=lse.axes, dtype=lse.dtype, over=loop, origin="l")
    replaced = make("add", m, make("log", total), origin=lse.origin)
    weight = make("exp", make("sub", s, make("finite_or_zero", lse)))
    done: dict[str, Node] = {}
    for node in walk(*roots):
        if node is lse:
            done[node.key] = replaced
            continue
        streamed = _stream_product(node, weight, e, m, total, loop)
        done[node.key] = streamed if streamed is not None else rebuild(
            node, tuple(done[a.key] for a in node.args))
    return tuple(done[r.key] for r in roots)


def _stream_product(node: Node, weight: Node, e: Node, m: Node, total: Node,
                    loop: str) -> Node | None:
    """Σ_j (weight·w)·v → Σ_j (e·w)·v, relative to m, over l; None when ``weight`` is no factor."""
    if node.op != "contract" or node.attr("over") != loop:
        return None
    a, b = node.args
    if loop not in a.axes:
        return None
    inner, stored = (a.args[0], a.dtype) if a.op == "cast" else (a, a.dtype)
    new = _replace_factor(inner, weight, e)
    if new is None:
        return None
    acc = make("stream_contract", cast(new, stored), b, m, axes=node.axes, dtype=node.dtype,
               over=loop, origin="acc")
    return make("mul", acc, make("recip0", total), origin=node.origin)


def _replace_factor(product: Node, weight: Node, e: Node) -> Node | None:
    if product is weight:
        return e
    if product.op != "mul":
        return None
    for slot, arg in enumerate(product.args):
        new = _replace_factor(arg, weight, e)
        if new is not None:
            other = product.args[1 - slot]
            return make("mul", new, other, origin=product.origin)
    return None


def rescale_factor(n: Node, leaf: Node, previous: Node) -> Node:
    """exp2(x·c − m·c) relative to m → exp2(m_prev·c − m·c), from the operand's own exponential.

    ``leaf`` and ``previous`` stand for the running maximum and the one before. Raises VerifyError
    when the operand is not relative to the maximum through exactly one exponential.
    """
    found = {m.args[0].args[1]: m.op for m in walk(*n.args[:-1])
             if m.op in ("exp", "exp2") and m.args[0].op == "sub"
             and any(w is leaf for w in walk(m.args[0].args[1]))}
    if len(found) != 1:
        raise VerifyError(f"{n.op} ({n.origin}): its operand must be relative to the running "
                          f"maximum through one exponential, found {len(found)}")
    shift, op = next(iter(found.items()))
    before = substitute(shift, {make("finite_or_zero", leaf): previous, leaf: previous})
    return make(op, make("sub", before, shift), origin="alpha")
