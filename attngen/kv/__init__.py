"""Caches of keys and values for decoding, as objects: contiguous, rolling, and in pages."""

from __future__ import annotations

from .cache import KVCache
from .paged import PagedKVCache
from .rolling import RollingKVCache

__all__ = ["KVCache", "PagedKVCache", "RollingKVCache"]
