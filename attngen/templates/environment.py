"""The Jinja environment: strict, deterministic, and plain about its failures."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateSyntaxError
from jinja2 import TemplateError as JinjaError

from ..errors import TemplateError, excerpt
from .code import finalize, indented

ROOT = Path(__file__).parent


@cache
def environment(root: Path = ROOT) -> Environment:
    """Templates below ``root``. Undefined names are errors, and only Code, ints and identifiers
    can be printed."""
    # Escaping is for web pages; here every printed value passes `finalize` instead.
    made = Environment(
        loader=FileSystemLoader(root), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True, autoescape=False, finalize=finalize,
        auto_reload=False)
    made.filters["indented"] = indented
    return made


def render_template(name: str, *, root: Path = ROOT, **context: Any) -> str:
    """The text of template ``name`` below ``root``.

    Raises TemplateError naming the template and line that failed, with two lines around it.
    """
    try:
        return environment(root).get_template(name).render(**context)
    except (JinjaError, TypeError, AttributeError, KeyError, IndexError) as error:
        where, line = _position(error, root)
        if not where:
            raise
        raise TemplateError(
            f"{where}, line {line}: {error}",
            where="\n" + excerpt((root / where).read_text(), line, around=2),
            remedy="Fix the template, or give the view the field it asks for.") from error


def _position(error: BaseException, root: Path) -> tuple[str, int]:
    """Template name and line of the innermost template frame of ``error``; ("", 0) if none."""
    if isinstance(error, TemplateSyntaxError):
        return error.name or "", error.lineno
    found = "", 0
    frame = error.__traceback__
    while frame is not None:
        file = Path(frame.tb_frame.f_code.co_filename)
        if file.suffix == ".jinja" and file.is_relative_to(root):
            found = file.relative_to(root).as_posix(), frame.tb_lineno
        frame = frame.tb_next
    return found
