"""Plans found again on disk, so that a process that has its plans never loads the compiler."""

from __future__ import annotations

from collections.abc import Callable

from . import cache
from .fingerprint import package_fingerprint
from .plan import Plan


def stored_plan(spec_key: str | None, options: str, build: Callable[[], Plan], *,
                label: str = "plan") -> Plan:
    """The plan of a spec under some options, from the disk cache or from ``build``.

    ``spec_key`` and ``options`` are canonical text that says everything the plan depends on besides
    attngen's own sources, which are part of the key. A spec with no key (a Python callable is
    involved) is built every time.
    """
    if spec_key is None:
        return build()
    text = cache.get_or_build("plan", (spec_key, options, package_fingerprint()),
                              lambda: build().to_json().encode(), label=label)
    return Plan.from_json(text)
