"""``attngen env``: the machine, its compilers, the targets, the settings."""

from __future__ import annotations

import argparse
from typing import Any

from .output import size, table

HELP = "print machine, versions, compilers, targets and settings"
DESCRIPTION = """\
Print what attngen sees of this machine, and every setting with its value and where it comes from:
"environment" for an ATTNGEN_* variable, "default" otherwise. Paste it into bug reports.

example:
  ATTNGEN_THREADS=4 attngen env
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(args: argparse.Namespace) -> int:
    from .. import __version__, knobs
    from ..runtime import cache, machine
    from ..runtime.targets import NAMES, default_target, get_target

    facts = machine.describe()
    packages = ", ".join(f"{name} {version or 'missing'}"
                         for name, version in facts["packages"].items())
    best = default_target().name
    for name, value in (
            ("attngen", f"{__version__}, python {facts['python']}"),
            ("machine", f"{facts['cpu']}, {facts['cores']} cores, {facts['system']}"),
            ("C++ compiler", facts["cxx"] or "none found"), ("CUDA compiler", _nvrtc()),
            ("GPU", _gpu(facts["gpu"])), ("packages", packages), ("cache", str(cache.path())),
            ("default target", best)):
        print(f"{name + ':':<16}{value}")
    print()
    table(("target", "rates of", "shared memory", "dtypes"), [
        (t.name, t.board, size(t.shared_limit) if t.family != "cpu" else "-", " ".join(t.dtypes))
        for t in map(get_target, NAMES)])
    print()
    table(("setting", "value", "from"), [
        (k.variable, *_value(k)) for k in knobs.KNOBS.values()])
    for variable, hint in knobs.unknown_variables().items():
        print(f"{variable} is set, and no setting has that name. {hint}".rstrip())
    return 0


def _value(knob: Any) -> tuple[str, str]:
    """What a setting is now, and which of environment and default says so."""
    from ..errors import KnobError

    try:
        value = knob()
    except KnobError as error:
        return f"bad: {error.what}. {error.remedy}", knob.source()
    text = "" if value is None or value == () else str(value)
    return text or "unset", knob.source()


def _nvrtc() -> str:
    from ..errors import NoCompilerError
    from ..runtime import nvrtc

    try:
        return f"NVRTC {'.'.join(map(str, nvrtc.version()))}, {nvrtc.library()}"
    except NoCompilerError as error:
        return f"none: {error.what}. {error.remedy}"


def _gpu(facts: dict[str, Any] | None) -> str:
    if facts is None:
        return "none visible; cpu runs, and --emulate executes CUDA text"
    return (f"{facts['name']}, compute capability {facts['capability']}, "
            f"{size(facts['memory_bytes'])}, CUDA {facts['cuda']}, driver {facts['driver']}")
