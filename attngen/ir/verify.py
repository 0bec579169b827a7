"""What must hold at each stage; every pass is followed by ``verify``.

Each ``check_*`` function raises VerifyError naming the node or statement, what it has and what the
stage admits.
"""

from __future__ import annotations

import networkx as nx

from ..errors import VerifyError
from .bounds import EXTENTS
from .graph import STAGES, Graph, Region, launch_network, region_network
from .node import AXES, Node, walk
from .ops import OPS
from .verify_tiles import check_kernel

_ADMITTED = {
    "math": {"scalar", "leaf", "tensor"},
    "fused": {"scalar", "leaf", "tensor"},
}
_MATH_ONLY_KINDS = {"lse"}
_STREAMING = {"stream_sum", "stream_contract"}


def verify(graph: Graph) -> Graph:
    """Check every invariant of the graph's stage and return it unchanged. Raises VerifyError."""
    if graph.stage not in STAGES:
        raise VerifyError(f"unknown stage {graph.stage!r}; stages are {', '.join(STAGES)}")
    check_tensors(graph)
    if graph.stage in ("math", "fused"):
        for region in graph.regions:
            check_region(graph, region)
    else:
        for kernel in graph.tiles:
            check_kernel(graph, kernel)
    check_order(graph)
    return graph


def check_order(graph: Graph) -> None:
    """Kernel names are unique, and a kernel reads what earlier ones wrote."""
    names = [k.name for k in graph.kernels]
    if len(set(names)) != len(names):
        raise VerifyError(f"two kernels share a name: {', '.join(sorted(names))}")
    net = launch_network(graph)
    for number, kernel in enumerate(graph.kernels):
        for name in net.predecessors(number):
            late = [n for n in net.predecessors(name) if n >= number]
            if late:
                raise VerifyError(f"kernel {kernel.name} reads {name} before "
                                  f"{graph.kernels[late[0]].name} writes it")


def check_tensors(graph: Graph) -> None:
    """Names are unique identifiers, axes known, every workspace and output written once."""
    names = [t.name for t in graph.tensors]
    if len(set(names)) != len(names):
        raise VerifyError(f"two tensors share a name: {', '.join(sorted(names))}")
    for t in graph.tensors:
        if not t.name.isidentifier() or not t.name.isascii():
            raise VerifyError(f"tensor name {t.name!r} is no identifier")
        if set(t.axes) - set(AXES):
            raise VerifyError(f"tensor {t.name}: unknown axes {set(t.axes) - set(AXES)}")
        if t.role not in ("input", "output", "workspace"):
            raise VerifyError(f"tensor {t.name}: unknown role {t.role!r}")
        if "g" in t.axes:
            heads = dict(graph.sizes).get("heads")
            if t.by_head is None or len(t.by_head) != heads:
                raise VerifyError(f"tensor {t.name} has axis g but no map of its {heads} heads")
            if not all(0 <= g < dict(graph.sizes)["groups"] for g in t.by_head):
                raise VerifyError(f"tensor {t.name}: its head map leaves the groups")
        elif t.by_head is not None:
            raise VerifyError(f"tensor {t.name} maps heads without an axis g")
    net = launch_network(graph)
    for t in graph.tensors:
        writers = net.in_degree(t.name)
        if writers != (0 if t.role == "input" else 1):
            raise VerifyError(f"tensor {t.name} ({t.role}) is written by {writers} kernels")


def check_region(graph: Graph, region: Region) -> None:
    """Operand edges are acyclic; ops, axes and types fit the stage; outputs fit their tensors."""
    if not nx.is_directed_acyclic_graph(region_network(region)):
        raise VerifyError(f"region {region.name} has a circle")
    for node in walk(*region.roots):
        check_node(graph, node)
    for t, node in region.outputs:
        graph.tensor(t.name)
        if set(node.axes) - set(t.axes):
            raise VerifyError(f"output {t.name}{list(t.axes)} cannot hold {list(node.axes)}")


def check_node(graph: Graph, node: Node) -> None:
    """One node: admitted at the stage, right number of operands, consistent axes."""
    info = OPS.get(node.op)
    if info is None or info.group not in _ADMITTED[graph.stage] or node.op in (
            "value", "first", "last"):
        raise VerifyError(f"{node.op} does not belong in a {graph.stage} graph")
    if len(node.args) != info.arity:
        raise VerifyError(f"{node.op} takes {info.arity} operands, has {len(node.args)}")
    if node.op in _STREAMING and graph.stage == "math":
        raise VerifyError(f"{node.op} before fusion ({node.origin})")
    if node.op == "reduce" and node.attr("kind") in _MATH_ONLY_KINDS and graph.stage != "math" \
            and node.attr("over") in EXTENTS:
        raise VerifyError(f"a {node.attr('kind')} reduction after fusion ({node.origin})")
    if node.op == "input":
        t = graph.tensor(node.attr("name"))
        if set(t.axes) != set(node.axes) or t.dtype != node.dtype:
            raise VerifyError(f"input {t.name} is {node.dtype}{list(node.axes)}, the tensor is "
                              f"{t.dtype}{list(t.axes)}")
    if "over" in dict(node.attrs):
        over = node.attr("over")
        if over in node.axes or not any(over in a.axes for a in node.args):
            raise VerifyError(f"{node.op} over {over} ({node.origin}): result {list(node.axes)}, "
                              f"operands {[list(a.axes) for a in node.args]}")
    if info.group == "scalar" and node.args:
        wanted = {a for arg in node.args for a in arg.axes}
        if set(node.axes) != wanted:
            raise VerifyError(f"{node.op} has axes {list(node.axes)}, operands {sorted(wanted)}")
    if node.op in ("where", "and", "or", "not", "visible") and node.args[0].dtype != "bool":
        raise VerifyError(f"{node.op} ({node.origin}) needs a condition, got "
                          f"{node.args[0].dtype}")
