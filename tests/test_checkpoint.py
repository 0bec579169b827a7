"""Checkpoints converted to fewer key/value heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attngen as ag
from attngen.errors import DtypeError, GroupsError, ShapeError, UnknownNameError
from attngen.integrations.checkpoint import pool_heads, to_grouped

HEADS, DIM = 6, 8
GROUPS: dict[str, Any] = {"even": 2, "mqa": 1, "each": 6, "uneven": (0, 1, 1, 1, 2, 2)}


def head_of(groups: Any) -> list[int]:
    """The key/value head of each of 6 query heads, spelled out."""
    return list(groups) if isinstance(groups, tuple) else [h * groups // HEADS
                                                           for h in range(HEADS)]


def literal(weight: Tensor, groups: Any) -> Tensor:
    """Mean over the members of each group, row by row."""
    of = head_of(groups)
    rows = []
    for g in range(max(of) + 1):
        members = [h for h in range(HEADS) if of[h] == g]
        for d in range(DIM):
            rows.append(sum(weight[h * DIM + d] for h in members) / len(members))
    return torch.stack(rows)


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("shape", [(HEADS * DIM, 20), (HEADS * DIM,)], ids=["weight", "bias"])
def test_heads_become_their_mean(groups: Any, shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    pooled = pool_heads(weight, HEADS, groups)
    torch.testing.assert_close(pooled, literal(weight, groups), rtol=1e-14, atol=1e-15)
    for dtype in (torch.float32, torch.bfloat16):  # rounded once, from float32
        low = weight.to(dtype)
        exact = literal(low.double(), groups).to(dtype)
        assert pool_heads(low, HEADS, groups).dtype == dtype
        torch.testing.assert_close(pool_heads(low, HEADS, groups), exact)


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
def test_attention_is_the_same_where_heads_were_equal(groups: Any) -> None:
    """But for the rounding of a mean of three."""
    torch.manual_seed(2)
    of, inputs = torch.tensor(head_of(groups)), 16
    x = torch.randn(1, 30, inputs, dtype=torch.float64) / 4

    def project(weight: Tensor) -> Tensor:
        return (x @ weight.T).unflatten(-1, (-1, DIM)).transpose(1, 2)

    q = project(torch.randn(HEADS * DIM, inputs, dtype=torch.float64))
    k, v = (torch.randn(int(of.max()) + 1, DIM, inputs, dtype=torch.float64)[of].flatten(0, 1)
            for _ in range(2))
    many = ag.compile(ag.AttentionSpec(heads=HEADS, head_dim=DIM, causal=True), "cpu")
    few = ag.compile(ag.AttentionSpec(heads=HEADS, groups=groups, head_dim=DIM, causal=True), "cpu")
    torch.testing.assert_close(
        few(q, project(pool_heads(k, HEADS, groups)), project(pool_heads(v, HEADS, groups))),
        many(q, project(k), project(v)), rtol=0, atol=1e-13)


def test_a_model_of_transformers_computes_the_same() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)

    def model(groups: int) -> Any:
        return LlamaForCausalLM(LlamaConfig(
            vocab_size=50, hidden_size=64, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=8, num_key_value_heads=groups)).eval()

    big, small = model(8), model(2)
    with torch.no_grad():
        for name, weight in big.named_parameters():
            if name.endswith(("k_proj.weight", "v_proj.weight")):
                heads = weight.view(8, 8, 64)
                heads.copy_(heads[::4].repeat_interleave(4, 0))
    before = {name: t.clone() for name, t in big.state_dict().items()}
    state = to_grouped(big.state_dict(), 8, 2)
    small.load_state_dict(state)
    assert all(torch.equal(t, before[n]) for n, t in big.state_dict().items())
    same = [n for n, t in big.state_dict().items() if state[n].data_ptr() == t.data_ptr()]
    assert len(before) - len(same) == 2 * 2  # two projections of two layers, the rest is not copied
    tokens = torch.randint(50, (2, 12))
    with torch.no_grad():
        torch.testing.assert_close(small(tokens).logits, big(tokens).logits, rtol=1e-5, atol=1e-5)


def test_mqa_bigcode_from_gpt2() -> None:
    """GPT-2's fused Conv1D becomes GPTBigCode's fused Linear with one key/value head."""
    from transformers import GPT2Config, GPT2LMHeadModel, GPTBigCodeConfig, GPTBigCodeForCausalLM
    size = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 50, "n_positions": 32,
            "bos_token_id": 0, "eos_token_id": 0}
    big = GPT2LMHeadModel(GPT2Config(**size)).eval()
    small = GPTBigCodeForCausalLM(GPTBigCodeConfig(**size, multi_query=True)).eval()
    with torch.no_grad():
        for block in big.transformer.h:
            for p in (block.attn.c_attn.weight, block.attn.c_attn.bias):
                p.normal_()
                for part in p.chunk(3, -1)[1:]:
                    heads = part.unflatten(-1, (4, 16))
                    heads.copy_(heads[..., :1, :].expand_as(heads).clone())
        state = to_grouped(big.state_dict(), 4, 1, names=["c_attn"], fused=True, dim=-1)
        state = {n: t.T if t.dim() == 2 and ".h." in n else t for n, t in state.items()}
        small.load_state_dict(state)
        ids = torch.randint(50, (2, 20))
        torch.testing.assert_close(small(ids).logits, big(ids).logits, atol=2e-5, rtol=0)


def test_exact_for_powers_of_two() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        one = torch.randn(2, 8, 5).to(dtype)
        assert torch.equal(pool_heads(one.repeat_interleave(4, 0).flatten(0, 1), 8, 2),
                           one.flatten(0, 1))


@pytest.mark.parametrize("transposed", [False, True], ids=["linear", "conv1d"])
def test_fused_projections(transposed: bool) -> None:
    module = nn.MultiheadAttention(HEADS * DIM, HEADS)
    weight, bias = module.in_proj_weight.detach(), torch.randn(3 * HEADS * DIM)
    state = {"a.in_proj_weight": weight.T if transposed else weight, "a.in_proj_bias": bias}
    made = to_grouped(state, HEADS, 2, names=["in_proj_weight", "in_proj_bias"], fused=True,
                      dim=-1 if transposed else 0)
    for name, whole in (("a.in_proj_weight", weight), ("a.in_proj_bias", bias)):
        q, k, v = whole.chunk(3)
        want = torch.cat((q, literal(k, 2), literal(v, 2)))
        found = made[name].T if transposed and made[name].dim() == 2 else made[name]
        torch.testing.assert_close(found, want)


def test_two_steps_are_one() -> None:
    weight = torch.randn(HEADS * DIM, 5, dtype=torch.float64)
    once = pool_heads(weight, HEADS, (0, 0, 0, 0, 1, 1))
    step = pool_heads(weight, HEADS, (0, 0, 0, 1, 2, 2))
    twice = pool_heads(step, HEADS, (0, 0, 0, 0, 1, 1), kv_heads=(0, 0, 0, 1, 2, 2))
    torch.testing.assert_close(twice, once, rtol=1e-14, atol=1e-15)


K = {"l.k_proj.weight": torch.zeros(48, 4), "l.v_proj.weight": torch.zeros(48, 4)}


@pytest.mark.parametrize(("error", "says", "call"), [
    (UnknownNameError, "key_proj", lambda: to_grouped(K, 6, 2, names=["key_proj"])),
    (ShapeError, "no whole heads", lambda: to_grouped(K, 5, 1)),
    (ShapeError, "no dimension 2", lambda: pool_heads(K["l.k_proj.weight"], 6, 2, dim=2)),
    (ShapeError, "q, k and v", lambda: to_grouped(K, 5, 1, fused=True)),
    (DtypeError, "int8", lambda: pool_heads(torch.zeros(48, dtype=torch.int8), 6, 2)),
    (GroupsError, "parts query heads", lambda: pool_heads(torch.zeros(16), 6, 3, kv_heads=2))],
    ids=["no module", "rows", "dimension", "fused rows", "quantised", "split"])
def test_what_does_not_fit_is_refused(error: type[Exception], says: str, call: Any) -> None:
    with pytest.raises(error, match=says):
        call()


@pytest.mark.parametrize(("groups", "text"), [
    (4, "groups=4 does not divide heads=6"), ((0, 0, 0, 1, 1), "5 entries for 6 heads"),
    ((0, 0, 0, 2, 2, 2), r"key/value heads \[1\] are read by no query head")])
def test_groups_that_fit_no_spec_are_refused(groups: Any, text: str) -> None:
    with pytest.raises(GroupsError, match=text):
        pool_heads(torch.zeros(48), 6, groups)
