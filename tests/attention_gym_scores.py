"""The scores that meta-pytorch/attention-gym (7fdb85d) publishes, written anew; see
``attention_gym.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from attention_gym import BATCH, HEADS, Mod, N, Published, choices
from torch import Tensor


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def alibi(heads: int) -> Mod:
    return lambda score, b, h, q, k: score + (k - q) * torch.exp2(-((h + 1) * 8.0 / heads))


class FastTanh(torch.autograd.Function):
    """tanh by way of an operator of its own, as hardware approximations are written."""

    @staticmethod
    def forward(x: Any) -> Any:  # type: ignore[override]
        return torch.ops.approx.tanh(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Any) -> Any:
        return torch.tanh(x), 0


torch.library.define("approx::tanh", "(Tensor x) -> Tensor")
torch.library.impl("approx::tanh", "CompositeExplicitAutograd", torch.tanh)


def softcap(cap: float, tanh: Callable[[Any], Any] = torch.tanh) -> Mod:
    return lambda score, b, h, q, k: cap * tanh(score / cap)


def activated(function: Callable[[Any], Any], offset: float = 1.0) -> Mod:
    """Softmax of the logarithm is the function itself, normalised."""
    return lambda score, b, h, q, k: torch.log(function(score) + offset)


def sandwich(heads: int, longest: int, width: int = 16) -> Mod:
    """Σ cos of the distance at several frequencies, looked up by distance."""
    rates = 10000.0 ** (-2 * torch.arange(width // 2) / width)
    distance = torch.arange(2 * longest - 1) - (longest - 1)
    bias = torch.cos(distance.abs()[:, None] * rates).sum(-1)
    ratio = heads / (8.0 * torch.arange(1, heads + 1))
    return lambda score, b, h, q, k: score + bias[q - k + (longest - 1)] * ratio[h]


def spatial(bias: Tensor, distances: Tensor) -> Mod:
    return lambda score, b, h, q, k: score + bias[h, distances[b, q, k]]


def along_paths(bias: Tensor, types: Tensor, lengths: Tensor) -> Mod:
    """Mean of a bias for each edge of the path from query to key."""
    tables = [bias[:, n] for n in range(types.shape[-1])]

    def mod(score: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
        length = lengths[b, q, k]
        total: Any = 0.0
        for n, table in enumerate(tables):
            total = total + torch.where(length > n, table[h, types[b, q, k, n]], 0.0)
        return score + total / torch.clamp(length, min=1)
    return mod


def rotary_part(query: Tensor, key: Tensor, heads: int, scale: float) -> Published:
    """The product of the parts of queries and keys that carry positions."""
    def mod(score: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
        return score + scale * torch.dot(query[b, h, q], key[b, h // heads, k])

    def wide(score: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
        return score + scale * (query[b, h, q] * key[b, h // heads, k]).sum(-1)
    return Published(mod, wide)


_PATHS = (choices(4, BATCH, N, N, 3).int(), choices(4, BATCH, N, N).int())
_SPATIAL = spatial(random(HEADS, 7), choices(7, BATCH, N, N).int())
_EDGES = along_paths(random(HEADS, 3, 4), *_PATHS)

SCORES: dict[str, Published] = {
    "alibi": Published(alibi(HEADS)), "softcap": Published(softcap(2)),
    "softcap_approx": Published(softcap(2, FastTanh.apply)),
    "activation_gelu": Published(activated(F.gelu)),
    "activation_gelu_tanh": Published(activated(lambda x: F.gelu(x, approximate="tanh"))),
    "activation_relu": Published(activated(F.relu)),
    "activation_sigmoid": Published(activated(torch.sigmoid, 0.0)),
    "activation_tanh": Published(activated(torch.tanh, 1.5)),
    "activation_exp2": Published(activated(torch.exp2)),
    "activation_silu": Published(activated(F.silu)),
    "activation_softplus": Published(activated(F.softplus)),
    "sandwich": Published(sandwich(HEADS, N)),
    "graphormer_spatial": Published(_SPATIAL),
    "graphormer_edge": Published(_EDGES),
    "graphormer": Published(lambda s, b, h, q, k: _EDGES(_SPATIAL(s, b, h, q, k), b, h, q, k)),
    "mla_rope": rotary_part(random(BATCH, HEADS, N, 16), random(BATCH, 1, N, 16), HEADS, 0.3),
}
