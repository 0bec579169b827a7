"""``attngen show``: the graph at a stage, or what the passes change."""

from __future__ import annotations

import argparse

from ..errors import UnknownNameError
from .arguments import (
    SPEC_HELP,
    add_spec,
    add_target,
    dtype_of,
    pair,
    schedule_of,
    spec_of,
    target_of,
)

HELP = "print the graph at a stage, or what each pass changes"
DESCRIPTION = f"""\
Print the graph that a spec becomes, at one of four stages:
  math    attention as its formula: contract, score, where, softmax, contract
  fused   rewritten to stream over keys (online softmax), exponentials in base 2
  tiled   one kernel's statements over tiles, with the bounds of its loop
  placed  the same with storage, copies and waits: what the templates print
--diff shows what the passes change instead of a graph; --tiles which tiles of queries x keys the
mask leaves empty, partial or full.

{SPEC_HELP}

examples:
  attngen show --heads 8 --head-dim 64 --causal
  attngen show --heads 8 --head-dim 64 --score softcap:50 --diff fuse
  attngen show --heads 8 --head-dim 64 --diff math:fused
  attngen show --heads 8 --head-dim 64 --stage placed --target sm_80 --no-fuse
  attngen show --heads 8 --head-dim 64 --causal --window 1024 --tiles 4096
  attngen show --heads 8 --head-dim 64 --causal --tiles 512,2048 --block 64,64
"""

STAGES = ("math", "fused", "tiled", "placed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--stage, --diff, --tiles, --block."""
    parser.add_argument("--stage", default="fused", metavar="NAME",
                        help="math, fused, tiled or placed (default: fused)")
    parser.add_argument("--diff", nargs="?", const="", metavar="PASS|A:B",
                        help="what every pass changes; or one pass; or from stage A to stage B")
    parser.add_argument("--tiles", nargs="?", const="4096", metavar="N|Q,K",
                        help="draw the mask's tiles for N positions, or Q queries and K keys "
                        "(default: 4096)")
    parser.add_argument("--block", default="128,128", metavar="M,N",
                        help="queries and keys of a tile (default: 128,128)")
    add_spec(parser)
    add_target(parser)


def run(args: argparse.Namespace) -> int:
    from ..compiler import Options, lower
    from ..describe import Description
    from ..ir.show import diff, graph_text

    spec, target = spec_of(args), target_of(args)
    if args.diff is None and args.stage not in STAGES:  # before the work, not after it
        raise UnknownNameError("stage", args.stage, STAGES)
    options = Options(target.name, dtype_of(spec, target), fuse=not args.no_fuse,
                      schedule=tuple(sorted(schedule_of(args).items())))
    lowered = lower(spec, options, record=True)
    if args.tiles is not None:
        seqlens, block = pair("--tiles", args.tiles), pair("--block", args.block)
        print(Description(lambda dtype: lowered, target, options.dtype).tiles(*seqlens, block))
        return 0
    if args.diff is None:
        print(graph_text(lowered.stage(args.stage)), end="")
    elif ":" in args.diff:
        before, _, after = args.diff.partition(":")
        print(diff(graph_text(lowered.stage(before)), graph_text(lowered.stage(after)))
              or "no change\n", end="")
    else:
        names = [r.name for r in lowered.records]
        if args.diff and args.diff not in names:
            raise UnknownNameError("pass", args.diff, names)
        for record in lowered.records:
            if args.diff in ("", record.name):
                print(f"== {record.name} ({record.milliseconds:.2f} ms)")
                print(record.changes or "no change\n", end="")
    return 0
