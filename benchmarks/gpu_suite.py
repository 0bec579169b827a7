"""Everything that needs a GPU, in under eight minutes, into one JSON file.

    make gpu          or          PYTHONPATH=. python -m benchmarks.gpu_suite --out FILE

Parts run one after another, each in a process of its own with a time limit, so that a hung kernel
or a crashed driver costs one part. Without a GPU it says why, writes that down and succeeds.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import record

SCHEMA = 1
BUDGET = 475.0  # seconds for all parts
STATUSES = ("ok", "failed", "timeout", "crashed", "skipped")


@dataclass(frozen=True)
class Part:
    """A module of this package to be run as ``python -m`` for at most ``seconds``."""

    name: str
    module: str
    seconds: float


PARTS = (Part("environment", "benchmarks.gpu_environment", 25.0),
         Part("compile", "benchmarks.gpu_compile", 65.0),
         Part("primitives", "benchmarks.gpu_primitives", 20.0),
         Part("forward", "benchmarks.gpu_forward", 45.0),
         Part("patterns", "benchmarks.gpu_patterns", 35.0),
         Part("packed", "benchmarks.gpu_packed", 30.0),
         Part("backward", "benchmarks.gpu_backward", 70.0),
         Part("speed", "benchmarks.gpu_speed", 60.0),
         Part("mask_speed", "benchmarks.gpu_mask_speed", 75.0),
         Part("decode", "benchmarks.gpu_decode", 50.0))
_TO_FINISH = 8.0  # seconds between a part's own deadline and its end by force


def run_part(part: Part, seconds: float, folder: Path,
             names: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run a part in a new process, one of those with ``names``; what it wrote, with how it
    ended."""
    file = folder / f"{part.name}.json"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(
        [str(record.ROOT), os.environ.get("PYTHONPATH", "")]), "PYTHONUNBUFFERED": "1"}
    environment.setdefault("ATTNGEN_CACHE_DIR", str(folder / "cache"))
    command = [sys.executable, "-m", part.module, "--out", str(file),
               "--seconds", str(max(1.0, seconds - _TO_FINISH)), "--parts", ",".join(names)]
    start = time.monotonic()
    try:
        exit_status = subprocess.run(command, cwd=record.ROOT, env=environment,
                                     timeout=seconds).returncode
        ended = "crashed" if exit_status else ""
        reason = f"exit status {exit_status}" if exit_status else ""
    except subprocess.TimeoutExpired:
        ended, reason = "timeout", f"stopped after {seconds:.0f} s"
    state = json.loads(file.read_text()) if file.exists() else {}
    status = state.get("status", "crashed")
    if ended or status not in STATUSES:
        status = ended or "crashed"
    return {"status": status, "reason": reason or state.get("reason", "wrote nothing"),
            "seconds": round(time.monotonic() - start, 2),
            "failures": state.get("failures", []), "data": state.get("data", {})}


def skipped(reason: str) -> dict[str, Any]:
    """The result of a part that was not run."""
    return {"status": "skipped", "reason": reason, "seconds": 0.0, "failures": [], "data": {}}


def suite(parts: tuple[Part, ...] = PARTS, budget: float = BUDGET,
          golden: Path | None = None) -> dict[str, Any]:
    """Run the parts in order; those after the environment only where it found a GPU. Device
    answers that parts leave for replay go to the file ``golden``."""
    start = time.monotonic()
    results: dict[str, Any] = {}
    reason = ""
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            left = budget - (time.monotonic() - start)
            if not reason and left < 2 * _TO_FINISH:
                reason = f"the suite's {budget:.0f} s are used up"
            print(f"== {part.name}: " + (f"skipped, {reason}" if reason else
                                         f"up to {min(part.seconds, left):.0f} s"), flush=True)
            results[part.name] = skipped(reason) if reason else run_part(
                part, min(part.seconds, left), Path(folder), tuple(p.name for p in parts))
            if part.name == "environment":
                reason = _no_gpu(results[part.name])
            answers = Path(folder) / f"{part.name}.npz"
            if golden is not None and answers.exists():
                golden.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(answers, golden)
                results[part.name]["data"]["golden"] = golden.name
    seen = results.get("environment", skipped(""))["data"]
    return {"schema": SCHEMA, "what": "gpu", "date": datetime.date.today().isoformat(),
            "gpu": seen.get("device", {}).get("name"), "why_no_gpu": reason if seen and
            not seen.get("available") else "", "machine": seen.get("machine", {}),
            "seconds": round(time.monotonic() - start, 2), "parts": results}


def shared_out(parts: tuple[Part, ...], budget: float) -> tuple[Part, ...]:
    """The parts with the whole budget divided among them; none gets less than it had."""
    share = max(1.0, budget / sum(part.seconds for part in parts))
    return tuple(replace(part, seconds=part.seconds * share) for part in parts)


def _no_gpu(environment: dict[str, Any]) -> str:
    if environment["data"].get("available"):
        return ""
    return environment["data"].get("why_not") or f"environment {environment['status']}: " \
                                                 f"{environment['reason']}"


def problems(result: Any) -> list[str]:
    """Where a result differs from what a reader of these files may rely on."""
    if not isinstance(result, dict):
        return ["not an object"]
    expected: dict[str, Any] = {
        "schema": int, "what": str, "date": str, "gpu": (str, type(None)), "why_no_gpu": str,
        "machine": dict, "seconds": (int, float), "parts": dict}
    found = [f"{name}: {type(result.get(name)).__name__}" for name, kind in expected.items()
             if not isinstance(result.get(name, ...), kind)]
    for name, part in (result.get("parts") or {}).items():
        shape: dict[str, Any] = {"status": str, "reason": str, "seconds": (int, float),
                                 "failures": list, "data": dict}
        found += [f"parts.{name}.{key}" for key, kind in shape.items()
                  if not isinstance(part.get(key, ...), kind)]
        if part.get("status") not in STATUSES:
            found.append(f"parts.{name}.status: {part.get('status')}")
    return found


def summary(result: dict[str, Any]) -> str:
    """A table of the parts."""
    return record.table(f"GPU suite on {result['gpu'] or 'no GPU'}",
                        ("part", "status", "seconds", "failures", "reason"),
                        [(name, p["status"], f"{p['seconds']:.0f}", len(p["failures"]),
                          p["reason"]) for name, p in result["parts"].items()])


def main() -> int:
    """Run the suite; 0 when all that could run succeeded."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_suite",
                                     description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON file (default: benchmarks/results/"
                        "<date>-gpu.json, or build/gpu.json without a GPU)")
    parser.add_argument("--parts", default=",".join(p.name for p in PARTS),
                        help="which, separated by commas (default: all)")
    parser.add_argument("--budget", type=float, default=BUDGET,
                        help="seconds for all of it, divided among the parts")
    options = parser.parse_args()
    names = {"environment", *options.parts.split(",")}
    unknown = names - {p.name for p in PARTS}
    if unknown:
        parser.error(f"no part {sorted(unknown)[0]!r}; there are "
                     f"{', '.join(p.name for p in PARTS)}")
    today = record.RESULTS / f"{datetime.date.today().isoformat()}-gpu.json"
    golden = (options.out or today).with_suffix(".npz")
    parts = shared_out(tuple(p for p in PARTS if p.name in names), options.budget)
    result = suite(parts, options.budget, golden)
    wrong = problems(result)
    assert not wrong, wrong
    found = result["gpu"] is not None
    out = options.out or (today if found else record.ROOT / "build" / "gpu.json")
    record.write(out, result)
    print(summary(result))
    if not found:
        print(f"Nothing was run on a GPU: {result['why_no_gpu']}.")
    print("written to", out)
    return int(any(p["status"] not in ("ok", "skipped") for p in result["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
