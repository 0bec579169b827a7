"""The rooms and their doors: who may import whom, by the source, and what an import loads."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT, run_python

PACKAGE = ROOT / "attngen"
BASIS = {"errors", "patterns", "functions", "tables", "combined"}  # of masks and scores
FRONT = BASIS | {"spec", "masks", "masks_table", "scores", "scores_table", "number", "knobs"}
EVERYTHING = {"*"}

# room -> rooms it may import, libraries, libraries only inside functions (or for types)
RULES: dict[str, tuple[set[str], set[str], set[str]]] = {
    "errors": (set(), set(), set()),
    "knobs": ({"errors"}, set(), set()),
    "number": ({"errors"}, set(), set()),
    "patterns": ({"errors"}, set(), set()),
    "functions": ({"patterns"}, set(), {"torch"}),
    "tables": ({"errors", "patterns"}, set(), {"torch"}),
    "combined": ({"errors", "patterns", "functions"}, set(), set()),
    "masks_table": (BASIS, set(), {"numpy", "torch"}),
    "masks": (BASIS | {"masks_table"}, set(), set()),
    "scores_table": (BASIS | {"masks_table"}, set(), {"torch"}),
    "scores": (BASIS | {"scores_table"}, set(), {"torch"}),
    "spec": (FRONT, {"numpy"}, set()),
    "ir": (FRONT, {"numpy", "networkx", "sympy"}, {"torch"}),
    "templates": (FRONT | {"ir"}, {"jinja2"}, {"numpy"}),
    "runtime": ({"errors", "knobs"}, {"numpy", "filelock", "platformdirs"},
                {"torch", "cupy", "cuda"}),
    "reference": (FRONT, {"torch", "numpy"}, set()),
    "cascade": ({"errors"}, set(), {"torch"}),
    "compiler": (EVERYTHING, set(), {"torch", "numpy"}),
    "backward": (EVERYTHING, set(), {"torch", "numpy"}),
    "cache_plans": ({"compiler", "ir", "runtime", "spec"}, set(), set()),
    "describe": (EVERYTHING, set(), {"torch", "numpy"}),
    "front": (FRONT | {"attention", "compiler", "runtime"}, {"torch"}, set()),
    "library": ({"errors", "runtime", "attention", "call"}, set(), {"torch"}),
    "autograd": ({"errors", "runtime"}, set(), {"torch"}),
    "call": ({"runtime"}, set(), {"torch"}),
    "phases": ({"errors", "runtime"}, set(), set()),
    "decoding": ({"attention", "call", "errors", "kv", "runtime"}, set(), {"torch"}),
    "kv": ({"attention", "errors", "runtime"}, {"torch", "numpy"}, set()),
    "attention": (FRONT | {"autograd", "call", "compiler", "decoding", "kv", "library", "phases",
                           "runtime"},
                  {"torch", "numpy"}, {"cupy"}),
    "cli": (EVERYTHING, set(), {"torch", "numpy", "cupy", "rich"}),
    "commands": (EVERYTHING, set(), {"torch", "numpy", "cupy", "rich"}),
    "__main__": ({"cli"}, set(), set()),
    "integrations": (FRONT | {"compiler", "front", "runtime", "attention"}, {"torch", "numpy"},
                     {"transformers"}),
}

SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """Every module a file imports: dotted name, line, and whether it is put off to a call."""
    package = ["attngen", *path.parent.relative_to(PACKAGE).parts]

    def walk(node: ast.AST, inside: bool) -> Iterator[tuple[str, int, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{stem}.{a.name}" for a in node.names] if stem == "attngen" else [stem]
            yield from ((name, node.lineno, inside) for name in names)
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
            isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside)

    yield from walk(ast.parse(path.read_text(), str(path)), False)


def complaints(path: Path) -> Iterator[str]:
    """What a file imports that its room may not."""
    relative = path.relative_to(PACKAGE)
    room = relative.parts[0].removesuffix(".py")
    rooms, always, inside_functions = RULES[room]
    for name, line, inside in imports(path):
        head, _, rest = name.partition(".")
        at = f"attngen/{relative}:{line}"
        if head == "attngen":
            target = rest.split(".")[0]
            if target and target not in rooms | {room} and rooms != EVERYTHING:
                yield f"{at}: {room} must not import {target}"
        elif head not in sys.stdlib_module_names and head not in always:
            if head not in inside_functions:
                yield f"{at}: {room} must not import {head}"
            elif not inside:
                yield f"{at}: {room} may import {head} inside functions only"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows(path: Path) -> None:
    assert list(complaints(path)) == []


def test_arrows_see_every_form_of_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "runtime").mkdir()
    file = tmp_path / "runtime" / "bad.py"
    file.write_text("from ..ir.node import Node\nfrom .. import templates, errors\n"
                    "import attngen.compiler\nimport cupy\nfrom .cache import x\n"
                    "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n"
                    "def f():\n    import cupy.cuda\n    import sympy\n    from ..spec import S\n")
    assert [c.split(": ", 1)[1] for c in complaints(file)] == [
        "runtime must not import ir", "runtime must not import templates",
        "runtime must not import compiler", "runtime may import cupy inside functions only",
        "runtime must not import sympy", "runtime must not import spec"]


HEAVY = ("cupy", "sympy", "networkx", "jinja2", "rich", "transformers")


@pytest.mark.parametrize("code", [
    "import attngen",
    "import attngen as ag; ag.AttentionSpec(heads=8, head_dim=64, causal=True, "
    "mask=ag.masks.chunked(4), score=ag.scores.softcap(30)).to_json()",
    "import attngen.reference"])
def test_import_loads_no_heavy_library(code: str) -> None:
    loaded = run_python(f"import sys; {code}; print(*[m for m in {HEAVY} if m in sys.modules])")
    assert loaded.split() == []


def test_import_loads_not_even_torch() -> None:
    assert run_python("import sys, attngen; print('torch' in sys.modules)").strip() == "False"


def test_reference_works_where_optional_libraries_are_missing() -> None:
    code = f"""
import sys
for name in {HEAVY}: sys.modules[name] = None  # importing it now fails
import torch
from attngen import AttentionSpec, reference
x = torch.ones(1, 2, 3, 8)
print(reference.attention(AttentionSpec(heads=2, head_dim=8), x, x, x)[0].sum().item())"""
    assert run_python(code).strip() == "48.0"


def test_submodule_of_the_same_name_does_not_hide_the_function() -> None:
    assert run_python("import attngen, attngen.attention\n"
                      "print(type(attngen.attention).__name__)").strip() == "function"


def test_unknown_names_raise_attribute_error() -> None:
    import attngen
    assert not hasattr(attngen, "nonsense")
    assert set(attngen.__all__) <= set(dir(attngen))
