"""The disk cache: results of compilers, found again by everything that went into them.

``get_or_build("so", (text, flags, compiler), build)`` returns what ``build()`` returned the first
time, in this process or another. The cache can only cost time: a damaged entry is removed, reported
once and made again; a folder that cannot be used leaves results in memory; a lock that is not freed
in time means compiling a second time.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from .. import knobs
from ..errors import CacheCorruptError, CacheError, CacheUnsafeError, NotCachedError
from . import folder, notice
from .entry import Entry, key_of, pack, read_bytes, read_facts, unpack

Built = tuple[bytes, dict[str, Any]]

LOCK_SECONDS = 60.0
_NAME = re.compile(r"(?P<kind>[a-z][a-z0-9_]*)-[0-9a-f]{40}")

_memory: dict[str, Entry] = {}


class Listing(NamedTuple):
    """One file of the cache. ``problem`` is empty for a good entry."""

    path: Path
    kind: str
    key: str
    size: int  # bytes of the whole file
    created: float  # seconds since the epoch
    label: str
    problem: str = ""


def get_or_build(kind: str, key_parts: Iterable[str | bytes | int],
                 build: Callable[[], bytes], *, label: str = "") -> bytes:
    """The bytes cached under ``kind`` (a short lower-case word) and ``key_parts``, else those
    ``build`` makes. Raises NotCachedError if ATTNGEN_ASSERT_CACHED is set and they would have to
    be made; otherwise only what ``build`` raises."""
    return fetch(kind, key_parts, lambda: (build(), {}), label=label).payload


def fetch(kind: str, key_parts: Iterable[str | bytes | int], build: Callable[[], Built], *,
          label: str = "") -> Entry:
    """As ``get_or_build``, for a ``build`` that returns bytes and JSON-able facts about them."""
    key = key_of(kind, key_parts)
    root = folder.usable()
    found = _find(root, kind, key)
    if found is not None:
        return found
    if knobs.assert_cached():
        raise NotCachedError(f"{label or kind} is not in the cache", where=str(root or "memory"),
                             numbers=f"{kind} {key[:12]}")
    if root is None:
        return _keep(None, _built(kind, key, label, build))
    folder.sweep(root)
    with _locked(_path(root, kind, key)):
        found = _find(root, kind, key)  # another process may have made it meanwhile
        return found or _keep(root, _built(kind, key, label, build))


def _built(kind: str, key: str, label: str, build: Callable[[], Built]) -> Entry:
    payload, meta = build()
    return Entry(kind, key, payload, time.time(), {**meta, "label": label})


def _path(root: Path, kind: str, key: str) -> Path:
    return root / f"{kind}-{key[:40]}"


def _find(root: Path | None, kind: str, key: str) -> Entry | None:
    if key in _memory:
        return _memory[key]
    if root is None:
        return None
    path = _path(root, kind, key)
    try:
        return unpack(read_bytes(path), path, key)
    except FileNotFoundError:
        return None
    except CacheCorruptError as damage:
        notice.once(damage)
        with contextlib.suppress(OSError):
            path.unlink()
    except CacheUnsafeError as danger:
        notice.once(danger)
    except OSError as problem:
        notice.once(CacheError(f"cache entry {path.name} cannot be read: {problem.strerror}",
                               where=str(path)))
    return None


def _keep(root: Path | None, entry: Entry) -> Entry:
    """Store the entry, on disk if that works and in memory otherwise."""
    if root is not None:
        path = _path(root, entry.kind, entry.key)
        try:
            folder.write_whole(path, pack(entry))
            return replace(entry, path=path)
        except OSError as problem:
            notice.once(CacheError(
                f"the cache folder {root} cannot be written: {problem.strerror}", remedy=(
                    f"Kernels are kept in memory for this process. {CacheError.default_remedy}")))
    _memory[entry.key] = entry
    return entry


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the entry's lock, or go on without it: it saves double work and guards nothing."""
    import filelock

    lock = filelock.FileLock(f"{path}.lock", timeout=LOCK_SECONDS, mode=0o600)
    held = False
    with contextlib.suppress(OSError, NotImplementedError, filelock.Timeout):
        lock.acquire()
        held = True
    try:
        yield
    finally:
        if held:
            with contextlib.suppress(OSError):
                os.unlink(f"{path}.lock")
            lock.release()


# -- for the command line ---------------------------------------------------------------------


def path() -> Path:
    """The cache's folder, whether it exists or not."""
    return folder.location()


def ls() -> list[Listing]:
    """Every entry, newest first; damaged ones with their ``problem``. Payloads are not read."""
    return sorted((_listing(p) for p in _files()), key=lambda e: -e.created)


def verify() -> list[Listing]:
    """The entries that fail their checksum or that someone else may have written. Nothing is
    removed: each is made again when it is next needed."""
    bad = []
    for file in _files():
        try:
            unpack(read_bytes(file), file)
        except (CacheError, OSError) as problem:
            bad.append(_listing(file)._replace(problem=str(problem).splitlines()[0]))
    return bad


def clear(kind: str | None = None, older_than: float | None = None) -> tuple[int, int]:
    """Remove entries of that kind (all), last written more than ``older_than`` seconds ago (all).
    Returns how many files and bytes went; files the cache did not make are left alone."""
    count = size = 0
    limit = None if older_than is None else time.time() - older_than
    kept_text = [] if kind else _files(folder.FAILED)
    for file in [*_files(), *kept_text]:
        named = _NAME.fullmatch(file.name)
        with contextlib.suppress(OSError):
            status = file.lstat()
            if (kind and named and named["kind"] != kind) or (limit and status.st_mtime > limit):
                continue
            file.unlink()
            count, size = count + 1, size + status.st_size
    _memory.clear()
    return count, size


def _files(prefix: str = "") -> list[Path]:
    """The entries' files, or those whose names begin with ``prefix``."""
    try:
        with os.scandir(path()) as found:
            names = sorted(e.name for e in found if e.is_file(follow_symlinks=False))
    except OSError:
        return []
    return [path() / n for n in names
            if (n.startswith(prefix) if prefix else _NAME.fullmatch(n))]


def _listing(file: Path) -> Listing:
    kind = file.name.partition("-")[0]
    try:
        status = file.stat()
        facts = read_facts(file)
    except (CacheError, OSError) as problem:
        return Listing(file, kind, "", 0, 0.0, "", str(problem).splitlines()[0])
    return Listing(file, kind, facts.key, status.st_size, facts.created,
                   str(facts.meta.get("label", "")))
