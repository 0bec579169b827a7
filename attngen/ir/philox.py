"""Numbers that look random and follow from their position: what dropout compares with its p.

    uniform(seed, b, h, q_start, i, k_start, j), at q = q_start + i and k = k_start + j:
    word (q/8 mod 2)·2 + (k/8 mod 2) of Philox(key = seed, counter = (k, q, h, b) with 8 cleared in
    k and q), as a fraction in [0, 1) of 24 bits

Philox4x32 with 7 rounds is counter-based and passes every test its authors had (Salmon et al. 2011,
"Parallel random numbers: as easy as 1, 2, 3"): nothing is stored, backward computes the same
numbers again, and no schedule, tile size or target changes them. Rows and columns 8 apart share one
block of four words because they lie in one thread of every tensor core fragment, whichever of the
two is queries. So that kernels see that without knowing the numbers, ``q_start`` and ``k_start``
are multiples of 16.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

ROUNDS = 7
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
INCREMENTS = (0x9E3779B9, 0xBB67AE85)  # of the two halves of the key, after each round
_WORD = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox(counter: tuple[Array, ...], key: tuple[Array, ...]) -> tuple[Array, ...]:
    """Four words for a counter of four and a key of two, all 32 bits wide and held as uint64."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        a, b = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        c0, c1, c2, c3 = (b >> _HALF) ^ c1 ^ k0, b & _WORD, (a >> _HALF) ^ c3 ^ k1, a & _WORD
        k0 = (k0 + np.uint64(INCREMENTS[0])) & _WORD
        k1 = (k1 + np.uint64(INCREMENTS[1])) & _WORD
    return c0, c1, c2, c3


def uniform(seed: Any, b: Any, h: Any, q_start: Any, i: Any, k_start: Any, j: Any) -> Array:
    """The op of that name, float32: positions are int32, ``seed`` is int64, all broadcast."""
    bits = np.asarray(seed).astype(np.int64).astype(np.uint64)
    b, h, q, k = (_word(x) for x in (b, h, np.add(q_start, i), np.add(k_start, j)))
    apart = np.uint64(8)
    words = philox((k & ~apart, q & ~apart, h, b), (bits & _WORD, bits >> _HALF))
    chosen = np.where(q & apart, np.where(k & apart, words[3], words[2]),
                      np.where(k & apart, words[1], words[0]))
    return (chosen >> np.uint64(8)).astype(np.float32) * np.float32(2.0**-24)


def _word(x: Any) -> Array:
    """32 bits of an integer, negative ones in two's complement."""
    return np.asarray(x).astype(np.int64).astype(np.uint64) & _WORD
