"""The cache's folder: where it is, whether it is safe to use, and files that appear whole."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .. import knobs
from ..errors import CacheError, CacheUnsafeError
from . import notice

TEMPORARY = ".tmp-"
FAILED = "failed-"
_STALE_SECONDS = 3600.0

_swept: set[Path] = set()


def location() -> Path:
    """Where the cache is, or would be: ATTNGEN_CACHE_DIR, else the user's cache folder."""
    chosen = knobs.cache_dir()
    if chosen is not None:
        return chosen
    import platformdirs

    return Path(platformdirs.user_cache_path("attngen"))


def usable() -> Path | None:
    """The folder, made if need be; None when caching is off or the folder cannot be made or
    trusted, which is said once. One that can only be read is usable too."""
    if not knobs.cache():
        return None
    root = location()
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_private(root)
    except CacheError as problem:
        notice.once(problem)
        return None
    except OSError as problem:
        notice.once(CacheError(
            f"the cache folder {root} cannot be made: {problem.strerror}", remedy=(
                f"Kernels are kept in memory for this process. {CacheError.default_remedy}")))
        return None
    return root


def check_private(root: Path) -> None:
    """Raises CacheUnsafeError unless ``root`` is a real folder that this user owns and alone may
    write: what lies there is loaded as machine code."""
    status = os.lstat(root)
    if stat.S_ISLNK(status.st_mode):
        raise CacheUnsafeError(f"the cache folder {root} is a symbolic link",
                               remedy="Set ATTNGEN_CACHE_DIR to the folder it points to.")
    if not stat.S_ISDIR(status.st_mode):
        raise CacheUnsafeError(f"the cache folder {root} is not a folder")
    if status.st_uid != os.geteuid():
        raise CacheUnsafeError(f"the cache folder {root} belongs to someone else",
                               numbers=f"it is owned by uid {status.st_uid}, this process is uid "
                                       f"{os.geteuid()}")
    if status.st_mode & 0o022:
        raise CacheUnsafeError(f"others may write to the cache folder {root}",
                               numbers=f"mode {stat.filemode(status.st_mode)}",
                               remedy=f"Run: chmod 700 {root}")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that others see complete or not at all. Raises OSError, leaving nothing."""
    handle, temporary = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)  # mode 0600
    try:
        with open(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def sweep(root: Path) -> None:
    """Remove what killed processes left behind; once per process and folder."""
    if root in _swept:
        return
    _swept.add(root)
    limit = time.time() - _STALE_SECONDS
    with contextlib.suppress(OSError), os.scandir(root) as entries:
        for found in entries:
            if not (found.name.startswith(TEMPORARY) or found.name.endswith(".lock")):
                continue
            with contextlib.suppress(OSError):
                if found.stat(follow_symlinks=False).st_mtime >= limit:
                    continue
                if found.is_dir(follow_symlinks=False):
                    shutil.rmtree(found.path, ignore_errors=True)
                else:
                    os.unlink(found.path)


@contextmanager
def scratch(in_cache: bool = True) -> Iterator[Path]:
    """A private folder that is gone afterwards: in the cache, else (or if not ``in_cache``) among
    the system's temporary files."""
    root = usable() if in_cache else None
    made: str | None = None
    if root is not None:
        with contextlib.suppress(OSError):
            made = tempfile.mkdtemp(prefix=TEMPORARY, dir=root)
    made = made or tempfile.mkdtemp(prefix="attngen-")
    try:
        yield Path(made)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def keep_failed(text: str, name: str) -> Path:
    """Write text that would not compile where the user can read it, and say where: in the cache,
    else in a new folder among the system's temporary files."""
    stem, dot, ending = name.rpartition(".")
    name = f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:8]}{dot}{ending}"
    root = usable()
    if root is not None:
        path = root / f"{FAILED}{name}"
        with contextlib.suppress(OSError):
            write_whole(path, text.encode())
            return path
    path = Path(tempfile.mkdtemp(prefix="attngen-failed-")) / name
    path.write_text(text)
    return path
