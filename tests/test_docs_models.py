"""docs/models.md: its code runs."""

from __future__ import annotations

import re
from typing import Any

from helpers import ROOT


def test_the_code_runs() -> None:
    text = (ROOT / "docs" / "models.md").read_text()
    made: dict[str, Any] = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)), made)
    shapes = {n: [*made[n]["layer.k_proj.weight"].shape] for n in ("state", "smaller", "uneven")}
    assert shapes == {"state": [512, 512], "smaller": [128, 512], "uneven": [192, 512]}
    assert made["o"].shape == (2, 4, 300, 64)
