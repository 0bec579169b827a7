"""C++ text to a loaded shared object, with the compilers there are and those there are not."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path

import pytest

from attngen.errors import CompileError, NoCompilerError
from attngen.runtime import cxx, folder, notice

TWICE = 'extern "C" int twice(int x) { return 2 * x; }\n'


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATTNGEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    notice.forget()
    return tmp_path


def compiler_script(path: Path, body: str) -> Path:
    """A stand-in for a compiler that does ``body`` and then what the real one would."""
    real = cxx.compiler().command[0]
    path.write_text(f"#!/bin/sh\n{body}\nexec {real} \"$@\"\n")
    path.chmod(0o755)
    return path


def test_compiled_loaded_and_cached(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cxx.load_text(TWICE).twice(21) == 42
    monkeypatch.setenv("ATTNGEN_ASSERT_CACHED", "1")
    entry = cxx.shared_object(TWICE)
    assert entry.path is not None and entry.path.parent == place / "cache"
    assert ctypes.CDLL(str(entry.path)).twice(4) == 8  # loads as it lies
    assert cxx.load_text(TWICE, (*cxx.FLAGS[:-1], "-std=c++17")).twice(1) == 2


@pytest.mark.parametrize("broken", ["cache off", "entry gone", "will not load"])
def test_without_a_loadable_file_a_private_copy_is_used(
        place: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    text = TWICE + f"// {broken}\n"
    if broken == "cache off":
        monkeypatch.setenv("ATTNGEN_CACHE", "0")
    entry = cxx.shared_object(text)
    if broken == "entry gone":
        assert entry.path is not None
        entry.path.unlink()
    if broken == "will not load":  # as on a file system mounted noexec
        real = ctypes.CDLL

        def refuse(path: str) -> ctypes.CDLL:
            if path.startswith(str(place / "cache")):
                raise OSError("failed to map segment from shared object")
            return real(path)

        monkeypatch.setattr(cxx.ctypes, "CDLL", refuse)
    assert cxx.load(entry).twice(3) == 6
    with pytest.raises(CompileError, match="allows execution"):
        cxx.load(replace(entry, payload=b"no machine code", path=None))
    leftovers = [p for p in (place / "cache").glob("*") if p.name.startswith(folder.TEMPORARY)]
    assert leftovers == []


def test_an_error_shows_its_lines_and_where_the_text_is() -> None:
    text = "\n".join(["// line"] * 9 + ["int f() { return y; }"] + ["// line"] * 9)
    with pytest.raises(CompileError) as refused:
        cxx.load_text(text, name="broken")
    error = refused.value
    assert error.line == 10 and ">   10 | int f() { return y; }" in str(error)
    assert isinstance(error.path, Path) and error.path.read_text() == text
    assert folder.TEMPORARY not in error.log  # no path that is gone by now


def test_which_compiler(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    standard = cxx.compiler()
    script = compiler_script(place / "my c++", "")
    monkeypatch.setenv("CXX", f"'{script}' -DA=1")
    assert cxx.compiler().command == (str(script), "-DA=1")
    assert cxx.compiler().identity != standard.identity
    monkeypatch.setenv("ATTNGEN_CXX", standard.command[0])
    assert cxx.compiler() == standard
    assert "--version" not in standard.version and standard.version


def test_no_compiler(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNGEN_CXX", "no-such-compiler -O2")
    with pytest.raises(NoCompilerError, match="tried no-such-compiler") as refused:
        cxx.load_text(TWICE)
    assert "ATTNGEN_CXX=no-such-compiler" in str(refused.value)
    monkeypatch.delenv("ATTNGEN_CXX")
    monkeypatch.setenv("PATH", str(place))
    with pytest.raises(NoCompilerError, match=r"tried c\+\+, g\+\+, clang\+\+") as refused:
        cxx.load_text(TWICE)
    assert "Install g++" in str(refused.value)


def test_a_compiler_that_is_none(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNGEN_CXX", "false")
    with pytest.raises(NoCompilerError, match="false --version failed with status 1"):
        cxx.load_text(TWICE)


def test_another_compiler_or_processor_is_another_entry(
        place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cxx.load_text(TWICE)
    monkeypatch.setenv("ATTNGEN_ASSERT_CACHED", "1")
    monkeypatch.setattr(cxx, "cpu_flags", lambda: ("flags avx9000",))
    cxx._inspect.cache_clear()
    try:
        with pytest.raises(Exception, match="not in the cache"):
            cxx.load_text(TWICE)
    finally:
        cxx._inspect.cache_clear()


def test_without_openmp_one_thread_and_a_warning(
        place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = compiler_script(place / "plain", 'for a in "$@"; do if [ "$a" = -fopenmp ]; then '
                             'echo "error: unsupported option -fopenmp" >&2; exit 1; fi; done')
    monkeypatch.setenv("ATTNGEN_CXX", str(script))
    text = """
#ifdef _OPENMP
#error OpenMP is on
#endif
""" + TWICE
    with pytest.warns(cxx.OpenMPWarning, match="unsupported option -fopenmp"):
        assert cxx.load_text(text).twice(2) == 4
    with pytest.raises(CompileError, match="expected"):  # its own errors are not hidden by that
        cxx.load_text("int f( {")


def test_the_compiler_gets_arguments_not_a_shell(place: Path) -> None:
    hostile = f"k; touch {place / 'owned'} #"
    with pytest.raises((CompileError, OSError)):
        cxx.load_text(TWICE + f"\n#error {hostile}\n", (*cxx.FLAGS, f"-DX=$(touch {place}/owned)"),
                      name="kernel")
    assert not (place / "owned").exists()


def test_the_version_is_asked_once_per_machine(
        place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = compiler_script(place / "counted", f'echo x >> "{place}/tally"')
    monkeypatch.setenv("ATTNGEN_CXX", str(script))
    for _ in range(3):
        cxx._inspect.cache_clear()  # as in a new process
        cxx.compiler()
    assert (place / "tally").read_text() == "x\n"
