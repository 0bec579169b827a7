"""The graph: what a stage of the pipeline holds, and its networkx view.

``math`` and ``fused`` graphs are *regions* of tensor nodes; ``tiled`` and ``placed`` graphs are
kernels of tile statements. Either way the view is a ``MultiDiGraph`` keyed by operand slot (a
plain ``DiGraph`` would merge the two operands of ``x * x``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

import networkx as nx

from ..errors import VerifyError
from .node import Node, walk
from .stmt import Kernel, reads, statements, writes
from .tensor import Table, Tensor

STAGES = ("math", "fused", "tiled", "placed")


@dataclass(frozen=True)
class Region:
    """Tensor nodes that become one kernel; ``outputs`` pairs a device tensor with its node.
    ``loop`` is the axis its kernel walks where that is not the pipeline's."""

    name: str
    outputs: tuple[tuple[Tensor, Node], ...]
    loop: str = ""

    @property
    def roots(self) -> tuple[Node, ...]:
        return tuple(node for _, node in self.outputs)

    def with_roots(self, roots: Iterable[Node]) -> Region:
        """The same outputs, computed by other nodes."""
        return replace(self, outputs=tuple(zip((t for t, _ in self.outputs), roots, strict=True)))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the device tensors read, in order of first use."""
        return tuple(n.attr("name") for n in walk(*self.roots) if n.op == "input")


@dataclass(frozen=True)
class Graph:
    """One stage of the pipeline. Never mutated: passes return a new graph."""

    stage: str
    kernels: tuple[Region | Kernel, ...]
    tensors: tuple[Tensor, ...]
    sizes: tuple[tuple[str, int], ...]
    tables: tuple[Table, ...] = ()

    def tensor(self, name: str) -> Tensor:
        """The device tensor called ``name``. Raises VerifyError when there is none."""
        for t in self.tensors:
            if t.name == name:
                return t
        raise VerifyError(f"the graph has no tensor {name!r}; it has "
                          f"{', '.join(t.name for t in self.tensors)}")

    @property
    def regions(self) -> tuple[Region, ...]:
        """The regions of a math or fused graph. Raises VerifyError later on."""
        if self.stage not in ("math", "fused"):
            raise VerifyError(f"a {self.stage} graph has kernels, not regions")
        return self.kernels  # type: ignore[return-value]

    @property
    def tiles(self) -> tuple[Kernel, ...]:
        """The kernels of a tiled or placed graph. Raises VerifyError before tiling."""
        if self.stage not in ("tiled", "placed"):
            raise VerifyError(f"a {self.stage} graph has regions, not kernels")
        return self.kernels  # type: ignore[return-value]

    def with_regions(self, regions: tuple[Region, ...], stage: str | None = None) -> Graph:
        """The same graph with other regions."""
        return replace(self, kernels=regions, stage=stage or self.stage)

    def __str__(self) -> str:
        from .show import graph_text
        return graph_text(self)

    def key(self) -> str:
        """Content hash; origins and notes do not count."""
        parts: list[str] = [self.stage, repr(self.sizes), repr(self.tables)]
        for kernel in self.kernels:
            parts.append(kernel.name)
            if isinstance(kernel, Region):
                parts += [f"{t!r}={n.key}" for t, n in kernel.outputs]
            else:
                from .show import kernel_text
                parts.append(kernel_text(kernel, origins=False))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def region_network(region: Region) -> nx.MultiDiGraph:
    """The region's nodes and operand edges, keyed by slot."""
    net = nx.MultiDiGraph()
    for node in walk(*region.roots):
        net.add_node(node.key, node=node)
        for slot, arg in enumerate(node.args):
            net.add_edge(arg.key, node.key, key=slot)
    return net


def kernel_network(kernel: Kernel) -> nx.MultiDiGraph:
    """Statements (numbered) and the values between them: an edge per use of a value."""
    net = nx.MultiDiGraph()
    last_write: dict[str, int] = {}
    for number, stmt in enumerate(statements(kernel.body)):
        net.add_node(number, stmt=stmt)
        for name in reads(stmt):
            if name in last_write:
                net.add_edge(last_write[name], number, key=name)
        for name in writes(stmt):
            last_write[name] = number
    return net


def launch_network(graph: Graph) -> nx.MultiDiGraph:
    """Kernels (numbered in launch order) and device tensors: who writes what for whom."""
    net = nx.MultiDiGraph()
    net.add_nodes_from(t.name for t in graph.tensors)
    for number, kernel in enumerate(graph.kernels):
        net.add_node(number, kernel=kernel.name)
        if isinstance(kernel, Region):
            read, written = kernel.inputs, tuple(t.name for t, _ in kernel.outputs)
        else:
            written = tuple(t.name for t in kernel.tensors if _writes(kernel, t.name))
            read = tuple(t.name for t in kernel.tensors if t.name not in written)
        for name in read:
            net.add_edge(name, number, key=name)
        for name in written:
            net.add_edge(number, name, key=name)
    return net


def _writes(kernel: Kernel, name: str) -> bool:
    from .stmt import Store
    return any(isinstance(s, Store) and s.tensor == name for s in statements(kernel.body))
