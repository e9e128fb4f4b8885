"""What the comparisons with transformers share: checkpoints, and the oracle of each."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
from make_tiny_checkpoint import PRESETS

if TYPE_CHECKING:
    from oracle.reference import Reference


@pytest.fixture(scope="session", params=sorted(PRESETS))
def checkpoint_folder(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> Path:
    """A checkpoint of every preset in turn, in the published layout."""
    return checkpoint(request.param)


@pytest.fixture(scope="session")
def reference(checkpoint_folder: Path) -> Reference:
    """transformers' model of that checkpoint."""
    if os.environ.get("CI") != "true":  # in CI an absent oracle is a failure
        for name in ("torch", "transformers"):
            pytest.importorskip(name, reason=f"the oracle needs {name}: make .venv/.oracle")
    from oracle.reference import load

    return load(checkpoint_folder)


@pytest.fixture(scope="session")
def models() -> ModuleType:
    """ModelOpt's side. Its import takes half a minute and warns of what it does not find."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if os.environ.get("CI") != "true":  # in CI an absent oracle is a failure
            for name in ("torch", "transformers", "modelopt.torch"):
                pytest.importorskip(name, reason=f"needs {name}: make .venv/.oracle")
        from oracle import modelopt_models

        return modelopt_models
