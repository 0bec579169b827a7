"""Where a value has to be declared: the innermost body that holds every use of it."""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.stmt import Kernel, Loop, Stmt, Store, reads, statements, writes

Path = tuple[int, ...]


@dataclass(frozen=True)
class Home:
    """``path`` numbers the statements whose bodies lead there; ``writes`` counts assignments."""

    path: Path
    writes: int


def homes(kernel: Kernel) -> dict[str, Home]:
    """The home of every value."""
    uses: dict[str, list[Path]] = {v.name: [] for v in kernel.values}
    written = dict.fromkeys(uses, 0)

    def visit(body: tuple[Stmt, ...], path: Path) -> None:
        for n, stmt in enumerate(body):
            for name in (*reads(stmt), *writes(stmt)):
                uses[name].append(path)
            for name in writes(stmt):
                written[name] += 1
            if isinstance(stmt, Loop):
                visit(stmt.body, (*path, n))

    visit(kernel.body, ())
    return {name: Home(_common(paths), written[name]) for name, paths in uses.items()}


def _common(paths: list[Path]) -> Path:
    """The longest path that starts every one of ``paths``."""
    common = paths[0] if paths else ()
    for path in paths[1:]:
        length = 0
        while length < min(len(common), len(path)) and common[length] == path[length]:
            length += 1
        common = common[:length]
    return common


def stored_last(kernel: Kernel) -> set[str]:
    """Tensors that are only stored to, after the last loop. Their pointers are best made there:
    made at the top they would occupy registers through the loop."""
    loops = [n for n, stmt in enumerate(kernel.body) if isinstance(stmt, Loop)]
    last = max(loops, default=-1)
    late = {s.tensor for s in kernel.body[last + 1:] if isinstance(s, Store)}
    early = {name for s in statements(kernel.body[:last + 1])
             if (name := getattr(s, "tensor", None)) is not None}
    return late - early
