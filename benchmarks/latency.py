"""How long one waits: for text, for machine code, for a cached kernel, for a call.

Each number is taken in the kind of process it is about: new ones where imports and cold caches
count, a warm one for what is repeated.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass
from typing import Any

from . import record

SPEC = "ag.AttentionSpec(heads=16, groups=4, head_dim=128, causal=True)"

_TEXT = f"""
import json, statistics, time
import attngen as ag
from attngen.compiler import Options, lower, make_plan
spec = {SPEC}
options = Options("sm_80", "bfloat16")
def once():
    start = time.perf_counter()
    make_plan(spec, options, lower(spec, options))
    return (time.perf_counter() - start) * 1e3
first = once(); once()
print(json.dumps(dict(first=first, samples=[once() for _ in range(25)])))
"""

_CUBIN = f"""
import json, time
import torch, attngen as ag
start, busy = time.perf_counter(), time.process_time()
attn = ag.compile({SPEC}, target="sm_80")
text = time.perf_counter()
cubin, = attn.build("bfloat16")
stop, busy = time.perf_counter(), time.process_time() - busy
assert not cubin.cached and cubin.code[:4] == b"\\x7fELF"
print(json.dumps(dict(total=(stop - start) * 1e3, text=(text - start) * 1e3, cpu=busy * 1e3)))
"""

_HIT = f"""
import json, sys, time
import torch, attngen as ag
before = set(sys.modules)
start, busy = time.perf_counter(), time.process_time()
attn = ag.compile({SPEC}, target=TARGET)
attn.build(DTYPE)
stop, busy = time.perf_counter(), time.process_time() - busy
loaded = {{name.split(".")[0] for name in set(sys.modules) - before}}
print(json.dumps(dict(ms=(stop - start) * 1e3, cpu=busy * 1e3,
                      loaded=sorted(loaded & {{"sympy", "networkx", "jinja2", "cupy"}}))))
"""

_CALL = """
import json, statistics, timeit
import torch, attngen as ag
import torch.nn.functional as F
torch.set_num_threads(1)
q, k, v = (torch.randn(1, 2, 4, 16) for _ in range(3))
attn = ag.compile(ag.AttentionSpec(heads=2, head_dim=16), target="cpu")
def median(run):
    run()
    return statistics.median(timeit.repeat(run, number=500, repeat=15)) / 500 * 1e6
print(json.dumps({
    "attention object": median(lambda: attn(q, k, v)),
    "attngen.attention()": median(lambda: ag.attention(q, k, v)),
    "torch SDPA": median(lambda: F.scaled_dot_product_attention(q, k, v)),
    "torch matmul, softmax, matmul": median(
        lambda: torch.softmax(q @ k.transpose(-1, -2) * 0.25, -1) @ v)}))
"""

_FLEX = """
import json, time
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
q, k, v = (torch.randn(1, 4, 512, 64) for _ in range(3))
start = time.perf_counter()
mask = create_block_mask(lambda b, h, i, j: j <= i, None, None, 512, 512, device="cpu")
torch.compile(flex_attention)(q, k, v, block_mask=mask)
first = time.perf_counter() - start
print(json.dumps(dict(ms=first * 1e3)))
"""

_FIRST = """
import json, time
import torch, attngen as ag
q, k, v = (torch.randn(1, 4, 512, 64) for _ in range(3))
start = time.perf_counter()
ag.compile(ag.AttentionSpec(heads=4, head_dim=64, causal=True), target="cpu")(q, k, v)
print(json.dumps(dict(ms=(time.perf_counter() - start) * 1e3)))
"""


@dataclass(frozen=True)
class Row:
    """One measured wait; ``limit`` is what it may be at most, 0 where there is no such promise."""

    name: str
    value: float
    unit: str
    limit: float = 0.0
    samples: tuple[float, ...] = ()
    note: str = ""

    @property
    def holds(self) -> bool:
        return not self.limit or self.value <= self.limit


def measure(runs: int = 5, flex: bool = True) -> list[Row]:
    """All waits; about a minute, most of it torch's."""
    rows = [_text(runs), *_cubin(runs), *_hits(runs), *_calls(runs), _first(_FIRST, "attngen")]
    return [*rows, _first(_FLEX, "torch.compile(flex_attention)")] if flex else rows


def _text(runs: int) -> Row:
    data = [record.in_new_process(_TEXT) for _ in range(min(runs, 3))]
    samples = min((d["samples"] for d in data), key=statistics.median)
    return Row("spec to sm_80 text, warm process", statistics.median(samples), "ms", 60.0,
               tuple(samples), f"first in a process {min(d['first'] for d in data):.0f} ms")


def _cubin(runs: int) -> list[Row]:
    data = []
    for _ in range(runs + 1):
        with tempfile.TemporaryDirectory() as folder:
            data.append(record.in_new_process(_CUBIN, ATTNGEN_CACHE_DIR=folder))
    del data[0]  # which wrote byte code
    total = [d["total"] for d in data]
    text = statistics.median(d["text"] for d in data)
    busy = statistics.median(d["cpu"] for d in data)
    return [Row("spec to sm_80 machine code, new process, empty cache", statistics.median(total),
                "ms", 800.0, tuple(total),
                f"{text:.0f} ms of it imports, IR and text; {busy:.0f} ms of CPU time")]


def _hits(runs: int) -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for target, dtype in (("sm_80", "bfloat16"), ("cpu", "float32")):
            code = _HIT.replace("TARGET", repr(target)).replace("DTYPE", repr(dtype))
            for _ in range(2):  # fills the cache, then writes the byte code of a hit
                record.in_new_process(code, ATTNGEN_CACHE_DIR=folder)
            data = [record.in_new_process(code, ATTNGEN_CACHE_DIR=folder,
                                          ATTNGEN_ASSERT_CACHED="1") for _ in range(runs)]
            loaded = sorted({name for d in data for name in d["loaded"]})
            if loaded:
                raise RuntimeError(f"a cache hit loaded {', '.join(loaded)}")
            times = [d["ms"] for d in data]
            rows.append(Row(f"cache hit in a new process, {target}", statistics.median(times),
                            "ms", 30.0, tuple(times), "beyond import torch, attngen; "
                            f"{statistics.median(d['cpu'] for d in data):.0f} ms of CPU time"))
    return rows


def _calls(runs: int) -> list[Row]:
    data = [record.in_new_process(_CALL) for _ in range(runs)]
    limits = {"attention object": 40.0}
    return [Row(f"call on a tiny tensor: {name}", statistics.median(d[name] for d in data), "us",
                limits.get(name, 0.0), tuple(d[name] for d in data)) for name in data[0]]


def _first(code: str, name: str) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        ms = record.in_new_process(code, ATTNGEN_CACHE_DIR=f"{folder}/attngen",
                                   TORCHINDUCTOR_CACHE_DIR=f"{folder}/inductor")["ms"]
    return Row(f"first call on the cpu, empty caches: {name}", ms, "ms", 0.0, (ms,))


def report(rows: list[Row]) -> str:
    """A table of the waits and their limits."""
    def limit(row: Row) -> str:
        return f"{row.limit:g} {row.unit} {'ok' if row.holds else 'MISSED'}" if row.limit else ""

    return record.table("Latency", ("what", "median", "at most", "note"), [
        (r.name, f"{r.value:.1f} {r.unit}", limit(r), r.note) for r in rows])


def main() -> dict[str, Any]:
    """Measure, print, and write ``results/<date>-latency.json``."""
    rows = measure()
    print(report(rows))
    data = {"rows": [{**vars(r), "holds": r.holds} for r in rows]}
    print("written to", record.save("latency", data))
    return data


if __name__ == "__main__":
    main()
