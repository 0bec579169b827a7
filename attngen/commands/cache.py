"""``attngen cache``: the disk cache of compiled kernels."""

from __future__ import annotations

import argparse
import time

from ..errors import UnknownNameError
from .output import size, table

HELP = "list, check or clear the disk cache"
DESCRIPTION = """\
Compiled kernels are kept on disk, found again by everything that went into them, and made again
when a file is damaged. The cache can be removed at any time; it only costs time.

  ls      every entry, newest first
  path    the folder
  verify  read every entry and check it; exit status 1 when some are damaged
  clear   remove entries (--kind plan|cubin|so|emu, --older-than DAYS)

examples:
  attngen cache ls
  attngen cache clear --older-than 30
  ATTNGEN_CACHE_DIR=/scratch/attngen attngen cache path
"""

ACTIONS = ("ls", "clear", "path", "verify")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The action, and what clear takes away."""
    parser.add_argument("action", metavar="ls|clear|path|verify")
    parser.add_argument("--kind", metavar="NAME", help="clear: only entries of this kind")
    parser.add_argument("--older-than", type=float, metavar="DAYS",
                        help="clear: only entries written longer ago than this")


def run(args: argparse.Namespace) -> int:
    from ..runtime import cache

    if args.action not in ACTIONS:
        raise UnknownNameError("cache action", args.action, ACTIONS)
    if args.action == "path":
        print(cache.path())
    elif args.action == "ls":
        entries = cache.ls()
        table(("kind", "key", "size", "age", "label"), [
            (e.kind, e.key[:12] or "?", size(e.size), _age(e.created), e.problem or e.label)
            for e in entries], right=(2, 3))
        print(f"{len(entries)} entries, {size(sum(e.size for e in entries))} in {cache.path()}")
    elif args.action == "verify":
        bad = cache.verify()
        for entry in bad:
            print(f"{entry.path}: {entry.problem}")
        good = len(cache.ls()) - len(bad)
        print(f"{good} entries good, {len(bad)} bad in {cache.path()}")
        return 1 if bad else 0
    else:
        known = {e.kind for e in cache.ls()}
        if args.kind and known and args.kind not in known:
            raise UnknownNameError("kind of cache entry", args.kind, known)
        seconds = None if args.older_than is None else args.older_than * 86400
        count, freed = cache.clear(args.kind, seconds)
        print(f"removed {count} files, {size(freed)}, from {cache.path()}")
    return 0


def _age(created: float) -> str:
    seconds = max(0.0, time.time() - created) if created else 0.0
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
