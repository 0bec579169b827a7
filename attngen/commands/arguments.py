"""The arguments that say which attention is meant: a file, a Python object, flags, or a mixture."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tomllib
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DtypeError, SpecJsonError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from ..runtime.targets import Target
    from ..spec import AttentionSpec

SPEC_HELP = """\
A spec says which attention is meant. It is given as
  flags         --heads 32 --groups 8 --head-dim 128 --causal --window 4096 --score softcap:50
  a file        spec.json or spec.toml, with the fields of attngen.AttentionSpec
  a Python one  package.module:name, an AttentionSpec (or a function that returns one)
and flags may follow a file or Python object to change single fields."""

_FILES = (".json", ".toml")


def add_spec(parser: argparse.ArgumentParser) -> None:
    """SPEC and the flags of its fields."""
    parser.add_argument("spec", nargs="?", metavar="SPEC",
                        help="a .json or .toml file, or module:name")
    group = parser.add_argument_group("the spec", "fields of attngen.AttentionSpec")
    group.add_argument("--heads", type=int, metavar="N", help="query heads")
    group.add_argument("--groups", metavar="N", help="key/value heads (default: heads); or the "
                       "key/value head of each query head: 0,0,1")
    group.add_argument("--head-dim", type=int, metavar="N", help="size of q and k, 8 ... 256")
    group.add_argument("--head-dim-v", type=int, metavar="N", help="size of v (default: head-dim)")
    group.add_argument("--causal", action=argparse.BooleanOptionalAction, default=None,
                       help="hide the keys after the query")
    group.add_argument("--window", metavar="W|L,R", help="the last W positions (with --causal), or "
                       "L to the left and R to the right")
    group.add_argument("--mask", action="append", metavar="NAME[:ARGS]",
                       help="a mask of attngen.masks (prefix_lm:7, neighborhood:8x8,3) or "
                       "module:function; several must all agree")
    group.add_argument("--score", action="append", metavar="NAME[:ARGS]",
                       help="a score of attngen.scores (softcap:50, alibi) or module:function; "
                       "several apply in order")
    group.add_argument("--scale", type=float, metavar="X", help="factor on q.k (default: "
                       "1/sqrt(head-dim))")
    group.add_argument("--dtype", metavar="NAME", help="float64 (cpu), float32, bfloat16, float16 "
                       "(default: float32 on cpu, else bfloat16)")


def add_target(parser: argparse.ArgumentParser) -> None:
    """--target, --no-fuse and --schedule."""
    group = parser.add_argument_group("the kernel")
    group.add_argument("--target", metavar="NAME", help="cpu, sm_80, sm_86, sm_89, sm_90, sm_100, "
                       "sm_120 (default: this machine's best)")
    group.add_argument("--no-fuse", action="store_true", help="standard attention: separate "
                       "kernels with the scores in device memory")
    group.add_argument("--schedule", action="append", metavar="NAME=VALUE",
                       help="a tile choice: block_m, block_n, warps, stages (2,1), min_blocks")


def target_of(args: argparse.Namespace) -> Target:
    """The target asked for, or this machine's best. Raises UnknownTargetError."""
    from ..runtime.targets import default_target, get_target

    return get_target(args.target) if args.target else default_target()


def dtype_of(spec: AttentionSpec, target: Target) -> str:
    """The dtype the kernels are for. Raises DtypeError when the target has none for it."""
    name = spec.dtype or ("float32" if target.family == "cpu" else "bfloat16")
    if name not in target.dtypes:
        raise DtypeError(f"target {target.name} has no kernels for {name}",
                         remedy=f"It takes {', '.join(target.dtypes)}.")
    return name


def schedule_of(args: argparse.Namespace) -> dict[str, Any]:
    """The explicit tile choices by name. Raises UsageError for text that is no choice."""
    chosen: dict[str, Any] = {}
    for text in args.schedule or ():
        name, equals, value = text.partition("=")
        try:
            numbers = tuple(int(part) for part in value.split(","))
        except ValueError:
            numbers = ()
        if not equals or not numbers:
            raise UsageError(f"--schedule {text} is not a choice",
                             remedy="Write --schedule block_n=64 or --schedule stages=2,1.")
        key = name.strip().replace("-", "_")
        chosen[key] = numbers if key == "stages" or len(numbers) > 1 else numbers[0]
    return chosen


# -- the spec -----------------------------------------------------------------------------------


def spec_of(args: argparse.Namespace) -> AttentionSpec:
    """The spec that SPEC and the flags describe together; flags win.

    Raises UsageError for a file or object that is not there, UnknownNameError (with the nearest
    name) for fields and patterns, and what AttentionSpec raises.
    """
    from ..spec import AttentionSpec

    flags, patterns = _flags(args), _patterns(args.mask, args.score)
    base: Any = {} if args.spec is None else _loaded(args.spec)
    if isinstance(base, AttentionSpec):
        return dataclasses.replace(base, **_defaults_again(base, flags), **flags, **patterns)
    if args.spec is None and not (args.heads and args.head_dim):
        raise UsageError("no spec: at least --heads and --head-dim are needed",
                         remedy="Write --heads 8 --head-dim 64, or name a .json or .toml file, or "
                                "module:name.")
    if not isinstance(base, dict):
        raise SpecJsonError(f"a spec is an object of fields, not a {type(base).__name__}",
                            where=args.spec)
    texts = {name: base[name] for name in ("mask", "score") if _is_text(base.get(name))}
    rest = {name: value for name, value in base.items() if name not in texts}
    spec = AttentionSpec.from_dict({**rest, **flags})
    listed = {name: [t] if isinstance(t, str) else t for name, t in texts.items()}
    patterns = {**_patterns(listed.get("mask"), listed.get("score")), **patterns}
    return dataclasses.replace(spec, **patterns) if patterns else spec


def _flags(args: argparse.Namespace) -> dict[str, Any]:
    """The fields given as flags, mask and score apart."""
    given = {"heads": args.heads, "groups": _numbers("--groups", args.groups),
             "head_dim": args.head_dim, "head_dim_v": args.head_dim_v, "causal": args.causal,
             "window": _numbers("--window", args.window), "scale": args.scale, "dtype": args.dtype}
    return {name: value for name, value in given.items() if value is not None}


def _defaults_again(base: AttentionSpec, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a finished spec that were defaults of others which the flags now change."""
    again: dict[str, None] = {}
    for field, source in (("head_dim_v", "head_dim"), ("groups", "heads")):
        same = getattr(base, field) == getattr(base, source)
        if same and source in flags and field not in flags:
            again[field] = None
    return again


def _numbers(flag: str, text: str | None) -> int | tuple[int, ...] | None:
    """``"7"`` as 7, ``"7,0"`` as a tuple. Raises UsageError."""
    if text is None:
        return None
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"argument {flag}: {text!r} is not a whole number or several with commas",
                         remedy=f"Write {flag} 8 or {flag} 8,0.") from None
    return numbers[0] if len(numbers) == 1 else numbers


def pair(flag: str, text: str) -> tuple[int, int]:
    """``"7"`` as (7, 7), ``"7,9"`` as (7, 9). Raises UsageError."""
    numbers = _numbers(flag, text)
    both = (numbers, numbers) if isinstance(numbers, int) else numbers or ()
    if len(both) != 2 or min(both) < 1:
        raise UsageError(f"argument {flag}: {text!r} is not one or two sizes of at least 1",
                         remedy=f"Write {flag} 128 or {flag} 128,64.")
    return both[0], both[1]


def _loaded(place: str) -> Any:
    """The dictionary in a file, or the Python object module:name."""
    path = Path(place)
    if path.suffix.lower() in _FILES:
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as problem:
            reason = getattr(problem, "strerror", None) or "it is not UTF-8 text"
            raise UsageError(f"{place} cannot be read: {reason}", remedy="Name a .json or .toml "
                             "file with the fields of a spec.") from None
        read = json.loads if path.suffix.lower() == ".json" else tomllib.loads
        try:
            return read(text)
        except (ValueError, RecursionError) as problem:
            raise SpecJsonError(f"{place} is not {path.suffix[1:].upper()}: {problem}") from None
    module, colon, name = place.partition(":")
    if not colon or not name.isidentifier():
        raise UsageError(f"{place!r} names no spec",
                         remedy="Name a .json or .toml file, or a Python object as module:name.")
    found = _imported(module, name)
    from ..spec import AttentionSpec

    if callable(found) and not isinstance(found, AttentionSpec):
        found = found()
    if not isinstance(found, AttentionSpec):
        raise UsageError(f"{place} is a {type(found).__name__}, not an AttentionSpec",
                         remedy="Name an AttentionSpec, or a function that returns one.")
    return found


def _imported(module: str, name: str) -> Any:
    """``module.name``, with modules of the current folder found too."""
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        loaded = import_module(module)
    except ImportError as problem:
        raise UsageError(f"module {module!r} cannot be imported: {problem}",
                         remedy="Modules are looked for in the current folder and on PYTHONPATH."
                         ) from None
    if not hasattr(loaded, name):
        raise UnknownNameError(f"name in {module}", name,
                               [n for n in vars(loaded) if not n.startswith("_")])
    return getattr(loaded, name)


# -- masks and scores ---------------------------------------------------------------------------


def _is_text(value: Any) -> bool:
    """Whether a file spells a mask or score as flags do."""
    return isinstance(value, str) or (
        isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value))


def _patterns(mask_texts: list[str] | None, score_texts: list[str] | None) -> dict[str, Any]:
    from .. import masks, scores

    found: dict[str, Any] = {}
    for text in mask_texts or ():
        mask = _pattern(text, "mask", masks.NAMED)
        found["mask"] = masks.all_of(found["mask"], mask) if "mask" in found else mask
    if score_texts:
        found["score"] = tuple(_pattern(text, "score", scores.NAMED) for text in score_texts)
    return found


def _pattern(text: str, kind: str, known: Mapping[str, type[Any]]) -> Any:
    """``prefix_lm:7``, ``fixed:l=16,c=4``, or ``module:function``."""
    from .. import patterns

    name, _, rest = text.partition(":")
    if name not in known:
        if rest.isidentifier():
            return _imported(name, rest)
        raise UnknownNameError(f"{kind} pattern", name, known)
    values = rest.split(",") if rest else []
    fields = known[name]._fields
    if len(fields) == 1 and len(values) > 1:
        return patterns.from_dict({"name": name, fields[0]: [_value(v) for v in values]}, kind,
                                  known)
    if len(values) > len(fields):
        raise SpecJsonError(f"{kind} pattern {name!r} takes {len(fields)} values, got {rest!r}",
                            remedy=f"Its fields are: {', '.join(fields) or 'none'}.")
    data: dict[str, Any] = {"name": name}
    for field, value in zip(fields, values, strict=False):
        key, equals, right = value.partition("=")
        data[key.strip() if equals else field] = _value(right if equals else value)
    return patterns.from_dict(data, kind, known)


def _value(text: str) -> int | float | str | tuple[int, ...]:
    """A number, sizes such as ``8x16``, or a word."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    sizes = text.split("x")
    return tuple(map(int, sizes)) if all(s.isdecimal() for s in sizes) else text.strip()
