"""What masks and scores have in common: named patterns with a JSON form, and plain callables.

A named pattern is an immutable object with fields that is called like the function it stands for.
Its call is written with operators (``& | ~``, comparisons, ``+ - * // %``), the functions of
``attngen.functions`` and reads of tensors, so one definition serves twice: traced into an
expression, and evaluated by the oracle on broadcast index tensors.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, dataclass_transform

from .errors import PatternError, SpecJsonError, UnknownNameError

if TYPE_CHECKING:
    from inspect import Signature
    from typing import Self

P = TypeVar("P", bound="Pattern")


class _SignatureOfFields:
    """``inspect.signature`` of a pattern's class, made when asked for."""

    def __get__(self, pattern: Any, cls: type[Pattern]) -> Signature:
        if pattern is not None:
            raise AttributeError("a pattern's own signature is that of its call")
        from inspect import Parameter, Signature

        return Signature([
            Parameter(name, Parameter.POSITIONAL_OR_KEYWORD,
                      default=cls._defaults.get(name, Parameter.empty)) for name in cls._fields])


@dataclass_transform(frozen_default=True)
class Pattern:
    """Base of named patterns, whose subclasses are named as users write them.

    The annotated names of a subclass are its fields, in order and with their defaults, as in a
    frozen dataclass; ``__post_init__`` checks them, and may set what it works out from them, which
    is annotated ClassVar and no field. A dataclass would say the same, but compiles
    its methods anew for every class, most of the time it takes to import the patterns. Patterns
    are equal when their fields are; tensors are equal when they are the same object.
    """

    kind: ClassVar[str] = ""  # "mask" or "score"
    name: ClassVar[str] = ""
    _fields: ClassVar[tuple[str, ...]] = ()
    _defaults: ClassVar[dict[str, Any]] = {}
    __signature__: ClassVar[Any] = _SignatureOfFields()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = tuple(n for n, kind in cls.__annotations__.items() if "ClassVar" not in str(kind))
        cls._fields = (*cls._fields, *own)
        cls._defaults = {**cls._defaults, **{n: cls.__dict__[n] for n in own if n in cls.__dict__}}
        cls.name = cls.__dict__.get("name", cls.__name__)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.__dict__.update(self._bind(args, kwargs))
        self.__post_init__()

    def __post_init__(self) -> None:
        """Checks and normalises the fields. Raises PatternError."""

    @classmethod
    def _bind(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The value of each field. Raises TypeError as a function's call does."""
        if len(args) > len(cls._fields):
            raise TypeError(f"{cls.name}() takes {len(cls._fields)} arguments, got {len(args)}")
        given = dict(zip(cls._fields, args, strict=False))
        for key, value in kwargs.items():
            if key not in cls._fields:
                raise TypeError(f"{cls.name}() has no argument {key!r}")
            if key in given:
                raise TypeError(f"{cls.name}() got argument {key!r} twice")
            given[key] = value
        values = {**cls._defaults, **given}
        missing = [n for n in cls._fields if n not in values]
        if missing:
            raise TypeError(f"{cls.name}() lacks {' and '.join(missing)}")
        return {n: values[n] for n in cls._fields}

    def _put(self, **values: Any) -> None:
        """Sets attributes from ``__post_init__``: fields, or what is worked out from them."""
        self.__dict__.update(values)

    def __setattr__(self, name: str, value: Any) -> None:
        from dataclasses import FrozenInstanceError

        raise FrozenInstanceError(f"cannot assign to field {name!r} of {self.name}")

    __delattr__ = __setattr__  # type: ignore[assignment]

    def _values(self) -> dict[str, Any]:
        return {n: getattr(self, n) for n in self._fields}

    def __repr__(self) -> str:
        inside = ", ".join(f"{n}={_shown(v)}" for n, v in self._values().items())
        return f"{self.name}({inside})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash((type(self), self._identity()))

    def _identity(self) -> tuple[Any, ...]:
        """The fields, with tensors as the objects they are."""
        return tuple(_Same(v) if is_tensor(v) else v for v in self._values().values())

    def replace(self, **changes: Any) -> Self:
        """The same pattern with some fields changed, checked again."""
        return type(self)(**{**self._values(), **changes})

    def for_heads(self, heads: int) -> Self:
        """The pattern for a spec of this many query heads. Raises PatternError when it is for
        another number."""
        values = self._values()
        fitted = {n: _for_heads(v, heads) for n, v in values.items()}
        changed = {n: v for n, v in fitted.items() if v is not values[n]}
        return self.replace(**changed) if changed else self

    def to_dict(self) -> dict[str, Any]:
        """``{"name": ..., field: value, ...}`` holding JSON values only."""
        return {"name": self.name} | {
            n: to_value(v, f"{self.name}.{n}") for n, v in self._values().items()}


class _Same:
    """Equal for the same object only."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def is_tensor(value: Any) -> bool:
    """Whether a value is a torch tensor, told without importing torch."""
    return hasattr(value, "data_ptr") and hasattr(value, "shape")


def tensors_of(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The tensors that a pattern and those inside it read, each with the name of its field; tables
    worked out from the fields too."""
    if isinstance(value, Pattern):
        for field, inside in vars(value).items():
            yield from tensors_of(inside, field.removeprefix("_"))
    elif isinstance(value, tuple):
        for inside in value:
            yield from tensors_of(inside, name)
    elif is_tensor(value):
        yield name, value


def _shown(value: Any) -> str:
    if is_tensor(value):
        return f"<{str(value.dtype).removeprefix('torch.')} {list(value.shape)}>"
    return repr(value)


def _for_heads(value: Any, heads: int) -> Any:
    if isinstance(value, Pattern):
        return value.for_heads(heads)
    if isinstance(value, tuple):
        fitted = tuple(_for_heads(v, heads) for v in value)
        return fitted if any(a is not b for a, b in zip(fitted, value, strict=True)) else value
    return value


# -- JSON -----------------------------------------------------------------------------------------


def to_value(value: Any, where: str) -> Any:
    """``value`` in JSON's terms. Raises SpecJsonError for a plain callable and for a tensor."""
    if isinstance(value, Pattern):
        return value.to_dict()
    if isinstance(value, tuple):
        return [to_value(v, where) for v in value]
    if is_tensor(value):
        raise SpecJsonError(f"a tensor {_shown(value)} has no JSON form", where=where,
                            remedy="Build the pattern again from its tensor, in Python.")
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
        cls._bind((), values)
    except TypeError as error:
        raise SpecJsonError(f"{kind} pattern {data['name']!r}: {error}", remedy="Its fields are: "
                            f"{', '.join(cls._fields) or 'none'}.") from None
    return cls(**values)


def _from_value(value: Any, kind: str, known: Mapping[str, type[P]]) -> Any:
    if isinstance(value, dict):
        return from_dict(value, kind, known)
    if isinstance(value, list):
        return tuple(_from_value(v, kind, known) for v in value)
    return value


# -- checks ---------------------------------------------------------------------------------------


def describe(function: Any) -> str:
    """A callable's name as messages and graphs show it."""
    if isinstance(function, Pattern):
        return function.name
    return str(getattr(function, "__name__", type(function).__name__))


def check_callable(function: Any, kind: str, arguments: tuple[str, ...]) -> None:
    """Raises PatternError unless ``function`` can be called with these positional arguments."""
    wanted = f"{kind}_mod({', '.join(arguments)})"
    if isinstance(function, Pattern):
        if function.kind != kind:
            raise PatternError(f"{function.name} is a {function.kind}, given as a {kind}",
                               remedy=f"Write {function.kind}={function!r}.")
        return
    if not callable(function):
        raise PatternError(f"{kind} is a {type(function).__name__}, not a pattern or callable",
                           remedy=f"Give a pattern of attngen.{kind}s or a function {wanted}.")
    if isinstance(function, type) and issubclass(function, Pattern):
        raise PatternError(f"{function.__name__} is the pattern's class, not a pattern",
                           remedy=f"Call it: {function.__name__}(...).")
    if not takes(function, arguments):
        from inspect import signature

        raise PatternError(f"{kind} {describe(function)}{signature(function)} cannot take the "
                           f"arguments of {wanted}", remedy=f"Write it as def {wanted}.")


def takes(function: Any, arguments: tuple[str, ...]) -> bool:
    """Whether a callable takes these positional arguments, as far as can be told."""
    from inspect import signature

    try:
        signature(function).bind(*arguments)
    except TypeError:
        return False
    except ValueError:
        return True  # builtins may hide theirs; tracing will tell
    return True


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
