"""What a kernel section must not contain, so that the emulator sees all that a GPU would do.

Threads, memory and synchronisation are reached through the device layer alone, and the text cannot
tell who compiles it. The check reads tokens, not grammar: it knows which names are pointers from
their declarations in the same text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .sections import split

_TOKEN = re.compile(r"""
    (?P<skip> \s+ | //[^\n]* | /\*.*?\*/ )
  | (?P<directive> ^[ \t]*\#[^\n]*(?:\\\n[^\n]*)* )
  | (?P<string> "(?:\\.|[^"\\])*" )
  | (?P<number> \.?\d(?:[\w.]|(?<=[eEpP])[+-])* )
  | (?P<name> [A-Za-z_]\w* )
  | (?P<mark> -> | && | \|\| | :: | [-+*/%&|^<>=!]= | << | . )
""", re.VERBOSE | re.DOTALL | re.MULTILINE)

_WORDS = {
    "asm": "inline assembly", "volatile": "volatile", "extern": "a declaration of its own",
    "threadIdx": "a built-in variable", "blockIdx": "a built-in variable",
    "blockDim": "a built-in variable", "gridDim": "a built-in variable",
    "warpSize": "a built-in variable", "goto": "goto", "new": "new", "delete": "delete",
    "printf": "printf", "clock64": "a clock",
}
_ALLOWED_UNDERSCORES = {"__restrict__", "__grid_constant__", "__device__", "__forceinline__",
                        "__builtin_bit_cast", "__align__"}
# After one of these a star takes a value apart; after a name or bracket it multiplies or declares.
_BEFORE_UNARY = set("(,=;{}[?:!~+-*/%&|^<>") | {
    "&&", "||", "<<", "==", "!=", "<=", ">=", "+=", "-=", "*=", "/=", "return"}
_NOT_TYPES = {"return", "else", "case", "sizeof"}


@dataclass(frozen=True)
class Finding:
    """One offence: its line in the emitted text, and what it is."""

    line: int
    what: str


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    line: int


def check(text: str) -> list[Finding]:
    """All offences of the kernel section, and of the device layer's ``ops``, which is kept when the
    rest is exchanged. Raises CompileError without marker lines."""
    sections = split(text)
    parts = [sections.device[name] for name in ("ops",) if name in sections.device]
    return [finding for part in (*parts, sections.kernel)
            for finding in _offences(list(_tokens(part.text, part.line)))]


def _tokens(text: str, line: int) -> Iterator[_Token]:
    for found in _TOKEN.finditer(text):
        kind = found.lastgroup or ""
        if kind != "skip":
            yield _Token(kind, found.group().strip(), line)
        line += found.group().count("\n")


def _offences(tokens: list[_Token]) -> Iterator[Finding]:
    chunks = list(_chunks(tokens))
    members = set().union(*(_names(c)[0] for c in chunks if c and c[0].text == "struct"))
    for chunk in chunks:
        pointers, arrays = _names(chunk)
        for i, token in enumerate(chunk):
            before = chunk[i - 1].text if i else ";"
            subject = members if i > 1 and chunk[i - 2].text == "." else pointers - arrays
            reference = i > 2 and chunk[i - 3].text == "&"  # T (&x)[4]
            if before == ")" and token.text == "[" and not reference:
                what = "a raw dereference: (...)[...]"
            else:
                what = _forbidden(token) or _dereference(before, token, chunk[i + 1:i + 3], subject)
            if what:
                yield Finding(token.line, what)


def _chunks(tokens: list[_Token]) -> Iterator[list[_Token]]:
    """The top-level pieces: each function with its parameters, each struct, each declaration."""
    chunk: list[_Token] = []
    depth = 0
    for token in tokens:
        chunk.append(token)
        depth += (token.text in "{(") - (token.text in "})")
        if depth == 0 and token.text in "};":
            yield chunk
            chunk = []
    yield chunk


def _names(chunk: list[_Token]) -> tuple[set[str], set[str]]:
    """Names declared as pointers (``T* x``) and as arrays (``T x[``, ``T (&x)[``)."""
    pointers: set[str] = set()
    arrays: set[str] = set()
    words = [t for t in chunk if t.text not in ("const", "__restrict__")]
    for i in range(1, len(words) - 1):
        kind, here, after = words[i - 1], words[i], words[i + 1].text
        if here.kind != "name":
            continue
        if kind.text == "*" and after in ("=", ";", ",", ")"):
            pointers.add(here.text)
        typed = kind.kind == "name" and kind.text not in _NOT_TYPES
        if (after == "[" and (typed or kind.text == ">")) or (
                after == ")" and kind.text == "&" and words[i - 2].text == "("):
            arrays.add(here.text)
    return pointers, arrays


def _forbidden(token: _Token) -> str:
    text = token.text
    if token.kind == "directive":
        word = re.match(r"#\s*(\w*)", text)
        return "" if word and word.group(1) == "pragma" else f"a preprocessor line: {text}"
    if token.kind == "name":
        if text in _WORDS:
            return f"{_WORDS[text]}: {text}"
        if text.startswith("__") and text not in _ALLOWED_UNDERSCORES:
            return f"a built-in of the compiler: {text}"
        if text.startswith("atomic"):
            return f"an atomic operation: {text}"
    return ""


def _dereference(before: str, token: _Token, after: list[_Token], pointers: set[str]) -> str:
    following = after[0].text if after else ";"
    if token.text == "->":
        return f"a raw dereference: {before}->{following}"
    if token.text == "[" and before in pointers:
        return f"a raw dereference: {before}[...]"
    if token.text == "*" and before in _BEFORE_UNARY:
        declares = before == ">" and len(after) == 2 and after[1].text in ("=", ";", ",", ")")
        if not declares and (following == "(" or re.match(r"[A-Za-z_]", following)):
            return f"a raw dereference: *{following}"
    return ""
