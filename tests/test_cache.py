"""The disk cache may only cost time: whatever happens to it, results are right, nothing is lost."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import ROOT, run_python

from attngen.errors import CacheCorruptError, CacheError, CacheUnsafeError, NotCachedError
from attngen.runtime import cache, folder, notice
from attngen.runtime.entry import key_of


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of this test, with nothing remembered from others."""
    root = tmp_path / "cache"
    monkeypatch.setenv("ATTNGEN_CACHE_DIR", str(root))
    monkeypatch.setattr(cache, "_memory", {})
    notice.forget()
    return root


class Builder:
    """Counts how often it is asked."""

    def __init__(self, payload: bytes = b"made") -> None:
        self.payload, self.calls = payload, 0

    def __call__(self) -> bytes:
        self.calls += 1
        return self.payload


def only_file(root: Path) -> Path:
    (path,) = [p for p in root.iterdir() if p.is_file()]
    return path


def test_built_once_then_found(place: Path) -> None:
    build = Builder()
    for _ in range(3):
        assert cache.get_or_build("thing", ("text", 1), build) == b"made"
    assert build.calls == 1
    assert cache.get_or_build("thing", ("text", 2), build) == b"made"
    assert cache.get_or_build("other", ("text", 1), build) == b"made"
    assert build.calls == 3
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o600 for p in place.iterdir())
    assert not [p for p in place.iterdir() if p.name.startswith(folder.TEMPORARY)]


def test_keys_do_not_run_together() -> None:
    keys = [key_of("k", parts) for parts in
            (("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("ab", b"c", ""), ())]
    assert len(set(keys)) == len(keys)
    assert key_of("k", ("a",)) != key_of("l", ("a",))


def test_a_payload_may_be_anything(place: Path) -> None:
    for payload in (b"", b"\0" * 5, bytes(range(256)) * 500):
        parts = (payload,)
        assert cache.get_or_build("thing", parts, lambda p=payload: p) == payload
        assert cache.get_or_build("thing", parts, Builder(b"wrong")) == payload


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[1] ^= 4
    path.write_bytes(raw)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    path.write_bytes(b"hello, I am not an entry of this cache at all, but as long as one....")


@pytest.mark.parametrize("harm", [truncate, flip, empty, foreign])
def test_a_damaged_entry_is_removed_said_once_and_made_again(
        place: Path, harm: Callable[[Path], None]) -> None:
    build = Builder()
    cache.get_or_build("thing", ("text",), build)
    harm(only_file(place))
    assert [e.problem != "" for e in cache.verify()] == [True]
    with pytest.warns(CacheCorruptError, match="is damaged") as said:
        assert cache.get_or_build("thing", ("text",), build) == b"made"
    assert len(said) == 1 and build.calls == 2
    assert cache.verify() == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.get_or_build("thing", ("text",), build) == b"made"
    assert build.calls == 2


def test_an_entry_under_the_wrong_name_is_not_believed(place: Path) -> None:
    cache.get_or_build("thing", ("one",), lambda: b"one")
    path = only_file(place)
    path.rename(place / f"thing-{key_of('thing', ('two',))[:40]}")
    with pytest.warns(CacheCorruptError, match="it holds"):
        assert cache.get_or_build("thing", ("two",), lambda: b"two") == b"two"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_leaves_results_in_memory(
        place: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(code, os.strerror(code))

    kept = Builder(b"kept from before")
    cache.get_or_build("thing", ("before",), kept)
    (before,) = place.iterdir()
    monkeypatch.setattr(folder.os, "replace", refuse)
    build = Builder()
    with pytest.warns(CacheError, match="cannot be written") as said:
        for _ in range(3):
            assert cache.get_or_build("thing", ("text",), build) == b"made"
    assert build.calls == 1 and len(said) == 1
    assert "ATTNGEN_CACHE_DIR" in str(said[0].message)
    assert list(place.iterdir()) == [before]  # no leftovers
    assert cache.get_or_build("thing", ("before",), kept) == b"kept from before"
    assert kept.calls == 1


def test_a_folder_that_cannot_be_made(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place.parent / "file").write_text("")
    monkeypatch.setenv("ATTNGEN_CACHE_DIR", str(place.parent / "file" / "below"))
    build = Builder()
    with pytest.warns(CacheError, match="cannot be made: Not a directory"):
        for _ in range(2):
            assert cache.get_or_build("thing", ("text",), build) == b"made"
    assert build.calls == 1
    assert (place.parent / "file").read_text() == ""


def test_folders_others_may_write_or_that_are_links_are_not_trusted(
        place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = Builder()
    place.mkdir(mode=0o700)
    place.chmod(0o770)
    with pytest.warns(CacheUnsafeError, match="others may write") as said:
        cache.get_or_build("thing", ("text",), build)
    assert f"chmod 700 {place}" in str(said[0].message)
    place.chmod(0o700)
    link = place.parent / "link"
    link.symlink_to(place)
    monkeypatch.setenv("ATTNGEN_CACHE_DIR", str(link))
    with pytest.warns(CacheUnsafeError, match="symbolic link"):
        cache.get_or_build("thing", ("text",), build)
    monkeypatch.setenv("ATTNGEN_CACHE_DIR", str(place))
    monkeypatch.setattr(folder.os, "geteuid", lambda: os.getuid() + 1)
    with pytest.warns(CacheUnsafeError, match="belongs to someone else"):
        cache.get_or_build("thing", ("text",), build)
    assert list(place.iterdir()) == [] and build.calls == 1


def test_planted_links_and_open_files_are_ignored(place: Path) -> None:
    build = Builder()
    cache.get_or_build("thing", ("text",), build)
    path = only_file(place)
    target = place.parent / "precious"
    target.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(target)
    with pytest.warns(CacheError):
        assert cache.get_or_build("thing", ("text",), build) == b"made"
    assert build.calls == 2 and not path.is_symlink() and target.exists()
    path.chmod(0o666)
    with pytest.warns(CacheUnsafeError, match="this user alone"):
        assert cache.get_or_build("thing", ("text",), build) == b"made"
    assert build.calls == 3


def test_switched_off_it_leaves_no_trace(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNGEN_CACHE", "0")
    assert cache.get_or_build("thing", ("text",), Builder()) == b"made"
    assert not place.exists()


def test_assert_cached_refuses_to_build(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = Builder()
    cache.get_or_build("thing", ("text",), build)
    monkeypatch.setenv("ATTNGEN_ASSERT_CACHED", "1")
    assert cache.get_or_build("thing", ("text",), build) == b"made"
    with pytest.raises(NotCachedError, match="forward for sm_80 is not in the cache"):
        cache.get_or_build("thing", ("new",), build, label="forward for sm_80")
    assert build.calls == 1


def test_a_failing_build_leaves_nothing_and_frees_the_lock(place: Path) -> None:
    def fail() -> bytes:
        raise RuntimeError("no")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="no"):
            cache.get_or_build("thing", ("text",), fail)
    assert list(place.iterdir()) == []
    assert cache.get_or_build("thing", ("text",), Builder()) == b"made"


def test_a_lock_that_is_never_freed_costs_a_second_build(
        place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import filelock

    monkeypatch.setattr(cache, "LOCK_SECONDS", 0.1)
    place.mkdir(mode=0o700)
    lock = place / f"thing-{key_of('thing', ('text',))[:40]}.lock"
    build = Builder()
    with filelock.FileLock(str(lock)):
        assert cache.get_or_build("thing", ("text",), build) == b"made"
    assert build.calls == 1
    assert cache.get_or_build("thing", ("text",), build) == b"made"
    assert build.calls == 1


RACE = """
import sys, time
from pathlib import Path
from attngen.runtime import cache
tally = Path(sys.argv[1])
def build():
    with tally.open("a") as f:
        f.write("x")
    time.sleep(0.3)
    return b"made" * 10000
while not (tally.parent / "go").exists():
    time.sleep(0.005)
assert cache.get_or_build("thing", ("text",), build) == b"made" * 10000
"""


def test_many_processes_build_once(place: Path) -> None:
    tally = place.parent / "tally"
    tally.write_text("")
    started = [subprocess.Popen([sys.executable, "-c", RACE, str(tally)], cwd=ROOT)
               for _ in range(6)]
    (place.parent / "go").touch()
    assert [p.wait(timeout=60) for p in started] == [0] * 6
    assert tally.read_text() == "x"
    assert [p.name for p in place.iterdir()] == [only_file(place).name]


def test_many_threads_build_once(place: Path) -> None:
    build = Builder()

    def slow() -> bytes:
        time.sleep(0.05)
        return build()

    threads = [threading.Thread(target=cache.get_or_build, args=("thing", ("text",), slow))
               for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert build.calls == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_uses_the_cache(place: Path) -> None:
    cache.get_or_build("thing", ("text",), Builder())
    child = os.fork()
    if child == 0:
        good = cache.get_or_build("thing", ("text",), Builder(b"wrong")) == b"made" \
            and cache.get_or_build("thing", ("child",), Builder()) == b"made"
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert cache.get_or_build("thing", ("child",), Builder(b"wrong")) == b"made"


def test_leftovers_of_killed_processes_are_swept(
        place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place.mkdir(mode=0o700)
    old, new = place / f"{folder.TEMPORARY}old", place / f"{folder.TEMPORARY}new"
    old.mkdir()
    (old / "kernel.cpp").write_text("x")
    new.write_text("x")
    (place / "theirs.txt").write_text("precious")
    for path in (old, place / "theirs.txt"):
        os.utime(path, (1, 1))
    cache.get_or_build("thing", ("text",), Builder())
    assert not old.exists() and new.exists() and (place / "theirs.txt").exists()


def test_listing_clearing_and_verifying(place: Path) -> None:
    assert cache.ls() == [] and cache.verify() == [] and cache.clear() == (0, 0)
    assert cache.path() == place and not place.exists()
    cache.get_or_build("plan", ("a",), lambda: b"x" * 100, label="causal")
    cache.get_or_build("so", ("b",), lambda: b"y" * 1000, label="forward cpu")
    (place / "notes.txt").write_text("mine")
    listed = {e.kind: e for e in cache.ls()}
    assert set(listed) == {"plan", "so"}
    assert listed["so"].label == "forward cpu" and listed["so"].size > 1000
    assert abs(listed["so"].created - time.time()) < 60
    flip(listed["so"].path)
    (bad,) = cache.verify()
    assert bad.path == listed["so"].path and "checksum mismatch" in bad.problem
    assert cache.clear(older_than=3600) == (0, 0)
    assert cache.clear("plan") == (1, listed["plan"].size)
    assert cache.clear() == (1, listed["so"].size)
    assert [p.name for p in place.iterdir()] == ["notes.txt"]


def test_a_hit_in_a_new_process_is_quick_and_light(place: Path) -> None:
    cache.get_or_build("thing", ("text",), lambda: b"made" * 25000)
    out = run_python("""
import sys, attngen
from attngen.runtime import cache, plan
def build(): raise AssertionError
assert len(cache.get_or_build("thing", ("text",), build)) == 100000
print([m for m in ("torch", "numpy", "cupy", "sympy", "networkx", "filelock") if m in sys.modules])
""")
    assert out.strip() == "[]"
