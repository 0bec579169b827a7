"""Decoding on the cpu target: one query a sequence against long keys, and one token appended.

Decoding has to read keys and values once, so times stand beside those of a plain read: the sum of a
contiguous float32 tensor of as many bytes. Bytes are those stored, scales included. SDPA gets the
same tensors with ``enable_gqa``, and with the heads of a group as rows of one head, as one may
write by hand. Everything takes turns in one process, with all threads and with one. Nobody shares
memory, and few keys are those of many layers, one after the other: a processor's caches hold none
of them when they are asked for again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from . import record

PAGE, APPENDED = 16, 256
GOALS = {"of_read": 0.85, "ratio": 1.3}  # float32: share of the read's speed; SDPA's time over ours
_NEAR = {"float32": 1e-4, "bfloat16": 0.02}  # of the largest element of SDPA's result
_NEAR_EIGHT_BITS = 0.1
NAMES = ("sdpa", "sdpa, heads as rows", "call", "contiguous", "paged", "int8", "float8_e4m3",
         "read")


@dataclass(frozen=True)
class Shape:
    """One query for each of ``batch`` sequences of ``keys`` keys, in each of ``layers``."""

    batch: int
    layers: int = 1
    heads: int = 32
    groups: int = 8
    keys: int = 4096
    head_dim: int = 128


class Run(NamedTuple):
    """What is timed, and how many bytes of keys and values it has to read."""

    run: Callable[[], Any]
    bytes: int


SHAPES = (Shape(8), Shape(1, layers=8))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch's threads, and with them those of the cpu target."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def caches(attn: Any, batch: int, keys: int, dtype: Any) -> dict[str, Any]:
    """Empty ones of every kind, by name. A page for every 16 tokens of every sequence."""
    from attngen import kv

    pages = batch * -(-keys // PAGE)
    return {"contiguous": kv.KVCache(attn, batch, keys, dtype=dtype),
            "paged": kv.PagedKVCache(attn, batch, pages, page_size=PAGE, capacity=keys,
                                     dtype=dtype),
            **{name: kv.KVCache(attn, batch, keys, dtype=dtype, quantize=name)
               for name in ("int8", "float8_e4m3")}}


def compiled(shape: Shape) -> Any:
    """The attention that decodes."""
    import attngen as ag

    return ag.compile(ag.AttentionSpec(heads=shape.heads, groups=shape.groups,
                                       head_dim=shape.head_dim, causal=True), target="cpu")


def one_layer(shape: Shape, dtype: str, seed: int, attn: Any) -> dict[str, Run]:
    """As in NAMES."""
    import torch
    import torch.nn.functional as F

    generator = torch.Generator().manual_seed(seed)

    def normal(heads: int, n: int) -> torch.Tensor:
        return torch.randn(shape.batch, heads, n, shape.head_dim,
                           generator=generator).to(getattr(torch, dtype))

    q = normal(shape.heads, 1)
    k, v = (normal(shape.groups, shape.keys) for _ in range(2))
    rows = q.view(shape.batch, shape.groups, -1, shape.head_dim)
    size, sdpa = k.nbytes + v.nbytes, F.scaled_dot_product_attention
    runs = {"sdpa": Run(partial(sdpa, q, k, v, enable_gqa=True), size),
            "sdpa, heads as rows": Run(partial(sdpa, rows, k.clone(), v.clone()), size),
            "call": Run(partial(attn, q, k.clone(), v.clone()), size)}
    for name, cache in caches(attn, shape.batch, shape.keys, q.dtype).items():
        for at in range(0, shape.keys, PAGE):  # sequences take pages in turns
            cache.append(k[:, :, at:at + PAGE], v[:, :, at:at + PAGE])
        runs[name] = Run(partial(attn.decode, q, cache),
                         cache.bytes_per_token * shape.batch * shape.keys)
    return {**runs, "read": Run(torch.ones(size // 4).sum, size)}


def candidates(shape: Shape, dtype: str) -> dict[str, Run]:
    """As in NAMES, through all layers; the results are those of the last. SDPA comes first: ratios
    are its time over theirs."""
    attn = compiled(shape)
    layers = [one_layer(shape, dtype, n, attn) for n in range(shape.layers)]

    def through(name: str) -> Any:
        for layer in layers:
            o = layer[name].run()
        return o

    return {name: Run(partial(through, name), sum(layer[name].bytes for layer in layers))
            for name in NAMES}


def differences(runs: dict[str, Run], dtype: str) -> dict[str, float]:
    """Of each result from SDPA's, as a share of its largest element. Raises RuntimeError where they
    are too far apart."""
    want = runs["sdpa"].run()
    found = {}
    for name in NAMES[1:-1]:
        off = (runs[name].run().view_as(want) - want).abs().max() / want.abs().max()
        found[name] = off.item()
        if not found[name] < (_NEAR_EIGHT_BITS if "8" in name else _NEAR[dtype]):
            raise RuntimeError(f"{dtype}, {name}: results differ by {found[name]:.2g}")
    return found


def measure(shape: Shape, dtype: str, counts: tuple[int, ...],
            rounds: int = 11) -> list[dict[str, Any]]:
    """A row for each number of threads: seconds of a layer, times of all, speeds, and shares of the
    plain read's speed."""
    from attngen.runtime import timing

    runs, rows = candidates(shape, dtype), []
    off = differences(runs, dtype)
    for count in counts:
        with threads(count):
            times = timing.compare({n: r.run for n, r in runs.items()}, rounds=rounds,
                                   sample_seconds=10e-3)
        speeds = {n: r.bytes / times[n].median for n, r in runs.items()}
        rows.append({"dtype": dtype, **vars(shape), "threads": count, "difference": off,
                     "bytes": {n: r.bytes for n, r in runs.items()}, "bytes_per_s": speeds,
                     "seconds": {n: t.median / shape.layers for n, t in times.items()},
                     "of_read": {n: s / speeds["read"] for n, s in speeds.items()},
                     "times": {n: t.to_dict() for n, t in times.items()}})
    return rows


def append(shape: Shape, counts: tuple[int, ...], rounds: int = 9) -> list[dict[str, Any]]:
    """Seconds of one token a sequence written behind the others, over APPENDED of them in a row,
    beside two assignments in torch. float32; new pages are part of it."""
    import torch

    from attngen.runtime import timing

    attn = compiled(shape)
    new = torch.randn(2, shape.batch, shape.groups, 1, shape.head_dim)
    held = torch.zeros(2, shape.batch, shape.groups, APPENDED, shape.head_dim)

    def assign() -> None:
        k, v = held
        for n in range(APPENDED):
            k[:, :, n:n + 1] = new[0]
            v[:, :, n:n + 1] = new[1]

    def fill(cache: Any) -> None:
        cache.clear()
        for _ in range(APPENDED):
            cache.append(new[0], new[1])

    found = caches(attn, shape.batch, APPENDED, torch.float32)
    runs: dict[str, Callable[[], Any]] = {"assigned by torch": assign, **{
        name: partial(fill, found[name]) for name in ("contiguous", "paged", "int8")}}
    rows = []
    for count in counts:
        with threads(count):
            times = timing.compare(runs, rounds=rounds)
        rows.append({**vars(shape), "threads": count, "seconds": {
            n: t.median / APPENDED for n, t in times.items()}})
    return rows


def goals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What decoding from a contiguous float32 cache reaches, and whether that was aimed at."""
    found = []
    for row in (r for r in rows if r["dtype"] == "float32"):
        reached = {"of_read": row["of_read"]["contiguous"],
                   "ratio": row["times"]["contiguous"]["ratio"]}
        found += [{"goal": name, "batch": row["batch"], "threads": row["threads"],
                   "value": value, "least": GOALS[name], "holds": value >= GOALS[name]}
                  for name, value in reached.items()]
    return found


def report(data: dict[str, Any]) -> str:
    """A table for each dtype, batch and number of threads, of appends, and of the goals."""
    parts = []
    for r in data["decode"]:
        parts.append(record.table(
            f"{r['dtype']}, batch {r['batch']}, {r['heads']} heads of {r['groups']} groups, "
            f"{r['keys']} keys, head_dim {r['head_dim']}, threads: {r['threads']}",
            ("", "ms a layer", "GB/s", "of the read", "vs sdpa"),
            [(n, f"{r['seconds'][n] * 1e3:.2f}", f"{r['bytes_per_s'][n] / 1e9:.1f}",
              f"{r['of_read'][n]:.0%}", "" if n == "read" else f"{r['times'][n]['ratio']:.2f}x")
             for n in NAMES]))
    parts.append(record.table(
        "One token appended to every sequence, float32, microseconds",
        ("batch", "threads", *data["append"][0]["seconds"]),
        [(r["batch"], r["threads"], *(f"{s * 1e6:.1f}" for s in r["seconds"].values()))
         for r in data["append"]]))
    words = {"of_read": "share of the read's speed", "ratio": "SDPA's time over ours"}
    parts.append(record.table(
        "Goals: float32, a contiguous cache", ("", "batch", "threads", "reached", "at least", ""),
        [(words[g["goal"]], g["batch"], g["threads"], f"{g['value']:.2f}", f"{g['least']:g}",
          "ok" if g["holds"] else "MISSED") for g in data["goals"]]))
    return "\n".join(parts)


def main() -> dict[str, Any]:
    """Measure, print, and write ``results/<date>-decode.json``."""
    import torch

    counts = tuple(sorted({torch.get_num_threads(), 1}, reverse=True))
    with torch.no_grad():
        rows = [row for shape in SHAPES for dtype in _NEAR
                for row in measure(shape, dtype, counts)]
        data = {"decode": rows, "append": append(SHAPES[0], counts), "goals": goals(rows)}
    print(report(data))
    print("written to", record.save("decode", data))
    return data


if __name__ == "__main__":
    main()
