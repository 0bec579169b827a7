"""Measurements on file: JSON with the machine, the versions and the date beside the numbers."""

from __future__ import annotations

import atexit
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
_PACKAGES = ("torch", "numpy", "networkx", "sympy", "jinja2", "cupy-cuda13x", "nvidia-cuda-nvrtc",
             "nvidia-cudnn-cu13", "triton")


def machine() -> dict[str, Any]:
    """Processor, cores, load (1, 5 and 15 minutes), system, compiler and package versions."""
    from attngen.runtime import cxx, targets

    cpu = targets.get_target("cpu")
    try:
        compiler = cxx.compiler().version
    except Exception as problem:  # no compiler is a fact worth recording, too
        compiler = str(problem)
    return {"cpu": cpu.board, "cores": cpu.sms, "load": [round(x, 2) for x in os.getloadavg()],
            "system": platform.platform(), "python": platform.python_version(),
            "compiler": compiler, "versions": versions(), "commit": commit()}


def versions() -> dict[str, str]:
    """Of the packages that matter, those installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The checkout's commit, "+" when files differ from it, "" outside a repository."""
    def git(*args: str) -> str:
        done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except OSError:
        return ""


def write(file: Path, data: Any) -> Path:
    """``data`` as JSON in ``file``, replaced as a whole or not at all."""
    text = json.dumps(data, indent=1) + "\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent, suffix=".json")
    with os.fdopen(handle, "w") as out:
        out.write(text)
    os.chmod(temporary, 0o644)
    os.replace(temporary, file)
    return file


def save(what: str, data: dict[str, Any]) -> Path:
    """``results/<date>-<what>.json`` with today's date and this machine."""
    today = datetime.date.today().isoformat()
    return write(RESULTS / f"{today}-{what}.json",
                 {"what": what, "date": today, "machine": machine(), **data})


def in_new_process(code: str, *, timeout: float = 300.0, **environment: str) -> Any:
    """Run Python ``code`` alone; what its last line of output holds as JSON.

    Byte code is kept between such processes, as it is for an installed package. Raises
    RuntimeError with its standard error when it fails.
    """
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=timeout,
        env={**inherited, "PYTHONPYCACHEPREFIX": _bytecode(), **environment})
    if done.returncode:
        raise RuntimeError(f"exit status {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


@cache
def _bytecode() -> str:
    folder = tempfile.mkdtemp(prefix="attngen-bytecode-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Text in aligned columns, numbers to the right."""
    cells = [[str(c) for c in row] for row in rows]
    widths = [max(len(h), *(len(row[n]) for row in cells)) if cells else len(h)
              for n, h in enumerate(head)]

    def line(row: Sequence[str]) -> str:
        return "  ".join(c.ljust(w) if n == 0 else c.rjust(w)
                         for n, (c, w) in enumerate(zip(row, widths, strict=True))).rstrip()

    return "\n".join([title, "", line(head), line(["-" * w for w in widths]),
                      *(line(row) for row in cells), ""])
