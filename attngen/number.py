"""Numbers that are arguments of the kernel: changing them compiles nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from .errors import PatternError

# While a mask or score is traced: what a dynamic number stands for there.
tracing: ContextVar[Callable[[Dynamic], Any] | None] = ContextVar("attngen_tracing", default=None)


class Dynamic:
    """A number whose ``value`` may be set between calls; see ``dynamic``."""

    def __init__(self, value: int | float, name: str | None = None) -> None:
        self.name = name
        self._whole = isinstance(value, int)
        self.value = value

    @property
    def value(self) -> int | float:
        return self._value

    @value.setter
    def value(self, value: int | float) -> None:
        if isinstance(value, bool) or not isinstance(value, int if self._whole else int | float):
            kind = "a whole number" if self._whole else "a number"
            raise PatternError(f"{self.name or 'a dynamic number'} must be {kind}, got {value!r}")
        self._value = value if self._whole else float(value)

    def _now(self) -> Any:
        hook = tracing.get()
        return self.value if hook is None else hook(self)

    def __add__(self, other: Any) -> Any:
        return self._now() + other

    def __radd__(self, other: Any) -> Any:
        return other + self._now()

    def __sub__(self, other: Any) -> Any:
        return self._now() - other

    def __rsub__(self, other: Any) -> Any:
        return other - self._now()

    def __mul__(self, other: Any) -> Any:
        return self._now() * other

    def __rmul__(self, other: Any) -> Any:
        return other * self._now()

    def __truediv__(self, other: Any) -> Any:
        return self._now() / other

    def __rtruediv__(self, other: Any) -> Any:
        return other / self._now()

    def __floordiv__(self, other: Any) -> Any:
        return self._now() // other

    def __rfloordiv__(self, other: Any) -> Any:
        return other // self._now()

    def __mod__(self, other: Any) -> Any:
        return self._now() % other

    def __rmod__(self, other: Any) -> Any:
        return other % self._now()

    def __neg__(self) -> Any:
        return -self._now()

    def __abs__(self) -> Any:
        return abs(self._now())

    def __lt__(self, other: Any) -> Any:
        return self._now() < other

    def __le__(self, other: Any) -> Any:
        return self._now() <= other

    def __gt__(self, other: Any) -> Any:
        return self._now() > other

    def __ge__(self, other: Any) -> Any:
        return self._now() >= other

    def __float__(self) -> float:
        return float(self._now())

    def __int__(self) -> int:
        return int(self._now())

    def __index__(self) -> int:
        found: int = self._now().__index__()
        return found

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def plain(x: Any) -> Any:
            return x._now() if isinstance(x, Dynamic) else x

        return func(*map(plain, args), **{k: plain(v) for k, v in (kwargs or {}).items()})

    def __repr__(self) -> str:
        return f"dynamic({self.value!r}{f', name={self.name!r}' if self.name else ''})"


def dynamic(value: int | float, name: str | None = None) -> Dynamic:
    """A number for masks and scores that kernels take as an argument.

    ``w = ag.dynamic(8, name="w")`` acts as 8; after ``w.value = 9``, or with ``params={"w": 9}`` at
    a call, the same kernel uses 9. A whole number stays whole. Without ``name`` it goes by the
    variable's. Raises PatternError for what is no number.
    """
    return Dynamic(value, name)
