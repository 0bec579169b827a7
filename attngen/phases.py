"""The kernels of one phase of an attention, by the names users know them under."""

from __future__ import annotations

from collections.abc import Callable

from .errors import UnknownNameError
from .runtime.backward import BackwardPlans
from .runtime.captured import Captured
from .runtime.plan import KernelPlan, Plan
from .runtime.variant import Cached, Kind

PHASES = ("forward", "backward", "decode", "append", "rotate")
# Of decoding, what one query of up to 16 heads that share keys runs.
_DECODE_ROWS, _APPEND_ROWS = 16, 8
_TURNED = Cached(rope="half")  # all columns


def kernels_of(kind: str, of: Kind, plan_for: Callable[[Kind], tuple[Plan, Captured]],
               backward_for: Callable[[Kind, frozenset[str]], BackwardPlans],
               cache_for: Callable[[str, Kind], Plan], where: str = "") -> list[KernelPlan]:
    """Those of a phase, "forward", "backward", "decode" (keys in parts, and ``combine``),
    "append" or "rotate" (rotary embedding of queries), or the one called ``kind``. Raises
    UnknownNameError."""
    few = of._replace(rows=_APPEND_ROWS)
    plans = {
        "forward": lambda: (plan_for(of)[0],),
        "backward": lambda: backward_for(of, frozenset()).all(),
        "decode": lambda: (plan_for(of._replace(rows=_DECODE_ROWS, split=True))[0],),
        "append": lambda: (cache_for("append", few),),
        "rotate": lambda: (cache_for("rotate", few._replace(cached=_TURNED)),)}
    phase = next((p for p in PHASES if kind == p or kind.startswith(f"{p}_")), "forward")
    if kind in ("combine", "forward_parts"):
        phase = "decode"
    found = [k for plan in plans[phase]() for k in plan.kernels]
    chosen = [k for k in found if kind in (k.kind, phase)]
    if not chosen:
        raise UnknownNameError("kernel kind", kind, {*PHASES, "combine", *(k.kind for k in found)},
                               where=where)
    return chosen
