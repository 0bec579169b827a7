"""CUDA kernels on the device: compiled by ``nvrtc``, loaded and launched through CuPy.

CuPy is handed finished machine code and never compiles. Modules are loaded per device at the first
launch there, so one call (or ``build``) must come before a graph is captured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
        self._functions: dict[int, Any] = {}  # by device index

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
        import numpy
        import torch

        _check_grid(self.plan.name, grid)
        stream = call.stream
        if stream is None:
            if not torch.cuda.is_available():
                raise NoDeviceError(f"target {self.plan.target} needs a GPU; none is visible",
                                    where=f"kernel {self.plan.name}")
            stream = torch.cuda.current_stream()
        device = stream.device_index
        # A numpy array of one element goes to the kernel by value, whatever its size in bytes.
        argument = numpy.frombuffer(packed, dtype=f"V{len(packed)}")
        with torch.cuda.device(device):
            function = self._functions.get(device) or self._function(device)
            try:
                function(grid, (self.plan.threads, 1, 1), (argument,), self.plan.shared_bytes,
                         cupy_stream(stream))
            except Exception as problem:  # CuPy's driver errors have no public base
                raise LaunchError(
                    f"kernel {self.plan.name} was not launched: {problem}",
                    where=f"cuda:{device}", numbers=f"grid {grid}, {self.plan.threads} threads, "
                    f"{self.plan.shared_bytes} B shared memory") from problem

    def _function(self, device: int) -> Any:
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
        self._functions[device] = function
        return function


def import_cupy() -> Any:
    """CuPy. Raises NoDeviceError when it is not installed."""
    try:
        import cupy
        import cupy.cuda.function
    except ImportError as problem:
        raise NoDeviceError(f"CuPy, which launches kernels, cannot be imported: {problem}",
                            remedy='Run: pip install "attngen[cuda13]"') from None
    return cupy


def cupy_stream(stream: Any) -> Any:
    """CuPy's view of a torch stream. Made anew each time: the current stream changes, and a graph
    capture runs on one of its own."""
    cuda = import_cupy().cuda
    if hasattr(cuda.Stream, "from_external") and hasattr(stream, "__cuda_stream__"):
        return cuda.Stream.from_external(stream)
    return cuda.ExternalStream(stream.cuda_stream, stream.device_index)


def _capability(device: int) -> int:
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor


def _check_grid(name: str, grid: tuple[int, int, int]) -> None:
    for axis, blocks, limit in zip("xyz", grid, _LARGEST_GRID, strict=True):
        if blocks > limit:
            raise LaunchError(f"kernel {name} would need too many blocks along {axis}",
                              numbers=f"{blocks} > {limit}", remedy="Split the batch.")
