"""The structures that cross the border to the runtime (cpp/machine.hpp has the same)."""

from __future__ import annotations

import ctypes

KINDS = ("none", "race", "out_of_bounds", "deadlock", "divergence", "uninitialised", "misaligned",
         "fault", "cancelled")

COUNTERS = ("global_read", "global_written", "async_bytes", "mma", "ldmatrix", "shared_loads",
            "shared_stores", "shuffles", "conflicts_ldmatrix", "conflicts_shared",
            "conflicts_async", "block_syncs", "warp_syncs", "switches")


class Error(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int), ("line", ctypes.c_int), ("other_line", ctypes.c_int),
                ("thread", ctypes.c_int), ("block", ctypes.c_int * 3),
                ("what", ctypes.c_char * 700), ("numbers", ctypes.c_char * 300)]


class Region(ctypes.Structure):
    _fields_ = [("begin", ctypes.c_uint64), ("bytes", ctypes.c_uint64),
                ("writable", ctypes.c_int), ("name", ctypes.c_char * 60)]


class Counters(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in COUNTERS]


class Spec(ctypes.Structure):
    _fields_ = [("invoke", ctypes.c_void_p), ("params", ctypes.c_char_p),
                ("grid", ctypes.c_int * 3), ("threads", ctypes.c_int),
                ("shared_bytes", ctypes.c_uint32), ("workers", ctypes.c_int),
                ("detect_races", ctypes.c_int), ("region_count", ctypes.c_int),
                ("seed", ctypes.c_uint64), ("regions", ctypes.POINTER(Region))]


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Give the runtime's functions their types."""
    library.emu_runtime.restype = ctypes.c_void_p
    library.emu_start.argtypes = [ctypes.POINTER(Spec)]
    library.emu_start.restype = ctypes.c_void_p
    library.emu_wait.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.emu_wait.restype = ctypes.c_int
    library.emu_cancel.argtypes = [ctypes.c_void_p]
    library.emu_cancel.restype = None
    counts = ctypes.POINTER(ctypes.c_uint64)
    library.emu_finish.argtypes = [ctypes.c_void_p, ctypes.POINTER(Error),
                                   ctypes.POINTER(Counters), counts, counts]
    library.emu_finish.restype = None
    return library
