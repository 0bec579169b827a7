"""Settings shared by all tests: one thread per process, a cache of their own, fixed examples."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

pytest_plugins = ["golden_fixture"]

hypothesis.settings.register_profile(
    "attngen", deadline=None, derandomize=True, max_examples=50, database=None)
hypothesis.settings.load_profile("attngen")


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # processes of pytest-xdist share the machine
        torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of this test run, shared by its processes and by those they start."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "attngen-cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTNGEN_CACHE_DIR", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, none is visible")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
