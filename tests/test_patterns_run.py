"""Every named pattern through kernels, against the oracle: on cpu and as emulated CUDA text."""

from __future__ import annotations

from typing import Any

import forward_cases
import pattern_cases
import pytest
import torch
from helpers import only_ours
from pattern_cases import ALONE, TOGETHER

import attngen as ag
from attngen import masks, scores
from attngen.errors import DeviceError
from attngen.runtime.captured import Captured, CapturedTensor


def _complaints(fields: dict[str, Any], name: str, target: str, **how: Any) -> list[str]:
    chosen = pattern_cases.cases(fields, name, **how)
    attn = ag.compile(chosen[0].spec, target=target, emulate=target != "cpu")

    def run(*args: Any, **kwargs: Any) -> Any:
        with only_ours():
            return attn(*args, **kwargs)

    return [line for case in chosen for line in forward_cases.check(case, run)]


@pytest.mark.parametrize("name", TOGETHER)
def test_cpu(name: str) -> None:
    assert _complaints(TOGETHER[name], name, "cpu") == []


@pytest.mark.full
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("name", ALONE)
def test_cpu_alone(name: str, dtype: str) -> None:
    assert _complaints(ALONE[name], name, "cpu", dtype=dtype) == []


@pytest.mark.parametrize("name", ["document_batch", "random_blocks", "neighborhood_2d"])
def test_emulated(name: str) -> None:
    assert _complaints(ALONE[name], name, "sm_80", calls=[1, 2], dtype="bfloat16") == []


@pytest.mark.parametrize("name", ["score 7 ...", "of heads"])
def test_emulated_scores(name: str) -> None:
    assert _complaints(TOGETHER[name], name, "sm_80", calls=[2], dtype="float16") == []


@pytest.mark.full
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [*ALONE, *TOGETHER])
def test_emulated_all(name: str, dtype: str) -> None:
    assert _complaints({**TOGETHER, **ALONE}[name], name, "sm_80", dtype=dtype) == []


def test_a_table_that_a_pattern_made_is_copied_to_the_device_of_the_call() -> None:
    elsewhere = torch.empty(0, device="meta")
    own = masks.tree([-1, 0])._first
    wanted = CapturedTensor("table", "int32", 1, own, "")
    bound = [Captured((wanted,)).bind(elsewhere, {})[0]["table"] for _ in range(2)]
    assert bound[0] is bound[1] and bound[0].device == elsewhere.device
    assert Captured((wanted,)).bind(own, {})[0]["table"] is own
    with pytest.raises(DeviceError):
        Captured((wanted._replace(source=own.clone()),)).bind(elsewhere, {})


def test_every_pattern_is_run() -> None:
    text = repr(list(ALONE.values()))
    named = {*masks.NAMED, *scores.NAMED} - {"per_head"}  # all of TOGETHER
    assert {name for name in named if f"{name}(" not in text} == set()
