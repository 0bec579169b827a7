"""Every ``ATTNGEN_*`` variable, typed and documented, in one place.

A knob is read by calling it. The value comes from the first that is set of: the argument of the
call, the innermost ``scope`` that names the knob, the environment, the default::

    knobs.debug()                  # scope, environment or default
    knobs.verify(verify)           # a caller's own argument first, unless it is None
    with knobs.scope(debug=4):     # this thread only, until the block ends
        attn.build()

The environment is read at each call, so ``os.environ`` and ``monkeypatch.setenv`` take effect at
once. ``python -m attngen.knobs`` prints this list as Markdown (``docs/knobs.md``).
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from .errors import KnobError, UnknownNameError, did_you_mean

T = TypeVar("T")
PREFIX = "ATTNGEN_"

_scoped: ContextVar[Mapping[str, Any]] = ContextVar("attngen_knobs", default={})  # noqa: B039


@dataclass(frozen=True)
class Knob(Generic[T]):
    """One setting. ``parse`` turns a string or a Python value into T, raising ValueError."""

    name: str
    default: T
    parse: Callable[[Any], T]
    expected: str
    doc: str

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()

    def __call__(self, argument: T | None = None) -> T:
        """The value in force. Raises KnobError when what is set is not ``expected``."""
        if argument is not None:
            return self.check(argument, self.name)
        scoped = _scoped.get()
        if self.name in scoped:
            value: T = scoped[self.name]
            return value
        text = os.environ.get(self.variable, "").strip()
        return self.check(text, self.variable) if text else self.default

    def check(self, value: Any, where: str) -> T:
        """``value`` as T. Raises KnobError naming ``where`` it was set and what is expected."""
        try:
            return self.parse(value)
        except (ValueError, TypeError):
            raise KnobError(f"{where}={value!r} is not a value of this setting",
                            remedy=f"Expected {self.expected}.") from None

    def source(self) -> str:
        """Which of "scope", "environment", "default" decides now."""
        if self.name in _scoped.get():
            return "scope"
        return "environment" if os.environ.get(self.variable, "").strip() else "default"


def _integer(low: int, high: int | None = None) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        number = int(value) if isinstance(value, str) else operator.index(value)
        if number < low or (high is not None and number > high):
            raise ValueError(value)
        return number
    return parse


def _boolean(value: Any) -> bool:
    table = {"1": True, "true": True, "on": True, "yes": True,
             "0": False, "false": False, "off": False, "no": False}
    text = str(value).lower()
    if text not in table:
        raise ValueError(value)
    return table[text]


def _path(value: Any) -> Path:
    return Path(os.fspath(value)).expanduser()


def _names(value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else list(value)
    return tuple(p.strip() for p in parts if p.strip())


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(value)
    return value


_BOOL = "0 or 1"

debug: Knob[int] = Knob(
    "debug", 0, _integer(0, 5), "one of 0, 1, 2, 3, 4, 5",
    "How much to print. 1: cache hits, misses and the schedule; 2: also the passes, timings, "
    "registers and spills; 3: also the graph's difference after each pass; 4: also the generated "
    "source; 5: everything, machine code included.")
dump: Knob[Path | None] = Knob(
    "dump", None, _path, "a folder",
    "Write each kernel's spec, graph at every stage, text and facts below this folder.")
override: Knob[Path | None] = Knob(
    "override", None, _path, "a folder",
    "Run `<folder>/<kernel name>.cu` (or `.cpp`) in place of the generated text, with a warning.")
skip: Knob[tuple[str, ...]] = Knob(
    "skip", (), _names, "names of passes, separated by commas",
    "Leave out these optional passes, for finding the one at fault.")
verify: Knob[int] = Knob(
    "verify", 1, _integer(0, 2), "one of 0, 1, 2",
    "0: no checks between passes; 1: each stage's invariants; 2: also interpret the graph before "
    "and after every pass on small random inputs and compare.")
cache_dir: Knob[Path | None] = Knob(
    "cache_dir", None, _path, "a folder",
    "Where compiled kernels are kept. Default: `attngen` in the user's cache folder.")
cache: Knob[bool] = Knob("cache", True, _boolean, _BOOL, "0 turns the disk cache off.")
assert_cached: Knob[bool] = Knob(
    "assert_cached", False, _boolean, _BOOL,
    "1 makes a cache miss an error instead of a compilation.")
lineinfo: Knob[bool] = Knob(
    "lineinfo", False, _boolean, _BOOL,
    "1 compiles with line information, for profilers and sanitizers.")
cxx: Knob[str | None] = Knob(
    "cxx", None, _text, "a command",
    "The C++ compiler. Default: `$CXX`, else the first of `c++`, `g++`, `clang++` that is found.")
threads: Knob[int | None] = Knob(
    "threads", None, _integer(1), "a whole number of at least 1",
    "Threads of the `cpu` target. Default: as many as torch uses.")
seed: Knob[int] = Knob(
    "seed", 0, _integer(0), "a whole number of at least 0",
    "Seed of the emulator's schedules; the same seed gives the same schedule.")

KNOBS: dict[str, Knob[Any]] = {k.name: k for k in (
    debug, dump, override, skip, verify, cache_dir, cache, assert_cached, lineinfo, cxx, threads,
    seed)}


@contextmanager
def scope(**values: Any) -> Iterator[None]:
    """Set knobs by name inside a ``with`` block, for this thread; scopes nest, the inner one wins.

    ``None`` returns an optional knob (``dump``, ``cxx``, ...) to unset inside the block. Raises
    UnknownNameError for an unknown name and KnobError for a bad value, before anything changes.
    """
    checked: dict[str, Any] = {}
    for name, value in values.items():
        if name not in KNOBS:
            raise UnknownNameError("knob", name, KNOBS)
        knob = KNOBS[name]
        optional = value is None and knob.default is None
        checked[name] = None if optional else knob.check(value, name)
    token = _scoped.set({**_scoped.get(), **checked})
    try:
        yield
    finally:
        _scoped.reset(token)


def unknown_variables() -> dict[str, str]:
    """``ATTNGEN_*`` variables in the environment that no knob reads, each with a hint or ""."""
    known = [k.variable for k in KNOBS.values()]
    return {name: did_you_mean(name, known).strip()
            for name in sorted(os.environ) if name.startswith(PREFIX) and name not in known}


def markdown() -> str:
    """The knobs as the Markdown page ``docs/knobs.md``."""
    rows = "\n".join(
        f"| `{k.variable}` | {k.expected} | {_shown(k.default)} | {k.doc} |"
        for k in KNOBS.values())
    return f"""# Settings

Generated by `python -m attngen.knobs > docs/knobs.md`; edit `attngen/knobs.py` instead.

A call's own argument wins over `with attngen.knobs.scope(debug=4):`, which wins over the
environment variable, which wins over the default. The name inside `scope` is the variable's
without the prefix, in lower case. `NO_COLOR` is respected.

| variable | value | default | meaning |
|---|---|---|---|
{rows}
"""


def _shown(value: Any) -> str:
    if value is None or value == ():
        return "unset"
    return f"`{int(value)}`" if isinstance(value, (bool, int)) else f"`{value}`"


if __name__ == "__main__":
    print(markdown(), end="")
