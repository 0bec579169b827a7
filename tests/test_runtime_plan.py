"""Plans, their C struct, targets, fingerprints: the runtime's plain data."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_plans
import pytest
import torch

from attngen import AttentionSpec, masks
from attngen.compiler import Options, lower, make_plan
from attngen.errors import LaunchError, NotDeliveredError, ShapeError, UnknownTargetError
from attngen.runtime import targets
from attngen.runtime.fingerprint import fingerprint_of, package_fingerprint
from attngen.runtime.launch import Buffer
from attngen.runtime.params import Packer
from attngen.runtime.plan import Field, GridDim, Plan, struct_format


def test_plan_survives_json() -> None:
    plan = fake_plans.causal(vectorized=True)._replace(spec_json='{"heads": 4}')
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.key() == plan.key()
    assert plan._replace(target="sm_80").key() != plan.key()


@pytest.mark.parametrize("text", ["", "[]", "{}", "3", "[0, 1]", "[2, 1, 2, 3]",
                                  '[2, null, "cpu", "forward", [7], [], {}, {}]'])
def test_what_is_no_plan_says_so(text: str) -> None:
    with pytest.raises(ValueError, match="not a plan"):
        Plan.from_json(text)


C_TYPES = {"pointer": ctypes.c_void_p, "int64": ctypes.c_int64, "int32": ctypes.c_int32,
           "float32": ctypes.c_float, "float64": ctypes.c_double}


@pytest.mark.parametrize("ctypes_in_order", [
    "pointer", "int32", "pointer int64 int32", "int32 pointer", "int32 int32 int32 float64 float32",
    "float32 int64 float32 int32 pointer int32"])
def test_struct_format_is_the_layout_of_c(ctypes_in_order: str) -> None:
    fields = [Field(f"f{n}", ctype) for n, ctype in enumerate(ctypes_in_order.split())]
    members = [(f.name, C_TYPES[f.ctype]) for f in fields]
    c_struct = type("S", (ctypes.Structure,), {"_fields_": members})
    layout = struct_format(fields)
    assert struct.calcsize(layout) == ctypes.sizeof(c_struct)
    values = [n + 1 for n in range(len(fields))]
    filled = c_struct.from_buffer_copy(struct.pack(layout, *values))
    assert [getattr(filled, f.name) for f in fields] == values


def test_grid_rounds_up_and_keeps_zero() -> None:
    assert GridDim("seqlen_q", 64).blocks({"seqlen_q": 65}) == 2
    assert GridDim("seqlen_q", 64).blocks({"seqlen_q": 0}) == 0
    assert GridDim(7, 2).blocks({}) == 4


SIZES = {"batch": 2, "heads": 4, "groups": 2, "seqlen_q": 5, "seqlen_k": 6, "head_dim": 16,
         "head_dim_v": 8}
NUMBERS = {"q_offset": 1, "kv_offset": -3, "kv_len": 6}


def packer_and_buffers() -> tuple[Packer, dict[str, Buffer]]:
    plan = fake_plans.causal()
    buffers = {t.name: Buffer(4096 * (n + 1), tuple(100 * n + m for m in range(len(t.axes))))
               for n, t in enumerate(plan.tensors)}
    return Packer(plan.kernels[0], plan.tensors), buffers


def test_packing_puts_every_value_in_its_field() -> None:
    packer, buffers = packer_and_buffers()
    packed = packer.pack(buffers, SIZES, {**NUMBERS, "q_offset_ptr": 77})
    fields = packer.kernel.fields
    got = dict(zip((f.name for f in fields), struct.unpack(struct_format(fields), packed),
                   strict=True))
    assert got["q"] == 4096 and got["lse"] == 5 * 4096
    assert (got["k_stride_b"], got["k_stride_g"], got["k_stride_j"]) == (100, 101, 102)
    assert got["q_offset_ptr"] == 77 and got["kv_offset_ptr"] == 0 and got["kv_len_ptr"] == 0
    assert (got["seqlen_q"], got["seqlen_k"], got["batch"]) == (5, 6, 2)
    assert (got["q_offset"], got["kv_offset"], got["kv_len"]) == (1, -3, 6)


def test_packing_refuses_what_does_not_fit() -> None:
    packer, buffers = packer_and_buffers()
    with pytest.raises(ShapeError, match=r"seqlen_q=4294967296 does not fit int32"):
        packer.pack(buffers, {**SIZES, "seqlen_q": 2**32}, NUMBERS)
    with pytest.raises(LaunchError, match=r"no value for 'kv_len'"):
        packer.pack(buffers, SIZES, {"q_offset": 1, "kv_offset": 0})
    with pytest.raises(LaunchError, match="one stride per axis"):
        packer.pack({**buffers, "q": Buffer(0, (1, 2, 3))}, SIZES, NUMBERS)
    kernel = packer.kernel._replace(fields=(*packer.kernel.fields, Field("bias", "pointer")))
    with pytest.raises(LaunchError, match="arguments nobody provides") as refused:
        Packer(kernel, fake_plans.tensors())
    assert refused.value.numbers == "bias"


def test_targets_by_name() -> None:
    for name in targets.NAMES:
        target = targets.get_target(name)
        assert target.name == name
        assert target.matrix_flops > 0 and target.bandwidth > 0 and target.sms > 0
    assert targets.get_target("sm_86").shared_limit == 101376  # 99 KiB
    assert targets.get_target("sm_90").shared_limit == 232448  # 227 KiB
    with pytest.raises(UnknownTargetError, match="Did you mean 'sm_90'"):
        targets.get_target("sm90")
    with pytest.raises(NotDeliveredError, match="Use 'sm_90'"):
        targets.get_target("sm_90a")


@pytest.mark.parametrize(("capability", "name"), [
    ((8, 0), "sm_80"), ((8, 6), "sm_86"), ((8, 7), "sm_86"), ((8, 9), "sm_89"), ((9, 0), "sm_90"),
    ((10, 0), "sm_100"), ((10, 3), "sm_100"), ((12, 1), "sm_120"), ((7, 5), None), ((11, 0), None)])
def test_target_of_a_device(capability: tuple[int, int], name: str | None) -> None:
    found = targets.target_for(capability)
    assert (found.name if found else None) == name


def test_default_target_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert targets.default_target().name == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    assert targets.default_target().name == "sm_90"


def test_fingerprint_sees_contents_names_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.py").write_text("one")
    (tmp_path / "y.jinja").write_text("two")
    first = fingerprint_of(tmp_path)
    (tmp_path / "a" / "x.pyc").write_text("no source")
    assert fingerprint_of(tmp_path) == first
    (tmp_path / "a" / "x.py").write_text("One")
    changed = fingerprint_of(tmp_path)
    (tmp_path / "a" / "x.py").rename(tmp_path / "x.py")
    assert len({first, changed, fingerprint_of(tmp_path)}) == 3
    assert package_fingerprint() == package_fingerprint()


def test_a_plan_made_now_has_plain_strings_as_one_read_from_the_cache() -> None:
    """CuPy and ctypes take no subclass of str, which the templates' pieces of text are."""
    options = Options("sm_80", "bfloat16")
    spec = AttentionSpec(heads=2, head_dim=64, mask=masks.document(torch.tensor([0, 0, 1])))
    made = make_plan(spec, options, lower(spec, options))

    def strings(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            yield from strings((*value, *value.values()))
        elif isinstance(value, tuple | list):
            for part in value:
                yield from strings(part)

    assert {type(text) for text in strings(made)} == {str}
