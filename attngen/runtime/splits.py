"""How a call with few queries is cut up: rows of a tile, and parts of the keys.

Few queries leave most of a machine idle unless the keys are cut into parts. Every part costs a
pass of its results through memory and every block a start, so parts are no shorter than some
hundred keys, and no more than fill the machine. Which they are follows from shapes and machine
alone: results do not depend on lengths that are known on the device only, or on threads.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from .targets import Target

MOST_SPLITS = 1024
MANY_QUERIES = 16  # more than this are many: tiles of 64 or 128 rows fill up with one head
_ROWS = (8, 16, 32, 64)
# Of a CPU: as many parts of blocks as could be wanted by its threads, of so many keys at least.
_CPU_BLOCKS, _CPU_KEYS = 64, 512
# Of a GPU: blocks of one warp that share a multiprocessor, and keys that repay a block, of few
# queries and of many, for which joining the parts costs more.
_BLOCKS_PER_SM, _GPU_KEYS, _GPU_KEYS_MANY, _MOST = 4, 256, 1024, 128
_FULL, _GOOD = 0.8, 0.85  # shares of the machine: enough as it is; nearly as good as the best


def tile_rows(seqlen_q: int, group: int) -> int:
    """Rows of a tile for few queries of ``group`` heads; 0 where there are many."""
    if not 0 < seqlen_q <= MANY_QUERIES:
        return 0
    return next((n for n in _ROWS if n >= seqlen_q * group), _ROWS[-1])


def num_splits(target: Target, blocks: int, seqlen_k: int, like: Tensor, few: bool = True) -> int:
    """Parts of the keys for a grid of ``blocks`` without any, on the machine of ``like``. ``few``:
    blocks have few queries."""
    if target.family == "cpu":
        parts = min(-(-_CPU_BLOCKS // max(blocks, 1)), seqlen_k // _CPU_KEYS)
        return max(1, parts) if few else 1
    per_sm = _BLOCKS_PER_SM if few else 1
    slots = multiprocessors(target, like.device.index if like.is_cuda else -1) * per_sm
    shortest = _GPU_KEYS if few else _GPU_KEYS_MANY
    most = min(seqlen_k // shortest, -(-slots // max(blocks, 1)), _MOST)
    if most <= 1 or blocks >= _FULL * slots:
        return 1
    shares = [_share(blocks * n, slots) for n in range(1, most + 1)]
    return 1 + next(n for n, share in enumerate(shares) if share >= _GOOD * max(shares))


def _share(blocks: int, slots: int) -> float:
    """Of all slots, over the waves in which blocks run, those in use."""
    return blocks / (-(-blocks // slots) * slots)


@cache
def multiprocessors(target: Target, device: int) -> int:
    """Of a device; of the target's board where there is none."""
    if device < 0:
        return target.sms
    import torch

    return int(torch.cuda.get_device_properties(device).multi_processor_count)
