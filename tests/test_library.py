"""Attention as operators: torch.compile, torch.export, and torch's own checks of operators."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import attngen as ag
from attngen import errors, masks

Spec = ag.AttentionSpec


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """What one test compiled is no other's."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def tensors(dtype: torch.dtype = torch.float32, n: int = 20) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, h, n, 16, generator=generator).to(dtype).requires_grad_()
            for h in (4, 2, 2)]


def causal(**fields: Any) -> ag.attention.Attention:  # type: ignore[name-defined]
    return ag.compile(Spec(heads=4, groups=2, head_dim=16, causal=True, **fields), target="cpu")


def arguments(attn: Any, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None = None,
              *rest: Any, seed: Tensor | None = None, p: float = 0.0) -> tuple[Any, ...]:
    where = (*rest, *(None,) * (10 - len(rest)))
    return (q, k, v, [*attn.buffers.values()], sinks, seed, *where, p, attn.key)


SLOPES = torch.tensor([0.1, 0.2, 0.3, 0.4], requires_grad=True)
IDS = torch.arange(20) // 7
OFFSETS = torch.tensor([3, -2], dtype=torch.int32)
CALLS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "plain": lambda: arguments(causal(), *tensors()),
    "bfloat16": lambda: arguments(causal(), *tensors(torch.bfloat16)),
    "captured": lambda: arguments(causal(
        mask=masks.document(IDS), score=lambda s, b, h, i, j: s + SLOPES[h] * (j - i)), *tensors()),
    "sinks": lambda: arguments(causal(sinks=True), *tensors(), torch.zeros(4, requires_grad=True)),
    "offsets": lambda: arguments(causal(), *tensors(), None, OFFSETS),
    "dropout": lambda: arguments(causal(), *tensors(), seed=torch.tensor([5]), p=0.3),
    "transposed": lambda: arguments(causal(), *(
        t.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
        for t in tensors())),
}
_KEPT: list[Any] = []  # an Attention lives as long as someone holds it


@pytest.mark.parametrize("name", CALLS)
def test_torch_finds_nothing_wrong_with_the_operators(name: str,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    real = ag.compile
    monkeypatch.setattr(ag, "compile", lambda *a, **k: _KEPT.append(real(*a, **k)) or _KEPT[-1])
    given = CALLS[name]()
    found = torch.library.opcheck(torch.ops.attngen.forward.default, given)
    assert set(found.values()) == {"SUCCESS"}
    q, k, v, buffers, sinks, *rest = given
    o, lse = torch.ops.attngen.forward(*given)
    plain = [t.detach() for t in (torch.ones_like(o), torch.ones_like(lse), q, k, v, o, lse)]
    found = torch.library.opcheck(torch.ops.attngen.backward.default, (
        *plain, [b.detach() for b in buffers], None if sinks is None else sinks.detach(), *rest,
        [b.requires_grad for b in buffers]))
    assert set(found.values()) == {"SUCCESS"}


def same(run: Callable[..., Tensor], given: list[Tensor], **options: Any) -> None:
    """A function compiled without a break gives the bits and gradients it gives by itself."""
    want = run(*given)
    right = torch.autograd.grad(want.square().sum(), given)
    o = torch.compile(run, fullgraph=True, backend="aot_eager", **options)(*given)
    assert o.equal(want)
    for got, grad in zip(torch.autograd.grad(o.square().sum(), given), right, strict=True):
        torch.testing.assert_close(got, grad)


def test_a_compiled_function_is_the_function() -> None:
    attn = causal()
    same(lambda q, k, v: attn(q, k, v), tensors())
    same(lambda q, k, v: attn(q, k, v, return_lse=True)[1], tensors()[:3])
    same(lambda q, k, v: attn(q, k, v, q_offset=OFFSETS, kv_offset=2), tensors())


def test_dropout_draws_in_the_graph() -> None:
    attn = causal()
    same(lambda q, k, v: attn(q, k, v, dropout_p=0.4, seed=3), tensors())
    compiled = torch.compile(lambda q, k, v: attn(q, k, v, dropout_p=0.4), fullgraph=True,
                             backend="aot_eager")
    q, k, v = tensors()
    for _ in range(2):
        torch.manual_seed(1)
        o = compiled(q, k, v)
        (found,) = torch.autograd.grad(o.sum(), v)
        assert not o.equal(compiled(q, k, v))
        torch.manual_seed(1)
        want = attn(q, k, v, dropout_p=0.4)
        assert o.equal(want)
        torch.testing.assert_close(found, torch.autograd.grad(want.sum(), v)[0])


def test_captured_tensors_are_seen() -> None:
    slopes = torch.tensor([0.1, 0.2, 0.3, 0.4], requires_grad=True)
    attn = causal(score=lambda s, b, h, i, j: s + slopes[h] * (j - i))
    q, k, v = tensors()
    compiled = torch.compile(lambda: attn(q, k, v), fullgraph=True, backend="aot_eager")
    for _ in range(2):
        want = attn(q, k, v)
        assert compiled().equal(want)
        (right,) = torch.autograd.grad(want.square().sum(), slopes)
        (found,) = torch.autograd.grad(compiled().square().sum(), slopes)
        torch.testing.assert_close(found, right)
        with torch.no_grad():
            slopes.mul_(2)


def test_lengths_change_without_another_graph() -> None:
    attn, seen = causal(), []

    def backend(graph: Any, inputs: Any) -> Any:
        seen.append(graph)
        return graph

    compiled = torch.compile(lambda q, k, v: attn(q, k, v), fullgraph=True, backend=backend,
                             dynamic=True)
    with torch.no_grad():
        for n in (20, 33, 7, 64):
            given = tensors(n=n)
            assert compiled(*given).equal(attn(*given))
    assert len(seen) == 1


def test_export() -> None:
    attn = causal()

    class Module(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            o: Tensor = attn(q, k, v)
            return o

    given = tuple(t.detach() for t in tensors())
    exported = torch.export.export(Module(), given)
    assert "attngen.forward" in str(exported.graph)
    assert exported.module()(*given).equal(attn(*given))


class Llama(nn.Module):
    """One layer as Llama has it: rotary positions, grouped heads, a gated perceptron."""

    def __init__(self, attend: Any, width: int = 64) -> None:
        super().__init__()
        self.attend = attend
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2))
        self.qkv = nn.Linear(width, 8 * 16, bias=False)
        self.out = nn.Linear(64, width, bias=False)
        self.gate, self.up = (nn.Linear(width, 2 * width, bias=False) for _ in range(2))
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (8, 16)).transpose(1, 2).split(
            (4, 2, 2), 1)
        angle = torch.arange(x.shape[1])[:, None] * 10000 ** (-torch.arange(8) / 8)
        q, k = (torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()),
                          -1) for a, b in (q.chunk(2, -1), k.chunk(2, -1)))
        x = x + self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))
        y = self.norms[1](x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def test_a_compiled_llama_layer_trains() -> None:
    torch.manual_seed(0)
    layer, x = Llama(causal()), torch.randn(2, 30, 64)
    want = torch.autograd.grad(layer(x).square().mean(), tuple(layer.parameters()))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(x).square().mean(), tuple(layer.parameters()))
    for got, right in zip(found, want, strict=True):
        torch.testing.assert_close(got, right)


def test_an_attention_nobody_holds_is_named() -> None:
    given = arguments(causal(), *tensors())
    gc.collect()
    with pytest.raises(errors.LaunchError, match="the Attention of a compiled graph is gone"):
        torch.ops.attngen.forward(*given)


def test_params_replace_captured_tensors() -> None:
    attn = causal(score=lambda s, b, h, i, j: s + SLOPES[h] * (j - i))
    other = torch.tensor([0.5, 0.1, 0.0, 1.0])
    same(lambda q, k, v: attn(q, k, v, params={"SLOPES": other}), tensors())
