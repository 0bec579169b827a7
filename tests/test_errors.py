"""Error classes: four-part messages, documented by example, intact after pickling."""

from __future__ import annotations

import inspect
import pickle
import warnings

import pytest

from attngen import errors

CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass)
           if c.__module__ == errors.__name__]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_every_class_has_a_docstring_with_an_example(cls: type) -> None:
    family = cls is errors.EmulatorError  # never raised itself
    assert cls.__doc__ and ("Example: " in cls.__doc__ or family)


def test_message_has_its_parts_on_lines_of_their_own() -> None:
    error = errors.ScheduleError("tile 256 x 256 needs 393216 B shared memory, sm_86 allows 101376",
                                 where="forward, head_dim 128", numbers="q 65536 + k 327680",
                                 remedy="Try BLOCK_N=64.")
    assert str(error).splitlines() == [
        "tile 256 x 256 needs 393216 B shared memory, sm_86 allows 101376",
        "  where: forward, head_dim 128", "  numbers: q 65536 + k 327680",
        "  remedy: Try BLOCK_N=64."]
    assert (error.what, error.numbers) == (str(error).splitlines()[0], "q 65536 + k 327680")


def test_class_supplies_a_remedy_when_the_caller_has_none() -> None:
    assert ".contiguous()" in str(errors.NonUnitStrideError("v has stride 2"))
    assert "emulate=True" in str(errors.NoDeviceError("no GPU"))


@pytest.mark.parametrize("error", [
    errors.ShapeError("k has 3 dimensions", where="forward"),
    errors.UnknownTargetError("sm90", ["cpu", "sm_90"]),
    errors.CompileError("nvrtc failed", source="a\nb", log="k.cu(2): error: no", path="/d/k.cu"),
])
def test_errors_survive_pickling(error: errors.AttngenError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error)
    assert again.__dict__ == error.__dict__


@pytest.mark.parametrize("name, known, suggestion", [
    ("sm90", ["cpu", "sm_80", "sm_90"], "Did you mean 'sm_90'? Known: cpu, sm_80, sm_90."),
    ("CPU", ["cpu", "sm_80"], "Did you mean 'cpu'?"),
    ("quantum", ["cpu", "sm_80"], "remedy: Known: cpu, sm_80.")])
def test_unknown_names_suggest_the_nearest(name: str, known: list[str], suggestion: str) -> None:
    assert suggestion in str(errors.UnknownTargetError(name, known))


@pytest.mark.parametrize("log, line", [
    ('kernel.cu(7): error: expected a ";"', 7),
    ("/tmp/x/kernel.cpp:7:13: error: 'foo' was not declared", 7),
    ("kernel.cpp:2:1: warning: unused\nkernel.cpp:7:13: error: no", 7),
    ("ptxas fatal: no line here", None)])
def test_compile_error_shows_the_lines_round_the_first_error(log: str, line: int | None) -> None:
    source = "\n".join(f"text of line {n}" for n in range(1, 21))
    error = errors.CompileError("the compiler failed", source=source, log=log, path="/d/kernel.cu")
    assert error.line == line and log.splitlines()[-1] in str(error)
    assert "full text in /d/kernel.cu" in str(error)
    assert (">    7 | text of line 7" in str(error)) == (line == 7)
    assert ("     4 | text of line 4" in str(error)) == (line == 7)
    assert "text of line 12" not in str(error)


def test_cache_errors_can_be_warned_about() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        warnings.warn(errors.CacheCorruptError("entry 3f is damaged"), stacklevel=1)
    assert seen[0].category is errors.CacheCorruptError and "3f is damaged" in str(seen[0].message)


def test_errors_are_also_the_builtins_people_catch() -> None:
    for cls, builtin in ((errors.SpecError, ValueError), (errors.ShapeError, ValueError),
                         (errors.DtypeError, TypeError), (errors.CompileError, RuntimeError),
                         (errors.TraceError, TypeError), (errors.UnknownNameError, ValueError)):
        assert issubclass(cls, builtin) and issubclass(cls, errors.AttngenError)
