"""Timing and the description of the machine."""

from __future__ import annotations

import json
import time

import pytest

from attngen.runtime import machine, timing


def test_candidates_take_turns_and_ratios_are_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    order: list[str] = []

    def candidate(name: str, seconds: float) -> object:
        def run() -> None:
            order.append(name)
            drift = 3.0 if len(order) > 60 else 1.0  # the machine slows down half way
            clock[0] += seconds * drift
        return run

    found = timing.compare({"base": candidate("base", 0.2), "ours": candidate("ours", 0.1)},
                           rounds=40, sample_seconds=1e-3)
    assert list(found) == ["base", "ours"]
    assert found["base"].ratio == pytest.approx(1.0) and found["ours"].ratio == pytest.approx(2.0)
    assert found["ours"].quartile_low == pytest.approx(0.1)
    assert found["ours"].quartile_high == pytest.approx(0.3)
    assert found["ours"].rounds == 40 and found["ours"].repeats == 1
    rounds = [tuple(order[n:n + 2]) for n in range(6, len(order), 2)]
    assert set(rounds) == {("base", "ours"), ("ours", "base")}
    json.dumps(found["ours"].to_dict())


def test_short_candidates_are_repeated_within_a_sample() -> None:
    calls = 0

    def run() -> None:
        nonlocal calls
        calls += 1
        time.sleep(2e-4)

    (found,) = timing.compare({"only": run}, rounds=3, sample_seconds=2e-3).values()
    assert found.repeats > 1 and calls >= 3 * found.repeats
    assert 1e-4 < found.fastest <= found.median < 2e-2


def test_the_machine_describes_itself() -> None:
    facts = machine.describe()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["cores"] >= 1 and facts["packages"]["torch"] and facts["cpu"]
