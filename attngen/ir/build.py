"""From a spec to the math graph: scores, visibility, softmax and output, over whole tensors."""

from __future__ import annotations

from dataclasses import dataclass

from ..spec import AttentionSpec
from .cache import Cache
from .capture import Captures
from .graph import Graph, Region
from .node import (
    Node,
    by_head,
    cast,
    const,
    contract,
    gather,
    idx,
    interning,
    make,
    param,
    reduce,
    tensor,
)
from .tensor import Table, Tensor
from .trace import trace

_NO_CACHE = Cache()


@dataclass(frozen=True)
class Scores:
    """What forward and backward start from: k and v by query head, ``product`` = q·kᵀ, ``score``
    as the scores leave it, which keys are ``visible``, and with dropout the factor ``kept`` of the
    probabilities, 0 or 1/(1 − p). Where a cache stores values in eight bits ``v_scale`` is what
    each key's are multiplied by."""

    q: Node
    k: Node
    v: Node
    product: Node
    score: Node
    visible: Node
    kept: Node | None
    v_scale: Node | None
    compute: str  # the type of arithmetic
    inputs: tuple[Tensor, ...]
    sizes: tuple[tuple[str, int], ...]

    @property
    def masked(self) -> Node:
        """The scores, −inf where not visible."""
        return make("where", self.visible, self.score, const(float("-inf"), self.compute),
                    origin="s")

    def dropped(self, p: Node) -> Node:
        """Probabilities after dropout, as weights of v."""
        for factor in (self.kept, self.v_scale):
            p = p if factor is None else make("mul", p, factor, origin=p.origin)
        return p


def build_scores(spec: AttentionSpec, dtype: str, captures: Captures,
                 dropout: bool = False, cache: Cache = _NO_CACHE) -> Scores:
    """s = scale·q·kᵀ, scores in order, and visibility. Arithmetic is float32 (float64 for float64
    tensors). What masks and scores read beside positions is put into ``captures``, and what a
    ``cache`` needs to find keys.

    Raises TraceError when a user's callable cannot be traced.
    """
    compute = "float64" if dtype == "float64" else "float32"
    heads = tuple(spec.kv_head(h) for h in range(spec.heads))
    b, h = idx("b"), idx("h")
    q_idx = make("add", idx("i"), param("q_offset", "b"), origin="q_idx")
    kv_idx = cache.position()

    q = tensor("q", "bhid", dtype)
    stored = cache.stored or dtype
    k = cast(by_head(tensor("k", "bgjd", stored), heads), dtype)
    v = cast(by_head(tensor("v", "bgje", stored), heads), dtype)

    product = contract(q, k, "d", compute, origin="s")
    k_scale, v_scale = (by_head(tensor(n, "bgj", "float32"), heads) if cache.stored else None
                        for n in ("k_scale", "v_scale"))
    if k_scale is not None:
        product = make("mul", product, k_scale, origin="s")
    s = make("mul", product, const(spec.softmax_scale, compute), origin="scale")
    places = cache.places(q_idx, kv_idx)
    for name, score_mod in spec.score_mods():
        s = cast(trace(score_mod, (s, b, h, *places), name, compute,
                       captures, spec.heads), compute)
    mask = cache.holds(q_idx, kv_idx)
    for name, mask_mod in spec.mask_mods():
        mask = make("and", mask, trace(mask_mod, (b, h, q_idx, kv_idx), name, "bool", captures,
                                       spec.heads))
    inputs = (cache.queries(dtype),
              *(cache.read(Tensor(name, axes, kind, "input", heads), captures)
                for name, axes, kind in cache.tensors(dtype)))
    kept = _kept(captures, compute) if dropout else None
    return Scores(q, k, v, product, s, make("visible", mask), kept, v_scale, compute, inputs,
                  sizes_of(spec))


def _kept(captures: Captures, compute: str) -> Node:
    """0 with probability p, else 1/(1 − p) (Srivastava et al. 2014), by position, counted from
    offsets rounded down to multiples of 16 (``philox``)."""
    captures.argument("dropout_seed", "int64", 1)

    seed = make("gather", const(0), name="dropout_seed", dtype="int64", origin="seed")
    q_start = make("bitand", param("q_offset", "b"), const(-16), origin="q_start")
    k_start = make("bitand", param("kv_offset", "b"), const(-16), origin="k_start")
    u = make("uniform", seed, idx("b"), idx("h"), q_start, idx("i"), k_start, idx("j"),
             dtype="float32", origin="dropout")
    return make("where", make("le", param("dropout_p", (), "float32"), u),
                param("dropout_scale", (), compute), const(0.0, compute), origin="dropout")


def build_forward(spec: AttentionSpec, dtype: str, captures: Captures | None = None,
                  dropout: bool = False, cache: Cache = _NO_CACHE) -> Graph:
    """The forward graph of ``spec`` for tensors of ``dtype``: ``build_scores``, −inf where not
    visible, p = softmax(s), o = p·v; ``lse`` is the natural log-sum-exp of a row. Dropout acts on
    p and not on lse.

    Raises TraceError when a user's callable cannot be traced.
    """
    with interning():
        found = Captures() if captures is None else captures
        return _build_forward(spec, dtype, found, build_scores(spec, dtype, found, dropout, cache))


def _build_forward(spec: AttentionSpec, dtype: str, captures: Captures, scores: Scores) -> Graph:
    compute, s = scores.compute, scores.masked
    lse = reduce("lse", s, "j", origin="lse")
    p = make("exp", make("sub", s, make("finite_or_zero", lse)), origin="p")
    o = contract(cast(scores.dropped(p), dtype), scores.v, "j", compute, origin="o")
    if spec.sinks:
        captures.argument("sinks", compute, 1)
        o, lse = _with_sink(o, lse, gather("sinks", (idx("h"),), compute))

    outputs = (Tensor("o", tuple("bhie"), dtype, "output"),
               Tensor("lse", tuple("bhi"), compute, "output"))
    return graph_of("forward", {outputs[0]: o, outputs[1]: lse}, scores.inputs, scores.sizes,
                    graph_tables(captures))


def sizes_of(spec: AttentionSpec) -> tuple[tuple[str, int], ...]:
    """What a spec fixes, as a graph's sizes."""
    return (("heads", spec.heads), ("groups", spec.kv_heads), ("head_dim", spec.head_dim),
            ("head_dim_v", spec.head_dim_v or spec.head_dim))


def graph_tables(captures: Captures) -> tuple[Table, ...]:
    """What was captured, as a graph's tables."""
    return tuple(Table(t.name, t.dtype, t.ndim) for t in captures.tables)


def _with_sink(o: Node, lse: Node, sink: Node) -> tuple[Node, Node]:
    """One more term in the softmax denominator of every row, which no value belongs to:
    lse' = log(exp(lse) + exp(sink)), o' = o · exp(lse − lse')."""
    top = make("max", lse, sink, origin="sink")
    shift = make("finite_or_zero", top)
    seen = make("exp", make("sub", lse, shift))
    total = make("add", seen, make("exp", make("sub", sink, shift)), origin="sink")
    scaled = make("mul", o, make("mul", seen, make("recip0", total)), origin="o")
    return scaled, make("add", top, make("log", total), origin="lse")


def graph_of(name: str, outputs: dict[Tensor, Node], inputs: tuple[Tensor, ...],
             sizes: tuple[tuple[str, int], ...], tables: tuple[Table, ...] = ()) -> Graph:
    """A math graph of one region. This is also the door for graphs built by hand."""
    region = Region(name, tuple(outputs.items()))
    return Graph("math", (region,), (*inputs, *outputs), sizes, tables)
