"""Kernels of the ``cpu`` target: C++ called through ctypes."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, Any

from ..errors import LaunchError
from . import cxx, notice
from .plan import KernelPlan

if TYPE_CHECKING:
    from .launch import Call

_forked = False


class ForkWarning(UserWarning):
    """Threads cannot be used in this process."""


def _after_fork() -> None:
    """OpenMP's threads do not survive a fork, and starting more in the child waits for ever."""
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class HostKernel:
    """``void name(const Params*, int threads)`` in a shared object."""

    def __init__(self, plan: KernelPlan) -> None:
        self.plan = plan
        self.counters = None
        self._library: ctypes.CDLL | None = None
        self._function: Any = None

    def build(self) -> ctypes.CDLL:
        """Compile and load. Raises CompileError and NoCompilerError."""
        if self._library is None:
            self._library = cxx.load_text(self.plan.text, self.plan.flags or cxx.FLAGS,
                                          name=self.plan.name)
            try:
                function = getattr(self._library, self.plan.name)
            except AttributeError:
                raise LaunchError(f"the text of kernel {self.plan.name} has no such entry",
                                  remedy='Declare it extern "C".') from None
            function.argtypes = (ctypes.c_char_p, ctypes.c_int)
            function.restype = None
            self._function = function
        return self._library

    def launch(self, packed: bytes, grid: tuple[int, int, int], call: Call) -> None:
        """Run to the end. The kernel divides its own work; ``grid`` only says there is some."""
        if self._function is None:
            self.build()
        threads = call.threads
        if _forked and threads > 1:
            notice.once(ForkWarning("this process was forked, so attngen uses one thread here; "
                                    "start workers with the spawn method to use more"))
            threads = 1
        self._function(packed, threads)
