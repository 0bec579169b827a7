"""The paged cache against a simple model: any order of appending, forking and freeing."""

from __future__ import annotations

from collections import Counter
from functools import cache as once
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import attngen as ag
from attngen import errors, kv

SEQUENCES, DIM = 4, 8


@once
def attention() -> Any:
    return ag.compile(ag.AttentionSpec(heads=1, head_dim=DIM, causal=True), target="cpu")


class PagedCacheMachine(RuleBasedStateMachine):
    """The model is a list of numbers for each sequence: a token's k is that number everywhere."""

    @initialize(pages=st.integers(1, 12), size=st.sampled_from([1, 2, 3, 5]))
    def start(self, pages: int, size: int) -> None:
        self.cache = kv.PagedKVCache(attention(), SEQUENCES, pages, page_size=size)
        self.model: list[list[int]] = [[] for _ in range(SEQUENCES)]
        self.next = 1

    @rule(counts=st.lists(st.integers(0, 7), min_size=SEQUENCES, max_size=SEQUENCES))
    def append(self, counts: list[int]) -> None:
        most = max(counts)
        new = [list(range(self.next + 10 * b, self.next + 10 * b + most)) for b in range(SEQUENCES)]
        self.next += 10 * SEQUENCES
        k = torch.tensor(new, dtype=torch.float32)[:, None, :, None].expand(-1, 1, most, DIM)
        state = self._state()
        try:
            self.cache.append(k.contiguous(), -k.contiguous(), counts=counts)
        except errors.KVCacheFullError:
            assert self._state() == state
            assert self._wanted(counts) > self.cache.pool.free or any(
                len(m) + c > self.cache.seqlen_k for m, c in zip(self.model, counts, strict=True))
            return
        for sequence, added, count in zip(self.model, new, counts, strict=True):
            sequence += added[:count]

    @rule(source=st.integers(0, SEQUENCES - 1), to=st.integers(0, SEQUENCES - 1))
    def fork(self, source: int, to: int) -> None:
        if self.cache.pages_of(to):
            state = self._state()
            try:
                self.cache.fork(source, to)
            except errors.ShapeError:
                assert self._state() == state
            else:
                raise AssertionError("a sequence that holds pages was forked into")
        elif source != to:
            self.cache.fork(source, to)
            self.model[to] = list(self.model[source])

    @rule(sequence=st.integers(0, SEQUENCES - 1))
    def free(self, sequence: int) -> None:
        self.cache.free(sequence)
        self.model[sequence] = []

    def _state(self) -> Any:
        held = [self.cache.pages_of(b) for b in range(SEQUENCES)]
        return held, self.cache.lengths.tolist(), self.cache.pool.free, self.cache.k.sum().item()

    def _wanted(self, counts: list[int]) -> int:
        """Pages that appending takes: new ones, and copies of what others hold."""
        size, held = self.cache.page_size, Counter(
            p for b in range(SEQUENCES) for p in self.cache.pages_of(b))
        wanted = 0
        for b, count in enumerate(counts):
            pages, n = self.cache.pages_of(b), len(self.model[b])
            if count:
                wanted += max(0, -(-(n + count) // size) - len(pages))
                wanted += sum(held[p] > 1 for p in pages[n // size:])
        return wanted

    @invariant()
    def everything_is_where_the_table_says(self) -> None:
        if not hasattr(self, "cache"):
            return
        cache = self.cache
        assert cache.lengths.tolist() == [len(m) for m in self.model]
        held: Counter[int] = Counter()
        for b, sequence in enumerate(self.model):
            pages = cache.pages_of(b)
            held.update(pages)
            row = cache.page_table[b].tolist()
            assert row == [*pages, *[0] * (len(row) - len(pages))]
            assert len(pages) >= -(-len(sequence) // cache.page_size)
            for n, number in enumerate(sequence):
                at = pages[n // cache.page_size], 0, n % cache.page_size
                assert bool((cache.k[at] == number).all()) and bool((cache.v[at] == -number).all())
        assert 0 not in held and cache.pool.free == cache.pool.count - len(held)
        assert all(cache.pool.holders(p) == held[p] for p in range(1, cache.pool.count + 1))
        assert not bool(cache.k[0].any())


PagedCacheMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow])
TestPagedCache = PagedCacheMachine.TestCase


def test_decoding_after_a_fork() -> None:
    """Two continuations of one prompt, each as if it were alone."""
    attn = attention()
    cache = kv.PagedKVCache(attn, 2, 20, page_size=4)
    k = torch.randn(2, 1, 14, DIM)
    cache.append(k[:, :, :10], k[:, :, :10], counts=[10, 0])
    cache.fork(0, 1)
    assert cache.pages_of(0) == cache.pages_of(1) and cache.pool.free == 17
    k[1, :, :10] = k[0, :, :10]
    cache.append(k[:, :, 10:], k[:, :, 10:])
    assert cache.pages_of(0)[:2] == cache.pages_of(1)[:2]
    assert cache.pages_of(0)[2] != cache.pages_of(1)[2]
    q = torch.randn(2, 1, 4, DIM)
    want = ag.attention(q, k, k, causal=True)
    assert attn.decode(q, cache).equal(want)


@pytest.mark.parametrize("target", ["cpu", "sm_80"])
def test_entries_that_are_no_page_read_nothing(target: str) -> None:
    """And write nothing anyone reads: the emulator watches every access."""
    attn = ag.compile(ag.AttentionSpec(heads=2, groups=1, head_dim=DIM, causal=True),
                      target=target, emulate=target != "cpu")
    cache = kv.PagedKVCache(attn, 1, 6, page_size=4, dtype=torch.float32)
    k = torch.randn(1, 1, 9, DIM)
    cache.append(k, k)
    q, kept = torch.randn(1, 2, 1, DIM), cache.page_table.clone()
    for wrong in (-1, 7, 2**31 - 1, -2**31):
        cache.page_table[0, 1] = wrong
        zero = k.clone()
        zero[:, :, 4:8] = 0
        want = ag.attention(q, zero, zero, causal=True)
        torch.testing.assert_close(attn.decode(q, cache), want, rtol=1e-5, atol=1e-6)
        before = cache.k.clone()
        cache.lengths.fill_(4)
        cache._launch(k[:, :, :4], k[:, :, :4], 4, 4)
        cache.lengths.fill_(9)
        assert cache.k.equal(before) and not bool(before[0].any())
    cache.page_table.copy_(kept)
    torch.testing.assert_close(attn.decode(q, cache), ag.attention(q, k, k, causal=True),
                               rtol=1e-5, atol=1e-6)
