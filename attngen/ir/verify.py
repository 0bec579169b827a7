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
from .ops import EIGHT_BIT, FLOATS, OPS
from .pack import begin_of
from .stmt import Kernel
from .tensor import Tensor
from .verify_tiles import STORED, check_gather, check_kernel

SIZES = ("heads", "groups", "head_dim", "head_dim_v")
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
    kind = Region if graph.stage in ("math", "fused") else Kernel
    for item in graph.kernels:
        if not isinstance(item, kind):
            raise VerifyError(f"{item.name}: a {graph.stage} graph has {kind.__name__}s, not "
                              f"{type(item).__name__}s")
    check_sizes(graph)
    check_tensors(graph)
    check_tables(graph)
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


def check_sizes(graph: Graph) -> None:
    """The compile-time sizes, by name, in one order."""
    if tuple(s[0] for s in graph.sizes if len(s) == 2) != SIZES or len(graph.sizes) != len(SIZES):
        raise VerifyError(f"the graph has sizes {graph.sizes}; it needs {', '.join(SIZES)}")
    for name, size in graph.sizes:
        if size < 1:
            raise VerifyError(f"{name} is {size}: at least 1")


def check_tensors(graph: Graph) -> None:
    """Names are unique identifiers, axes known, every workspace and output written once."""
    sizes = dict(graph.sizes)
    packed = graph.stage == "placed" and any(t.begin for t in graph.tensors)
    by_group = not any("h" in t.seen for t in graph.tensors)  # no query heads, but maybe in rows
    names = [t.name for t in graph.tensors]
    if len(set(names)) != len(names):
        raise VerifyError(f"two tensors share a name: {', '.join(sorted(names))}")
    for t in graph.tensors:
        if not t.name.isidentifier() or not t.name.isascii():
            raise VerifyError(f"tensor name {t.name!r} is no identifier")
        if set(t.seen) - set(AXES) or any(len(set(x)) != len(x) for x in (t.seen, t.axes)):
            raise VerifyError(f"tensor {t.name}: axes {list(t.seen)} are not of {', '.join(AXES)}")
        if t.dtype not in (*FLOATS, *EIGHT_BIT):
            raise VerifyError(f"tensor {t.name}: no tensors of {t.dtype}")
        if t.role not in ("input", "output", "workspace"):
            raise VerifyError(f"tensor {t.name}: unknown role {t.role!r}")
        if t.begin != (begin_of(t) if packed else ""):
            raise VerifyError(f"tensor {t.name}{list(t.axes)} ({t.role}) begins at {t.begin!r} in "
                              f"a {graph.stage} graph {'with' if packed else 'without'} packed "
                              "tensors")
        if t.begin and "b" in t.axes:
            raise VerifyError(f"packed tensor {t.name} has an axis b")
        check_places(graph, t)
        if "g" in t.axes and not by_group:
            if t.by_head is None or len(t.by_head) != sizes["heads"]:
                raise VerifyError(f"tensor {t.name} has axis g but no map of its "
                                  f"{sizes['heads']} heads")
            if set(t.by_head) - set(range(sizes["groups"])):
                raise VerifyError(f"tensor {t.name}: its head map {t.by_head} leaves the "
                                  f"{sizes['groups']} groups")
        elif t.by_head is not None:
            raise VerifyError(f"tensor {t.name} maps heads without an axis g, or where rows do")
    for kernel in graph.kernels:
        for name in (kernel.inputs if isinstance(kernel, Region) else
                     [t.name for t in kernel.tensors]):
            graph.tensor(name)
    net = launch_network(graph)
    for t in graph.tensors:
        writers = net.in_degree(t.name)
        if writers != (0 if t.role == "input" else 1):
            raise VerifyError(f"tensor {t.name} ({t.role}) is written by {writers} kernels")


def check_places(graph: Graph, t: Tensor) -> None:
    """Every stored axis is one that is seen or has a place, an index computed from those."""
    placed = dict(t.place)
    if set(t.axes) - set(t.seen) - set(placed) or set(placed) - set(t.axes) or t.begin and placed:
        raise VerifyError(f"tensor {t.name} is stored as {list(t.axes)} and seen as "
                          f"{list(t.seen)}, with places for {sorted(placed)}")
    if t.only is not None and (t.role != "output" or t.only.dtype != "bool"
                               or set(t.only.axes) - set(t.seen) or not _indexes(t.only)):
        raise VerifyError(f"tensor {t.name}: {t.only!r} does not say what is stored")
    for axis, n in t.place:
        if set(n.axes) - set(t.seen) or n.dtype not in ("int32", "int64") or not _indexes(n):
            raise VerifyError(f"tensor {t.name}: {n!r} is no index along {axis}")
        for m in walk(n):
            if m.op == "gather":
                check_gather(graph.tables, m)


def _indexes(n: Node) -> bool:
    """Is it computed from indices, parameters and captured tensors alone?"""
    return all(OPS[m.op].group == "scalar" or m.op in ("const", "idx", "param") for m in walk(n))


def check_tables(graph: Graph) -> None:
    """Captured tensors have names of their own, a storage type and at least no dimension less."""
    taken = {t.name for t in graph.tensors}
    for t in graph.tables:
        if not t.name.isidentifier() or not t.name.isascii() or t.name in taken:
            raise VerifyError(f"captured tensor {t.name!r}: not a name, or one that is taken")
        if t.dtype not in STORED or t.ndim < 0:
            raise VerifyError(f"captured tensor {t.name}: no {t.ndim}-D tables of {t.dtype}")
        taken.add(t.name)


def check_region(graph: Graph, region: Region) -> None:
    """Operand edges are acyclic; ops, axes and types fit the stage; outputs fit their tensors."""
    if not nx.is_directed_acyclic_graph(region_network(region)):
        raise VerifyError(f"region {region.name} has a circle")
    for node in walk(*region.roots):
        check_node(graph, node)
    for t, node in region.outputs:
        graph.tensor(t.name)
        if set(node.axes) - set(t.seen):
            raise VerifyError(f"output {t.name}{list(t.seen)} cannot hold {list(node.axes)}")


def check_node(graph: Graph, node: Node) -> None:
    """One node: admitted at the stage, right number of operands, consistent axes."""
    info = OPS.get(node.op)
    if info is None or info.group not in _ADMITTED[graph.stage] or node.op in (
            "value", "first", "last"):
        raise VerifyError(f"{node.op} does not belong in a {graph.stage} graph")
    if node.op == "gather":
        check_gather(graph.tables, node)
    elif len(node.args) != info.arity:
        raise VerifyError(f"{node.op} takes {info.arity} operands, has {len(node.args)}")
    if node.op in _STREAMING and graph.stage == "math":
        raise VerifyError(f"{node.op} before fusion ({node.origin})")
    if node.op == "reduce" and node.attr("kind") in _MATH_ONLY_KINDS and graph.stage != "math" \
            and node.attr("over") in EXTENTS:
        raise VerifyError(f"a {node.attr('kind')} reduction after fusion ({node.origin})")
    if node.op == "input":
        t = graph.tensor(node.attr("name"))
        if set(t.seen) != set(node.axes) or t.dtype != node.dtype:
            raise VerifyError(f"input {t.name} is {node.dtype}{list(node.axes)}, the tensor is "
                              f"{t.dtype}{list(t.seen)}")
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
