"""Caches of keys and values for decoding, as objects: contiguous, rolling, and in pages; rotary
embeddings of the keys that go into them."""

from __future__ import annotations

from .cache import KVCache
from .paged import PagedKVCache
from .rolling import RollingKVCache
from .rope import Rope, rope

__all__ = ["KVCache", "PagedKVCache", "RollingKVCache", "Rope", "rope"]
