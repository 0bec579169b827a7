"""Launches that are refused, given up or interrupted."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from emulated import complete, launch

from attngen.errors import DeadlockError, LaunchError, UnknownNameError
from attngen.runtime import emulator
from attngen.runtime.emulator import Counters, EmulatedModule

KERNELS = """
struct Params { float* out; int n; };
KERNEL(32, 1) fill(const __grid_constant__ Params p) {
    store_global(p.out + lane_id(), static_cast<float>(p.n));
}
KERNEL(32, 1) sync_for_ever(const __grid_constant__ Params p) {
    while (p.n >= 0) sync_warp();
}
KERNEL(32, 1) store_for_ever(const __grid_constant__ Params p) {
    while (p.n >= 0) store_global(p.out + lane_id(), 1.0f);
}
"""


@cache
def module() -> EmulatedModule:
    return emulator.load(complete(KERNELS))


def attempt(entry: str = "fill", **options: Any) -> Counters:
    return launch(module(), entry, {"out": np.zeros(32, np.float32), "n": 3}, **options)


def test_entries() -> None:
    assert module().entries == ("fill", "sync_for_ever", "store_for_ever")
    with pytest.raises(UnknownNameError, match="Did you mean 'fill'"):
        attempt("fil")


@pytest.mark.parametrize(("options", "said"), [
    ({"threads": 33}, "33 threads"), ({"threads": 0}, "0 threads"),
    ({"threads": 1056}, "multiple of 32 from 32 to 1024"),
    ({"grid": (1, 65536, 1)}, "65535 along y and z"), ({"grid": (-1, 1, 1)}, "the grid"),
    ({"shared": 227 * 1024 + 1}, "232449 bytes of shared memory"),
])
def test_shapes_no_gpu_takes(options: dict[str, Any], said: str) -> None:
    with pytest.raises(LaunchError, match=said):
        attempt(**options)


def test_parameters_of_the_wrong_size() -> None:
    with pytest.raises(LaunchError, match=r"8 bytes of parameters\n.*16 bytes"):
        module().launch("fill", (1, 1, 1), 32, 0, bytes(8), ())


def test_an_empty_grid_runs_nothing() -> None:
    assert attempt(grid=(0, 1, 1)) == Counters()


@pytest.mark.parametrize("entry", ["sync_for_ever", "store_for_ever"])
def test_a_launch_that_never_ends_is_given_up(entry: str) -> None:
    with pytest.raises(DeadlockError, match="given up after 0.2 s"):
        attempt(entry, timeout=0.2)
    assert attempt().global_written == 128  # and the next one works


@pytest.fixture
def interrupt() -> Iterator[None]:
    """Ctrl-C in a fifth of a second."""
    before = signal.signal(signal.SIGALRM, lambda *_: signal.default_int_handler(0, None))
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("interrupt")
def test_interrupting_ends_the_launch() -> None:
    with pytest.raises(KeyboardInterrupt):
        attempt("sync_for_ever", timeout=20)
    assert attempt().global_written == 128
