"""``attngen show``: the graph at a stage, or what the passes change."""

from __future__ import annotations

import argparse

from ..errors import UnknownNameError
from .arguments import SPEC_HELP, add_spec, add_target, dtype_of, schedule_of, spec_of, target_of

HELP = "print the graph at a stage, or what each pass changes"
DESCRIPTION = f"""\
Print the graph that a spec becomes, at one of four stages:
  math    attention as its formula: contract, score, where, softmax, contract
  fused   rewritten to stream over keys (online softmax), exponentials in base 2
  tiled   one kernel's statements over tiles, with the bounds of its loop
  placed  the same with storage, copies and waits: what the templates print
--diff shows what the passes change instead of a graph.

{SPEC_HELP}

examples:
  attngen show --heads 8 --head-dim 64 --causal
  attngen show --heads 8 --head-dim 64 --score softcap:50 --diff fuse
  attngen show --heads 8 --head-dim 64 --diff math:fused
  attngen show --heads 8 --head-dim 64 --stage placed --target sm_80 --no-fuse
"""

STAGES = ("math", "fused", "tiled", "placed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--stage, --diff."""
    parser.add_argument("--stage", default="fused", metavar="NAME",
                        help="math, fused, tiled or placed (default: fused)")
    parser.add_argument("--diff", nargs="?", const="", metavar="PASS|A:B",
                        help="what every pass changes; or one pass; or from stage A to stage B")
    add_spec(parser)
    add_target(parser)


def run(args: argparse.Namespace) -> int:
    from ..compiler import Options, lower
    from ..ir.show import diff, graph_text

    spec, target = spec_of(args), target_of(args)
    if args.diff is None and args.stage not in STAGES:  # before the work, not after it
        raise UnknownNameError("stage", args.stage, STAGES)
    options = Options(target.name, dtype_of(spec, target), fuse=not args.no_fuse,
                      schedule=tuple(sorted(schedule_of(args).items())))
    lowered = lower(spec, options, record=True)
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
