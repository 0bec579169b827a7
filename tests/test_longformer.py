"""Longformer's attention against Transformers' own, and against one row at a time: what is read,
what is run, what compiles."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import assert_close, only_ours
from torch import Tensor

from attngen.errors import AttngenError, DeviceError, DtypeError, ShapeError, WindowError
from attngen.integrations import longformer
from attngen.integrations.longformer import longformer_attention
from attngen.runtime import cxx, nvrtc

HEADS, DIM, LENGTH, WINDOW = 3, 8, 48, 8
# How many of each sequence's tokens are real, and which of them are global.
SEQUENCES: dict[str, tuple[list[int], list[list[int]]]] = {
    "no global": ([48, 48], [[], []]), "some": ([48, 48], [[0, 5, 40], [47]]),
    "one sequence": ([48, 48], [[], [3]]), "all": ([48, 48], [list(range(48))] * 2),
    "padded": ([29, 48], [[0, 1], [2, 30]]), "padded, no global": ([20, 33], [[], []])}


def six(batch: int, heads: int, groups: int, seqlen: int, dim: int = 16, dim_v: int = 16,
        dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """q, k, v, q_global, k_global, v_global."""
    sizes = ((heads, dim), (groups, dim), (groups, dim_v)) * 2
    return [torch.randn(batch, n, seqlen, d).to(dtype) for n, d in sizes]


def marks(batch: int, seqlen: int, *rows: list[int]) -> Tensor:
    made = torch.zeros(batch, seqlen, dtype=torch.bool)
    for b, positions in enumerate(rows):
        made[b, positions] = True
    return made


def by_rows(tensors: list[Tensor], window: tuple[int, int], is_global: Tensor,
            padding: Tensor | None = None, scale: float | None = None) -> Tensor:
    """The definition, a row at a time, in the tensors' dtype."""
    q, k, v, *of_global = tensors
    batch, heads, seqlen, dim = q.shape
    each, (left, right) = heads // k.shape[1], window
    o = torch.zeros(batch, heads, seqlen, v.shape[3], dtype=q.dtype)
    for b in range(batch):
        real = [j for j in range(seqlen) if padding is None or padding[b, j]]
        for i in real:
            mine = bool(is_global[b, i])
            keys = [j for j in real if mine or is_global[b, j] or i - left <= j <= i + right]
            for h in range(heads):
                query, key, value = of_global if mine else (q, k, v)
                s = key[b, h // each, keys] @ query[b, h, i] * (scale or 1 / math.sqrt(dim))
                o[b, h, i] = torch.softmax(s, 0) @ value[b, h // each, keys]
    return o


def check(tensors: list[Tensor], window: tuple[int, int], is_global: Tensor,
          padding: Tensor | None = None, scale: float | None = None, **where: Any) -> Tensor:
    with only_ours():
        o = longformer_attention(*tensors, window=window, is_global=is_global, padding=padding,
                                 scale=scale, **where)
    exact = by_rows([t.double() for t in tensors], window, is_global, padding, scale)
    assert_close(o, exact, by_rows(tensors, window, is_global, padding, scale))
    if padding is not None:
        assert not o.transpose(1, 2)[~padding].any()
    return o


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
    real, chosen = SEQUENCES[name]
    is_global = marks(2, LENGTH, *chosen)
    padding = torch.arange(LENGTH) < torch.tensor(real)[:, None]
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


@pytest.mark.parametrize("window", [(0, 0), (5, 0), (0, 2), (100, 100)])
def test_windows(window: tuple[int, int]) -> None:
    check(six(2, 2, 2, 50), window, marks(2, 50, [3, 40]), scale=0.3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    check(six(2, 2, 1, 40, dtype=dtype), (4, 4), marks(2, 40, [0], [9, 30]),
          torch.arange(40) < torch.tensor([40, 33])[:, None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_emulated(dtype: torch.dtype) -> None:
    check(six(2, 2, 1, 70, 32, 32, dtype), (4, 6), marks(2, 70, [0, 66], [9]),
          torch.arange(70) < torch.tensor([70, 21])[:, None], target="sm_80", emulate=True)


def test_padding_anywhere_hides_what_it_holds() -> None:
    tensors, padding = six(2, 2, 2, 24), torch.rand(2, 24) > 0.3
    is_global = torch.rand(2, 24) > 0.7
    assert (is_global & ~padding).any(1).all()
    assert torch.equal(check(tensors, (2, 2), is_global, padding),
                       check(tensors, (2, 2), is_global & padding, padding))
    for t in tensors:
        t.transpose(1, 2)[~padding] = 1e30
    clean = [t.where(t < 1e29, 0.0) for t in tensors]
    assert torch.equal(longformer_attention(*tensors, window=(2, 2), is_global=is_global,
                                            padding=padding),
                       check(clean, (2, 2), is_global, padding))


def test_only_global_rows_of_q_global_are_read() -> None:
    tensors, is_global = six(2, 2, 2, 24), marks(2, 24, [3], [3, 8])
    before = check(tensors, (2, 2), is_global)
    tensors[3].transpose(1, 2)[~is_global] = math.nan
    assert torch.equal(before, longformer_attention(*tensors, window=(2, 2), is_global=is_global))


def test_the_second_attention_runs_as_many_rows_as_there_are_global_tokens(
        monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    right = longformer._everywhere

    def counted(*key: Any) -> Any:
        def run(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Any:
            rows.append(q.shape[2])
            return right(*key)(q, k, v, **given)
        return run

    monkeypatch.setattr(longformer, "_everywhere", counted)
    for where in ([[], []], [[4], [0]], [[0, 7, 28], [1]]):
        check(six(2, 2, 2, 29), (3, 3), marks(2, 29, *where))
    assert rows == [1, 3]


def test_nothing() -> None:
    for batch, seqlen in ((0, 8), (2, 0)):
        o = longformer_attention(*six(batch, 2, 2, seqlen), window=(1, 1),
                                 is_global=marks(batch, seqlen))
        assert o.shape == (batch, 2, seqlen, 16)


def test_other_tokens_and_lengths_compile_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    right = longformer.compile

    def counted(spec: Any, target: str, **options: Any) -> Any:
        compiled.append(target)
        return right(spec, target, **options)

    monkeypatch.setattr(longformer, "compile", counted)
    for globals_ in (1, 5, 9, 17):  # tiles of 8, 16 and 32 rows of two heads, and of many
        check(six(2, 6, 3, 20), (3, 1), marks(2, 20, list(range(globals_))))
    assert compiled == ["cpu", "cpu"]

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a kernel was compiled")

    with monkeypatch.context() as patch:
        patch.setattr(cxx, "load_text", refuse)
        patch.setattr(nvrtc, "compile_cubin", refuse)
        for n in range(8):
            is_global = torch.rand(1 + n % 3, 20 + n) > 0.2 * n
            check(six(1 + n % 3, 6, 3, 20 + n), (3, 1), is_global,
                  torch.rand(is_global.shape) > 0.2 if n % 2 else None)
    assert len(compiled) == 2
    check(six(2, 6, 3, 20), (3, 2), marks(2, 20, [0]))
    assert len(compiled) == 3  # another window; global rows have none


def test_devices_must_agree() -> None:
    with pytest.raises(DeviceError, match="padding is on meta, q is on cpu"):
        longformer_attention(*six(2, 2, 2, 12), window=(1, 1), is_global=marks(2, 12),
                             padding=torch.ones(2, 12, dtype=torch.bool, device="meta"))


@pytest.mark.parametrize(("error", "says", "changed"), [
    (ShapeError, r"is_global has shape \(2, 47\)", {"is_global": marks(2, 47)}),
    (DtypeError, "is_global is torch.float32", {"is_global": torch.zeros(2, 48)}),
    (DtypeError, "padding is torch.int64", {"padding": torch.ones(2, 48, dtype=torch.int64)}),
    (WindowError, "is not a pair", {"window": 8}), (AttngenError, "-1", {"window": (-1, 2)}),
    (ShapeError, "q_global has shape", {"of_global": (1, 2, 2, 48)}),
    (DtypeError, "q_global is torch.float64", {"of_global": (2, 2, 2, 48, 16, 16,
                                                             torch.float64)})],
    ids=["marks shape", "marks dtype", "padding dtype", "window", "negative", "batch", "dtype"])
def test_what_does_not_fit_is_refused(error: type[Exception], says: str,
                                      changed: dict[str, Any]) -> None:
    given = {"window": (2, 2), "is_global": marks(2, 48), **changed}
    of_global = given.pop("of_global", (2, 2, 2, 48))
    with pytest.raises(error, match=says):
        longformer_attention(*six(2, 2, 2, 48)[:3], *six(*of_global)[3:], **given)
