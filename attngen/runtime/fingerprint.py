"""A hash of the package's own sources, so that plans made by other sources are never reused."""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path

_SOURCES = (".py", ".jinja", ".j2", ".cuh", ".cu", ".h", ".hpp", ".cpp")


def fingerprint_of(root: Path) -> str:
    """Hash over name and content of every source file below ``root``, in hex."""
    digest = hashlib.blake2b(digest_size=20)
    pending, files = [str(root)], []
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif entry.name.endswith(_SOURCES):
                    files.append(entry.path)
    for path in sorted(files):
        with open(path, "rb", buffering=0) as source:
            content = source.read()
        name = os.path.relpath(path, root)
        digest.update(f"{len(name)}:{name}:{len(content)}:".encode())
        digest.update(content)
    return digest.hexdigest()


@cache
def package_fingerprint() -> str:
    """The fingerprint of the installed attngen package; read once per process."""
    return fingerprint_of(Path(__file__).resolve().parent.parent)
