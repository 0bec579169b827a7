"""Executables: C++ kernels run here, device and emulator launches through stand-ins."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import fake_plans
import pytest
import torch

from attngen import knobs
from attngen.errors import DeviceError, LaunchError, NoDeviceError, OverrideWarning
from attngen.runtime import device_kernel, notice
from attngen.runtime.emulator import Region, pointers
from attngen.runtime.launch import Buffer, Executable
from attngen.runtime.plan import GridDim, Plan, struct_format

SIZES = {"batch": 1, "heads": 4, "groups": 2, "seqlen_q": 3, "seqlen_k": 5, "head_dim": 16,
         "head_dim_v": 8}
NUMBERS = {"q_offset": 2, "kv_offset": 0, "kv_len": 5}


def buffers_for(plan: Plan, sizes: dict[str, int] = SIZES,
                ) -> tuple[dict[str, Buffer], dict[str, torch.Tensor]]:
    letters = {"b": "batch", "h": "heads", "g": "groups", "i": "seqlen_q", "j": "seqlen_k",
               "d": "head_dim", "e": "head_dim_v"}
    tensors = {t.name: torch.randn([sizes[letters[a]] for a in t.axes]) for t in plan.tensors}
    return {n: Buffer(t.data_ptr(), t.stride(), 4 * t.numel()) for n, t in tensors.items()}, tensors


def unpacked(plan: Plan, packed: bytes) -> dict[str, Any]:
    fields = plan.kernels[0].fields
    return dict(zip((f.name for f in fields), struct.unpack(struct_format(fields), packed),
                    strict=True))


# -- the cpu target -----------------------------------------------------------------------------


def test_a_cpp_kernel_runs() -> None:
    plan = fake_plans.causal()
    executable = Executable(plan)
    buffers, t = buffers_for(plan)
    t["o"].fill_(float("nan"))
    executable.run(buffers, SIZES, NUMBERS, threads=2)
    k, v = (x.repeat_interleave(2, 1) for x in (t["k"], t["v"]))
    visible = torch.ones(3, 5, dtype=torch.bool).tril(2)
    expected = torch.nn.functional.scaled_dot_product_attention(t["q"], k, v, attn_mask=visible)
    torch.testing.assert_close(t["o"], expected)
    assert executable.counters == ()


@pytest.mark.parametrize("zero", ["batch", "seqlen_q"])
def test_an_empty_grid_launches_nothing(zero: str) -> None:
    plan = fake_plans.causal(name="never_compiled")
    crash = plan.kernels[0]._replace(text="this does not compile")
    executable = Executable(plan._replace(kernels=(crash,)))
    executable.run(buffers_for(plan)[0], {**SIZES, zero: 0}, NUMBERS)


def test_kernels_run_in_order_each_with_its_own_arguments() -> None:
    first, second = fake_plans.causal(name="one"), fake_plans.causal(name="two")
    text = """
#include <cstdint>
{struct}
extern "C" void two(const Params* p, int threads) {{
  float* o = (float*)p->o;
  for (int n = 0; n < 4 * 3 * 8; ++n) o[n] *= 2;
}}"""
    fields = fake_plans.fields_of((first.tensor("o"),), ())
    doubling = second.kernels[0]._replace(text=text.format(struct=fake_plans.c_struct(fields)),
                       fields=fields, params=(), tensors=("o",))
    buffers, t = buffers_for(first)
    Executable(first).run(buffers, SIZES, NUMBERS)
    once = t["o"].clone()
    Executable(first._replace(kernels=(first.kernels[0], doubling))).run(buffers, SIZES, NUMBERS)
    torch.testing.assert_close(t["o"], 2 * once)


def test_text_without_its_entry() -> None:
    plan = fake_plans.causal()
    lost = plan.kernels[0]._replace(text='extern "C" void other() {}', name="wanted")
    with pytest.raises(LaunchError, match="kernel wanted has no such entry"):
        Executable(plan._replace(kernels=(lost,))).build()


def test_hand_edited_text_replaces_the_generated_one(tmp_path: Path) -> None:
    notice.forget()
    plan = fake_plans.causal(name="edited")
    (tmp_path / "edited.cpp").write_text(plan.kernels[0].text.replace("acc[d] / sum", "7"))
    buffers, t = buffers_for(plan)
    with knobs.scope(override=tmp_path), pytest.warns(OverrideWarning, match="edited.cpp"):
        Executable(plan).run(buffers, SIZES, NUMBERS)
    assert bool((t["o"] == 7).all())
    with knobs.scope(override=tmp_path / "elsewhere"):
        Executable(plan).run(buffers, SIZES, NUMBERS)
    assert not bool((t["o"] == 7).any())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_does_not_wait_for_threads_it_lost() -> None:
    plan = fake_plans.causal()
    executable = Executable(plan)
    buffers, _ = buffers_for(plan)
    executable.run(buffers, SIZES, NUMBERS, threads=2)  # OpenMP now has threads of its own
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        executable.run(buffers, SIZES, NUMBERS, threads=2)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


# -- the device, through a stand-in for CuPy ----------------------------------------------------


class FakeDriver:
    """Records what CuPy would have been told to do."""

    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
        self.loads: list[tuple[bytes, str]] = []
        self.attributes: list[tuple[int, int, int]] = []
        self.launches: list[tuple[Any, ...]] = []
        self.devices: list[int] = []
        self.refuse = ""
        self.size = 0  # of the struct
        cupy = ModuleType("cupy")
        cuda = ModuleType("cupy.cuda")
        function = ModuleType("cupy.cuda.function")
        cupy.cuda, cuda.function, cuda.driver = cuda, function, self  # type: ignore
        function.Module = self.module  # type: ignore[attr-defined]
        cuda.runtime = SimpleNamespace(setDevice=self.devices.append)  # type: ignore
        for name, module in (("cupy", cupy), ("cupy.cuda", cuda),
                             ("cupy.cuda.function", function)):
            monkeypatch.setitem(sys.modules, name, module)
        for name, value in (
                ("is_available", lambda: True), ("current_device", lambda: 0),
                ("get_device_capability", lambda device=None: capability),
                ("get_device_name", lambda device=None: "Imaginary 100"),
                ("is_current_stream_capturing", lambda: False),
                ("device", lambda index: nullcontext())):
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(device_kernel, "_threads", device_kernel._Threads())

    def module(self) -> Any:
        state: dict[str, bytes] = {}

        def get_function(name: str) -> Any:
            assert type(name) is str  # CuPy takes no subclass
            self.loads.append((state["code"], name))
            return SimpleNamespace(ptr=1234)

        return SimpleNamespace(load=lambda code: state.update(code=code),
                               get_function=get_function)

    def funcSetAttribute(self, function: int, attribute: int, value: int) -> None:
        self.attributes.append((function, attribute, value))

    def launchKernel(self, *arguments: Any) -> None:
        if self.refuse:
            raise RuntimeError(self.refuse)
        *where, table, _ = arguments
        struct = ctypes.c_void_p.from_address(table).value
        self.launches.append((*where, ctypes.string_at(struct or 0, self.size)))


class FakeStream:
    device_index = 1
    cuda_stream = 77


def test_a_device_launch_gets_the_struct_by_value_on_torchs_stream(
        monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver(monkeypatch, (8, 6))
    plan = fake_plans.copy_cuda("sm_80")
    executable = Executable(plan)
    driver.size = struct.calcsize(struct_format(plan.kernels[0].fields))
    buffers, _ = buffers_for(plan)
    for _ in range(2):
        executable.run(buffers, {**SIZES, "seqlen_q": 300}, {**NUMBERS, "kv_len_ptr": 4096},
                       stream=FakeStream())
    assert [(code[:4], name) for code, name in driver.loads] == [(b"\x7fELF", "copy_rows")]
    assert driver.attributes == [(1234, 8, 65536)]
    assert driver.devices == [1]  # once in a thread
    assert len(driver.launches) == 2
    function, *numbers, packed = driver.launches[0]
    assert (function, numbers) == (1234, [3, 1, 1, 128, 1, 1, 65536, 77])
    got = unpacked(plan, packed)
    assert got["q"] == buffers["q"].ptr and got["kv_len_ptr"] == 4096 and got["seqlen_q"] == 300


def test_building_loads_where_the_device_can_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver(monkeypatch, (9, 0))
    (cubin,) = Executable(fake_plans.copy_cuda("sm_90")).build()
    assert cubin.resources["copy_rows"].registers > 0 and len(driver.loads) == 1
    Executable(fake_plans.copy_cuda("sm_80")).build()  # code for a machine that is not here
    assert len(driver.loads) == 1


def test_device_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver(monkeypatch, (9, 0))
    plan = fake_plans.copy_cuda("sm_80")
    buffers, _ = buffers_for(plan)

    def run(plan: Plan, sizes: dict[str, int] = SIZES) -> None:
        Executable(plan).run(buffers, sizes, NUMBERS, stream=FakeStream())

    with pytest.raises(DeviceError, match="code for sm_80 does not run on Imaginary 100"):
        run(plan)
    plan = fake_plans.copy_cuda("sm_90")
    driver.refuse = "CUDA_ERROR_INVALID_VALUE"
    with pytest.raises(LaunchError, match="CUDA_ERROR_INVALID_VALUE") as refused:
        run(plan)
    assert "65536 B shared memory" in str(refused.value)
    kernel = plan.kernels[0]._replace(grid=(GridDim(1), GridDim(1), GridDim("batch")))
    with pytest.raises(LaunchError, match="too many blocks along z"):
        run(plan._replace(kernels=(kernel,)), {**SIZES, "batch": 65536})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(LaunchError, match="Call it once before the capture"):
        run(plan)


def test_without_a_gpu_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    plan = fake_plans.copy_cuda()
    with pytest.raises(NoDeviceError, match="target sm_80 needs a GPU") as refused:
        Executable(plan).run(buffers_for(plan)[0], SIZES, NUMBERS)
    assert "emulate=True" in refused.value.remedy
    (cubin,) = Executable(plan).build()  # the machine code needs none
    assert cubin.code.startswith(b"\x7fELF")


def test_without_cupy_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(NoDeviceError, match=r'pip install "attngen\[cuda13\]"'):
        device_kernel.import_cupy()


# -- the emulator, through a stand-in -----------------------------------------------------------


def test_an_emulated_launch_names_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    class Program:
        def launch(self, *arguments: Any, **named: Any) -> str:
            calls.append((arguments, named))
            return "counters"

    fake = ModuleType("attngen.runtime.emulator")
    fake.Region = Region  # type: ignore[attr-defined]
    fake.pointers = pointers  # type: ignore[attr-defined]
    fake.load = lambda text: Program()  # type: ignore[attr-defined]
    import attngen.runtime

    monkeypatch.setitem(sys.modules, "attngen.runtime.emulator", fake)
    monkeypatch.setattr(attngen.runtime, "emulator", fake, raising=False)
    plan = fake_plans.copy_cuda()
    executable = Executable(plan, emulate=True)
    buffers, tensors = buffers_for(plan)
    with knobs.scope(seed=5):
        executable.run(buffers, SIZES, {**NUMBERS, "q_offset_ptr": 4096})
    ((entry, grid, threads, shared, packed, regions), named) = calls[0]
    assert (entry, grid, threads, shared) == ("copy_rows", (1, 1, 1), 128, 65536)
    assert named == {"seed": 5}
    bound = dict(zip((r.name for r in regions), pointers(regions), strict=True))
    assert {n: x for n, x in unpacked(plan, packed).items() if n in bound} == bound
    assert {r.name: (r.ptr, r.nbytes, r.writable) for r in regions} == {
        **{n: (buffers[n].ptr, 4 * t.numel(), n in ("o", "lse")) for n, t in tensors.items()},
        "q_offset_ptr": (4096, 4, False)}
    assert executable.counters == ("counters",)
