"""``attngen explain``: what the kernels cost, predicted and as compiled."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..errors import NoCompilerError
from .arguments import SPEC_HELP, add_spec, add_target, dtype_of, schedule_of, spec_of, target_of
from .output import table

if TYPE_CHECKING:
    from ..runtime.plan import KernelPlan

HELP = "print schedule, bytes, FLOPs, registers and the roofline"
DESCRIPTION = f"""\
Explain what the kernels do to a machine: tiles and loop bounds, FLOPs, bytes of device memory and
which of the two limits the time (the roofline). For CUDA targets the text is compiled, with no GPU
needed, and the assembler's own figures follow: registers, spills, shared memory.

{SPEC_HELP}

examples:
  attngen explain --heads 32 --groups 8 --head-dim 128 --causal --target sm_80
  attngen explain --heads 32 --head-dim 128 --target sm_90 --batch 4 --seqlen 8192
  attngen explain --heads 32 --head-dim 128 --target sm_80 --no-fuse   (compare the bytes)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--batch, --seqlen, --no-compile."""
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument("--seqlen", default="2048", metavar="N|Q,K",
                        help="length, or lengths of queries and keys (default: 2048)")
    parser.add_argument("--no-compile", action="store_true",
                        help="predictions only: leave the assembler out")
    add_spec(parser)
    add_target(parser)


def lengths_of(args: argparse.Namespace) -> tuple[int, int]:
    """seqlen_q and seqlen_k from --seqlen. Raises UsageError; the batch is checked with them."""
    from ..errors import UsageError

    try:
        numbers = [int(part) for part in args.seqlen.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2) or min([*numbers, args.batch]) < 0:
        raise UsageError(f"--seqlen {args.seqlen} --batch {args.batch} are not sizes",
                         remedy="Write --seqlen 512, or --seqlen 1,512 for one query and 512 keys.")
    return numbers[0], numbers[-1]


def run(args: argparse.Namespace) -> int:
    from ..compiler import Options, lower, plan_for
    from ..describe import Description

    spec, target = spec_of(args), target_of(args)
    seqlen_q, seqlen_k = lengths_of(args)
    dtype = dtype_of(spec, target)
    options = Options(target.name, dtype, fuse=not args.no_fuse,
                      schedule=tuple(sorted(schedule_of(args).items())))
    description = Description(lambda _: lower(spec, options), target)
    print(description.explain(dtype, batch=args.batch, seqlen_q=seqlen_q, seqlen_k=seqlen_k),
          end="")
    if target.family != "cpu" and not args.no_compile:
        print()
        _compiled(plan_for(spec, options)[0].kernels, target.arch)
    return 0


def _compiled(kernels: tuple[KernelPlan, ...], arch: str) -> None:
    """The assembler's figures, or why there are none."""
    from ..runtime.nvrtc import compile_cubin, version

    rows: list[tuple[str, ...]] = []
    remarks: list[str] = []
    try:
        for kernel in kernels:
            cubin = compile_cubin(kernel.text, arch, kernel.flags, name=kernel.name)
            rows.append(_row(kernel, cubin))
            remarks += cubin.remarks
    except NoCompilerError as error:
        print(f"not compiled: {error.what}\n  {error.remedy}")
        return
    print(f"as compiled by NVRTC {'.'.join(map(str, version()))} for {arch}:")
    table(("kernel", "registers", "spills", "stack", "shared", "code"), rows,
          right=(1, 2, 3, 4, 5))
    for line in remarks:
        print(f"remark: {line}")


def _row(kernel: KernelPlan, cubin: Any) -> tuple[str, ...]:
    used = cubin.resources[kernel.name]
    return (kernel.name, str(used.registers), f"{used.spill_stores + used.spill_loads} B",
            f"{used.stack} B", f"{used.shared_static + kernel.shared_bytes} B",
            f"{len(cubin.code)} B")
