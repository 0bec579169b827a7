"""Named scores that add the elements of a tensor. It is read at each call and takes part in
autograd; an index outside it reads 0 and changes nothing.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from .combined import Score
from .errors import PatternError
from .functions import minimum, take, take_broadcast, where
from .masks_table import aligned
from .patterns import whole
from .tables import FLOATS, as_table, check_size, made, wholes


class bias(Score):
    """score + bias[b, h, i, j], for a floating tensor [batch, heads, Nq, Nk].

    Leading dimensions may be missing; a dimension of size 1 is the same for all. Where Nq and Nk
    differ, and neither is 1, the last row is the query of the last key, as in a call with default
    offsets: row i − (Nk − Nq).
    """

    bias: Any

    def __post_init__(self) -> None:
        self._put(bias=as_table(self.bias, self.name, "bias", FLOATS, (1, 2, 3, 4)))

    def for_heads(self, heads: int) -> bias:
        if self.bias.ndim > 2:
            check_size(self.bias.shape[-3], heads, "the tensor of bias", "heads")
        return self

    def __call__(self, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        row = aligned(self.bias, q_idx) if self.bias.ndim > 1 else q_idx
        return score + take_broadcast(self.bias, b, h, row, kv_idx)


class relative_position_bias(Score):
    """T5's bias: score + table[bucket(j − i), h], for a floating table [num_buckets, heads].

    With B buckets (B/2 for each direction when bidirectional: those of j > i are the upper half),
    distance n = |j − i| (max(i − j, 0) when not bidirectional) and E = ⌊B/2⌋, the bucket is n up to
    E − 1, and from there on, in float32,

        min(B − 1, E + ⌊ln(n/E) / ln(max_distance/E) · (B − E)⌋)

    which is worked out once for each distance up to ``max_distance``, beyond which all are in the
    last bucket. ``num_buckets`` defaults to the table's.
    """

    table: Any
    num_buckets: int | None = None
    max_distance: int = 128
    bidirectional: bool = True
    _bucket: ClassVar[Any]
    _side: ClassVar[int]

    def __post_init__(self) -> None:
        table = as_table(self.table, self.name, "table", FLOATS, (2,))
        rows = table.shape[0]
        count = whole(rows if self.num_buckets is None else self.num_buckets, self.name,
                      "num_buckets", 4 if self.bidirectional else 2)
        if count != rows:
            raise PatternError(f"relative_position_bias: a table of {rows} rows for {count} "
                               "buckets")
        if not isinstance(self.bidirectional, bool):
            raise PatternError("relative_position_bias: bidirectional must be True or False, got "
                               f"{self.bidirectional!r}")
        if self.bidirectional and count % 2:
            raise PatternError(f"relative_position_bias: {count} buckets do not divide into two "
                               "directions")
        side = count // 2 if self.bidirectional else count
        far = whole(self.max_distance, self.name, "max_distance", side // 2 + 1)
        self._put(table=table, num_buckets=count, max_distance=far, _side=side,
                  _bucket=_buckets(side, far, table.device))

    def for_heads(self, heads: int) -> relative_position_bias:
        check_size(self.table.shape[1], heads, "the table of relative_position_bias", "heads")
        return self

    def __call__(self, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        if self.bidirectional:
            distance = abs(kv_idx - q_idx)
        else:
            distance = where(kv_idx <= q_idx, q_idx - kv_idx, 0)
        bucket = take(self._bucket, minimum(distance, self.max_distance))
        if self.bidirectional:
            bucket = where(q_idx < kv_idx, bucket + self._side, bucket)
        return score + take(self.table, bucket, 0 if self.table.shape[1] == 1 else h)


def _buckets(count: int, far: int, device: Any) -> Any:
    """int32 [far + 1]: the bucket of each distance, among ``count`` of one direction."""
    import torch

    exact = count // 2
    n = torch.arange(far + 1)
    large = exact + (torch.log(n.clamp(min=1).float() / exact) / math.log(far / exact)
                     * (count - exact)).to(torch.int64)
    bucket = torch.where(n < exact, n, large.clamp(max=count - 1))
    return made(bucket.to(torch.int32).to(device))


class swin_bias(Score):
    """Swin's bias over a window of h × w tokens: score + table[r, head], a table
    [(2h−1)(2w−1), heads].

    Token i of the window lies at row y(i) = ⌊i/w⌋, column x(i) = i mod w, and
    r = (y(i) − y(j) + h − 1)·(2w − 1) + x(i) − x(j) + w − 1. Scores outside the window stay.
    """

    table: Any
    window: tuple[int, int]

    def __post_init__(self) -> None:
        window = wholes(self.window, self.name, "window", 1)
        if len(window) != 2:
            raise PatternError(f"swin_bias: window={window} has {len(window)} entries, not 2")
        table = as_table(self.table, self.name, "table", FLOATS, (2,))
        rows = (2 * window[0] - 1) * (2 * window[1] - 1)
        if table.shape[0] != rows:
            raise PatternError(f"swin_bias: the table has {table.shape[0]} rows, a window of "
                               f"{window[0]} x {window[1]} needs {rows}")
        self._put(table=table, window=window)

    def for_heads(self, heads: int) -> swin_bias:
        check_size(self.table.shape[1], heads, "the table of swin_bias", "heads")
        return self

    def __call__(self, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        height, width = self.window
        inside = (q_idx >= 0) & (q_idx < height * width) & (kv_idx >= 0) & (
            kv_idx < height * width)
        down = q_idx // width - kv_idx // width + height - 1
        across = q_idx % width - kv_idx % width + width - 1
        row = where(inside, down * (2 * width - 1) + across, -1)
        return score + take(self.table, row, 0 if self.table.shape[1] == 1 else h)
