"""The compiler, top to bottom: spec → math → fused → tiled → placed → text → plan.

This is the only file that sees every room. A plan found in the disk cache is returned without
loading the IR, the templates or the libraries they use.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from . import knobs
from .attention import Attention
from .errors import ScheduleError, UnknownNameError
from .runtime import cache as disk
from .runtime.captured import Captured, CapturedNumber, CapturedTensor
from .runtime.fingerprint import package_fingerprint
from .runtime.plan import Field, GridDim, KernelPlan, ParamArg, Plan, TensorArg
from .runtime.targets import Target, default_target, get_target
from .runtime.variant import Cached, Kind
from .spec import AttentionSpec

if TYPE_CHECKING:
    from .ir.graph import Graph, Region
    from .ir.passes import PassRecord
    from .ir.schedule import Limits
    from .ir.stmt import Kernel, Schedule
    from .runtime.backward import BackwardPlans
    from .templates.render import RenderedKernel

# Passes a graph is right without (ATTNGEN_SKIP): skipping "fuse" is standard attention.
OPTIONAL = ("canonicalise", "fuse", "rebase")


@dataclass(frozen=True)
class Options:
    """What changes the emitted text besides the spec."""

    target: str
    dtype: str
    vectorized: bool = True
    fuse: bool = True
    schedule: tuple[tuple[str, Any], ...] = ()
    skip: tuple[str, ...] = ()
    packed: bool = False
    dropout: bool = False
    rows: int = 0
    split: bool = False
    cached: Cached = Cached()


@dataclass(frozen=True)
class Lowered:
    """The graph at every stage, and what each pass did."""

    math: Graph
    fused: Graph
    tiled: Graph
    placed: Graph
    records: tuple[PassRecord, ...] = ()
    captured: Captured = Captured()

    def stage(self, name: str) -> Graph:
        """The graph at a stage. Raises UnknownNameError."""
        stages = {"math": self.math, "fused": self.fused, "tiled": self.tiled,
                  "placed": self.placed}
        if name not in stages:
            raise UnknownNameError("stage", name, stages)
        return stages[name]


def lower(spec: AttentionSpec, options: Options, record: bool = False) -> Lowered:
    """Every pass in order. Raises TraceError, ScheduleError or VerifyError."""
    from .ir.build import build_forward
    from .ir.cache import Cache
    from .ir.capture import Captures, batch_dimensions
    from .templates.names import c_name

    captures = Captures()
    graph = build_forward(spec, options.dtype, captures, options.dropout, Cache(*options.cached))
    by_batch = batch_dimensions(*(root for region in graph.regions for root in region.roots))
    lowered = lower_graph(graph, options, record)
    return replace(lowered, captured=Captured(
        tuple(CapturedTensor(str(c_name(t.name)), t.dtype, t.ndim, t.source, t.spoken,
                             by_batch.get(t.name, ()))
              for t in captures.tables),
        tuple(CapturedNumber(str(c_name(n.name)), n.dtype, n.source, n.spoken)
              for n in captures.numbers)))


def lower_graph(graph: Graph, options: Options, record: bool = False, keep: str = "i",
                loop: str = "j") -> Lowered:
    """The pipeline, from any math graph; ``build_forward`` makes one from a spec, a test or a
    reader may make one by hand."""
    from .ir.fuse import fuse
    from .ir.group_rows import group_rows
    from .ir.lower import tile
    from .ir.pack import pack
    from .ir.passes import canonicalise, rebase, run_pass
    from .ir.place import place
    from .ir.split_kv import split_kv

    limits = _limits(get_target(options.target))
    sizes = dict(graph.sizes)
    records: list[PassRecord] = []
    trace = records if record or knobs.debug() >= 2 else None
    level = knobs.verify()

    def run(name: str, step: Callable[[Graph], Graph], before: Graph) -> Graph:
        if name in options.skip and name != "fuse":
            return before
        return run_pass(name, step, before, level, trace)

    math = run("canonicalise", canonicalise, graph)
    cut = math
    if options.rows:
        cut = run("group_rows", group_rows, math)
        keep = "row" if any("row" in t.seen for t in cut.tensors) else keep
    if options.split:
        cut = run("split_kv", lambda g: split_kv(g, loop), cut)
    fusing = options.fuse and "fuse" not in options.skip
    fused = run("fuse", lambda g: fuse(g, fusing, keep, loop), cut)
    fused = run("rebase", rebase, fused)
    tiled = run("tile", lambda g: tile(g, lambda r: choose_schedule(options, r, sizes, limits),
                                       keep, loop), fused)
    placed = run("place", lambda g: place(g, limits), tiled)
    if options.packed:
        placed = run("pack", pack, placed)
    _report(records)
    return Lowered(math, fused, tiled, placed, tuple(records))


def choose_schedule(options: Options, region: Region, sizes: dict[str, int],
                    limits: Limits) -> Schedule:
    """The heuristic's schedule for a region with the explicit choices put in.

    Raises ScheduleError for a choice that does not exist.
    """
    from .ir.schedule import choose, engine_for

    engine = engine_for(options.dtype, options.target == "cpu")
    vector_bytes = 16 if options.vectorized or engine == "cpu" else (2 if engine == "mma" else 4)
    schedule = choose(engine, region, sizes, limits, vector_bytes, options.packed, options.rows)
    wanted = dict(options.schedule)
    known = set(asdict(schedule)) - {"engine", "vector_bytes"}
    for name in wanted:
        if name not in known:
            raise ScheduleError(f"a schedule has no {name!r}",
                                remedy=f"It has {', '.join(sorted(known))}.")
    return replace(schedule, **wanted)


def make_plan(spec: AttentionSpec | None, options: Options, lowered: Lowered,
              kind: str = "forward") -> Plan:
    """Render every placed kernel and put the result in the runtime's terms."""
    from .templates.names import c_name

    cpu = options.target == "cpu"
    kernels = []
    for kernel in lowered.placed.tiles:
        rendered = _render(kernel, options.target)
        kernels.append(KernelPlan(
            name=str(rendered.entry), kind=kernel.name, language="cpp" if cpu else "cuda",
            target=options.target, text=rendered.text,
            fields=tuple(Field(str(name), str(ctype)) for name, ctype in rendered.fields),  # type: ignore[arg-type]
            tensors=(*(str(c_name(t.name)) for t in kernel.tensors),
                     *(str(c_name(t.name)) for t in kernel.tables)),
            params=tuple(ParamArg(str(c_name(p.name)), p.dtype, p.per_batch)  # type: ignore[arg-type]
                         for p in kernel.params),
            grid=tuple(GridDim(*dim) for dim in rendered.grid),  # type: ignore[arg-type]
            threads=rendered.threads, shared_bytes=rendered.shared_bytes,
            meta=_meta(kernel)))
    tensors = tuple(TensorArg(str(c_name(t.name)), t.axes, t.dtype, t.role)  # type: ignore[arg-type]
                    for t in lowered.placed.tensors)
    tensors += tuple(TensorArg(str(c_name(t.name)), tuple(map(str, range(t.ndim))), t.dtype,
                               "table", str(c_name(t.of)) if t.of else "")
                     for t in lowered.placed.tables)
    return Plan(spec.cache_key() if spec else None, options.target, kind, tensors,
                tuple(kernels), dict(lowered.placed.sizes), asdict(options))


def _render(kernel: Kernel, target: str) -> RenderedKernel:
    if target == "cpu":
        from .templates.render_cpu import render_cpu
        return render_cpu(kernel)
    from .templates.render import render_cuda
    return render_cuda(kernel, target)


def plan_for(spec: AttentionSpec, options: Options) -> tuple[Plan, Captured]:
    """The plan of one variant, from the disk cache when the spec has a name for everything in it
    (Python callables do not: their meaning may change between calls), and what it captured."""
    key = spec.cache_key()
    watched = knobs.debug() >= 2 or knobs.verify() >= 2 or knobs.dump() is not None
    if key is None or watched:
        lowered = lower(spec, options)
        plan = make_plan(spec, options, lowered)
        _dump(plan, lowered)
        return plan, lowered.captured
    parts = (key, repr(options), package_fingerprint())
    entry = disk.get_or_build(
        "plan", parts, lambda: make_plan(spec, options, lower(spec, options)).to_json().encode(),
        label=f"plan {options.target} {options.dtype}")
    # Named patterns capture nothing that has no JSON form; these come with each call.
    wide = "float64" if options.dtype == "float64" else "float32"
    given = [("dropout_seed", "int64")] if options.dropout else []
    given += [("sinks", wide)] if spec.sinks else []
    given += [("page_table", "int32")] if options.cached.page else []
    return Plan.from_json(entry), Captured(tuple(
        CapturedTensor(name, dtype, 2 if name == "page_table" else 1, None, name)
        for name, dtype in given))


def compile(spec: AttentionSpec, target: str | Target | None = None, *, emulate: bool = False,
            fuse: bool = True, schedule: dict[str, Any] | None = None) -> Attention:
    """Compile an attention variant: trace, lower and render now, machine code at the first call.

    ``target`` is a name ("cpu", "sm_80", ...; default: the machine's best). ``emulate`` executes
    the target's CUDA text on the CPU. Without ``fuse`` the scores live in device memory and
    standard attention runs as separate kernels. ``schedule`` overrides tile choices (block_m,
    block_n, warps, stages, min_blocks).

    Raises UnknownTargetError, TraceError, ScheduleError (with the arithmetic), NotDeliveredError.
    """
    chosen = target if isinstance(target, Target) else (
        get_target(target) if target is not None else default_target())
    explicit = tuple(sorted((schedule or {}).items()))
    skip = knobs.skip()
    for name in skip:
        if name not in OPTIONAL:
            raise UnknownNameError("optional pass", name, OPTIONAL, where="ATTNGEN_SKIP")

    @cache
    def options(kind: Kind) -> Options:
        return Options(chosen.name, kind.dtype, kind.vectorized, fuse, explicit, skip, kind.packed,
                       kind.dropout, kind.rows, kind.split, kind.cached)

    @cache
    def plan(kind: Kind) -> tuple[Plan, Captured]:
        return plan_for(spec, options(kind))

    @cache
    def backward(kind: Kind, wanted: frozenset[str]) -> BackwardPlans:
        from .backward import backward_plans
        return backward_plans(spec, options(kind), wanted)

    @cache
    def of_cache(name: str, kind: Kind) -> Plan:
        from .cache_plans import append_plan, rotate_plan
        return (append_plan if name == "append" else rotate_plan)(spec, options(kind))

    from .describe import Description

    attn = Attention(spec, chosen, emulate, plan, backward, of_cache,
                     Description(lambda dtype: lower(spec, options(Kind(dtype)), record=True),
                                 chosen, spec.dtype), fuse and not explicit and "fuse" not in skip)
    _, captured = plan(Kind(attn.dtype))
    spoken = [t.spoken for t in captured.tensors]
    attn.buffers = {t.spoken if t.spoken and spoken.count(t.spoken) == 1 else t.name: t.source
                    for t in captured.tensors if t.source is not None}
    return attn


def compile_graph(graph: Graph, target: str, dtype: str, *, vectorized: bool = True,
                  fuse: bool = True, schedule: dict[str, Any] | None = None,
                  packed: bool = False) -> Plan:
    """The plan of a math graph made by hand (``ir.build.graph_of``)."""
    options = Options(target, dtype, vectorized, fuse, tuple(sorted((schedule or {}).items())),
                      packed=packed)
    return make_plan(None, options, lower_graph(graph, options))


def _limits(target: Target) -> Limits:
    from .ir.schedule import Limits

    return Limits(target.shared_limit, target.shared_per_sm, target.mma)


def _meta(kernel: Kernel) -> dict[str, Any]:
    return {"schedule": {**asdict(kernel.schedule), "stages": list(kernel.schedule.stages)},
            "registers_estimate": kernel.registers}


def _report(records: list[PassRecord]) -> None:
    if knobs.debug() < 2:
        return
    import sys
    for r in records:
        print(f"attngen: {r.name}: {r.milliseconds:.2f} ms, "
              f"{'changed' if r.changes else 'unchanged'}", file=sys.stderr)
        if knobs.debug() >= 3:
            print(r.changes, file=sys.stderr)


def _dump(plan: Plan, lowered: Lowered) -> None:
    """Everything about a plan as files below ATTNGEN_DUMP; the text on stderr at debug level 4."""
    if knobs.debug() >= 4:
        import sys
        for kernel in plan.kernels:
            print(kernel.text, file=sys.stderr)
    root = knobs.dump()
    if root is None:
        return
    folder = root / "_".join(dict.fromkeys(k.name for k in plan.kernels))
    folder.mkdir(parents=True, exist_ok=True)
    files = {"spec.json": plan.spec_json or "null"}
    files |= {f"{n}_{name}.txt": str(lowered.stage(name))
              for n, name in enumerate(("math", "fused", "tiled", "placed"))}
    for kernel in plan.kernels:
        files[f"{kernel.name}.{'cpp' if kernel.language == 'cpp' else 'cu'}"] = kernel.text
        files[f"{kernel.name}.json"] = json.dumps(kernel.meta, indent=1, sort_keys=True)
    for name, text in files.items():
        (folder / name).write_text(text)
