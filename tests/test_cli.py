"""The command line: its help, how specs are written, and how it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import attngen, output, refusal
from helpers import ROOT

import attngen as ag
from attngen import cli

SPEC = "--heads 4 --groups 2 --head-dim 16".split()


# -- help -----------------------------------------------------------------------------------------


def test_help_lists_every_verb_and_shows_how_to_start() -> None:
    text = output("--help")
    assert text == output()  # no arguments at all
    for verb in cli.COMMANDS:
        assert f"\n    {verb} " in text
    assert "attngen run --heads 8" in text


@pytest.mark.parametrize("verb", cli.COMMANDS)
def test_help_of_every_verb_has_examples_that_parse(verb: str) -> None:
    text = output(verb, "--help")
    assert "example" in text
    examples = [line.split("   (")[0].split() for line in text.splitlines()
                if line.startswith("  attngen ")]
    assert examples or verb == "env"
    parser = cli._parser()
    for words in examples:
        _, unknown = parser.parse_known_args(words[1:])
        assert unknown == [], words


def test_version() -> None:
    assert output("--version").strip() == f"attngen {ag.__version__}"


def test_module_runs_and_a_closed_pipe_is_no_error() -> None:
    command = [sys.executable, "-m", "attngen", "emit", *SPEC, "--target", "sm_80"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout and run.stderr
        assert run.stdout.readline().startswith(b"//")
        run.stdout.close()
        assert run.stderr.read() == b"" and run.wait() == 0


# -- the spec -------------------------------------------------------------------------------------


def test_flags_a_json_file_a_toml_file_and_a_python_object_mean_the_same(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ag.AttentionSpec(heads=4, groups=2, head_dim=16, causal=True, window=8,
                            mask=ag.masks.prefix_lm(3), score=ag.scores.softcap(50.0))
    (tmp_path / "spec.json").write_text(spec.to_json())
    (tmp_path / "spec.toml").write_text(
        'heads = 4\ngroups = 2\nhead_dim = 16\ncausal = true\nwindow = [7, 0]\n'
        'mask = "prefix_lm:3"\nscore = ["softcap:50"]\n')
    (tmp_path / "variants.py").write_text(
        "import attngen as ag\n"
        f"mine = ag.AttentionSpec.from_json('''{spec.to_json()}''')\n"
        "def made(): return mine\n")
    monkeypatch.chdir(tmp_path)
    flags = [*SPEC, *"--causal --window 8 --mask prefix_lm:3 --score softcap:50".split()]
    text = output("show", *flags)
    assert "tanh" in text
    for place in ("spec.json", "spec.toml", "variants:mine", "variants:made"):
        assert output("show", place) == text
        assert output("show", place, "--scale", "0.5") != text
    wider = output("show", "variants:mine", "--head-dim", "32", "--stage", "tiled")
    assert "v_tile[j:64 e:32]" in wider  # head_dim_v follows head_dim, as it did when left out


def test_patterns_take_values_by_place_and_by_name() -> None:
    def masked(*words: str) -> str:
        return output("show", *SPEC, "--stage", "math", *words)

    assert masked("--mask", "fixed:16,4") == masked("--mask", "fixed:l=16,c=4")
    assert masked("--mask", "fixed:16,4,local") != masked("--mask", "fixed:16,4")
    assert masked("--mask", "sliding_window:8") == masked("--mask", "sliding_window:7,0")
    assert masked("--mask", "neighborhood:8x4,3") == masked(
        "--mask", "neighborhood:shape=8x4,kernel=3x3,dilation=1")
    both = masked("--mask", "chunked:8", "--mask", "causal")
    assert "// 8" in both and "<=" in both
    order = masked("--score", "softcap:50", "--score", "temperature:2")
    assert order != masked("--score", "temperature:2", "--score", "softcap:50")


def test_a_function_of_ones_own_is_a_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tricks.py").write_text("def half(score, b, h, q_idx, kv_idx): return score / 2\n")
    monkeypatch.chdir(tmp_path)
    assert output("show", *SPEC, "--score", "tricks:half", "--scale", "0.5", "--stage", "math") \
        == output("show", *SPEC, "--scale", "0.25", "--stage", "math")


@pytest.mark.parametrize("words, message", [
    ("shw", "unknown command 'shw'\n  remedy: Did you mean 'show'?"),
    ("bench", "`attngen bench` is not available in this version of attngen"),
    ("show --head_dim 16", "unknown option '--head_dim'\n  where: attngen show\n"
     "  remedy: Did you mean '--head-dim'?"),
    ("show --heads many", "attngen show: argument --heads: invalid int value: 'many'"),
    ("show", "no spec: at least --heads and --head-dim are needed"),
    ("show a.json b.json", "'b.json' is one argument too many"),
    ("show nowhere.json", "nowhere.json cannot be read: No such file or directory"),
    ("show nonsense", "'nonsense' names no spec"),
    ("show no_such_module:spec", "module 'no_such_module' cannot be imported"),
    ("show json:loads_", "unknown name in json 'loads_'\n  remedy: Did you mean 'loads'?"),
    ("show {spec} --stage fusd", "unknown stage 'fusd'\n  remedy: Did you mean 'fused'?"),
    ("show {spec} --diff fus", "unknown pass 'fus'\n  remedy: Did you mean 'fuse'?"),
    ("show {spec} --diff math:fusd", "unknown stage 'fusd'"),
    ("show {spec} --score softcup:5", "unknown score pattern 'softcup'\n  remedy: Did you mean "
     "'softcap'? Known: activation, alibi, bias,"),
    ("show {spec} --score bias", "score pattern 'bias': bias() lacks bias"),
    ("show {spec} --score softcap:1,2", "softcap: cap must be a finite number above 0, got (1, 2)"),
    ("show {spec} --mask fixed:1,2,local,4", "mask pattern 'fixed' takes 3 values"),
    ("show {spec} --mask chunked:0", "chunked: c must be a whole number of at least 1, got 0"),
    ("show {spec} --window 8", "window=8 needs causal=True"),
    ("show {spec} --window some", "argument --window: 'some' is not a whole number"),
    ("show {spec} --head-dim 20", "head_dim=20 is not a multiple of 8"),
    ("show {spec} --groups 3", "groups=3 does not divide heads=4"),
    ("show {spec} --dtype bf16", "unknown dtype 'bf16'\n  remedy: Did you mean 'bfloat16'?"),
    ("emit {spec} --target sm80", "unknown target 'sm80'\n  remedy: Did you mean 'sm_80'?"),
    ("emit {spec} --target sm_80 --dtype float64", "target sm_80 has no kernels for float64"),
    ("emit {spec} --kind forwards", "unknown kernel kind 'forwards'\n  where: --kind\n"
     "  remedy: Did you mean 'forward'?"),
    ("emit {spec} -o /no/such/folder/x.cu", "/no/such/folder/x.cu cannot be written"),
    ("emit {spec} --schedule blockn=3", "a schedule has no 'blockn'"),
    ("emit {spec} --schedule block_n", "--schedule block_n is not a choice"),
    ("explain {spec} --seqlen 1,2,3", "--seqlen 1,2,3 --batch 1 are not sizes"),
    ("run {spec} --target cpu --emulate", "--emulate executes CUDA text, and the target is cpu"),
    ("run {spec} --seqlen 100000", "the oracle would need about 1280.0 GB"),
    ("run {spec} --seqlens-k some", "--seqlens-k some are not lengths"),
    ("run {spec} --batch 2 --seqlens-k 1,2,3", "seqlens_k has shape (3,), expected (2,)"),
    ("cache lst", "unknown cache action 'lst'\n  remedy: Did you mean 'ls'?"),
    ("cache", "attngen cache: the following arguments are required: ls|clear|path|verify"),
])
def test_refusals_say_what_and_what_to_do(words: str, message: str) -> None:
    assert message in refusal(*words.format(spec=" ".join(SPEC)).split())


def test_a_broken_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.toml").write_text("heads = ")
    (tmp_path / "c.json").write_text("[1]")
    (tmp_path / "d.json").write_text('{"heads": 4, "head_dim": 16, "causl": true}')
    assert "a.json is not JSON: " in refusal("show", str(tmp_path / "a.json"))
    assert "b.toml is not TOML: " in refusal("show", str(tmp_path / "b.toml"))
    assert "not a list" in refusal("show", str(tmp_path / "c.json"))
    assert "unknown spec field 'causl'\n  remedy: Did you mean 'causal'?" in refusal(
        "show", str(tmp_path / "d.json"))


def test_debugging_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNGEN_DEBUG", "1")
    status, _, err = attngen("show")
    assert status == 2 and "Traceback" in err and "no spec: at least" in err


def test_json_round_trip_of_a_spec_file(tmp_path: Path) -> None:
    spec = ag.AttentionSpec(heads=6, groups=(0, 0, 1, 1, 1, 2), head_dim=16)
    (tmp_path / "s.json").write_text(json.dumps(spec.to_dict()))
    assert output("show", str(tmp_path / "s.json"), "--stage", "math") == output(
        "show", "--heads", "6", "--groups", "0,0,1,1,1,2", "--head-dim", "16", "--stage", "math")
