"""The README says what is so: its code runs, its commands parse, its excerpt is the emitted text.

``python tests/test_readme.py`` puts the text that is emitted now into the README.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for the script

from attngen import cli

README = Path(__file__).resolve().parent.parent / "README.md"
COMMAND = re.compile(r"From `(attngen emit [^`]*)`")
EXCERPT = re.compile(r'<!-- excerpt from "([^"]*)" to "([^"]*)" -->\n```cuda\n(.*?)```\n',
                     re.DOTALL)


def blocks(language: str) -> list[str]:
    """The README's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)


def emitted(first: str, last: str) -> str:
    """The lines of the kernel of the README's command, from ``first`` up to ``last``."""
    from commands import output

    command = COMMAND.search(" ".join(README.read_text().split()))
    assert command
    lines = output(*shlex.split(command[1])[1:]).splitlines()
    begin = next(n for n, line in enumerate(lines) if line.strip() == first)
    end = next(n for n, line in enumerate(lines) if line.strip() == last)
    depth = len(lines[begin]) - len(lines[begin].lstrip())
    return "\n".join(line[depth:] for line in lines[begin:end]).strip() + "\n"


def test_excerpt_is_what_is_emitted() -> None:
    found = EXCERPT.search(README.read_text())
    assert found
    assert found[3] == emitted(found[1], found[2]), "run: python tests/test_readme.py"


def test_python_runs(capsys: Any) -> None:
    place: dict[str, Any] = {}
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), place)
    assert tuple(place["o"].shape) == (2, 8, 500, 64)
    assert "KERNEL(" in place["cuda"]
    assert place["model"].config._attn_implementation == "attngen"
    assert "tanh_f32(" in capsys.readouterr().out.splitlines()[-1]


def test_commands_parse() -> None:
    commands = [shlex.split(line, comments=True) for text in blocks("sh")
                for line in text.splitlines()]
    assert len(commands) >= 5
    for name, *words in commands:
        assert name == "attngen"
        assert cli._parser().parse_known_args(words)[1] == []


def test_every_target_and_room_it_names_exists() -> None:
    text = README.read_text()
    from attngen.runtime.targets import NAMES

    for line in text.splitlines():
        if "sm_80 86" in line:
            listed = line.rsplit("|", 2)[1].replace("sm_", "").split()
            assert [f"sm_{n}" for n in listed] == [n for n in NAMES if n != "cpu"]
    for path in re.findall(r"`((?:attngen|docs|examples)/[\w/.]*)`|\]\((docs/[\w.]+)\)", text):
        assert (README.parent / (path[0] or path[1])).exists(), path


def main() -> None:
    """Renew the excerpt."""
    text = README.read_text()
    found = EXCERPT.search(text)
    assert found
    README.write_text(text[:found.start(3)] + emitted(found[1], found[2]) + text[found.end(3):])


if __name__ == "__main__":
    main()
