"""What the device layer counted during a launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from . import abi


@dataclass(frozen=True)
class Counters:
    """Totals over all blocks. Instructions are counted per warp, accesses per thread.

    ``global_read`` and ``global_written`` are the bytes that kernels asked of device memory,
    asynchronous copies included (their zero fill excluded, as it reads nothing), by tensor in
    ``read_by`` and ``written_by``. Bank conflicts are extra turns of shared memory: 0 is perfect.
    """

    global_read: int = 0
    global_written: int = 0
    async_bytes: int = 0
    mma: int = 0
    ldmatrix: int = 0
    shared_loads: int = 0
    shared_stores: int = 0
    shuffles: int = 0
    conflicts_ldmatrix: int = 0
    conflicts_shared: int = 0
    conflicts_async: int = 0
    block_syncs: int = 0
    warp_syncs: int = 0
    switches: int = 0
    read_by: dict[str, int] = field(default_factory=dict)
    written_by: dict[str, int] = field(default_factory=dict)

    @property
    def bank_conflicts(self) -> int:
        """Of ldmatrix, of plain loads and stores, and of asynchronous copies, together."""
        return self.conflicts_ldmatrix + self.conflicts_shared + self.conflicts_async

    @classmethod
    def of(cls, raw: abi.Counters, names: Sequence[str], read: Sequence[int],
           written: Sequence[int]) -> Counters:
        """From what the runtime returned; regions of one name are added up."""
        by_name: list[dict[str, int]] = [{}, {}]
        for table, counts in zip(by_name, (read, written), strict=True):
            for name, count in zip(names, counts, strict=True):
                table[name] = table.get(name, 0) + count
        totals = {name: int(getattr(raw, name)) for name in abi.COUNTERS}
        return cls(**totals, read_by=by_name[0], written_by=by_name[1])

    def __add__(self, other: Counters) -> Counters:
        """Of two launches together."""
        both: dict[str, int | dict[str, int]] = {}
        for f in fields(self):
            mine, theirs = getattr(self, f.name), getattr(other, f.name)
            both[f.name] = mine + theirs if isinstance(mine, int) else \
                {k: mine.get(k, 0) + theirs.get(k, 0) for k in {**mine, **theirs}}
        return Counters(**both)  # type: ignore[arg-type]
