"""Fusion: which nodes live in device memory, hence how many kernels there are.

    s = q·kᵀ; p = softmax(s); o = p·v
  fused →    one region; the N×N scores exist only as tiles
  unfused →  [q k → s]  [s → lse, p]  [p v → o]: every N×N operand of a reduction is written out
"""

from __future__ import annotations

from dataclasses import replace

import networkx as nx

from ..errors import FusionError
from .graph import Graph, Region, launch_network
from .node import Node, interning, substitute, tensor, walk
from .stream import stream_region
from .tensor import Tensor


def fuse(graph: Graph, enabled: bool = True, keep: str = "i", loop: str = "j") -> Graph:
    """Cut the math graph into regions and make each region's softmax streaming.

    Raises FusionError when the cut regions depend on each other in a circle.
    """
    regions: list[Region] = []
    tensors = list(graph.tensors)
    with interning(*(n for r in graph.regions for n in r.roots)):
        for region in graph.regions:
            if enabled:
                regions.append(region)
            else:
                cut, workspaces = _materialise(region, keep, loop)
                regions += cut
                tensors += workspaces
        streamed = tuple(r.with_roots(stream_region(r.roots, r.loop or loop)) for r in regions)
    out = replace(graph, stage="fused", kernels=streamed, tensors=tuple(tensors))
    net = launch_network(out)
    if not nx.is_directed_acyclic_graph(net):
        raise FusionError("the regions depend on each other in a circle: "
                          f"{', '.join(r.name for r in streamed)}; fuse them into one")
    order = nx.lexicographical_topological_sort(
        net, key=lambda n: n if isinstance(n, int) else -1)
    return replace(out, kernels=tuple(streamed[n] for n in order if isinstance(n, int)))


def _materialise(region: Region, keep: str, loop: str) -> tuple[list[Region], list[Tensor]]:
    """Write out every keep×loop operand of a reduction along the loop."""
    cuts: dict[Node, Tensor] = {}
    names: set[str] = set()
    for node in walk(*region.roots):
        if node.op in ("contract", "reduce") and node.attr("over") == loop:
            for operand in node.args:
                if {keep, loop} <= set(operand.axes) and operand.op != "input" \
                        and operand not in cuts:
                    name = _fresh(f"w_{operand.origin or 'x'}", names)
                    cuts[operand] = Tensor(name, operand.axes, operand.dtype, "workspace")
    loads = {n: tensor(t.name, t.axes, t.dtype) for n, t in cuts.items()}
    outputs: list[tuple[Tensor, Node]] = []
    for node, t in [*((n, t) for n, t in cuts.items()), *((n, t) for t, n in region.outputs)]:
        table = {n: load for n, load in loads.items() if n is not node}
        outputs.append((t, substitute(node, table)))
    return _group(region.name, outputs), list(cuts.values())


def _group(name: str, outputs: list[tuple[Tensor, Node]]) -> list[Region]:
    """Outputs that read the same tensors share a kernel."""
    groups: dict[tuple[str, ...], list[tuple[Tensor, Node]]] = {}
    for t, node in outputs:
        groups.setdefault(Region(name, ((t, node),)).inputs, []).append((t, node))
    return [Region("_".join([name, *(t.name.removeprefix("w_") for t, _ in group)]), tuple(group))
            for group in groups.values()]


def _fresh(base: str, used: set[str]) -> str:
    name, count = base, 2
    while name in used:
        name, count = f"{base}{count}", count + 1
    used.add(name)
    return name
