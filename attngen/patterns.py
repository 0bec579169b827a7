"""What masks and scores have in common: named patterns with a JSON form, and plain callables.

A named pattern is a frozen dataclass that is called like the function it stands for. Its call is
written with operators alone (``& | ~``, comparisons, ``+ - * // %``), so one definition serves
twice: traced into an expression, and evaluated by the oracle on broadcast index tensors.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from .errors import NotDeliveredNameError, PatternError, SpecJsonError, UnknownNameError

P = TypeVar("P", bound="Pattern")


class Pattern:
    """Base of named patterns. Subclasses are frozen dataclasses named as users write them."""

    @property
    def name(self) -> str:
        return type(self).__name__

    def to_dict(self) -> dict[str, Any]:
        """``{"name": ..., field: value, ...}`` holding JSON values only."""
        return {"name": self.name} | {
            f.name: to_value(getattr(self, f.name), f"{self.name}.{f.name}")
            for f in fields(self)}  # type: ignore[arg-type]


def to_value(value: Any, where: str) -> Any:
    """``value`` in JSON's terms. Raises SpecJsonError for a plain callable."""
    if isinstance(value, Pattern):
        return value.to_dict()
    if isinstance(value, tuple):
        return [to_value(v, where) for v in value]
    if callable(value):
        raise SpecJsonError(
            f"{describe(value)} is a Python callable, which has no JSON form", where=where,
            remedy="Use a named pattern of attngen.masks or attngen.scores.")
    return value


def from_dict(data: Any, kind: str, known: Mapping[str, type[P]]) -> P:
    """The pattern that ``to_dict`` described.

    Raises UnknownNameError for a name not in ``known``, SpecJsonError for anything else that is not
    such a description, PatternError for bad arguments.
    """
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        raise SpecJsonError(f"{kind} is not an object with a name: {data!r}")
    if data["name"] not in known:
        raise UnknownNameError(f"{kind} pattern", data["name"], known)
    cls = known[data["name"]]
    values = {key: _from_value(value, kind, known) for key, value in data.items() if key != "name"}
    try:
        inspect.signature(cls).bind(**values)
    except TypeError as error:
        names = ", ".join(inspect.signature(cls).parameters) or "none"
        raise SpecJsonError(f"{kind} pattern {data['name']!r}: {error}",
                            remedy=f"Its fields are: {names}.") from None
    return cls(**values)


def _from_value(value: Any, kind: str, known: Mapping[str, type[P]]) -> Any:
    if isinstance(value, dict):
        return from_dict(value, kind, known)
    if isinstance(value, list):
        return tuple(_from_value(v, kind, known) for v in value)
    return value


def describe(function: Any) -> str:
    """A callable's name as messages and graphs show it."""
    if isinstance(function, Pattern):
        return function.name
    return str(getattr(function, "__name__", type(function).__name__))


def check_callable(function: Any, kind: str, arguments: tuple[str, ...]) -> None:
    """Raises PatternError unless ``function`` can be called with these positional arguments."""
    wanted = f"{kind}_mod({', '.join(arguments)})"
    if not callable(function):
        raise PatternError(f"{kind} is a {type(function).__name__}, not a pattern or callable",
                           remedy=f"Give a pattern of attngen.{kind}s or a function {wanted}.")
    if isinstance(function, type) and issubclass(function, Pattern):
        raise PatternError(f"{function.__name__} is the pattern's class, not a pattern",
                           remedy=f"Call it: {function.__name__}(...).")
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return  # builtins may hide theirs; tracing will tell
    try:
        signature.bind(*arguments)
    except TypeError:
        raise PatternError(f"{kind} {describe(function)}{signature} cannot take the arguments of "
                           f"{wanted}", remedy=f"Write it as def {wanted}.") from None


def whole(value: Any, pattern: str, argument: str, low: int) -> int:
    """``value`` as an int of at least ``low``. Raises PatternError."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < low:
        raise PatternError(f"{pattern}: {argument} must be a whole number of at least {low}, "
                           f"got {value!r}")
    return number


def no_attribute(module: str, name: str, later: tuple[str, ...]) -> AttributeError:
    """What a module's ``__getattr__`` raises: names of the design still to come say so."""
    if name in later:
        return NotDeliveredNameError(f"{module}.{name} is not available in this version of attngen",
                                     remedy="Write the function itself as a Python callable.")
    return AttributeError(f"module {module!r} has no attribute {name!r}")
