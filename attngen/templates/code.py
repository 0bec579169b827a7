"""Text that may stand in emitted source, and the guard that lets nothing else through.

Templates receive ``Code`` objects only: fragments made by the view, from names and expressions that
were checked there. A plain string in a template would be text nobody looked at, so it is refused.
"""

from __future__ import annotations

import re
import unicodedata

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


class Code(str):
    """A piece of C text, or a comment made by ``comment``."""

    __slots__ = ()


def comment(text: str) -> Code:
    """``text`` as one line that cannot end or splice the comment it stands in."""
    line = " ".join("".join(
        " " if unicodedata.category(ch).startswith("C") else ch for ch in text).split())
    return Code(line.replace("*/", "* /").replace("/*", "/ *").rstrip("\\").rstrip())


def finalize(value: object) -> object:
    """What ``{{ value }}`` may print: Code, an int or an identifier.

    Raises TypeError for anything else; the environment turns it into a TemplateError.
    """
    if isinstance(value, Code) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, str) and _IDENTIFIER.match(value):
        return value
    raise TypeError(f"{str(value)[:40]!r} ({type(value).__name__}) may not be printed into source: "
                    "make it Code in the view")


def indented(text: str, spaces: int) -> Code:
    """Template filter: what a macro printed, moved right. Every part of it was checked when the
    macro printed it, so the whole is Code."""
    pad = " " * spaces
    return Code("".join(pad + line if line.strip() else line
                        for line in text.splitlines(keepends=True)))
