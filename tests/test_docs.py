"""Pages made from the source are what the source makes."""

from __future__ import annotations

from helpers import ROOT, run_python

from attngen import knobs


def test_knobs_page_is_the_generated_one() -> None:
    page = (ROOT / "docs" / "knobs.md").read_text()
    assert page == knobs.markdown(), "run: python -m attngen.knobs > docs/knobs.md"


def test_knobs_module_prints_the_page() -> None:
    code = "import runpy; runpy.run_module('attngen.knobs', run_name='__main__')"
    assert run_python(code) == knobs.markdown()


def test_every_knob_is_described_by_a_sentence() -> None:
    assert all(k.doc.endswith(".") and k.expected for k in knobs.KNOBS.values())
