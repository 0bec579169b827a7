"""Knobs: precedence, parsing, refusals."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from attngen import knobs
from attngen.errors import KnobError, UnknownNameError


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for knob in knobs.KNOBS.values():
        monkeypatch.delenv(knob.variable, raising=False)


def test_argument_beats_scope_beats_environment_beats_default(
        monkeypatch: pytest.MonkeyPatch) -> None:
    assert (knobs.debug(), knobs.debug.source()) == (0, "default")
    monkeypatch.setenv("ATTNGEN_DEBUG", "2")
    assert (knobs.debug(), knobs.debug.source()) == (2, "environment")
    with knobs.scope(debug=3):
        assert (knobs.debug(), knobs.debug.source()) == (3, "scope")
        with knobs.scope(debug=4, verify=0):
            assert (knobs.debug(), knobs.verify(), knobs.debug(5)) == (4, 0, 5)
        assert (knobs.debug(), knobs.verify()) == (3, 1)
    assert knobs.debug() == 2


def test_scope_is_undone_by_an_exception_and_stays_in_its_thread() -> None:
    seen: list[int] = []
    with pytest.raises(ZeroDivisionError), knobs.scope(seed=7):
        thread = threading.Thread(target=lambda: seen.append(knobs.seed()))
        thread.start()
        thread.join()
        raise ZeroDivisionError
    assert seen == [0] and knobs.seed() == 0


@pytest.mark.parametrize("variable, text, value", [
    ("ATTNGEN_CACHE", "0", False), ("ATTNGEN_CACHE", "on", True), ("ATTNGEN_LINEINFO", "1", True),
    ("ATTNGEN_SKIP", "fuse, hoist,", ("fuse", "hoist")), ("ATTNGEN_DUMP", "out", Path("out")),
    ("ATTNGEN_CACHE_DIR", "~/c", Path.home() / "c"), ("ATTNGEN_CXX", "clang++", "clang++"),
    ("ATTNGEN_THREADS", "3", 3), ("ATTNGEN_DEBUG", "", 0), ("ATTNGEN_THREADS", " ", None)])
def test_environment_is_parsed(monkeypatch: pytest.MonkeyPatch, variable: str, text: str,
                               value: object) -> None:
    monkeypatch.setenv(variable, text)
    assert knobs.KNOBS[variable.removeprefix("ATTNGEN_").lower()]() == value


@pytest.mark.parametrize("variable, text, expected", [
    ("ATTNGEN_VERIFY", "7", "one of 0, 1, 2"), ("ATTNGEN_DEBUG", "loud", "one of 0, 1, 2, 3, 4, 5"),
    ("ATTNGEN_CACHE", "maybe", "0 or 1"), ("ATTNGEN_THREADS", "0", "at least 1")])
def test_bad_values_are_refused_with_what_is_expected(monkeypatch: pytest.MonkeyPatch,
                                                      variable: str, text: str,
                                                      expected: str) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(KnobError) as error:
        knobs.KNOBS[variable.removeprefix("ATTNGEN_").lower()]()
    assert variable in str(error.value) and expected in str(error.value)


def test_scope_refuses_before_it_changes_anything() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'debug'"), knobs.scope(debgu=1):
        pass
    with pytest.raises(KnobError), knobs.scope(debug=1, threads=2.5):
        pass
    with pytest.raises(KnobError), knobs.scope(debug=None):
        pass
    assert knobs.debug() == 0


def test_none_unsets_an_optional_knob_inside_a_scope(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNGEN_DUMP", "out")
    with knobs.scope(dump=None):
        assert knobs.dump() is None
    assert knobs.dump() == Path("out")


def test_misspelt_variables_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNGEN_DEBUGG", "1")
    assert knobs.unknown_variables()["ATTNGEN_DEBUGG"] == "Did you mean 'ATTNGEN_DEBUG'?"


def test_there_are_few_knobs() -> None:
    assert len(knobs.KNOBS) <= 12
