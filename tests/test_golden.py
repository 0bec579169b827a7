"""The golden fixture: it accepts what is kept, explains what is not, and says how to update."""

from __future__ import annotations

from pathlib import Path

import pytest
from golden_fixture import FOLDER, LINES, Golden


def test_the_first_run_writes_and_the_next_ones_compare(tmp_path: Path) -> None:
    path = tmp_path / "a" / "text.txt"
    assert Golden(path, update=True) == "one\ntwo"
    assert path.read_text() == "one\ntwo\n"
    assert Golden(path, update=False) == "one\ntwo\n\n"


def test_a_difference_is_shown_with_the_way_to_accept_it(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("one\ntwo\n")
    with pytest.raises(pytest.fail.Exception) as caught:
        assert Golden(path, update=False) == "one\nthree\n"
    message = str(caught.value)
    assert "pytest --update-golden" in message and "-two" in message and "+three" in message
    assert path.read_text() == "one\ntwo\n"


def test_a_missing_file_fails(tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match="--update-golden"):
        assert Golden(tmp_path / "none.txt", update=False) == "one"
    assert not (tmp_path / "none.txt").exists()


def test_long_texts_and_second_texts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="too many to review"):
        assert Golden(tmp_path / "long.txt", update=True) == "x\n" * (LINES + 1)
    once = Golden(tmp_path / "once.txt", update=True)
    assert once == "x"
    with pytest.raises(AssertionError, match="one golden text a test"):
        assert once == "x"


def test_kept_files_are_short() -> None:
    files = list(FOLDER.rglob("*.txt"))
    assert files
    assert [f.name for f in files if len(f.read_text().splitlines()) > LINES] == []
