"""Rotary position embedding of new keys (Su et al. 2021), from tables of cosines and sines.

    y[2f]     = x[2f]·cos − x[2f + 1]·sin        y[f]     = x[f]·cos − x[f + h]·sin
    y[2f + 1] = x[2f + 1]·cos + x[2f]·sin        y[f + h] = x[f + h]·cos + x[f]·sin
    "interleaved"                                "half"

with cos and sin at [position, f], f < h = R/2; columns from R on stay as they are. The other column
of a pair is read as a second tensor, which lies where the first does and is seen with its columns
exchanged.
"""

from __future__ import annotations

from dataclasses import replace

from .capture import Captures
from .node import Node, cast, const, idx, make, tensor
from .tensor import Tensor

STYLES = ("half", "interleaved")


def exchanged(t: Tensor, style: str, rotary: int, name: str) -> Tensor:
    """``t`` with the columns of each pair exchanged."""
    d, half = idx("d"), const(rotary // 2)
    if style == "half":
        upper = make("lt", d, half)
        other = make("where", upper, make("add", d, half), make("sub", d, half))
    else:
        other = make("bitxor", d, const(1))
    place = make("where", make("lt", d, const(rotary)), other, d)
    return replace(t, name=name, view=t.axes, place=(("d", place),))


def rotated(x: Node, other: Tensor, position: Node, style: str, rotary: int,
            captures: Captures) -> Node:
    """x turned by its position, float32."""
    captures.argument("rope_cos", "float32", 2)
    captures.argument("rope_sin", "float32", 2)
    d, half = idx("d"), const(rotary // 2)
    if style == "half":
        frequency, first = make("mod", d, half), make("lt", d, half)
    else:
        frequency = make("floordiv", d, const(2))
        first = make("eq", make("bitand", d, const(1)), const(0))
    cos, sin = (make("gather", position, frequency, name=name, dtype="float32", origin=name)
                for name in ("rope_cos", "rope_sin"))
    wide = cast(x, "float32")
    pair = cast(tensor(other.name, other.seen, other.dtype), "float32")
    turned = make("add", make("mul", wide, cos),
                  make("mul", make("where", first, make("neg", pair), pair), sin), origin="rotary")
    return make("where", make("lt", d, const(rotary)), turned, wide, origin="rotary")
