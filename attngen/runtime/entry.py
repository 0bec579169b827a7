"""The file of one cache entry: the payload, then what is known of it, then a checksum.

::

    payload | facts (JSON: kind, key, created, meta) | sha256 of both | lengths | schema | magic

The facts come last because loaders look at the first bytes: the file of a shared object can be
opened by ``dlopen`` and that of a cubin read by the disassembler as it lies. The checksum finds
damage; what keeps forged entries out is that only the owner may write to the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CacheCorruptError, CacheUnsafeError

SCHEMA = 1
_MAGIC = b"attngen\n"
_TAIL = struct.Struct("<32sQII8s")  # sha256, payload length, facts length, schema, magic


@dataclass(frozen=True)
class Entry:
    """One cached result. ``path`` is its verified file, None when it lives in memory only."""

    kind: str
    key: str
    payload: bytes
    created: float  # seconds since the epoch
    meta: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None


class Facts(NamedTuple):
    """What the end of an entry's file says, read without its payload."""

    kind: str
    key: str
    created: float
    meta: dict[str, Any]
    payload_bytes: int


def key_of(kind: str, parts: Iterable[str | bytes | int]) -> str:
    """sha256 over the kind and the parts, each with its length, so that no two lists collide."""
    digest = hashlib.sha256()
    for part in (f"{kind}/{SCHEMA}", *parts):
        raw = part if isinstance(part, bytes) else str(part).encode()
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.hexdigest()


def pack(entry: Entry) -> bytes:
    """The bytes of the entry's file."""
    facts = json.dumps({"kind": entry.kind, "key": entry.key, "created": entry.created,
                        "meta": entry.meta}, sort_keys=True).encode()
    body = entry.payload + facts
    return body + _TAIL.pack(hashlib.sha256(body).digest(), len(entry.payload), len(facts),
                             SCHEMA, _MAGIC)


def unpack(raw: bytes, path: Path, key: str | None = None) -> Entry:
    """The entry in a file's bytes. Raises CacheCorruptError when anything does not fit."""
    if len(raw) < _TAIL.size:
        raise _damaged(path, f"{len(raw)} bytes, not even a checksum")
    checksum, size, length, schema, magic = _TAIL.unpack(raw[-_TAIL.size:])
    body = raw[:-_TAIL.size]
    if magic != _MAGIC or schema != SCHEMA:
        raise _damaged(path, "it does not end the way an entry does")
    if size + length != len(body):
        raise _damaged(path, f"{len(body)} of {size + length} bytes")
    if hashlib.sha256(body).digest() != checksum:
        raise _damaged(path, f"checksum mismatch over {len(body)} bytes")
    facts = json.loads(body[size:])
    if key is not None and facts["key"] != key:
        raise _damaged(path, f"it holds {facts['key'][:12]}, not {key[:12]}")
    return Entry(payload=body[:size], path=path, **facts)


def read_facts(path: Path) -> Facts:
    """The facts at the end of a file. Raises CacheCorruptError; the payload is not checked."""
    with path.open("rb") as file:
        total = file.seek(0, os.SEEK_END)
        file.seek(max(0, total - _TAIL.size))
        tail = file.read()
        if len(tail) < _TAIL.size or tail[-len(_MAGIC):] != _MAGIC:
            raise _damaged(path, "it does not end the way an entry does")
        _, size, length, _, _ = _TAIL.unpack(tail)
        if size + length + _TAIL.size != total:
            raise _damaged(path, f"{total} of {size + length + _TAIL.size} bytes")
        file.seek(size)
        try:
            return Facts(payload_bytes=size, **json.loads(file.read(length)))
        except (ValueError, TypeError):
            raise _damaged(path, "its facts are not JSON") from None


def read_bytes(path: Path) -> bytes:
    """The content of a regular file of this user. Raises OSError; CacheUnsafeError for anything
    another user owns or may write."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with open(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() \
                or status.st_mode & 0o022:
            raise CacheUnsafeError(
                f"{path} is not a plain file that this user alone may write",
                numbers=f"mode {stat.filemode(status.st_mode)}, uid {status.st_uid}, "
                        f"this process is uid {os.geteuid()}",
                remedy="It was ignored; remove it.")
        return file.read()


def _damaged(path: Path, how: str) -> CacheCorruptError:
    return CacheCorruptError(f"cache entry {path.name} is damaged: {how}", where=str(path))
