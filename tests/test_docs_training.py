"""docs/training.md: its code runs."""

from __future__ import annotations

import re
from typing import Any

from helpers import ROOT


def test_the_code_runs(capsys: Any) -> None:
    text = (ROOT / "docs" / "training.md").read_text()
    made: dict[str, Any] = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)), made)
    assert made["slopes"].grad.abs().min() > 0
    assert made["q"].grad.shape == (1, 2, 100, 32)
    assert made["o"].shape == (1, 2, 100, 32)
    assert "tensor([" in capsys.readouterr().out
