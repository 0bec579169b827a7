"""The definition of math and fused graphs: NumPy over whole tensors, axis by axis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..errors import VerifyError
from .graph import Graph, Region
from .node import AXES, Node, idx, walk
from .ops import FLOATS, SCALAR_OPS, element_of
from .tensor import Tensor

Array = np.ndarray[Any, Any]


def round_to(x: Array, dtype: str) -> Array:
    """``x`` rounded to a storage type, kept in the array's own precision."""
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return x.astype(np.float16).astype(x.dtype)
    if dtype == "bfloat16":
        bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32)
        out = rounded.view(np.float32).astype(x.dtype)
        return np.where(np.isfinite(x), out, x)
    if dtype == "int8":
        return np.clip(np.rint(x), -127, 127)
    if dtype == "float8_e4m3":
        inside = np.clip(x, -448, 448)
        _, exponent = np.frexp(inside)
        unit = np.exp2(np.maximum(exponent - 1, -6) - 3.0)
        return np.rint(inside / unit) * unit
    return x.astype(np.float32).astype(x.dtype) if dtype == "float32" else x


class TensorInterpreter:
    """Evaluates nodes of a region. Arrays are kept with all axes in the order of ``AXES``,
    length 1 where a node lacks the axis, so that NumPy broadcasting is the axis rule.

    ``precision`` is the NumPy float type of every intermediate; with ``rounding`` casts to storage
    types round as the kernels do.
    """

    def __init__(self, inputs: Mapping[str, Array], params: Mapping[str, Any],
                 extents: Mapping[str, int], precision: Any = np.float64,
                 rounding: bool = False) -> None:
        self.inputs, self.params, self.extents = inputs, params, extents
        self.precision, self.rounding = precision, rounding

    def run(self, region: Region) -> dict[str, Array]:
        """Every output of the region, axes in the tensor's order."""
        done: dict[str, Array] = {}
        with np.errstate(all="ignore"):
            for node in walk(*region.roots):
                done[node.key] = self._evaluate(node, [done[a.key] for a in node.args])
        return {t.name: self._collapse(done[n.key], t.seen) for t, n in region.outputs}

    def value(self, root: Node, axes: tuple[str, ...]) -> Array:
        """A scalar expression over ``axes``."""
        done: dict[str, Array] = {}
        for node in walk(root):
            done[node.key] = self._evaluate(node, [done[a.key] for a in node.args])
        return self._collapse(done[root.key], axes)

    def _expand(self, array: Array, axes: tuple[str, ...]) -> Array:
        order = sorted(range(len(axes)), key=lambda n: AXES.index(axes[n]))
        array = np.transpose(array, order)
        shape = iter(array.shape)
        return array.reshape([next(shape) if a in axes else 1 for a in AXES])

    def _collapse(self, array: Array, axes: tuple[str, ...]) -> Array:
        full = np.broadcast_to(array, [
            self.extents[a] if a in axes else 1 for a in AXES])
        squeezed = full.reshape([self.extents[a] for a in AXES if a in axes])
        kept = [a for a in AXES if a in axes]
        return np.transpose(squeezed, [kept.index(a) for a in axes])

    def _evaluate(self, n: Node, args: list[Array]) -> Array:
        if n.op == "input":
            return self._expand(np.asarray(self.inputs[n.attr("name")], self.precision), n.axes)
        if n.op == "const":
            return np.asarray(n.attr("value")).reshape([1] * len(AXES))
        if n.op == "idx":
            return self._expand(np.arange(self.extents[n.attr("axis")]), n.axes)
        if n.op == "param":
            array = np.asarray(self.params[n.attr("name")])
            return self._expand(array, n.axes if array.ndim else ())
        if n.op == "by_head":
            taken = np.take(args[0], n.attr("map"), axis=AXES.index("g"))
            return np.swapaxes(taken, AXES.index("g"), AXES.index("h"))
        if n.op in ("contract", "stream_contract"):
            return self._contract(args[0], args[1], n.attr("over"))
        if n.op in ("reduce", "stream_sum"):
            return self._reduce(n, args[0])
        if n.op == "gather":
            found = element_of(self.inputs[n.attr("name")], *args)
            return np.asarray(found).reshape(found.shape or [1] * len(AXES))
        if n.op == "visible":
            return args[0]
        if n.op == "of_part":  # as even parts of the whole axis
            axis, part = (a.attr("axis") for a in n.args)
            zones = n.attr("zones")
            of = args[0] * (self.extents[part] // zones) // self.extents[axis]
            return np.asarray(of == args[1] // zones)
        if n.op == "cast" and n.dtype not in FLOATS:
            return np.trunc(args[0]).astype(np.int64)
        if n.op == "cast":
            return round_to(args[0], n.dtype) if self.rounding else args[0]
        evaluate = SCALAR_OPS[n.op].evaluate
        if evaluate is None:
            raise VerifyError(f"{n.op} has no meaning in the interpreter")
        return np.asarray(evaluate(*args))

    def _contract(self, a: Array, b: Array, over: str) -> Array:
        axis = AXES.index(over)
        if a.shape[axis] == 1 and b.shape[axis] == 1:  # constant along it, or an axis of one
            return a * b * self.extents[over]
        letters = "ABCDEFGHI"[:len(AXES)]
        product = np.einsum(f"{letters},{letters}->{letters.replace(letters[axis], '')}", a, b)
        return np.expand_dims(product, axis)

    def _reduce(self, n: Node, x: Array) -> Array:
        axis = AXES.index(n.attr("over"))
        shape = list(x.shape)
        shape[axis] = self.extents[n.attr("over")]
        x = np.broadcast_to(x, shape)
        kind = "sum" if n.op == "stream_sum" else n.attr("kind")
        if kind == "sum":
            return np.sum(x, axis=axis, keepdims=True)
        top = np.max(x, axis=axis, keepdims=True, initial=-np.inf)
        if kind == "max":
            return top
        safe = np.where(np.isneginf(top), 0, top)
        return top + np.log(np.sum(np.exp(x - safe), axis=axis, keepdims=True))


def interpret_tensors(graph: Graph, inputs: Mapping[str, Array], params: Mapping[str, Any],
                      extents: Mapping[str, int], precision: Any = np.float64,
                      rounding: bool = False) -> dict[str, Array]:
    """Every output and workspace of a math or fused graph.

    ``inputs`` are arrays in the tensors' axis order, ``params`` numbers or arrays over batch,
    ``extents`` the length of every axis.
    """
    known: dict[str, Array] = dict(inputs)
    places = Places(graph.tensors, known, params, extents)
    known.update({t.name: places.seen(t, known[t.name]) for t in graph.tensors
                  if t.role == "input"})
    for region in graph.regions:
        runner = TensorInterpreter(known, params, extents, precision, rounding)
        known.update(runner.run(region))
    return {t.name: places.stored(t, known[t.name]) for t in graph.tensors if t.role != "input"}


class Places:
    """Tensors as they are stored, and as kernels see them."""

    def __init__(self, tensors: Iterable[Tensor], tables: Mapping[str, Array],
                 params: Mapping[str, Any], extents: Mapping[str, int]) -> None:
        self._extents = extents
        reader = TensorInterpreter(tables, params, extents)
        tensors = tuple(tensors)
        self._index = {t.name: self._indices(t, reader) for t in tensors if t.place}
        self._only = {t.name: np.broadcast_to(reader.value(t.only, t.seen),
                                              [extents[a] for a in t.seen])
                      for t in tensors if t.only}

    def _indices(self, t: Tensor, reader: TensorInterpreter) -> tuple[Array, ...]:
        """Where every element of what is seen is stored, an array for each stored axis."""
        place, shape = dict(t.place), [self._extents[a] for a in t.seen]
        return tuple(np.broadcast_to(reader.value(place.get(a, idx(a)), t.seen), shape)
                     for a in t.axes)

    def seen(self, t: Tensor, array: Array) -> Array:
        """What kernels see of it."""
        return np.asarray(array)[self._index[t.name]] if t.place else np.asarray(array)

    def stored(self, t: Tensor, array: Array) -> Array:
        """The inverse, NaN where nothing is seen."""
        if not t.place:
            return array
        out = np.full([self._extents[a] for a in t.axes], np.nan, array.dtype)
        index, only = self._index[t.name], self._only.get(t.name)
        if only is None:
            out[index] = array
        else:
            out[tuple(x[only] for x in index)] = array[only]
        return out
