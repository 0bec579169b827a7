"""AttentionSpec: what it accepts, what it normalises, how it refuses, its JSON form."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attngen import errors, masks, per_head, scores
from attngen.spec import AttentionSpec


def spec(**fields: Any) -> AttentionSpec:
    return AttentionSpec(**{"heads": 8, "head_dim": 64, **fields})


def test_defaults_are_filled_in() -> None:
    s = spec()
    assert (s.groups, s.head_dim_v, s.kv_heads, s.group_size) == (8, 64, 8, 1)
    assert s.softmax_scale == 0.125 and s.mask_mods() == () and s.score_mods() == ()
    with pytest.raises(FrozenInstanceError):
        s.heads = 3  # type: ignore[misc]


def test_specs_that_mean_the_same_are_equal() -> None:
    assert spec(causal=True, window=4) == spec(causal=True, window=(3, 0))
    assert spec(groups=2) == spec(groups=(0, 0, 0, 0, 1, 1, 1, 1))
    assert spec(score=scores.softcap(30)) == spec(score=[scores.softcap(30.0)])
    assert spec(dtype=torch.bfloat16) == spec(dtype="bfloat16")
    assert spec(score=[]) == spec() and hash(spec(score=[])) == hash(spec())
    assert spec(groups=2) != spec(groups=4)


@pytest.mark.parametrize("groups, expected", [
    (1, [0] * 8), (2, [0, 0, 0, 0, 1, 1, 1, 1]), (8, list(range(8))),
    ((0, 0, 0, 0, 0, 1, 1, 2), [0, 0, 0, 0, 0, 1, 1, 2])])
def test_kv_head_of_each_query_head(groups: Any, expected: list[int]) -> None:
    s = spec(groups=groups)
    assert [s.kv_head(h) for h in range(8)] == expected
    assert s.kv_heads == max(expected) + 1
    assert s.group_size == (None if isinstance(groups, tuple) else 8 // groups)


def test_mods_come_in_the_order_causal_window_mask() -> None:
    own = lambda b, h, q_idx, kv_idx: q_idx >= kv_idx  # noqa: E731
    s = spec(causal=True, window=(5, 1), mask=own,
             score=[scores.temperature(2), scores.softcap(30), scores.alibi()])
    assert s.mask_mods() == (("causal", masks.causal()),
                             ("sliding_window", masks.sliding_window((5, 1))), ("<lambda>", own))
    assert [name for name, _ in s.score_mods()] == ["temperature", "softcap", "alibi"]
    assert s.score_mods()[2][1] == scores.alibi(8)


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"heads": 0}, errors.SpecError, "heads must be at least 1, got 0"),
    ({"heads": 2.5}, errors.SpecError, "heads must be a whole number, got 2.5"),
    ({"heads": True}, errors.SpecError, "heads must be a whole number, got True"),
    ({"head_dim": 100}, errors.HeadDimError, "head_dim=100 is not a multiple of 8"),
    ({"head_dim": 0}, errors.SpecError, "head_dim must be at least 1, got 0"),
    ({"head_dim_v": 264}, errors.HeadDimError, "head_dim_v=264 is larger than 256"),
    ({"groups": 3}, errors.GroupsError, "groups=3 does not divide heads=8"),
    ({"groups": (0, 1)}, errors.GroupsError, "groups has 2 entries for 8 heads"),
    ({"groups": (0, 0, 0, 0, 2, 2, 2, 2)}, errors.GroupsError, "[1] are read by no query head"),
    ({"groups": (0, -1, 0, 0, 0, 0, 0, 0)}, errors.SpecError, "groups must be at least 0, got -1"),
    ({"causal": 1}, errors.SpecError, "causal must be True or False, got 1"),
    ({"window": (-1, 0)}, errors.WindowError, "-1 is not a whole number of at least 0"),
    ({"window": -4, "causal": True}, errors.WindowError, "window=-4"),
    ({"window": 0, "causal": True}, errors.WindowError, "would hide every key"),
    ({"window": (1, 2, 3)}, errors.WindowError, "has 3 entries"),
    ({"mask": 3}, errors.PatternError, "mask is a int, not a pattern or callable"),
    ({"mask": lambda q, k: q > k}, errors.PatternError, "cannot take the arguments of mask_mod("),
    ({"mask": scores.softcap(3)}, errors.PatternError, "Write score=softcap(cap=3.0)"),
    ({"mask": masks.causal}, errors.PatternError, "Call it: causal(...)"),
    ({"mask": [masks.causal()]}, errors.PatternError, "Write mask=ag.per_head([...])"),
    ({"mask": per_head([masks.causal()] * 3)}, errors.PatternError,
     "per_head has 3 entries, the spec has 8 heads"),
    ({"mask": ~per_head([masks.causal()] * 9)}, errors.PatternError, "per_head has 9 entries"),
    ({"score": per_head([scores.softcap(3)] * 7)}, errors.PatternError, "per_head has 7 entries"),
    ({"score": scores.alibi(slopes=(0.5, 0.25))}, errors.PatternError, "alibi is for 2 heads"),
    ({"score": masks.causal()}, errors.PatternError, "Write mask=causal()"),
    ({"score": scores.alibi(4)}, errors.PatternError, "alibi is for 4 heads, the spec has 8"),
    ({"score": [scores.softcap(5), 2.0]}, errors.PatternError, "score is a float"),
    ({"sinks": 1}, errors.SpecError, "sinks must be True or False, got 1"),
    ({"scale": 0.0}, errors.SpecError, "scale must be a finite number above 0, got 0.0"),
    ({"scale": float("nan")}, errors.SpecError, "scale must be a finite number above 0"),
    ({"dtype": "bfloat"}, errors.UnknownDtypeError, "Did you mean 'bfloat16'?"),
    ({"dtype": torch.int32}, errors.UnknownDtypeError, "unknown dtype 'int32'"),
    ({"dtype": "float8_e4m3"}, errors.NotDeliveredError, "'float8_e4m3' is not available"),
]


@pytest.mark.parametrize("fields, cls, text", REFUSED, ids=[t for _, _, t in REFUSED])
def test_what_means_nothing_is_refused(fields: dict[str, Any], cls: type[Exception],
                                       text: str) -> None:
    with pytest.raises(cls) as error:
        spec(**fields)
    assert type(error.value) is cls and text in str(error.value)


def test_int_window_without_causal_shows_both_spellings() -> None:
    with pytest.raises(errors.WindowError) as error:
        spec(window=4)
    assert "causal=True, window=4" in str(error.value) and "window=(3, 0)" in str(error.value)


# -- JSON -----------------------------------------------------------------------------------------

named_masks = st.sampled_from([
    None, masks.causal() | masks.attention_sinks(2), ~masks.chunked(4), masks.prefix_lm(7),
    masks.strided(4, part="local"), masks.sliding_window((2, 9)) & masks.fixed(8, 2),
    masks.global_tokens([3, 1]), masks.tree((-1, 0, 1)), masks.neighborhood((3, 4), 3),
    masks.random_blocks(4, 1, seqlen=32)])
named_scores = st.lists(st.sampled_from(
    [scores.softcap(30), scores.temperature(0.7), scores.alibi(),
     scores.activation("silu")]), max_size=3)


@given(st.integers(1, 5), st.integers(1, 8), st.integers(1, 32), st.booleans(), named_masks,
       named_scores, st.none() | st.floats(1e-6, 1e6), st.sampled_from([None, "float16"]))
def test_json_round_trip(group_size: int, groups: int, dim: int, causal: bool, mask: Any,
                         score: Any, scale: float | None, dtype: str | None) -> None:
    s = AttentionSpec(heads=groups * group_size, groups=groups, head_dim=8 * dim, head_dim_v=8,
                      causal=causal, window=(3, 1), mask=mask, score=score, scale=scale,
                      dtype=dtype)
    again = AttentionSpec.from_json(s.to_json())
    assert again == s and hash(again) == hash(s) and again.cache_key() == s.cache_key()


def test_cache_key_is_none_for_callables_and_differs_between_specs() -> None:
    assert spec(mask=lambda b, h, q, k: k <= q).cache_key() is None
    for holds in (masks.tree([-1]), ~masks.random_blocks(2, 1), per_head(
            [masks.causal()] * 7 + [masks.global_tokens(range(9))])):
        assert spec(mask=holds).cache_key() is None and spec(mask=holds).to_json()
    assert spec(score=[scores.alibi(slopes=[1] * 8)]).cache_key() is None
    keys = {spec(**f).cache_key() for f in (
        {}, {"causal": True}, {"groups": 2}, {"scale": 0.5}, {"dtype": "float16"},
        {"mask": masks.causal()}, {"score": scores.softcap(30)}, {"window": (1, 1)})}
    assert len(keys) == 8 and None not in keys


@pytest.mark.parametrize("text, cls, message", [
    ("{", errors.SpecJsonError, "not JSON"),
    ("[" * 100_000, errors.SpecJsonError, "not JSON"),
    ("[1]", errors.SpecJsonError, "a spec is an object of fields, not a list"),
    ('{"heads": 8}', errors.SpecJsonError, "the spec lacks head_dim"),
    ('{"attngen_spec": 99}', errors.SpecJsonError, "spec format 99 is unknown"),
    ('{"heads": 8, "head_dim": 64, "casual": true}', errors.UnknownNameError,
     "Did you mean 'causal'?"),
    ('{"heads": 8, "head_dim": 64, "score": {"name": "softcup", "cap": 3}}',
     errors.UnknownNameError, "Did you mean 'softcap'?"),
    ('{"heads": 8, "head_dim": 64, "score": {"name": "softcap", "cup": 3}}',
     errors.SpecJsonError, "Its fields are: cap."),
    ('{"heads": 8, "head_dim": 64, "mask": "causal"}', errors.SpecJsonError,
     "mask is not an object with a name"),
    ('{"heads": 8, "head_dim": 64, "mask": {"name": "all_of", "first": 1, "second": 2}}',
     errors.PatternError, "not a pattern or callable"),
    ('{"heads": 8, "head_dim": 64, "scale": NaN}', errors.SpecError, "scale must be"),
])
def test_bad_json_is_refused(text: str, cls: type[Exception], message: str) -> None:
    with pytest.raises(cls) as error:
        AttentionSpec.from_json(text)
    assert message in str(error.value)


@pytest.mark.parametrize("fields", [
    {"mask": lambda b, h, q, k: k <= q}, {"score": lambda s, b, h, q, k: s},
    {"mask": masks.causal() & (lambda b, h, q, k: k <= q)}])
def test_callables_have_no_json_form_and_say_so(fields: dict[str, Any]) -> None:
    with pytest.raises(errors.SpecJsonError, match="<lambda> is a Python callable"):
        spec(**fields).to_json()


def test_json_holds_its_version_and_plain_values() -> None:
    data = json.loads(spec(causal=True, window=3, score=scores.alibi()).to_json())
    assert data["attngen_spec"] == 1 and data["window"] == [2, 0]
    assert data["score"] == [{"name": "alibi", "heads": 8, "slopes": None}]


def test_replace_validates_again() -> None:
    assert replace(spec(causal=True, window=4), dtype="float16").dtype == "float16"
    with pytest.raises(errors.GroupsError):
        replace(spec(), heads=9)
