"""Timing candidates against each other: interleaved, in one process, by medians.

A machine's speed drifts with its temperature and its other users. Candidates therefore take turns,
in an order that changes every round, and their ratios are taken round by round, so that drift hits
both sides alike. On a GPU each run is timed by events on its stream, after the L2 cache has been
overwritten.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

_MAX_REPEATS = 10_000


@dataclass(frozen=True)
class Timing:
    """Seconds per run of one candidate over all rounds; ``ratio`` is the median over rounds of
    baseline time / own time: above 1 is faster than the baseline."""

    median: float
    quartile_low: float
    quartile_high: float
    fastest: float
    ratio: float
    rounds: int
    repeats: int  # runs per sample, averaged

    def to_dict(self) -> dict[str, float | int]:
        """The fields, for JSON."""
        return asdict(self)


def compare(candidates: Mapping[str, Callable[[], Any]], *, rounds: int = 15,
            sample_seconds: float = 2e-3, warmup: int = 2, cuda: bool = False,
            seed: int = 0) -> dict[str, Timing]:
    """Time every candidate; the first is the baseline of the ratios.

    Each sample on the CPU repeats its candidate until it takes about ``sample_seconds``; on a GPU
    (``cuda``) it is one run. Returns timings in the candidates' order.
    """
    for run in candidates.values():
        for _ in range(max(1, warmup)):
            run()
    sample = _DeviceClock() if cuda else _HostClock(candidates, sample_seconds)
    order = list(candidates)
    shuffle = random.Random(seed).shuffle
    taken: dict[str, list[Callable[[], float]]] = {name: [] for name in candidates}
    for _ in range(max(2, rounds)):
        shuffle(order)
        for name in order:
            taken[name].append(sample(name, candidates[name]))
    seconds = {name: [read() for read in reads] for name, reads in taken.items()}
    baseline = seconds[next(iter(candidates))]
    return {name: _timing(values, baseline, sample.repeats(name))
            for name, values in seconds.items()}


def _timing(values: list[float], baseline: list[float], repeats: int) -> Timing:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    ratio = statistics.median(b / v for b, v in zip(baseline, values, strict=True))
    return Timing(median, low, high, min(values), ratio, len(values), repeats)


class _HostClock:
    """Samples by the wall clock. How often a candidate repeats is settled once, before timing."""

    def __init__(self, candidates: Mapping[str, Callable[[], Any]], sample_seconds: float) -> None:
        self._repeats: dict[str, int] = {}
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            once = max(time.perf_counter() - start, 1e-9)
            self._repeats[name] = min(_MAX_REPEATS, max(1, round(sample_seconds / once)))

    def repeats(self, name: str) -> int:
        return self._repeats[name]

    def __call__(self, name: str, run: Callable[[], Any]) -> Callable[[], float]:
        repeats = self._repeats[name]
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        seconds = (time.perf_counter() - start) / repeats
        return lambda: seconds


class _DeviceClock:
    """Samples by CUDA events on the current stream; reading one waits for it."""

    def __init__(self) -> None:
        import torch

        self._cuda = torch.cuda
        size = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        self._flush = torch.empty(2 * size + 4096, dtype=torch.uint8, device="cuda")

    def repeats(self, name: str) -> int:
        return 1

    def __call__(self, name: str, run: Callable[[], Any]) -> Callable[[], float]:
        start, stop = (self._cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        start.record()
        run()
        stop.record()

        def seconds() -> float:
            stop.synchronize()
            return float(start.elapsed_time(stop)) / 1e3

        return seconds
