"""Generated attention inside Hugging Face models, compared with their eager attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attngen import AttentionSpec, masks, reference
from attngen.errors import NotDeliveredError, ShapeError, TraceError
from attngen.integrations import transformers as front
from attngen.integrations.recorded import record, recorded
from attngen.integrations.visible import Visible, spec_fields, visible

transformers = pytest.importorskip("transformers")
hf = pytest.importorskip("transformers.masking_utils")

COMMON = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
          "intermediate_size": 64, "vocab_size": 100, "max_position_embeddings": 64}
GQA = {**COMMON, "num_key_value_heads": 2}
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**GQA)),
    "qwen2 with a window in one layer": lambda: transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(**GQA, use_sliding_window=True, sliding_window=7,
                                 max_window_layers=1)),
    "gemma2 with windows and softcap": lambda: transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(**GQA, head_dim=16, sliding_window=6)),
    "gpt2 with q, k, v in one": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=100,
                                bos_token_id=0, eos_token_id=0)),
}


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    front.register()
    front.register()  # twice does no harm


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor, dict[str, Any]]]:
    """What reached attngen: q, o and the fields of each call."""
    seen: list[tuple[Tensor, Tensor, dict[str, Any]]] = []
    right = front.attention

    def spy(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
        o = right(q, k, v, **given)
        assert isinstance(o, Tensor)
        seen.append((q, o, given))
        return o
    monkeypatch.setattr(front, "attention", spy)
    return seen


def padding(batch: int, length: int, left: dict[int, int], right: dict[int, int]) -> Tensor:
    """A 2-D attention mask; ``left`` and ``right``: padding tokens by row."""
    mask = torch.ones(batch, length, dtype=torch.long)
    for row, count in left.items():
        mask[row, :count] = 0
    for row, count in right.items():
        mask[row, length - count:] = 0
    return mask


def both_ways(model: Any, run: Callable[[], Any]) -> tuple[Any, Any]:
    """``run()`` with eager attention and with attngen."""
    results = []
    with torch.no_grad():
        for name in ("eager", "attngen"):
            model.set_attn_implementation(name)
            results.append(run())
    return results[0], results[1]


# -- models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("left, right", [({}, {}), ({}, {1: 8, 2: 14}), ({1: 9}, {2: 3})],
                         ids=["none", "right", "both ends"])
def test_bert_with_padding(calls: list[Any], left: dict[int, int], right: dict[int, int]) -> None:
    model = transformers.BertModel(transformers.BertConfig(**COMMON)).eval()
    ids, mask = torch.randint(0, 100, (3, 17)), padding(3, 17, left, right)
    eager, ours = both_ways(model, lambda: model(ids, attention_mask=mask).last_hidden_state)
    torch.testing.assert_close(ours[mask.bool()], eager[mask.bool()], atol=2e-6, rtol=0)
    assert len(calls) == 2 and not calls[0][2]["causal"]
    assert (calls[0][2]["seqlens_k"] is None) == (not right)


@pytest.mark.parametrize("name", MODELS)
def test_decoder_prefill_with_padding_at_either_end(calls: list[Any], name: str) -> None:
    model, ids = MODELS[name]().eval(), torch.randint(1, 100, (3, 17))
    for mask in (padding(3, 17, {1: 9}, {}), padding(3, 17, {}, {0: 2, 2: 16})):
        eager, ours = both_ways(model, lambda mask=mask: model(ids, attention_mask=mask).logits)
        torch.testing.assert_close(ours[mask.bool()], eager[mask.bool()], atol=2e-6, rtol=0)
    assert len(calls) == 4 and all(given["causal"] for _, _, given in calls)
    windows = {given.get("window") for _, _, given in calls}
    assert windows == ({None, (6, 0)} if "qwen2" in name else
                       {None, (5, 0)} if "gemma2" in name else {None})
    assert all(("score" in given) == ("gemma2" in name) for _, _, given in calls)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", MODELS)
def test_generation_with_a_cache(calls: list[Any], name: str, cache: str) -> None:
    model, ids = MODELS[name]().eval(), torch.randint(1, 100, (2, 11))
    kind = {"cache_implementation": "static"} if cache == "static" else {}
    # eos_token_id=[]: generation always goes its full length, across the windows' ends.
    eager, ours = both_ways(model, lambda: model.generate(
        ids, attention_mask=padding(2, 11, {1: 4}, {}), max_new_tokens=10, do_sample=False,
        pad_token_id=0, eos_token_id=[], output_logits=True, return_dict_in_generate=True, **kind))
    assert torch.equal(ours.sequences, eager.sequences) and ours.sequences.shape == (2, 21)
    torch.testing.assert_close(torch.stack(ours.logits), torch.stack(eager.logits), atol=2e-6,
                               rtol=0)
    assert {q.shape[2] for q, _, _ in calls} == {11, 1}


def test_packed_or_unpadded_batches_need_no_lengths_and_nothing_is_copied(calls: list[Any]) -> None:
    model = MODELS["llama"]().eval()
    both_ways(model, lambda: model(torch.randint(1, 100, (2, 17))))
    for q, o, given in calls:
        assert not q.is_contiguous() and q.stride(-1) == 1  # read where it lies
        assert o.transpose(1, 2).is_contiguous()  # written as the model wants it
        assert given["seqlens_k"] is None and "mask" not in given


def test_a_model_that_makes_no_mask(calls: list[Any]) -> None:
    model = transformers.ViTModel(transformers.ViTConfig(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
        image_size=32, patch_size=8)).eval()
    image = torch.randn(1, 3, 32, 32)
    eager, ours = both_ways(model, lambda: model(image).last_hidden_state)
    torch.testing.assert_close(ours, eager, atol=2e-6, rtol=0)
    assert calls[0][2]["causal"] is False


@pytest.mark.full
def test_inside_torch_compile() -> None:
    model, ids = MODELS["llama"]().eval(), torch.randint(1, 100, (2, 17))
    model.set_attn_implementation("attngen")
    with torch.no_grad():
        expected = model(ids).logits
        torch.testing.assert_close(torch.compile(model, backend="eager")(ids).logits, expected)


# -- masks ----------------------------------------------------------------------------------------


def no_padding(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.bool)


CAUSAL, EVERYWHERE = hf.causal_mask_function, hf.bidirectional_mask_function
RECOGNISED = [
    (CAUSAL, {"causal": True}),
    (EVERYWHERE, {"causal": False}),
    (hf.sliding_window_causal_mask_function(7), {"causal": True, "window": (6, 0)}),
    (hf.sliding_window_causal_mask_function(1), {"causal": True, "window": (0, 0)}),
    (hf.sliding_window_bidirectional_mask_function(3), {"causal": False, "window": (3, 3)}),
    (hf.chunked_causal_mask_function(4, torch.zeros(2, dtype=torch.long)),
     {"causal": True, "mask": masks.chunked(4)}),
    (hf.and_masks(CAUSAL, hf.padding_mask_function(no_padding(2, 24))), {"causal": True}),
    (hf.and_masks(hf.sliding_window_causal_mask_function(5), hf.sliding_window_overlay(3)),
     {"causal": True, "window": (2, 0)}),
    (hf.and_masks(EVERYWHERE, hf.sliding_window_overlay(4)),
     {"causal": False, "mask": recorded(("gt", "kv_idx", ("sub", "q_idx", 4)))}),
    (hf.or_masks(CAUSAL, lambda b, h, q, k: k < 3),
     {"causal": False, "mask": recorded(("bitwise_or", ("le", "kv_idx", "q_idx"),
                                         ("lt", "kv_idx", 3)))}),
]


@pytest.mark.parametrize("function, fields", RECOGNISED)
def test_mask_functions_become_fields_of_the_spec(function: Any, fields: dict[str, Any]) -> None:
    assert spec_fields(record(function))[0] == fields


@pytest.mark.parametrize("function", [f for f, _ in RECOGNISED])
@pytest.mark.parametrize("q_length, kv_length, q_offset, kv_offset", [
    (9, 9, 0, 0), (1, 9, 8, 0), (3, 12, 4, 0), (4, 6, 10, 8)])
@pytest.mark.parametrize("left, right", [({}, {}), ({}, {0: 2, 1: 5}), ({1: 3}, {}),
                                         ({0: 11, 1: 2}, {1: 3})])
def test_what_is_visible_is_what_the_library_says(
        function: Any, q_length: int, kv_length: int, q_offset: int, kv_offset: int,
        left: dict[int, int], right: dict[int, int]) -> None:
    mask_2d = padding(2, kv_length + kv_offset, left, right).bool()
    expected = hf.sdpa_mask(
        batch_size=2, q_length=q_length, kv_length=kv_length, q_offset=q_offset,
        kv_offset=kv_offset, mask_function=function, attention_mask=mask_2d,
        allow_is_causal_skip=False)
    fields, by_distance = spec_fields(record(function))
    arguments = function, mask_2d, 2, q_length, kv_length, q_offset, kv_offset
    cut = mask_2d[:, kv_offset:]
    if not by_distance and bool((~cut[:, 0] & cut.any(1)).any()):
        with pytest.raises(NotDeliveredError, match="left padding together with a mask"):
            visible(*arguments)
        return
    made = visible(*arguments)
    spec = AttentionSpec(heads=1, head_dim=8, **made.fields)
    ours = reference.visible(spec, 2, q_length, kv_length, q_offset=made.q_offset,
                             kv_offset=made.kv_offset, seqlens_k=made.seqlens_k)
    assert torch.equal(ours, expected)
    assert made.shape == tuple(expected.shape) and made.ndim == 4


def test_equal_masks_are_found_again_though_their_functions_are_new() -> None:
    first, second = (record(hf.or_masks(CAUSAL, lambda b, h, q, k: k < 3)) for _ in range(2))
    other = record(hf.or_masks(CAUSAL, lambda b, h, q, k: k < 4))
    keys = [AttentionSpec(heads=1, head_dim=8, mask=recorded(t)).cache_key()
            for t in (first, second, other)]
    assert keys[0] == keys[1] != keys[2] and keys[0] is not None


def test_recorded_functions_may_use_what_torch_offers_for_operators() -> None:
    def function(b: Any, h: Any, q: Any, k: Any) -> Any:
        return torch.logical_or(torch.tensor(2) * q - k < 3, ~(k % 4 != h)) & (-q <= k + 1.0)

    mask = recorded(record(function))
    q, k = torch.arange(12)[:, None], torch.arange(12)[None, :]
    assert torch.equal(mask(0, 1, q, k), function(torch.tensor(0), torch.tensor(1), q, k))


def test_static_cache_counters_are_read_when_the_mask_is_made() -> None:
    counter = torch.tensor([5])
    made = visible(CAUSAL, None, 2, 1, 16, counter, 0)
    counter += 1
    assert made.q_offset == 5


# -- refusals -------------------------------------------------------------------------------------


def attend(mask: Any = None, seqlen_q: int = 4, seqlen_k: int = 4, **given: Any) -> Any:
    q, k = (torch.zeros(2, 2, n, 8) for n in (seqlen_q, seqlen_k))
    return front.attention_forward(nn.Module(), q, k, k, mask, **given)


@pytest.mark.parametrize("given, message", [
    ({"mask": torch.zeros(2, 1, 4, 4)}, "a 4-D attention mask tensor"),
    ({"s_aux": torch.zeros(2)}, "attention sinks (s_aux) are not available"),
    ({"position_bias": torch.zeros(1, 2, 4, 4)}, "a position bias, which is a tensor"),
    ({"output_attentions": True}, "attention weights (output_attentions=True)"),
    ({"seqlen_k": 6}, "is causal but made no mask that says where its queries are"),
    ({"sliding_window": 3}, "has a window but made no mask"),
])
def test_what_cannot_be_honoured_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(NotDeliveredError) as caught:
        attend(**given)
    assert message in str(caught.value) and "remedy: " in str(caught.value)


def test_masks_that_read_tensors_are_refused() -> None:
    packed = hf.packed_sequence_mask_function(torch.tensor([[0, 0, 1, 1]]))
    with pytest.raises(NotDeliveredError, match="masks that read tensors are not available"):
        record(hf.and_masks(CAUSAL, packed))
    gaps = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1]]).bool()
    with pytest.raises(NotDeliveredError, match="hides tokens between visible ones") as caught:
        visible(CAUSAL, gaps, 2, 4, 4, 0, 0)
    assert "row 1 has gaps" in str(caught.value) and "sdpa" in str(caught.value)


@pytest.mark.parametrize("function, message", [
    (lambda b, h, q, k: k if k < q else q, "truth value"),
    (lambda b, h, q, k: torch.sin(q) < k, "torch.sin"),
    (lambda b, h, q, k: q.item() < k, "'_Symbol' object has no attribute 'item'"),
    (lambda b, h, q, k: (1, 2)[q] < k, "as a Python int"),
    (lambda b, h, q, k: q < "k", "used a str"),
])
def test_functions_that_are_no_expression_are_refused(function: Any, message: str) -> None:
    with pytest.raises(TraceError) as caught:
        record(function)
    assert message in str(caught.value)


def test_a_mask_made_for_other_tensors_is_refused() -> None:
    made = visible(CAUSAL, None, 2, 4, 4, 0, 0)
    with pytest.raises(ShapeError, match="does not fit the queries and keys"):
        attend(made, seqlen_q=3)
    with pytest.raises(NotDeliveredError, match="slices its attention mask"):
        made[:, :, :, :3]
    assert isinstance(made.to("cpu"), Visible) and repr(made) == str(made)


def test_dropout_is_that_of_the_config() -> None:
    """Two passes in training differ, as its numbers are drawn; the same state draws the same."""
    torch.manual_seed(0)
    model = MODELS["llama"]()
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.set_attn_implementation("attngen")
    tokens = torch.randint(1, 100, (2, 9))

    def logits(seed: int) -> Any:
        torch.manual_seed(seed)
        return model.train()(tokens).logits

    assert logits(1).equal(logits(1)) and not logits(1).equal(logits(2))
    assert model.eval()(tokens).logits.equal(model(tokens).logits)


def test_gradients_are_those_of_eager_attention() -> None:
    tokens = torch.randint(1, 100, (2, 9))
    found = []
    for implementation in ("eager", "attngen"):
        torch.manual_seed(0)
        model = MODELS["llama"]().train()
        model.set_attn_implementation(implementation)
        model(tokens, labels=tokens).loss.backward()
        found.append([p.grad for p in model.parameters()])
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
