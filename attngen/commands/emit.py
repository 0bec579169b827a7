"""``attngen emit``: the text of the kernels."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .arguments import SPEC_HELP, add_spec, add_target, schedule_of, spec_of, target_of
from .output import write_text

HELP = "print or write the CUDA or C++ text of the kernels"
DESCRIPTION = f"""\
Emit the complete source of the kernels: CUDA for the sm_* targets, C++ for cpu. Nothing needs to
be included or installed to compile it; what runs is this text, byte for byte.

{SPEC_HELP}

examples:
  attngen emit --heads 8 --head-dim 64 --causal --target sm_80 -o forward.cu
  attngen emit --heads 8 --head-dim 64 --causal --target cpu
  attngen emit --heads 8 --head-dim 64 --causal --target sm_80 --kind backward -o backward.cu
  attngen emit --heads 8 --groups 2 --head-dim 64 --causal --target sm_80 --kind decode -o decode.cu
  attngen emit spec.json --target sm_80 --no-fuse -o standard.cu   (one file for each kernel)

To try an edit of the text, keep its file name and point ATTNGEN_OVERRIDE at its folder.
"""

def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--kind, --dropout, -o."""
    parser.add_argument("--kind", default="forward", metavar="NAME",
                        help="forward (default), backward, decode, append, rotate, or one kernel "
                             "of these")
    parser.add_argument("--dropout", action="store_true", help="the kernels of calls with dropout")
    parser.add_argument("-o", "--output", metavar="FILE", help="write to FILE, not to the terminal")
    add_spec(parser)
    add_target(parser)


def run(args: argparse.Namespace) -> int:
    from ..compiler import compile
    from ..runtime.variant import Kind
    from .arguments import dtype_of

    spec, target = spec_of(args), target_of(args)
    kind = Kind(dtype_of(spec, target), dropout=args.dropout)
    attn = compile(spec, target, fuse=not args.no_fuse, schedule=schedule_of(args))
    kernels = attn.kernels(args.kind, kind, where="--kind")
    if args.output is None:
        print("\n".join(k.text for k in kernels), end="")
        return 0
    path = Path(args.output)
    for kernel in kernels:
        # Each text is a source of its own: the device layer can stand in a file only once.
        place = path if len(kernels) == 1 else path.with_name(
            f"{path.stem}.{kernel.kind}{path.suffix}")
        write_text(place, kernel.text)
        print(f"{place}: {len(kernel.text.splitlines())} lines, entry {kernel.name}",
              file=sys.stderr)
    return 0
