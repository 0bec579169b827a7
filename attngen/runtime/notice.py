"""Warnings given once per process, so that a degraded run says so without repeating itself."""

from __future__ import annotations

import warnings

_given: set[str] = set()


def once(warning: Warning, stacklevel: int = 3) -> None:
    """``warnings.warn``, unless the same message was given before."""
    message = str(warning)
    if message not in _given:
        _given.add(message)
        warnings.warn(warning, stacklevel=stacklevel)


def forget() -> None:
    """Let every message be given again."""
    _given.clear()
