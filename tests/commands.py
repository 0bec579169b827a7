"""The command line called in this process."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout

from attngen import cli


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def attngen(*words: str, terminal: bool = False) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command."""
    out, err = _Terminal() if terminal else io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = cli.main(list(words))
    return status, out.getvalue(), err.getvalue()


def output(*words: str, terminal: bool = False) -> str:
    """Standard output of a command that must succeed."""
    status, out, err = attngen(*words, terminal=terminal)
    assert status == 0, err
    return out


def refusal(*words: str) -> str:
    """The message of a command that must refuse, and print nothing else."""
    status, out, err = attngen(*words)
    assert (status, out) == (2, ""), (status, out, err)
    assert "Traceback" not in err and err.startswith("attngen: ") and "\n  remedy: " in err
    return err
