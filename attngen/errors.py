"""Every way attngen refuses: one class per mistake.

A message has four parts, each on its own line when present: what happened, where, the numbers that
show it, and the remedy. ``str(error)`` is the whole message; the parts are attributes too. Errors
survive pickling, so they cross process boundaries intact. Classes whose mistake Python already has
a name for derive from that built-in as well (``except ValueError`` catches a ``SpecError``).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any


def _restore(cls: type[AttngenError], message: str, fields: dict[str, Any]) -> AttngenError:
    error = cls.__new__(cls)
    Exception.__init__(error, message)
    error.__dict__.update(fields)
    return error


class AttngenError(Exception):
    """Base of all refusals; ``remedy`` falls back to the class's own.

    Example: ``AttngenError("no kernel", where="forward", numbers="0 of 3", remedy="Build it.")``
    """

    default_remedy = ""

    def __init__(self, what: str, *, where: str = "", numbers: str = "", remedy: str = "") -> None:
        self.what = what
        self.where = where
        self.numbers = numbers
        self.remedy = remedy or self.default_remedy
        parts = [("where", where), ("numbers", numbers), ("remedy", self.remedy)]
        super().__init__("\n".join([what, *(f"  {name}: {text}" for name, text in parts if text)]))

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), str(self), self.__dict__)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``Did you mean 'softcap'? `` for the nearest known name, or nothing."""
    spelling = {k.lower(): k for k in sorted(known)}
    near = difflib.get_close_matches(name.lower(), list(spelling), n=1, cutoff=0.5)
    return f"Did you mean {spelling[near[0]]!r}? " if near else ""


class CapturedError(AttngenError, ValueError):
    """A captured tensor or number that is missing, of the wrong kind, or ambiguous.

    Example: ``2 captured objects are called 'table'``
    """


class BlockMaskError(AttngenError, ValueError):
    """A FlexAttention block mask that does not fit the tensors.

    Example: ``block_mask is for 128 queries and 128 keys``
    """


class UnknownNameError(AttngenError, ValueError):
    """A name that is not in the list it must come from.

    Example: ``unknown score pattern 'softcup'`` / ``Did you mean 'softcap'? Known: alibi, ...``
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], *, where: str = "") -> None:
        self.kind, self.name, self.known = kind, name, tuple(sorted(known))
        super().__init__(f"unknown {kind} {name!r}", where=where, remedy=(
            f"{did_you_mean(name, self.known)}Known: {', '.join(self.known)}."))


class UnknownTargetError(UnknownNameError):
    """A target no kernel can be made for. Example: ``unknown target 'sm90'``."""

    def __init__(self, name: str, known: Iterable[str], *, where: str = "") -> None:
        super().__init__("target", name, known, where=where)


class UnknownDtypeError(UnknownNameError):
    """A dtype no kernel computes in. Example: ``unknown dtype 'bf16'``."""

    def __init__(self, name: str, known: Iterable[str], *, where: str = "") -> None:
        super().__init__("dtype", name, known, where=where)


# -- the spec -----------------------------------------------------------------------------------


class SpecError(AttngenError, ValueError):
    """A field of AttentionSpec that means nothing. Example: ``heads must be at least 1, got 0``."""


class HeadDimError(SpecError):
    """A head size no kernel is made for. Example: ``head_dim=100 is not a multiple of 8``."""

    default_remedy = "Use a multiple of 8 from 8 to 256; zero-pad q and k (or v) up to it."


class GroupsError(SpecError):
    """Key/value heads that do not fit the query heads. Example: ``groups=5 does not divide
    heads=32``."""

    default_remedy = ("Give an int dividing heads, or a tuple of length heads naming the key/value "
                      "head of each query head.")


class WindowError(SpecError):
    """A window that is negative or ambiguous. Example: ``window=4 needs causal=True``."""


class PatternError(SpecError):
    """A mask or score that is neither a named pattern nor a usable callable, or a pattern with bad
    arguments. Example: ``sliding_window(-1): the window must be at least 1``."""


class SpecJsonError(SpecError):
    """A spec that has no JSON form, or JSON that is not a spec. Example: ``mask is a Python
    callable; only named patterns have a JSON form``."""


class NotDeliveredError(AttngenError):
    """Part of the design that this version does not have yet.

    Example: ``sinks=True is not available in this version of attngen``
    """

    default_remedy = "Leave it at its default."


class TraceError(AttngenError, TypeError):
    """A mask or score callable did something that cannot become a kernel, such as ``if`` on an
    index. Example: ``mask_mod used the truth value of an expression``."""

    default_remedy = ("Use & | ~ for and, or, not; torch.where for a choice; "
                      "and put comparisons in parentheses: (a < b) & (c < d).")


# -- the call -----------------------------------------------------------------------------------


class ShapeError(AttngenError, ValueError):
    """A tensor of the wrong rank or size. Example: ``k has 3 dimensions, expected 4
    [batch, groups, seqlen_k, head_dim]``."""


class HeadsError(ShapeError):
    """Head counts of the tensors and of the spec differ. Example: ``q has 16 heads, the spec has
    32``."""


class DtypeError(AttngenError, TypeError):
    """Tensors of a dtype the spec or target does not take. Example: ``k is float16, q is
    bfloat16``."""


class DropoutError(AttngenError, ValueError):
    """A probability or seed of dropout that is none. Example: ``dropout_p is 1.5``."""


class DeviceError(AttngenError, ValueError):
    """Tensors on the wrong device. Example: ``q is on cpu, target sm_90 needs cuda``."""


class NoDeviceError(DeviceError):
    """A GPU kernel was to be launched where there is no GPU. Example: ``target sm_90 needs a GPU;
    none is visible``."""

    default_remedy = 'Pass emulate=True to execute the same text on the CPU, or target="cpu".'


class StrideError(AttngenError, ValueError):
    """Strides or alignment the kernel cannot read in place. Example: ``k's base address is not
    16-byte aligned``."""

    default_remedy = "Pass .contiguous()."


class NonUnitStrideError(StrideError):
    """The last dimension is not contiguous. Example: ``v has stride 2 in its last dimension``."""


class LaunchError(AttngenError, RuntimeError):
    """The device refused or aborted a kernel. Example: ``cuLaunchKernel: too many resources``."""


# -- lowering -----------------------------------------------------------------------------------


class VerifyError(AttngenError):
    """A graph or kernel broke an invariant of its stage. Example: ``contract takes 2 operands, got
    1``."""


class FusionError(VerifyError):
    """Nodes that cannot share a kernel. Example: ``lse escapes the loop over j``."""


class ScheduleError(AttngenError, ValueError):
    """An explicit tile or schedule the target cannot run; the arithmetic is in ``numbers``.

    Example: ``tile 256 x 256 needs 393216 B shared memory, sm_86 allows 101376 B``
    """

    default_remedy = "Leave the schedule out to let the heuristic pick a legal one."


class TemplateError(AttngenError):
    """A template failed to render. Example: ``forward.cu.jinja, line 12: 'k.blok_m' is
    undefined``."""


class KVCacheFullError(AttngenError, RuntimeError):
    """Tokens a cache has no room for. Example: ``3 tokens do not fit into sequence 0``."""


# -- compilers and cache ------------------------------------------------------------------------

# nvrtc: name(12): error: ...      gcc and clang: name:12:3: error: ...
_ERROR_LINE = re.compile(r"[(:](\d+)[):][^\n]*?\berror\b")


def excerpt(source: str, line: int, around: int = 3) -> str:
    """Numbered lines of ``source`` about ``line`` (from 1), that line marked with ``>``."""
    lines = source.splitlines()
    first, last = max(1, line - around), min(len(lines), line + around)
    return "\n".join(f"{'>' if n == line else ' '}{n:5d} | {lines[n - 1]}"
                     for n in range(first, last + 1))


class CompileError(AttngenError, RuntimeError):
    """A compiler refused emitted text: its log, the lines round the first error, and the dump.

    Example: ``nvrtc failed for sm_80`` / ``kernel.cu(12): error: expected a ";"`` / the lines
    """

    default_remedy = ("This is a fault of attngen unless the text was edited by hand; "
                      "please report it with the dumped file.")

    def __init__(self, what: str, *, source: str = "", log: str = "", path: object = None,
                 where: str = "", remedy: str = "") -> None:
        found = _ERROR_LINE.search(log)
        self.source, self.log, self.path = source, log, path
        self.line = int(found.group(1)) if found else None
        shown = excerpt(source, self.line) if source and self.line else ""
        tail = log.strip()[:2000]
        super().__init__("\n".join(t for t in (what, tail, shown) if t), remedy=remedy,
                         where=where or (f"full text in {path}" if path else ""))


class NoCompilerError(AttngenError, RuntimeError):
    """No compiler for the target was found. Example: ``no C++ compiler: tried c++, g++,
    clang++``."""

    default_remedy = "Install g++ or clang++, or name one in ATTNGEN_CXX."


class CacheError(AttngenError, UserWarning):
    """The disk cache cannot be used. Also a warning: ``warnings.warn(CacheError(...))`` is how a
    call reports it and goes on with a private compile, since a cache may only cost time.

    Example: ``the cache folder /home/u/.cache/attngen is not writable``
    """

    default_remedy = "Point ATTNGEN_CACHE_DIR at a folder of your own, or set ATTNGEN_CACHE=0."


class CacheCorruptError(CacheError):
    """A cached file fails its checksum. Example: ``entry 3f2a… is damaged: 512 of 9180 bytes``."""

    default_remedy = "It was removed and made again; `attngen cache verify` checks the rest."


class CacheUnsafeError(CacheError):
    """The cache folder belongs to, or may be written by, someone else. Example: ``/tmp/x is owned
    by uid 1001, this process is uid 1000``."""


class NotCachedError(CacheError):
    """ATTNGEN_ASSERT_CACHED is set and a kernel would have to be compiled. Example: ``forward
    kernel for sm_90 is not in the cache``."""

    default_remedy = "Build it first (`attn.build()`), or unset ATTNGEN_ASSERT_CACHED."


class OverrideWarning(UserWarning):
    """Hand-edited text from ATTNGEN_OVERRIDE replaced the generated one. Example: ``running
    edits/forward.cu instead of the generated text``."""


class KnobError(AttngenError, ValueError):
    """A setting outside its range. Example: ``ATTNGEN_VERIFY=7`` / ``expected one of 0, 1, 2``."""


# -- the command line ---------------------------------------------------------------------------


class UsageError(AttngenError, ValueError):
    """A command line that says nothing that can be done. Example: ``argument --heads: invalid int
    value: 'many'``."""

    default_remedy = "`attngen --help` shows how; `attngen <command> --help` has examples."


# -- the emulator -------------------------------------------------------------------------------


class EmulatorError(AttngenError, RuntimeError):
    """The emulated kernel did something a GPU would not promise to survive. ``line`` and
    ``other_line`` count lines of the emitted text, ``thread`` is the index in its ``block``."""

    default_remedy = "Rerun with the same ATTNGEN_SEED to see the same schedule."
    line: int | None = None
    other_line: int | None = None
    block: tuple[int, int, int] | None = None
    thread: int | None = None


class RaceError(EmulatorError):
    """Two threads touched a byte, one writing, with nothing ordering them. Example: ``s_k[1024]
    written by thread 5, read by thread 40, no barrier between``."""


class OutOfBoundsError(EmulatorError):
    """An access outside its tensor or array. Example: ``load of 16 bytes at k + 8192, k has 8192
    bytes``."""


class DeadlockError(EmulatorError):
    """Threads wait for each other for ever. Example: ``96 of 128 threads wait at barrier line
    210``."""


class DivergenceError(EmulatorError):
    """Lanes of a warp reached different collective instructions. Example: ``lane 3 at mma line 80,
    lane 0 at ldmatrix line 75``."""


class UninitialisedError(EmulatorError):
    """Poisoned memory was read. Example: ``s_v[64] read before its copy was waited for``."""


class MisalignedError(EmulatorError):
    """An address not divisible by the access's size. Example: ``cp.async of 16 bytes at s_q +
    8``."""
