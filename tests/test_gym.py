"""attention-gym's masks and scores: traced, run on the cpu and as emulated CUDA text against the
oracle, and through FlexAttention's front door against torch's own function."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_gym import BATCH, HEADS, MASKS, Published
from attention_gym_scores import SCORES
from flex_front import assert_as_torch
from helpers import assert_close, make_qkv, only_ours
from torch.nn.attention import flex_attention as theirs

import attngen as ag
from attngen import reference
from attngen.integrations import flex
from attngen.ir.capture import Captures
from attngen.ir.node import idx, interning, value
from attngen.ir.trace import trace

ALL = {**MASKS, **SCORES}
# One of each kind of difficulty.
FEW = ("morton_natten", "sta_2d_text", "shared_prefix", "flamingo", "vsa_topk_padded",
       "jetspec_tree", "activation_gelu", "graphormer", "mla_rope")


def every(*quick: str) -> list[Any]:
    return [name if name in quick else pytest.param(name, marks=pytest.mark.full) for name in ALL]


def spec_of(name: str, mod: Any) -> ag.AttentionSpec:
    kind = "mask" if name in MASKS else "score"
    return ag.AttentionSpec(heads=HEADS, head_dim=16, **{kind: mod})


def check(name: str, target: str, dtype: torch.dtype) -> None:
    """The published callable through kernels, the equivalent one through the oracle."""
    case = ALL[name]
    spec, right = spec_of(name, case.mod), spec_of(name, case.oracle)
    tensors = make_qkv(spec, BATCH, case.seqlen_q, case.seqlen_k, dtype=dtype)
    attn = ag.compile(spec, target, emulate=target != "cpu")
    with only_ours():
        o, lse = attn(*tensors, return_lse=True, q_offset=0)
    ref = reference.attention(right, *tensors, q_offset=0)
    naive = reference.naive(right, *tensors, q_offset=0)
    assert_close(o, ref[0], naive[0], name="o")
    assert_close(lse, ref[1], naive[1], name="lse")


def test_there_are_as_many_as_published() -> None:
    assert len(MASKS) >= 25 and len(SCORES) >= 10


@pytest.mark.parametrize("name", ALL)
def test_trace(name: str) -> None:
    """The expression is for its own arguments alone, and its tables are the tensors captured."""
    indices = tuple(idx(axis) for axis in "bhij")
    captures = Captures()
    with interning():
        if name in MASKS:
            node = trace(ALL[name].mod, indices, name, "bool", captures, HEADS)
        else:
            score = value("s", "bhij", "float32")
            node = trace(ALL[name].mod, (score, *indices), name, "float32", captures, HEADS)
    assert node.dtype == ("bool" if name in MASKS else "float32")
    assert all(table.source is not None for table in captures.tables)


@pytest.mark.parametrize("name", every(*FEW))
def test_cpu(name: str) -> None:
    check(name, "cpu", torch.float32)


@pytest.mark.parametrize("name", every(*FEW[2:]))
def test_emulated(name: str) -> None:
    check(name, "sm_80", torch.bfloat16 if len(name) % 2 else torch.float16)


@pytest.mark.parametrize("name", every(*FEW[::2]))
def test_flex(name: str) -> None:
    """With torch's block mask, which both take, and with ours."""
    case: Published = ALL[name]
    tensors = make_qkv(spec_of(name, None), BATCH, case.seqlen_q, case.seqlen_k)
    if name in SCORES:
        assert_as_torch(tensors, score_mod=case.mod)
        return
    sizes = (BATCH, HEADS, case.seqlen_q, case.seqlen_k)
    block_mask = theirs.create_block_mask(case.mod, *sizes, device="cpu", BLOCK_SIZE=32)
    assert_as_torch(tensors, block_mask=block_mask)
    ours = flex.flex_attention(*tensors, block_mask=flex.create_block_mask(case.mod, *sizes))
    torch.testing.assert_close(ours, flex.flex_attention(*tensors, block_mask=block_mask))


@pytest.mark.parametrize("name", MASKS)
def test_tiles(name: str) -> None:
    """What is proved of tiles is so, for every pair in them."""
    case = MASKS[name]
    attn = ag.compile(spec_of(name, case.mod), "cpu")
    tiles = attn.tiles(case.seqlen_q, case.seqlen_k, (16, 8), batch=BATCH, q_offset=0).dense()
    seen = reference.visible(spec_of(name, case.oracle), BATCH, case.seqlen_q, case.seqlen_k,
                             q_offset=0)
    for row in range(tiles.shape[-2]):
        for column in range(tiles.shape[-1]):
            pairs = seen[..., row * 16:row * 16 + 16, column * 8:column * 8 + 8]
            kind = torch.as_tensor(tiles)[..., row, column].expand(BATCH, HEADS)
            assert not pairs[kind == 0].any() and pairs[kind == 2].all(), (row, column)


def test_an_operator_of_unknown_meaning_is_refused() -> None:
    torch.library.define("attngen_test::tanh", "(Tensor x) -> Tensor")

    def mod(score: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
        return torch.ops.attngen_test.tanh(score)
    with pytest.raises(ag.errors.TraceError, match="attngen_test::tanh cannot be traced"):
        ag.compile(spec_of("softcap", mod), "cpu")


def test_the_equivalents_for_wide_indices_say_the_same() -> None:
    for name, case in ALL.items():
        if case.wide is None:
            continue
        dims = (torch.zeros((), dtype=torch.long), torch.ones((), dtype=torch.long))
        extra = () if name in MASKS else (torch.tensor(0.5),)
        for q, k in ((0, 0), (5, 50), (31, 33), (60, 20)):
            pair = torch.tensor(q), torch.tensor(k)
            torch.testing.assert_close(case.mod(*extra, *dims, *pair),
                                       case.wide(*extra, *dims, *pair))


@pytest.mark.parametrize("head_dim", [16, 64, 128])
@pytest.mark.parametrize("name", every("activation_relu", "mla_rope", "shared_prefix"))
def test_no_register_is_spilled(name: str, head_dim: int) -> None:
    kind = "mask" if name in MASKS else "score"
    spec = ag.AttentionSpec(heads=HEADS, head_dim=head_dim, **{kind: ALL[name].mod})
    for target in ("sm_80", "sm_90", "sm_120"):
        (cubin,) = ag.compile(spec, target).build()
        assert [r.spill_stores + r.spill_loads for r in cubin.resources.values()] == [0], target
        assert not cubin.remarks, target
