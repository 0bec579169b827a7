"""CUDA text to machine code, through NVIDIA's run-time compiler and with no GPU.

A thin binding of our own: loading it takes about 10 ms where importing CuPy takes 300, CuPy's
wrapper of the compiler asks the driver for a device, and the compiler's log with the assembler's
report is needed whole.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from .. import knobs
from ..errors import AttngenError, CompileError, NoCompilerError
from . import cache as disk
from . import folder
from .resources import Resources, parse_remarks, parse_resources

# One option each: joined ones are rejected. No fast-math: -inf and NaN keep their meaning.
FLAGS: tuple[str, ...] = ("--std=c++17", "--ptxas-options=-v")
_MAJOR = 13
_REMEDY = 'Run: pip install "attngen[cuda13]"'


@dataclass(frozen=True)
class Cubin:
    """Machine code for one architecture. ``resources`` by kernel name; ``remarks`` are the lines
    in which the assembler reports a lost optimisation, best empty; ``cached`` says whether it was
    compiled now or found."""

    code: bytes
    log: str
    resources: dict[str, Resources] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    cached: bool = False


@cache
def library() -> Path:
    """The compiler's file: from the nvidia-cuda-nvrtc wheel, else from an installed toolkit.
    Raises NoCompilerError when there is none of this CUDA family."""
    package = importlib.util.find_spec("nvidia")
    places = list(package.submodule_search_locations or ()) if package else []
    tried = [*(Path(p) / f"cu{_MAJOR}" / "lib" for p in places),
             Path("/usr/local/cuda/lib64"), Path(f"/usr/local/cuda-{_MAJOR}/lib64")]
    for place in tried:
        if (file := place / f"libnvrtc.so.{_MAJOR}").exists():
            return file
    raise NoCompilerError(f"NVRTC {_MAJOR} is not installed, so CUDA text cannot be compiled here",
                          where=", ".join(str(t) for t in tried), remedy=_REMEDY)


def identity() -> str:
    """Which compiler it is, without loading it: file name, size and time of installation."""
    file = library().resolve()
    status = file.stat()
    return f"{file.name} {status.st_size} {status.st_mtime_ns}"


@cache
def _load() -> ctypes.CDLL:
    file = library()
    try:
        for builtins in sorted(file.parent.glob(f"libnvrtc-builtins.so.{_MAJOR}.*")):
            ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)  # found by name otherwise, or not
        return ctypes.CDLL(str(file))
    except OSError as problem:
        raise NoCompilerError(f"NVRTC cannot be loaded: {problem}", where=str(file),
                              remedy=_REMEDY) from None


def version() -> tuple[int, int]:
    """NVRTC's version, as (13, 0)."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _load().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


def compile_cubin(text: str, arch: str, flags: Iterable[str] = (), *,
                  name: str = "kernel") -> Cubin:
    """Compile ``text`` for ``arch`` (``"sm_80"``), or take the result from the disk cache.

    Raises CompileError, with the lines round the first error and the path of the dumped text, and
    NoCompilerError when NVRTC is not installed.
    """
    options = options_for(arch, flags)
    made = False

    def build() -> tuple[bytes, dict[str, Any]]:
        nonlocal made
        made = True
        code, log = _compile(text, options, name)
        return code, {"log": log, "arch": arch, "resources": {
            kernel: asdict(used) for kernel, used in parse_resources(log).items()}}

    entry = disk.fetch("cubin", (text, *options, identity()), build, label=f"{name} {arch}")
    log = entry.meta["log"]
    resources = {kernel: Resources(**used) for kernel, used in entry.meta["resources"].items()}
    return Cubin(entry.payload, log, resources, parse_remarks(log), cached=not made)


def options_for(arch: str, flags: Iterable[str] = ()) -> tuple[str, ...]:
    """All options of a compilation. Raises AttngenError for those that would change the code of
    every later compilation in this process."""
    options = (f"--gpu-architecture={arch}", *FLAGS, *flags,
               *(("-lineinfo",) if knobs.lineinfo() else ()))
    for option in options:
        if option in ("-G", "--device-debug") or option.startswith(("-Ofc", "--Ofast-compile")):
            raise AttngenError(
                f"NVRTC option {option} is not accepted", where=f"compiling for {arch}",
                remedy="It changes the code of later compilations in the same process; "
                       "leave it out, or compile the dumped text with nvcc.")
    return options


def _compile(text: str, options: tuple[str, ...], name: str) -> tuple[bytes, str]:
    nvrtc = _load()
    program = ctypes.c_void_p()
    source = text.encode()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, f"{name}.cu".encode(), 0, None,
                                    None), "nvrtcCreateProgram")
    try:
        array = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
        status = nvrtc.nvrtcCompileProgram(program, len(options), array)
        log = _output(nvrtc, "ProgramLog", program).rstrip(b"\0").decode(errors="replace")
        if status:
            file = folder.keep_failed(text, f"{name}.cu")
            raise CompileError(f"nvrtc failed: {' '.join(options)}", source=text, log=log,
                               path=file)
        return _output(nvrtc, "CUBIN", program), log
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _output(nvrtc: ctypes.CDLL, what: str, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    _check(getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)), f"nvrtcGet{what}")
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(nvrtc, f"nvrtcGet{what}")(program, buffer), f"nvrtcGet{what}")
    return buffer.raw


def _check(status: int, call: str) -> None:
    if status:
        raise CompileError(f"{call} failed with status {status}")
