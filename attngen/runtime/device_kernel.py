"""CUDA kernels on the device: compiled by ``nvrtc``, loaded and launched through CuPy.

CuPy is handed finished machine code and never compiles. Modules are loaded per device at the first
launch there, so one call (or ``build``) must come before a graph is captured.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import DeviceError, LaunchError, NoDeviceError
from .nvrtc import Cubin, compile_cubin
from .plan import KernelPlan
from .targets import get_target

if TYPE_CHECKING:
    from .launch import Call

_LARGEST_GRID = (2**31 - 1, 65535, 65535)


class DeviceKernel:
    """``__global__ void name(Params)``, with ``Params`` passed by value."""

    def __init__(self, plan: KernelPlan) -> None:
        self.plan = plan
        self.counters = None
        self._cubin: Cubin | None = None
        self._functions: dict[int, _Function] = {}  # by device index

    def build(self) -> Cubin:
        """Compile; also load onto torch's current device, if there is one that can run it."""
        cubin = self.compiled()
        import torch

        if torch.cuda.is_available():
            device = torch.cuda.current_device()
            if get_target(self.plan.target).runs_on(_capability(device)):
                self._function(device)
        return cubin

    def compiled(self) -> Cubin:
        """The machine code, which needs no device. Raises CompileError and NoCompilerError."""
        if self._cubin is None:
            target = get_target(self.plan.target)
            self._cubin = compile_cubin(self.plan.text, target.arch, self.plan.flags,
                                        name=self.plan.name)
        return self._cubin

    def launch(self, packed: bytes, grid: tuple[int, int, int], call: Call) -> None:
        """Queue on ``call.stream``, torch's current one by default. Raises LaunchError,
        DeviceError and NoDeviceError."""
        import torch

        _check_grid(self.plan.name, grid)
        stream = call.stream
        if stream is None:
            if not torch.cuda.is_available():
                raise NoDeviceError(f"target {self.plan.target} needs a GPU; none is visible",
                                    where=f"kernel {self.plan.name}")
            stream = torch.cuda.current_stream()
        device = stream.device_index
        ready = device in _threads.ready and device == torch.cuda.current_device()
        with _ALREADY if ready else _current(device):
            function = self._functions.get(device) or self._function(device)
            # The driver reads the struct through a table of pointers, before it returns.
            struct = ctypes.create_string_buffer(packed, len(packed))
            table = ctypes.c_void_p(ctypes.addressof(struct))
            try:
                function.driver.launchKernel(
                    function.ptr, *grid, self.plan.threads, 1, 1, self.plan.shared_bytes,
                    stream.cuda_stream, ctypes.addressof(table), 0)
            except Exception as problem:  # CuPy's driver errors have no public base
                raise LaunchError(
                    f"kernel {self.plan.name} was not launched: {problem}",
                    where=f"cuda:{device}", numbers=f"grid {grid}, {self.plan.threads} threads, "
                    f"{self.plan.shared_bytes} B shared memory") from problem

    def _function(self, device: int) -> _Function:
        """Load onto ``device``, which must be the current one."""
        import torch

        if device in self._functions:
            return self._functions[device]
        target, capability = get_target(self.plan.target), _capability(device)
        if not target.runs_on(capability):
            raise DeviceError(
                f"code for {target.name} does not run on {torch.cuda.get_device_name(device)}",
                numbers=f"its compute capability is {capability // 10}.{capability % 10}",
                remedy="Leave target out, or pass emulate=True with tensors on the cpu.")
        if torch.cuda.is_current_stream_capturing():
            raise LaunchError(f"kernel {self.plan.name} is not loaded yet, and loading cannot be "
                              f"captured in a graph", remedy="Call it once before the capture.")
        cupy = import_cupy()
        cubin = self.compiled()
        try:
            module = cupy.cuda.function.Module()
            module.load(cubin.code)
            function = module.get_function(self.plan.name)
            if self.plan.shared_bytes:
                driver = cupy.cuda.driver
                driver.funcSetAttribute(
                    function.ptr, driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    self.plan.shared_bytes)
        except Exception as problem:
            raise LaunchError(f"kernel {self.plan.name} cannot be loaded: {problem}",
                              where=f"cuda:{device}",
                              numbers=f"{self.plan.shared_bytes} B shared memory") from problem
        self._functions[device] = _Function(function.ptr, cupy.cuda.driver, function)
        return self._functions[device]


def import_cupy() -> Any:
    """CuPy. Raises NoDeviceError when it is not installed."""
    try:
        import cupy
        import cupy.cuda.function
    except ImportError as problem:
        raise NoDeviceError(f"CuPy, which launches kernels, cannot be imported: {problem}",
                            remedy='Run: pip install "attngen[cuda13]"') from None
    return cupy


class _Function(NamedTuple):
    """A loaded kernel's handle, who launches it, and what keeps it loaded."""

    ptr: int
    driver: Any
    owner: Any


class _Threads(threading.local):
    """The devices that are ready for the driver's calls in this thread."""

    def __init__(self) -> None:
        self.ready: set[int] = set()


_threads = _Threads()
_ALREADY = nullcontext()


@contextmanager
def _current(device: int) -> Iterator[None]:
    """Make ``device`` the current one. torch puts that off in a new thread until it needs the
    device itself, the driver's own calls do not."""
    import torch

    with torch.cuda.device(device):
        if device not in _threads.ready:
            import_cupy().cuda.runtime.setDevice(device)
            _threads.ready.add(device)
        yield


def _capability(device: int) -> int:
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor


def _check_grid(name: str, grid: tuple[int, int, int]) -> None:
    for axis, blocks, limit in zip("xyz", grid, _LARGEST_GRID, strict=True):
        if blocks > limit:
            raise LaunchError(f"kernel {name} would need too many blocks along {axis}",
                              numbers=f"{blocks} > {limit}", remedy="Split the batch.")
