"""Turning a Python ``mask_mod`` or ``score_mod`` into nodes: run it once on proxies (``proxy.py``).

What it indexes beside them is captured (``capture.py``): torch tensors are told apart from proxies
by a mode that sees every torch function called meanwhile.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import TraceError
from ..number import Dynamic, tracing
from .capture import Captures
from .naming import kernel_name
from .node import Node, walk
from .positions import check_positions
from .proxy import Scalar, Session, node_of, session
from .rows import Vector, call

_MAX_DEPTH = 250  # expressions are lowered and printed by recursion
_MOST_NODES = 4096
_TO_PYTHON = {"item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__"}


def trace(function: Callable[..., Any], args: tuple[Node, ...], name: str, result: str,
          captures: Captures | None = None, heads: int | None = None) -> Node:
    """The node ``function(*args)`` computes; ``result`` is "bool" or the score's type. Tensors it
    indexes and dynamic numbers are put into ``captures``; positions in them are checked for each of
    ``heads``. Tensors that it makes itself are constants.

    Raises TraceError, naming the function and its line, for what cannot be traced and for a
    result of the wrong kind.
    """
    compute = "float32" if result == "bool" else result
    origin = kernel_name(name, "mask" if result == "bool" else "score")
    token = session.set(Session(origin, compute, captures, spoken_names(function)))
    hook = tracing.set(_number)
    try:
        with _interceptor():
            node = node_of(function(*(Scalar(a) for a in args)))
    except TraceError as error:
        raise TraceError(f"{name}{_where(error)}: {error.what}", remedy=error.remedy) from None
    except Exception as error:
        raise TraceError(f"{name}{_where(error)}: {type(error).__name__}: {error}") from error
    finally:
        session.reset(token)
        tracing.reset(hook)
    if (node.dtype == "bool") != (result == "bool"):
        wanted = "a condition (true = visible)" if result == "bool" else "a number"
        raise TraceError(f"{name} must return {wanted}, it returned {node.dtype}")
    _check_size(node, name)
    if captures is not None:
        check_positions(node, captures, heads, name)
    return node


def _interceptor() -> Any:
    """A mode in which torch functions given proxies record, also where the first operand is a
    tensor: ``ids[q_idx]``, ``slope * distance``."""
    from torch.overrides import TorchFunctionMode

    class Interceptor(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (),
                               kwargs: Any = None) -> Any:
            if any(isinstance(x, Scalar | Vector) for x in _flat((args, kwargs))):
                return call(func, args, kwargs or {})
            here = session.get()
            if getattr(func, "__name__", "") in _TO_PYTHON and id(args[0]) in here.spoken \
                    and here.captures is not None:
                raise TraceError(f"{here.spoken[id(args[0])]} becomes a Python value, "
                                 "which would not follow the tensor's changes",
                                 remedy="Use it in the expression, indexed to the end; or "
                                        "capture a number or ag.dynamic.")
            return func(*args, **(kwargs or {}))

    return Interceptor()


def _flat(x: Any) -> Iterator[Any]:
    if isinstance(x, tuple | list):
        for item in x:
            yield from _flat(item)
    elif isinstance(x, dict):
        yield from _flat(list(x.values()))
    else:
        yield x


def _number(dynamic: Dynamic) -> Scalar:
    here = session.get()
    if here.captures is None:
        raise TraceError("a dynamic number cannot be captured here")
    spoken = dynamic.name or here.spoken.get(id(dynamic), "")
    return Scalar(here.captures.number(dynamic, dynamic.value, here.compute, spoken))


def spoken_names(function: Any) -> dict[int, str]:
    """What the user calls the tensors and dynamic numbers a callable can reach, by identity."""
    names: dict[int, str] = {}
    seen: set[int] = set()

    def visit(value: Any, name: str) -> None:
        if isinstance(value, Dynamic) or hasattr(value, "data_ptr"):
            names.setdefault(id(value), name)
        elif id(value) in seen or isinstance(value, type):
            return
        elif isinstance(value, tuple | list) and len(value) <= 256:
            seen.add(id(value))
            for item in value:
                visit(item, name)
        elif callable(value) or hasattr(value, "__self__"):
            seen.add(id(value))
            for inner_name, inner in _reached(value):
                visit(inner, inner_name)

    visit(function, "")
    return names


def _reached(function: Any) -> Iterator[tuple[str, Any]]:
    """(name, value) of what a callable holds: closure, defaults, globals it names, attributes."""
    if isinstance(function, functools.partial):
        yield from function.keywords.items()
        yield from zip(_parameters(function.func), function.args, strict=False)
        yield "", function.func
        return
    if getattr(function, "__self__", None) is not None:
        yield "", function.__self__
        function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None)
    if code is None:
        yield from getattr(function, "__dict__", {}).items()
        yield "", vars(type(function)).get("__call__")
        return
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    defaults = function.__defaults__ or ()
    positional = code.co_varnames[:code.co_argcount]
    yield from zip(positional[len(positional) - len(defaults):], defaults, strict=True)
    yield from (function.__kwdefaults__ or {}).items()
    for name in code.co_names:
        if name in function.__globals__:
            value = function.__globals__[name]
            if hasattr(value, "data_ptr") or isinstance(value, Dynamic | tuple | list) \
                    or getattr(value, "__module__", None) == function.__module__:
                yield name, value


def _parameters(function: Any) -> tuple[str, ...]:
    code = getattr(function, "__code__", None)
    return code.co_varnames[:code.co_argcount] if code else ()


def _check_size(root: Node, name: str) -> None:
    depth: dict[str, int] = {}
    for n in walk(root):
        depth[n.key] = 1 + max((depth[a.key] for a in n.args), default=-1)
    if depth[root.key] > _MAX_DEPTH:
        raise TraceError(f"{name} nests {depth[root.key]} operations, at most {_MAX_DEPTH} are "
                         "taken", remedy="Replace a long Python loop by a formula.")
    if len(depth) > _MOST_NODES:
        raise TraceError(f"{name} has {len(depth)} operations, at most {_MOST_NODES} are taken",
                         remedy="Replace a long Python loop by a formula or a captured table.")


def _where(error: BaseException) -> str:
    """The innermost line of user code in a traceback."""
    frames = [f for f in traceback.extract_tb(error.__traceback__)
              if not f.filename.startswith(str(Path(__file__).parent))]
    own = [f for f in frames if "site-packages" not in f.filename] or frames
    if not own:
        return ""
    frame = own[-1]
    return f" ({frame.filename}:{frame.lineno}: {frame.line})"
