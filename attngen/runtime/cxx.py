"""C++ text to a loaded shared object, through the machine's own compiler."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from .. import knobs
from ..errors import CompileError, NoCompilerError
from . import cache as disk
from . import folder, notice
from .entry import Entry
from .targets import cpu_flags

FLAGS: tuple[str, ...] = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math",
                          "-fopenmp", "-shared", "-fPIC", "-std=c++17")
_NAMES = ("c++", "g++", "clang++")
_OPENMP = "-fopenmp"
_SECONDS = 300.0


class Compiler(NamedTuple):
    """A C++ compiler: the command, its ``--version``, and a hash of that, of its file and of the
    processor, which decides what ``-march=native`` means."""

    command: tuple[str, ...]
    version: str
    identity: str


class OpenMPWarning(UserWarning):
    """The C++ compiler has no OpenMP, so kernels run on one thread."""


def compiler() -> Compiler:
    """The compiler in use: ATTNGEN_CXX, else CXX, else c++, g++ or clang++ from PATH. Raises
    NoCompilerError, saying which were tried."""
    chosen = knobs.cxx()
    variable = knobs.cxx.variable if chosen else "CXX"
    chosen = chosen or os.environ.get("CXX", "").strip()
    commands = [shlex.split(chosen)] if chosen else [[name] for name in _NAMES]
    for command in commands:
        found = shutil.which(command[0]) if command else None
        if found:
            return _inspect((found, *command[1:]), os.path.realpath(found))
    tried = ", ".join(command[0] for command in commands if command)
    raise NoCompilerError(f"no C++ compiler: tried {tried}",
                          where=f"{variable}={chosen}" if chosen else "PATH")


@cache
def _inspect(command: tuple[str, ...], file: str) -> Compiler:
    """Asking for the version costs a process, so the answer is kept on disk until the compiler's
    file changes."""
    status = os.stat(file)
    stamp = f"{shlex.join(command)} {file} {status.st_size} {status.st_mtime_ns}"

    def ask() -> bytes:
        done = _run([*command, "--version"])
        if done.returncode:
            raise NoCompilerError(f"{shlex.join(command)} --version failed with status "
                                  f"{done.returncode}: {done.stderr.strip()[:500]}")
        return done.stdout.encode()

    with knobs.scope(assert_cached=False):  # a question, not a compilation
        version = disk.get_or_build("cxx", (stamp,), ask, label=file).decode()
    identity = hashlib.sha256(json.dumps([stamp, version, cpu_flags()]).encode()).hexdigest()
    return Compiler(command, version.splitlines()[0] if version else "", identity)


def load_text(text: str, flags: Sequence[str] = FLAGS, *, name: str = "kernel",
              kind: str = "so") -> ctypes.CDLL:
    """Compile ``text`` with ``flags`` (or find the result in the disk cache) and load it.

    A compiler without OpenMP is given the text once more without ``-fopenmp``, which warns. Raises
    CompileError, with the lines round the first error and the path of the dumped text, and
    NoCompilerError.
    """
    return load(shared_object(text, flags, name=name, kind=kind))


def shared_object(text: str, flags: Sequence[str] = FLAGS, *, name: str = "kernel",
                  kind: str = "so") -> Entry:
    """The shared object as a cache entry, see ``load_text``."""
    chosen = compiler()
    try:
        return _entry(text, tuple(flags), chosen, name, kind)
    except CompileError as error:
        if _OPENMP not in flags or not _lacks_openmp(chosen):
            raise
        notice.once(OpenMPWarning(
            f"{shlex.join(chosen.command)} has no OpenMP ({error.log.strip().splitlines()[0]}), so "
            f"kernels run on one thread; install libomp or name another compiler in ATTNGEN_CXX"))
    return _entry(text, tuple(f for f in flags if f != _OPENMP), chosen, name, kind)


def _entry(text: str, flags: tuple[str, ...], chosen: Compiler, name: str, kind: str) -> Entry:
    return disk.fetch(
        kind, (text, *flags, chosen.identity),
        lambda: (_compile(text, flags, chosen, name), {"compiler": chosen.version}),
        label=name)


@cache
def _lacks_openmp(chosen: Compiler) -> bool:
    """Whether an empty program fails with OpenMP and succeeds without."""
    program = "int main() { return 0; }\n"
    with folder.scratch() as place:
        source = place / "empty.cpp"
        source.write_text(program)
        without = [*chosen.command, str(source), "-o", str(place / "empty")]
        return bool(_run([*without, _OPENMP], place).returncode) \
            and not _run(without, place).returncode


def _compile(text: str, flags: tuple[str, ...], chosen: Compiler, name: str) -> bytes:
    with folder.scratch() as place:
        source, made = place / f"{name}.cpp", place / f"{name}.so"
        source.write_text(text)
        # Libraries (-l) must follow the source that needs them.
        libraries = [f for f in flags if f.startswith("-l")]
        others = [f for f in flags if not f.startswith("-l")]
        done = _run([*chosen.command, *others, str(source), "-o", str(made), *libraries], place)
        if done.returncode == 0 and made.exists():
            return made.read_bytes()
        log = done.stderr.replace(f"{place}{os.sep}", "")
        raise CompileError(f"{shlex.join([*chosen.command, *flags])} failed with status "
                           f"{done.returncode}", source=text, log=log or "(no message)",
                           path=folder.keep_failed(text, f"{name}.cpp"))


def _run(words: list[str], place: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a compiler in ``place``, its own temporary files included."""
    environment = {**os.environ, "LC_ALL": "C"}  # messages in English, whatever the locale
    if place is not None:
        environment["TMPDIR"] = str(place)
    try:
        return subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True,
                              errors="replace", stdin=subprocess.DEVNULL, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise CompileError(f"{words[0]} took more than {_SECONDS:.0f} s") from None
    except OSError as problem:
        raise NoCompilerError(f"{words[0]} cannot be run: {problem.strerror}") from None


def load(entry: Entry) -> ctypes.CDLL:
    """Load a shared object: from its verified file in the cache, else (cache off, file gone, or on
    a file system that forbids execution) from a private copy that is removed at once."""
    if entry.path is not None:
        try:
            return ctypes.CDLL(str(entry.path))
        except OSError:
            pass
    reason = ""
    for in_cache in (True, False):
        with folder.scratch(in_cache) as place:
            copy = place / "kernel.so"
            copy.write_bytes(entry.payload)
            try:
                return ctypes.CDLL(str(copy))
            except OSError as problem:
                reason = str(problem)
    raise CompileError(
        f"the shared object cannot be loaded: {reason}",
        remedy="Point ATTNGEN_CACHE_DIR or TMPDIR at a file system that allows execution.")
