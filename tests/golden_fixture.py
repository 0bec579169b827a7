"""Golden texts: what a test produces is compared with a file kept beside the tests.

A test takes the fixture and compares, ``assert text == golden``; its file is
``tests/golden/<module>/<test>.txt``. ``pytest --update-golden`` writes the files anew, after which
``git diff`` shows what changed.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "golden"
LINES = 400  # a longer file is not read by anybody


class Golden:
    """Equal to the text in its file; an unequal text is explained by a diff."""

    def __init__(self, path: Path, update: bool) -> None:
        self.path, self.update = path, update
        self.compared = False

    def __eq__(self, text: object) -> bool:
        assert isinstance(text, str), f"a golden text is a str, not {type(text).__name__}"
        assert not self.compared, "one golden text a test: join them, or write two tests"
        self.compared = True
        text = text.rstrip("\n") + "\n"
        lines = text.count("\n")
        assert lines <= LINES, f"{lines} lines are too many to review, at most {LINES}"
        if self.update:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(text)
            return True
        kept = self.path.read_text() if self.path.exists() else ""
        if text != kept:
            diff = difflib.unified_diff(kept.splitlines(), text.splitlines(), str(self.path),
                                        "this run", lineterm="", n=2)
            pytest.fail("\n".join(["the text differs from the golden file; if it should, run "
                                   "pytest --update-golden and look at git diff", *diff]),
                        pytrace=False)
        return True

    __hash__ = None  # type: ignore[assignment]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true",
                     help="write the golden files of tests/golden anew")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """The text of this test's file, to be compared with ``==``."""
    name = re.sub(r"[^\w.-]+", "_", request.node.name).strip("_")
    module = request.node.path.stem.removeprefix("test_")
    return Golden(FOLDER / module / f"{name}.txt", request.config.getoption("--update-golden"))
