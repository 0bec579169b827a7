"""Executes emitted CUDA text on the CPU, and objects to what a GPU would not promise to survive.

``load(text)`` compiles the kernel part of an emitted text with the C++ compiler against a second
implementation of the device layer (``device/``); ``launch`` runs every CUDA thread as a fiber
(``cpp/``). See ``docs/emulator.md`` for what is found and what cannot be.
"""

from .counters import Counters
from .module import EmulatedModule, Region, load, pointers

__all__ = ["Counters", "EmulatedModule", "Region", "load", "pointers"]
