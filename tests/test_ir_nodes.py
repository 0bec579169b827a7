"""Nodes: equal ones are one object, keys are the same everywhere, axes and types follow the op."""

from __future__ import annotations

import gc
import threading

import networkx as nx
import pytest
from helpers import run_python

from attngen.errors import VerifyError
from attngen.ir.build import build_forward
from attngen.ir.graph import kernel_network, launch_network, region_network
from attngen.ir.node import (
    AXES,
    Node,
    by_head,
    cast,
    const,
    contract,
    first,
    idx,
    interning,
    is_cheap,
    is_number,
    last,
    make,
    rebuild,
    reduce,
    substitute,
    tensor,
    value,
    walk,
)
from attngen.ir.ops import OPS, SCALAR_OPS
from attngen.spec import AttentionSpec

X, Y = value("x", "ij", "float32"), value("y", "ij", "float32")


def test_equal_nodes_are_one_object() -> None:
    assert make("sub", X, Y) is make("sub", X, Y)
    assert make("sub", X, Y) is not make("sub", Y, X)
    assert const(2.0, "float32") is not const(2.0, "float64")
    assert value("x", "i", "float32") is not X
    assert contract(X, Y, "j") is contract(X, Y, "j")
    assert contract(X, Y, "j") is not contract(X, Y, "i")


@pytest.mark.parametrize("op", [op for op, row in SCALAR_OPS.items() if row.commutative])
def test_operands_that_may_be_exchanged_are_sorted(op: str) -> None:
    a, b = (make("lt", X, Y), make("lt", Y, X)) if op in ("and", "or") else (X, Y)
    assert make(op, a, b) is make(op, b, a)
    number = const(True) if op in ("and", "or") else const(2.0, "float32")
    assert make(op, number, a) is make(op, a, number)
    assert make(op, number, a).args[1] is number  # numbers stand on the right


def test_numbers_that_look_alike_are_told_apart() -> None:
    zeros = {const(0), const(0.0), const(-0.0), const(False), const(0, "float64")}
    assert len(zeros) == 5
    assert const(float("-inf"), "float32") is const(float("-inf"), "float32")
    assert is_number(const(1.0), 1) and not is_number(X, 1)
    assert not is_number(const(float("nan")), float("nan"))


def test_origins_do_not_make_nodes_differ() -> None:
    named = make("add", X, const(7.5), origin="here")
    assert make("add", X, const(7.5), origin="there") is named
    assert named.origin == "here" and make("neg", named).origin == "here"


def test_attributes_by_name() -> None:
    node = reduce("max", X, "j")
    assert (node.attr("kind"), node.attr("over")) == ("max", "j")
    with pytest.raises(KeyError, match="reduce has no attribute 'map'"):
        node.attr("map")
    assert repr(make("neg", idx("i"))) == "neg(idx(axis=i))"


def test_axes_are_the_operands_in_one_order() -> None:
    row, column = value("row", "i", "float32"), value("column", "j", "float32")
    assert make("add", column, row).axes == ("i", "j")
    assert contract(tensor("q", "bhid", "float16"), tensor("k", "bhjd", "float16"), "d").axes == (
        "b", "h", "i", "j")
    assert reduce("sum", X, "j").axes == ("i",)
    assert by_head(tensor("k", "bgjd", "float16"), (0, 0, 1)).axes == ("b", "h", "j", "d")
    assert first("i").axes == last("i").axes == () and idx("i").axes == ("i",)
    assert AXES == ("b", "h", "g", "split", "i", "row", "j", "d", "e")


@pytest.mark.parametrize(("node", "dtype"), [
    (make("add", idx("i"), X), "float32"), (make("lt", idx("i"), X), "bool"),
    (make("div", idx("i"), const(2)), "float32"), (make("where", make("lt", X, Y), X, Y),
                                                   "float32"),
    (make("where", make("lt", X, Y), idx("i"), const(1)), "int32"),
    (make("exp", value("z", "i", "float64")), "float64"), (cast(idx("i"), "float64"), "float64"),
    (make("mul", value("z", "i", "float64"), X), "float64"),
])
def test_types_follow_the_op(node: Node, dtype: str) -> None:
    assert node.dtype == dtype


def test_numbers_take_the_type_they_meet_but_stay_floats() -> None:
    assert make("mul", value("z", "i", "float64"), const(0.1)).args[1].dtype == "float64"
    assert make("add", X, const(2)).args[1].dtype == "float32"
    assert make("add", idx("i"), const(0.5)).args[1].dtype == "float32"
    assert make("where", make("lt", X, Y), X, const(0)).args[2].dtype == "float32"


def test_unknown_ops_and_wrong_operand_counts_are_refused() -> None:
    with pytest.raises(VerifyError, match="zeta takes no known number of operands, got 1"):
        make("zeta", X)
    with pytest.raises(VerifyError, match="add takes 2 operands, got 3"):
        make("add", X, Y, X)


def test_every_op_has_a_row_that_fits_its_meaning() -> None:
    for name, row in OPS.items():
        assert row.name == name
        if row.group == "scalar" and name != "cast":
            assert row.evaluate is not None
            if row.arity < 0:  # a table of one dimension, and a position in it
                assert row.evaluate([7, 8, 9], 2) == 9 and row.evaluate([7, 8, 9], 3) == 0
                continue
            one = 3 if name.startswith("bit") else 1.5
            row.evaluate(*([True] if name == "not" else [one] * row.arity) if name not in (
                "and", "or") else (True, False))


# -- walking and rebuilding ---------------------------------------------------------------------


def test_operands_come_before_users_and_each_node_once() -> None:
    shared = make("mul", X, Y)
    root = make("add", make("exp", shared), make("neg", shared))
    order = list(walk(root, shared))
    assert len(order) == len(set(order)) and order[-1] is root
    for n in order:
        assert all(order.index(a) < order.index(n) for a in n.args)
    assert [n.op for n in walk(make("mul", X, X))] == ["value", "mul"]


def test_a_very_deep_graph_is_walked() -> None:
    node = X
    for _ in range(5000):
        node = make("neg", make("exp", node))
    assert len(list(walk(node))) == 10_001


def test_substitution_shares_and_leaves_the_rest_alone() -> None:
    root = make("add", make("exp", X), make("mul", make("exp", X), Y))
    new = substitute(root, {X: Y})
    assert new is make("add", make("exp", Y), make("mul", make("exp", Y), Y))
    assert substitute(root, {idx("j"): idx("i")}) is root
    swapped = substitute(make("sub", X, Y), {X: Y, Y: X})
    assert swapped is make("sub", Y, X)  # at once, not one after the other


def test_rebuilding_keeps_what_the_operands_do_not_decide() -> None:
    a, b = tensor("q", "bhid", "float16"), tensor("k", "bhjd", "float16")
    product = contract(a, b, "d", "float32", origin="s")
    again = rebuild(product, (b, a))
    assert (again.dtype, again.axes, again.origin) == ("float32", product.axes, "s")
    assert rebuild(product, (a, b)) is product
    assert rebuild(cast(X, "float16"), (Y,)).dtype == "float16"


def test_cheap_is_what_may_be_done_again() -> None:
    assert is_cheap(make("add", idx("i"), const(3)))
    assert not is_cheap(make("add", make("exp", X), Y))


# -- interning ----------------------------------------------------------------------------------


def test_nodes_nobody_uses_are_forgotten() -> None:
    import weakref
    node = make("mul", make("exp", X), const(1234.5))
    alive = weakref.ref(node)
    del node
    gc.collect()
    assert alive() is None


def test_graphs_built_apart_are_equal() -> None:
    from ir_problem import placed
    spec = AttentionSpec(heads=1, head_dim=8, causal=True)
    assert placed(spec) == placed(spec) and hash(placed(spec)) == hash(placed(spec))
    assert placed(spec) != placed(AttentionSpec(heads=1, head_dim=8, window=(1, 0)))


def test_inside_interning_origins_of_other_graphs_are_not_seen() -> None:
    elsewhere = make("mul", X, const(99.0), origin="elsewhere")
    with interning():
        mine = make("mul", value("x", "ij", "float32"), const(99.0), origin="mine")
        assert mine.origin == "mine" and mine == elsewhere and mine is not elsewhere
        with interning(mine):
            assert make("mul", mine.args[0], const(99.0), origin="third") is mine
    assert make("mul", X, const(99.0)) is elsewhere


def test_threads_build_the_same_graph() -> None:
    spec, keys = AttentionSpec(heads=2, head_dim=8, causal=True, window=3), []
    threads = [threading.Thread(target=lambda: keys.append(build_forward(spec, "float32").key()))
               for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(keys) == 8 and len(set(keys)) == 1


def test_keys_are_the_same_in_every_process() -> None:
    program = ("from attngen.ir.build import build_forward\n"
               "from attngen.ir.node import walk\nfrom attngen.spec import AttentionSpec\n"
               "g = build_forward(AttentionSpec(heads=4, groups=2, head_dim=8, causal=True,"
               " window=7), 'float16')\n"
               "print(*[n.key for n in walk(*g.regions[0].roots)], g.key())")
    assert len({run_python(program, PYTHONHASHSEED=seed) for seed in ("0", "1", "99")}) == 1


# -- the networkx views -------------------------------------------------------------------------


def test_networks_keep_both_operands_of_a_square() -> None:
    from ir_problem import only, placed
    spec = AttentionSpec(heads=1, head_dim=8, score=lambda s, b, h, i, j: s * s)
    graph = build_forward(spec, "float32")
    net = region_network(graph.regions[0])
    square = next(n for n in walk(*graph.regions[0].roots)
                  if n.op == "mul" and n.args[0] is n.args[1])
    assert net.number_of_edges(square.args[0].key, square.key) == 2
    assert nx.is_directed_acyclic_graph(net)
    assert len(net) == len(list(walk(*graph.regions[0].roots)))
    kernel = only(placed(spec))
    flow = kernel_network(kernel)
    assert {key for _, _, key in flow.edges(keys=True)} == {v.name for v in kernel.values}
    assert nx.is_directed_acyclic_graph(flow)


def test_the_launch_network_names_writers_and_readers() -> None:
    from ir_problem import placed
    graph = placed(AttentionSpec(heads=1, head_dim=8), fused=False)
    net = launch_network(graph)
    assert list(net.predecessors("w_s")) == [0] and list(net.successors("w_s")) == [1]
    assert list(net.predecessors("w_p")) == [1] and list(net.successors("w_p")) == [2]
    assert net.in_degree("q") == 0 and net.out_degree("o") == 0
