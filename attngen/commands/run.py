"""``attngen run``: the kernels on random input, judged by the oracle."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import NoDeviceError, UsageError
from .arguments import SPEC_HELP, add_spec, add_target, dtype_of, schedule_of, spec_of, target_of
from .explain import lengths_of
from .output import size, table

if TYPE_CHECKING:
    from torch import Tensor

    from ..attention import Attention
    from ..ir.cost import KernelCost
    from ..runtime.targets import Target
    from ..spec import AttentionSpec

HELP = "run on random input and check against the oracle"
DESCRIPTION = f"""\
Run the kernels on random input and compare o and lse with the oracle, attention in float64 written
from its definition. The largest error may be twice that of the same formula in unfused torch
operations of the same dtype, plus rounding. Exit status 0 when it holds, 1 when not.

With --emulate the CUDA text itself is executed on the CPU, with races, bounds, uninitialised
memory and deadlocks checked. What it does is counted and shown beside what the cost model says.
It is slow: keep the sizes small.

{SPEC_HELP}

examples:
  attngen run --heads 8 --groups 2 --head-dim 64 --causal
  attngen run --heads 2 --head-dim 64 --causal --target sm_80 --emulate --seqlen 197
  attngen run --heads 8 --head-dim 64 --causal --batch 3 --seqlen 1,420 --seqlens-k 400,17,0
"""

_DEFAULT_LENGTH, _EMULATED_LENGTH = "512", "128"
_ORACLE_BYTES = 4 * 10**9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--emulate, lengths, positions, --dropout, --seed."""
    parser.add_argument("--emulate", action="store_true", help="execute the CUDA text on the CPU")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument("--seqlen", metavar="N|Q,K", help="length, or lengths of queries and keys "
                        f"(default: {_DEFAULT_LENGTH}, emulated {_EMULATED_LENGTH})")
    parser.add_argument("--seqlens-k", metavar="N,N,...",
                        help="how many keys each batch entry has; the rest are hidden")
    parser.add_argument("--q-offset", type=int, metavar="N",
                        help="position of the first query (default: the ends align)")
    parser.add_argument("--kv-offset", type=int, metavar="N", help="position of the first key")
    parser.add_argument("--dropout", type=float, default=0.0, metavar="P",
                        help="probability with which a key is dropped after the softmax")
    parser.add_argument("--seed", type=int, default=0, metavar="N",
                        help="of the random input, and of dropout")
    add_spec(parser)
    add_target(parser)


def run(args: argparse.Namespace) -> int:
    import torch

    from .. import compiler, reference

    spec, target = spec_of(args), target_of(args)
    dtype = dtype_of(spec, target)
    if args.emulate and target.family == "cpu":
        raise UsageError("--emulate executes CUDA text, and the target is cpu",
                         remedy="Name the target it is for: --target sm_80.")
    on_gpu = target.family != "cpu" and not args.emulate
    if on_gpu and not torch.cuda.is_available():
        raise NoDeviceError(f"target {target.name} needs a GPU; none is visible",
                            remedy="Add --emulate to execute the same text on the CPU, or run "
                                   "with --target cpu.")
    args.seqlen = args.seqlen or (_EMULATED_LENGTH if args.emulate else _DEFAULT_LENGTH)
    seqlen_q, seqlen_k = lengths_of(args)
    _check_memory(spec, args.batch, seqlen_q, seqlen_k)

    attn = compiler.compile(spec, target, emulate=args.emulate, fuse=not args.no_fuse,
                            schedule=schedule_of(args))
    q, k, v = _random(spec, args.batch, seqlen_q, seqlen_k, getattr(torch, dtype), args.seed)
    where = _arguments(args, torch)
    device = "cuda" if on_gpu else "cpu"
    tensors = [t.to(device) for t in (q, k, v)]
    placed: dict[str, Any] = {n: x.to(device) if isinstance(x, torch.Tensor) else x
                              for n, x in where.items()}
    (o, lse), first = _timed(lambda: attn(*tensors, return_lse=True, **placed), torch)
    print(f"{attn!r}")
    print(f"{dtype}, batch {args.batch}, seqlen_q {seqlen_q}, seqlen_k {seqlen_k}: "
          f"first call {first:.2f} s, compiling included", end="")
    if args.emulate:
        print()
    else:
        _, again = _timed(lambda: attn(*tensors, **placed), torch)
        print(f"; second {again * 1e3:.2f} ms")
    ref, naive = reference.attention(spec, q, k, v, **where), reference.naive(spec, q, k, v,
                                                                             **where)
    verdicts = [(name, reference.compare(ours, want, plain, name=name)) for name, ours, want, plain
                in zip(("o", "lse"), (o, lse), ref, naive, strict=True)]
    table(("", "largest error", "naive error", "allowed", ""), [
        (name, f"{c.error:.3g}", f"{c.naive_error:.3g}", f"{c.allowed:.3g}",
         "ok" if c.ok else "WRONG") for name, c in verdicts], right=(1, 2, 3))
    for _, comparison in verdicts:
        if not comparison.ok:
            print(comparison.report)
    if args.emulate:
        _counts(attn, [] if where else _predicted(spec, target, args, dtype, seqlen_q, seqlen_k))
    return 0 if all(c.ok for _, c in verdicts) else 1


def _predicted(spec: AttentionSpec, target: Target, args: argparse.Namespace, dtype: str,
               seqlen_q: int, seqlen_k: int) -> tuple[KernelCost, ...]:
    """The cost model's word for each kernel, for default positions."""
    from ..compiler import Options, lower
    from ..describe import Description

    options = Options(target.name, dtype, fuse=not args.no_fuse,
                      schedule=tuple(sorted(schedule_of(args).items())))
    return Description(lambda _: lower(spec, options), target).costs(
        dtype, batch=args.batch, seqlen_q=seqlen_q, seqlen_k=seqlen_k)


def _timed(call: Any, torch: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    result = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


def _random(spec: AttentionSpec, batch: int, seqlen_q: int, seqlen_k: int, dtype: Any,
            seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Normal q, k, v of the spec's shapes."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def normal(heads: int, seqlen: int, dim: int) -> Tensor:
        return torch.randn(batch, heads, seqlen, dim, generator=generator).to(dtype)

    assert spec.head_dim_v is not None
    return (normal(spec.heads, seqlen_q, spec.head_dim),
            normal(spec.kv_heads, seqlen_k, spec.head_dim),
            normal(spec.kv_heads, seqlen_k, spec.head_dim_v))


def _arguments(args: argparse.Namespace, torch: Any) -> dict[str, Any]:
    where: dict[str, Any] = {"q_offset": args.q_offset, "kv_offset": args.kv_offset}
    if args.seqlens_k is not None:
        try:
            lengths = [int(part) for part in args.seqlens_k.split(",")]
        except ValueError:
            raise UsageError(f"--seqlens-k {args.seqlens_k} are not lengths",
                             remedy="Write --seqlens-k 400,17 with one for each batch entry."
                             ) from None
        where["seqlens_k"] = torch.tensor(lengths, dtype=torch.int32)
    if args.dropout:
        where |= {"dropout_p": args.dropout, "seed": args.seed}
    return {name: value for name, value in where.items() if value is not None}


def _check_memory(spec: AttentionSpec, batch: int, seqlen_q: int, seqlen_k: int) -> None:
    """The oracle holds whole score matrices: refuse what would not fit."""
    need = 4 * 8 * batch * spec.heads * seqlen_q * seqlen_k
    if need > _ORACLE_BYTES:
        raise UsageError(f"the oracle would need about {size(need)} for its scores",
                         numbers=f"4 x 8 B x {batch} x {spec.heads} x {seqlen_q} x {seqlen_k}, at "
                                 f"most {size(_ORACLE_BYTES)}",
                         remedy="Use a smaller --seqlen, --batch or --heads.")


def _counts(attn: Attention, costs: Sequence[KernelCost]) -> None:
    """What the emulator counted, beside what the cost model predicted (where it did)."""
    total = sum(attn.counters[1:], attn.counters[0])
    rows = [("mma.m16n8k16", str(total.mma), str(sum(c.matrix_instructions for c in costs)))]
    for verb, counted, books in (("read", total.read_by, [c.read for c in costs]),
                                 ("written", total.written_by, [c.written for c in costs])):
        rows += [(f"{verb} {name}", size(count), size(sum(book.get(name, 0) for book in books)))
                 for name, count in counted.items() if count]
    rows += [("asynchronous copies", size(total.async_bytes), ""),
             ("ldmatrix", str(total.ldmatrix), ""), ("block barriers", str(total.block_syncs), ""),
             ("bank conflicts", str(total.bank_conflicts), "")]
    print("emulated, with no race, stray access or deadlock:")
    table(("", "counted", "predicted"), [row if costs else (*row[:2], "") for row in rows],
          right=(1, 2))
