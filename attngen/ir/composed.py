"""Functions of torch that traced scalars know as compositions of the op table's rows.

Each has torch's name and arguments; the first may be a number or a captured scalar as well. They
are methods of ``Scalar`` too.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from ..errors import TraceError
from .node import const
from .ops import FLOATS
from .proxy import Scalar, Traced, apply, node_of, session


def _scalar(x: Any) -> Scalar:
    return x if isinstance(x, Scalar) else Scalar(node_of(x))


def _real(x: Any) -> Scalar:
    return _scalar(x).to(session.get().compute)


def clamp(x: Any, min: Any = None, max: Any = None) -> Scalar:
    """Within min ... max, each if given."""
    low = _scalar(x) if min is None else apply("max", x, min)
    return low if max is None else apply("min", low, max)


def relu(x: Any, inplace: bool = False) -> Scalar:
    return apply("max", x, 0)


def relu6(x: Any, inplace: bool = False) -> Scalar:
    return clamp(x, 0, 6)


def leaky_relu(x: Any, negative_slope: float = 0.01, inplace: bool = False) -> Scalar:
    x = _scalar(x)
    return apply("where", x > 0, x, x * negative_slope)


def elu(x: Any, alpha: float = 1.0, scale: float = 1.0, inplace: bool = False) -> Scalar:
    x = _real(x)
    return apply("where", x > 0, x, (x.exp() - 1.0) * alpha) * scale


def silu(x: Any, inplace: bool = False) -> Scalar:
    x = _real(x)
    return x * x.sigmoid()


def gelu(x: Any, approximate: str = "none") -> Scalar:
    """x Φ(x), or its approximation by tanh."""
    x = _real(x)
    if approximate == "tanh":
        inner = (x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)
        return x * (inner.tanh() + 1.0) * 0.5
    return x * (apply("erf", x * math.sqrt(0.5)) + 1.0) * 0.5


def softplus(x: Any, beta: float = 1.0, threshold: float = 20.0) -> Scalar:
    """log(1 + exp(βx)) / β, x where βx is above the threshold."""
    x = _real(x)
    y = x * beta
    soft = (apply("max", y, 0.0) + ((-abs(y)).exp() + 1.0).log()) / beta
    return apply("where", y > threshold, x, soft)


def log_sigmoid(x: Any) -> Scalar:
    return -softplus(-_real(x))


def square(x: Any) -> Scalar:
    x = _scalar(x)
    return x * x


def rsqrt(x: Any) -> Scalar:
    return 1.0 / apply("sqrt", x)


def reciprocal(x: Any) -> Scalar:
    return 1.0 / _real(x)


def sign(x: Any) -> Scalar:
    x = _scalar(x)
    return apply("where", x > 0, 1, apply("where", x < 0, -1, 0))


def floor(x: Any) -> Scalar:
    """Of numbers that an int32 can hold."""
    x = _scalar(x)
    if x.node.dtype not in FLOATS:
        return x
    whole = x.to("int32")
    return apply("where", x < whole, whole - 1, whole).to("float32")


def ceil(x: Any) -> Scalar:
    return -floor(-_scalar(x))


def trunc(x: Any) -> Scalar:
    x = _scalar(x)
    return x if x.node.dtype not in FLOATS else x.to("int32").to("float32")


def round(x: Any, decimals: int = 0) -> Scalar:
    """To the nearest whole number, halves to the even one."""
    x = _scalar(x)
    if decimals != 0:
        raise TraceError(f"round to {decimals} decimals cannot be traced")
    if x.node.dtype not in FLOATS:
        return x
    up = floor(x + 0.5)
    return apply("where", (up - x == 0.5) & (up % 2 == 1), up - 1.0, up)


def power(x: Any, exponent: Any) -> Scalar:
    """Whole powers of anything; other powers of numbers above 0; powers of a number above 0."""
    if isinstance(exponent, Scalar):
        if isinstance(x, int | float) and x > 0 and (
                isinstance(x, float) or exponent.node.dtype in FLOATS):
            return apply("exp2", exponent * math.log2(x))
        raise TraceError("a traced exponent needs a number above 0 as its base, with a fraction "
                         "unless the exponent has one",
                         remedy="Write 2.0 ** x for 2 ** x, and exp2(y * log2(x)) for x ** y.")
    if isinstance(exponent, float) and exponent.is_integer():
        exponent = int(exponent)
    if isinstance(exponent, bool) or not isinstance(exponent, int | float) \
            or isinstance(exponent, int) and abs(exponent) > 8:
        raise TraceError(f"a traced scalar to the power {exponent!r}: whole powers from -8 to 8 "
                         "are taken, and fractions",
                         remedy="Use exp2(power * log2(x)) for others.")
    x = _scalar(x)
    if exponent == 0.5:
        return apply("sqrt", x)
    if isinstance(exponent, float):
        return apply("exp2", apply("log2", x) * exponent)
    if exponent < 0:
        return 1.0 / power(_real(x), -exponent)
    result: Scalar | None = None
    for _ in range(exponent):
        result = x if result is None else result * x
    return Scalar(const(1)) if result is None else result


def fmod(x: Any, other: Any) -> Scalar:
    """The remainder with the sign of ``x``."""
    x = _scalar(x)
    rest = abs(x) % abs(_scalar(other))
    return apply("where", x < 0, -rest, rest)


def where(x: Any, condition: Any, other: Any) -> Scalar:
    """As a method: ``x`` where the condition holds."""
    return apply("where", condition, x, other)


def filled(x: Any, value: Any, dtype: Any = None, **ignored: Any) -> Scalar:
    """A constant of the type of ``x``, or of ``dtype``."""
    constant = Scalar(node_of(value))
    if dtype is not None:
        return constant.to(dtype)
    return constant.to("float32") if _scalar(x).node.dtype in FLOATS else constant


def type_as(x: Any, other: Any) -> Scalar:
    kind = _scalar(other).node.dtype
    return _scalar(x).to("float32" if kind in FLOATS else kind)


def masked_fill(x: Any, mask: Any, value: Any) -> Scalar:
    return apply("where", mask, value, x)


def _itself(x: Any, *dimensions: Any) -> Scalar:
    return _scalar(x)


COMPOSED: dict[str, Callable[..., Scalar]] = {
    "clamp": clamp, "clip": clamp, "clamp_min": lambda x, min: clamp(x, min=min),
    "clamp_max": lambda x, max: clamp(x, max=max), "relu": relu, "relu6": relu6,
    "leaky_relu": leaky_relu, "elu": elu, "silu": silu, "gelu": gelu, "softplus": softplus,
    "log_sigmoid": log_sigmoid, "square": square, "rsqrt": rsqrt, "reciprocal": reciprocal,
    "sign": sign, "floor": floor, "ceil": ceil, "trunc": trunc, "round": round, "pow": power,
    "masked_fill": masked_fill, "fmod": fmod, "type_as": type_as,
    "log1p": lambda x: (_real(x) + 1.0).log(), "expm1": lambda x: _real(x).exp() - 1.0,
    "hardtanh": lambda x, min_val=-1.0, max_val=1.0, inplace=False: clamp(x, min_val, max_val),
    "full_like": filled, "ones_like": lambda x, **how: filled(x, 1, **how),
    "zeros_like": lambda x, **how: filled(x, 0, **how),
    # what a tensor without dimensions does not notice
    "unsqueeze": _itself, "squeeze": _itself, "detach": _itself, "clone": _itself,
    "contiguous": _itself}


def composed(name: str, *args: Any, **kwargs: Any) -> Any:
    """The function of that name; of a row for each of its elements."""
    function = functools.partial(COMPOSED[name], **kwargs)
    if any(isinstance(a, Traced) and not isinstance(a, Scalar) for a in args):
        from .rows import elementwise

        return elementwise(function, args)
    return function(*args)


for _name in COMPOSED:
    setattr(Traced, _name, functools.partialmethod(
        lambda self, name, *args, **kwargs: composed(name, self, *args, **kwargs), _name))
for _name in ("floor", "ceil", "trunc", "round"):  # what math and Python make integers with
    setattr(Traced, f"__{_name}__", functools.partialmethod(
        lambda self, name, *args: composed(name, self, *args).to("int32"), _name))
for _name, _function in (("__pow__", lambda x, y: composed("pow", x, y)),
                         ("__rpow__", lambda x, y: composed("pow", y, x)), ("where", where)):
    setattr(Traced, _name, _function)
