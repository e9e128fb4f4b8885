"""What the comparisons with transformers share: checkpoints, and the oracle of each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from make_tiny_checkpoint import make_checkpoint

if TYPE_CHECKING:
    from oracle.reference import Reference


@pytest.fixture(scope="session", params=["base", "grouped", "wide", "single"])
def checkpoint_folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A checkpoint of every preset in turn, in the published layout."""
    folder = tmp_path_factory.mktemp("checkpoints") / request.param
    make_checkpoint(folder, request.param)
    return folder


@pytest.fixture(scope="session")
def reference(checkpoint_folder: Path) -> Reference:
    """transformers' model of that checkpoint."""
    if os.environ.get("CI") != "true":  # in CI an absent oracle is a failure
        for name in ("torch", "transformers"):
            pytest.importorskip(name, reason=f"the oracle needs {name}: install omni-edge[oracle]")
    from oracle.reference import load

    return load(checkpoint_folder)
