"""The command line: ``attngen <command> ...``, and ``python -m attngen``."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from . import knobs
from .commands import cache, emit, env, explain, run, show
from .errors import AttngenError, NotDeliveredError, UnknownNameError, UsageError

COMMANDS = {"show": show, "emit": emit, "explain": explain, "run": run, "cache": cache, "env": env}
LATER = ("bench", "report")

DESCRIPTION = "attngen compiles a description of an attention variant into CUDA and C++ kernels."
EXAMPLES = """\
start with:
  attngen run --heads 8 --groups 2 --head-dim 64 --causal
  attngen run --heads 2 --head-dim 64 --causal --target sm_80 --emulate
  attngen emit --heads 8 --head-dim 64 --causal --target sm_80 -o forward.cu
  attngen emit --help
"""


class _Parser(argparse.ArgumentParser):
    """Complains by raising UsageError, like everything else here."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}", remedy=f"`{self.prog} --help` has examples.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 when a check failed, 2 for a refusal."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words)
    except AttngenError as error:
        if _debugging():
            traceback.print_exc()
        else:
            hint = "" if error.remedy else f"\n  remedy: {_help_for(words)} has examples."
            print(f"attngen: {type(error).__name__}: {error}{hint}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("attngen: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(words: list[str]) -> int:
    parser = _parser()
    if not words:
        parser.print_help()
        return 0
    name = words[0]
    if not name.startswith("-"):
        if name in LATER:
            raise NotDeliveredError(f"`attngen {name}` is not available in this version of attngen",
                                    remedy=f"There are {', '.join(COMMANDS)}.")
        if name not in COMMANDS:
            raise UnknownNameError("command", name, COMMANDS)
    try:
        args, unknown = parser.parse_known_args(words)
    except SystemExit as done:  # --help and --version
        return int(done.code or 0)
    if unknown:
        _refuse(unknown[0], words, parser)
    status = COMMANDS[args.command].run(args)
    sys.stdout.flush()
    return status


def _parser() -> _Parser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog="attngen", description=DESCRIPTION, epilog=EXAMPLES,
                     formatter_class=raw, allow_abbrev=False,
                     usage="attngen [-h] [--version] COMMAND ...")
    from . import __version__

    parser.add_argument("--version", action="version", version=f"attngen {__version__}")
    verbs = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        verb = verbs.add_parser(name, prog=f"attngen {name}", help=module.HELP,
                                description=module.DESCRIPTION, formatter_class=raw,
                                allow_abbrev=False)
        module.add_arguments(verb)
    return parser


def _refuse(word: str, words: list[str], parser: _Parser) -> NoReturn:
    """Raises UnknownNameError for an option that is none, UsageError for a stray argument."""
    verb = words[0]
    if not word.startswith("-"):
        raise UsageError(f"attngen {verb}: {word!r} is one argument too many",
                         remedy=f"`attngen {verb} --help` has examples.")
    verbs = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    known = [o for a in verbs.choices[verb]._actions for o in a.option_strings]
    raise UnknownNameError("option", word.partition("=")[0], known, where=f"attngen {verb}")


def _help_for(words: list[str]) -> str:
    return f"`attngen {words[0]} --help`" if words and words[0] in COMMANDS else "`attngen --help`"


def _debugging() -> bool:
    try:
        return knobs.debug() >= 1
    except AttngenError:
        return False
