"""docs/callables.md: its code runs, its list of functions is the tracer's."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import pytest
import torch
from documented import blocks, check_block
from helpers import ROOT

from attngen.ir.composed import COMPOSED
from attngen.ir.proxy import BINARY, TURNED, UNARY

PAGE = "callables.md"


def functions() -> str:
    """Names that torch has, under which the tracer knows a function."""
    names = {*COMPOSED, *UNARY, *BINARY, *TURNED, "where", "logical_xor", "bitwise_and",
             "bitwise_or", "bitwise_xor", "dot", "isin", "max", "min"}
    public = [n for n in names if hasattr(torch, n) or hasattr(torch.nn.functional, n)]
    shown = ["logsigmoid" if n == "log_sigmoid" else n for n in public]
    return textwrap.fill(" ".join(sorted(shown)), 96)


def test_the_list_of_functions(pytestconfig: pytest.Config) -> None:
    assert blocks(PAGE) == {"functions"}
    check_block(PAGE, "functions", functions(), pytestconfig.getoption("--update-golden"))


def test_the_code_runs() -> None:
    text = (ROOT / "docs" / PAGE).read_text()
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    made: dict[str, Any] = {}
    exec("\n".join(code), made)
    assert not torch.allclose(made["first"], made["second"])
    assert not torch.allclose(made["second"], made["third"])
    torch.testing.assert_close(made["o"], made["second"])
