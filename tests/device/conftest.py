"""The tensorrt engine on a fake GPU, by preset."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_cuda import FakeDriver
from fake_gpu import Machine, describe_plans, load
from fake_tensorrt import use_real_graphs, write_plans

from edge.engines import tensorrt as engine_module
from edge.engines.bundle import Bundle
from edge.engines.engine import MAX_PREFILL_TOKENS

MAX_ROWS = 640


@pytest.fixture(scope="session")
def compiled(
    bundle: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """preset, type of the activations -> a bundle with plans; do not change it.

    The type GRAPH is FLOAT, with the builder's graph in place of the reference operations.
    """
    made: dict[tuple[str, str], Path] = {}

    def make(preset: str, kind: str = "FLOAT") -> Path:
        if (preset, kind) not in made:
            folder = tmp_path_factory.mktemp("compiled") / preset
            shutil.copytree(bundle(preset), folder)
            spec = Bundle(folder).manifest.spec
            of_rows = "FLOAT" if kind == "GRAPH" else kind
            write_plans(folder, spec, of_rows, MAX_ROWS, MAX_PREFILL_TOKENS)
            if kind == "GRAPH":
                use_real_graphs(folder)
            describe_plans(folder)
            made[preset, kind] = folder
        return made[preset, kind]

    return make


@pytest.fixture(scope="session")
def machine(compiled: Callable[..., Path]) -> Iterator[Callable[..., Machine]]:
    """preset, type of the activations -> its engine on a GPU of its own."""
    made: dict[tuple[str, str], Machine] = {}
    buckets, engine_module.FIRST_BUCKET_ROWS = engine_module.FIRST_BUCKET_ROWS, 64

    def make(preset: str, kind: str = "FLOAT") -> Machine:
        if (preset, kind) not in made:
            made[preset, kind] = load(Bundle(compiled(preset, kind)), FakeDriver(), max_states=5)
        return made[preset, kind]

    yield make
    for each in made.values():
        each.engine.close()
        assert each.driver.leaks() == {}
    engine_module.FIRST_BUCKET_ROWS = buckets
