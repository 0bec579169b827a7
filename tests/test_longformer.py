"""Longformer's attention against Transformers' own, and against one row at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attngen.errors import AttngenError, DtypeError, ShapeError, WindowError
from attngen.integrations import longformer
from attngen.integrations.longformer import longformer_attention

HEADS, DIM, LENGTH, WINDOW = 3, 8, 48, 8
# How many of each sequence's tokens are real, and which of them are global.
SEQUENCES: dict[str, tuple[list[int], list[list[int]]]] = {
    "no global": ([48, 48], [[], []]), "some": ([48, 48], [[0, 5, 40], [47]]),
    "one sequence": ([48, 48], [[], [3]]), "all": ([48, 48], [list(range(48))] * 2),
    "padded": ([29, 48], [[0, 1], [2, 30]]), "padded, no global": ([20, 33], [[], []])}


def marks(real: list[int], chosen: list[list[int]]) -> tuple[Tensor, Tensor]:
    """(is_global, padding) of a batch."""
    padding = torch.arange(LENGTH) < torch.tensor(real)[:, None]
    is_global = torch.zeros(len(real), LENGTH, dtype=torch.bool)
    for row, found in zip(is_global, chosen, strict=True):
        row[found] = True
    return is_global, padding


def literal(tensors: tuple[Tensor, ...], window: tuple[int, int], is_global: Tensor,
            padding: Tensor) -> Tensor:
    """In float64, a row at a time."""
    q, k, v, *of_global = (t.double() for t in tensors)
    o = torch.zeros(*q.shape[:3], v.shape[-1], dtype=torch.float64)
    groups = q.shape[1] // k.shape[1]
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                if not padding[b, i]:
                    continue
                row, keys, values = (t[b] for t in (of_global if is_global[b, i] else (q, k, v)))
                seen = [j for j in range(q.shape[2]) if padding[b, j] and (
                    is_global[b, i] or is_global[b, j] or i - window[0] <= j <= i + window[1])]
                s = keys[h // groups, seen] @ row[h, i] / row.shape[-1]**0.5
                o[b, h, i] = s.softmax(0) @ values[h // groups, seen]
    return o


def random(groups: int = HEADS, batch: int = 2, dtype: Any = torch.float32,
           head_dim_v: int = DIM) -> tuple[Tensor, ...]:
    make = torch.Generator().manual_seed(4)
    return tuple(torch.randn(batch, n, LENGTH, d, generator=make).to(dtype)
                 for _ in range(2)
                 for n, d in ((HEADS, DIM), (groups, DIM), (groups, head_dim_v)))


@pytest.mark.parametrize("name", SEQUENCES)
def test_rows_are_those_of_the_definition(name: str) -> None:
    is_global, padding = marks(*SEQUENCES[name])
    tensors = random(groups=1, head_dim_v=16)
    o = longformer_attention(*tensors, window=(5, 2), is_global=is_global, padding=padding)
    torch.testing.assert_close(o.double(), literal(tensors, (5, 2), is_global, padding),
                               rtol=1e-5, atol=1e-5)
    assert not o[~padding[:, None].expand(-1, HEADS, -1)].any()


@pytest.mark.parametrize("name", SEQUENCES)
def test_same_as_transformers(name: str) -> None:
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    torch.manual_seed(5)
    size = HEADS * DIM
    module = LongformerSelfAttention(LongformerConfig(
        hidden_size=size, num_attention_heads=HEADS, attention_window=[WINDOW],
        attention_probs_dropout_prob=0.0), layer_id=0).eval()
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.3)
    is_global, padding = marks(*SEQUENCES[name])
    hidden = torch.randn(2, LENGTH, size)
    hide = torch.where(padding, is_global.float(), -1.0) * 10000.0
    with torch.no_grad():
        theirs = module(hidden, attention_mask=hide, is_index_masked=hide < 0,
                        is_index_global_attn=hide > 0, is_global_attn=bool((hide > 0).any()))[0]
        tensors = [linear(hidden).unflatten(-1, (HEADS, DIM)).transpose(1, 2) for linear in (
            module.query, module.key, module.value,
            module.query_global, module.key_global, module.value_global)]
        ours = longformer_attention(*tensors, window=(WINDOW // 2, WINDOW // 2),
                                    is_global=is_global, padding=padding)
    ours = ours.transpose(1, 2).flatten(2)
    torch.testing.assert_close(ours[padding], theirs[padding], rtol=1e-5, atol=1e-5)


def test_emulated_on_tensor_cores() -> None:
    is_global, padding = marks([48], [[0, 17]])
    padding[:, 40:] = False
    tensors = random(batch=1, dtype=torch.bfloat16)
    o = longformer_attention(*tensors, window=(4, 4), is_global=is_global, padding=padding,
                             target="sm_80", emulate=True)
    torch.testing.assert_close(o.double(), literal(tensors, (4, 4), is_global, padding),
                               rtol=0, atol=2e-2)


def test_one_kernel_for_all_tokens_and_lengths() -> None:
    longformer._local.cache_clear()
    longformer._everywhere.cache_clear()
    tensors = random()
    for n in range(1, 20):
        is_global, padding = marks([48 - n, 48], [[n], list(range(n))])
        part = tuple(t[:, :, :48 - n // 4] for t in tensors)
        longformer_attention(*part, window=(3, 3), is_global=is_global[:, :48 - n // 4],
                             padding=padding[:, :48 - n // 4])
    assert longformer._local.cache_info().misses == 1
    assert longformer._everywhere.cache_info().misses == 1
    for kept in (longformer._local, longformer._everywhere):
        attn = kept(*((longformer.sizes_of(*tensors[:3]), (3, 3), None, "cpu", False)
                      if kept is longformer._local
                      else (longformer.sizes_of(*tensors[:3]), None, "cpu", False)))
        assert len(attn._variants) == 1


def _with(**changed: Any) -> Any:
    is_global, padding = marks([48, 48], [[0], [1]])
    given = {"window": (2, 2), "is_global": is_global, "padding": padding, **changed}
    tensors = given.pop("tensors", random())
    return longformer_attention(*tensors, **given)


@pytest.mark.parametrize(("error", "changed"), [
    (ShapeError, {"is_global": torch.zeros(2, 47, dtype=torch.bool)}),
    (DtypeError, {"is_global": torch.zeros(2, 48)}),
    (DtypeError, {"padding": torch.ones(2, 48, dtype=torch.int64)}),
    (WindowError, {"window": 8}), (AttngenError, {"window": (-1, 2)}),
    (ShapeError, {"tensors": (*random()[:3], *random(batch=1)[3:])}),
    (DtypeError, {"tensors": (*random()[:3], *random(dtype=torch.float64)[3:])})],
    ids=["marks shape", "marks dtype", "padding dtype", "window", "negative", "batch", "dtype"])
def test_what_does_not_fit_is_refused(error: type[Exception], changed: dict[str, Any]) -> None:
    with pytest.raises(error):
        _with(**changed)
