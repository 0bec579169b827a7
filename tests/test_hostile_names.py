"""Whatever users call their functions, tensors and numbers, kernels compile and mean the same."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, assert_matches_oracle, make_qkv

import attngen as ag
from attngen.ir.naming import kernel_name
from attngen.templates.names import _SKELETON, c_name

PACKAGE = ROOT / "attngen"


def declared(path: Path) -> Iterator[str]:
    """Macros, types, constants and functions of a device layer file."""
    text = re.sub(r"//.*", "", path.read_text())
    for pattern in (r"#define\s+(\w+)", r"\b(?:struct|class|using)\s+(\w+)",
                    r"typedef[^;]*?\b(\w+);", r"constexpr\s+\w+\s+(\w+)",
                    r"(?:DEVICE_FN|SYNC_FN|INLINE)\b[^({;]*?\b(\w+)\s*\("):
        yield from re.findall(pattern, text)


def written(path: Path) -> Iterator[str]:
    """Identifiers that stand in a template outside of its comments and expressions."""
    text = re.sub(r"\{#.*?#\}|\{%.*?%\}|//[^\n]*", " ", path.read_text(), flags=re.DOTALL)
    text = re.sub(r'"(\\.|[^"\\])*"', '""', re.sub(r"\{\{.*?\}\}", "@", text, flags=re.DOTALL))
    yield from re.findall(r"(?<![@\w.\"'])[A-Za-z_]\w*(?![@\w])", text)


TAKEN = {
    *(name for folder in ("templates/device/cpu", "templates/device/cuda",
                          "runtime/emulator/device")
      for path in (PACKAGE / folder).iterdir() if path.is_file() for name in declared(path)),
    *(name for path in (PACKAGE / "templates").glob("*/*.jinja") for name in written(path))}


def test_no_name_of_the_kernels_own_is_left_to_users() -> None:
    """After adding a function or a variable to the kernels, add it to ir/naming.py."""
    assert len(TAKEN) > 250
    left = [name for name in TAKEN - _SKELETON
            if str(c_name(kernel_name(name, "table"))) in TAKEN]
    assert left == [], f"add to ir/naming.py: {' '.join(sorted(left))}"


@pytest.mark.parametrize(("spoken", "name"), [
    ("ids", "ids"), ("document_id", "document_id"), ("docIds", "docIds"), ("SLOPES", "slopes"),
    ("_secret", "secret"), ("__int128", "int128"), ("and_eq", "table_and_eq"),
    ("gather", "table_gather"), ("exp_f32", "table_exp_f32"), ("n_begin", "table_n_begin"),
    ("NULL", "table_null"), ("int64_t", "table_int64_t"), ("x_stride_b", "table_x_stride_b"),
    ("größe", "table"), ("x; y", "table"), ("3d", "table"), ("", "table"), ("_", "table"),
    ("_3", "table"), ("x" * 41, "table"), ("*/", "table"), ("a\nb", "table")])
def test_names(spoken: str, name: str) -> None:
    assert kernel_name(spoken, "table") == name


HOSTILE = """
    gather visible exp2_f32 thread_id Params main printf bf16_t NULL errno BLOCK_M TILE lanes
    columns tile size_t NEG_INF KERNEL DEVICE_FN INLINE lse_out acc m l s n_begin n_end
    n_full_begin params_ptr __global__ threadIdx EOF stdin thread_local and_eq not_eq __int128
    _Complex xor_eq int64_t reinterpret_cast kv_idx q_idx _ __ do this größe ids_stride_0 ids_size_0
    ids I unix half float8 schedule omp std
    """.split() + ['x); __trap(); (', "/* */", "a\nb", '"', "%", "{{ 7 }}", "*/ #include <x>", "1"]


@pytest.mark.parametrize("target", ["cpu", "sm_80"])
def test_captured(target: str) -> None:
    tables = {name: torch.arange(50) + n for n, name in enumerate(HOSTILE)}
    numbers = [ag.dynamic(40 + n, name=name) for n, name in enumerate(HOSTILE)]

    def mask(b: Any, h: Any, q_idx: Any, kv_idx: Any, /, **held: Any) -> Any:
        seen = q_idx - kv_idx < 45
        for table in held.values():
            seen = seen & (table[kv_idx] < 100)
        for number in numbers:
            seen = seen & (q_idx - kv_idx < number)
        return seen

    spec = ag.AttentionSpec(heads=1, head_dim=16, mask=functools.partial(mask, **tables))
    attn = ag.compile(spec, target, emulate=target != "cpu")
    q, k, v = make_qkv(spec, 1, 50, dtype=torch.bfloat16)
    assert_matches_oracle(spec, q, k, v, attn(q, k, v))
    assert not re.search(r"trap|#include <x>|\{\{|größe", attn.source("forward", "bfloat16"))


@pytest.mark.parametrize("name", [
    "gather", "größe", "a\n#include <x>\n*/",
    *(pytest.param(n, marks=pytest.mark.full) for n in HOSTILE)])
def test_functions(name: str) -> None:
    table = torch.arange(50) % 7

    def mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return (table[q_idx] * 3 + kv_idx) % 5 < table[kv_idx]

    def score(s: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return torch.tanh(s * 2) * table[q_idx] % 3.0

    for function in (mask, score):
        function.__name__ = function.__qualname__ = name
    spec = ag.AttentionSpec(heads=1, head_dim=16, mask=mask, score=score)
    for target in ("cpu", "sm_80"):
        attn = ag.compile(spec, target, emulate=target != "cpu")
        q, k, v = make_qkv(spec, 1, 50, dtype=torch.float16)
        assert_matches_oracle(spec, q, k, v, attn(q, k, v))
        lines = attn.source("forward", "float16").splitlines()
        code = [line.partition("//")[0] for line in lines]
        assert not any("trap" in line or "#include <x>" in line for line in code)
