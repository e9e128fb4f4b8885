"""Modules that a machine may lack: there, or why not and what to do, in one line."""

from __future__ import annotations

import importlib
from typing import Any

from edge.errors import ConfigurationError


def load(name: str, needed: str, remedy: str) -> Any:
    """An optional module, if it is really there: a folder of type stubs can be imported too.

    Args:
        name: the module's.
        needed: one of its attributes.
        remedy: what to do if it cannot be had.
    Raises:
        ConfigurationError: it is not installed, or fails to load: a library is missing, say.
    """
    problem = "is not installed"
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError) as error:
        module = None
        if not (isinstance(error, ModuleNotFoundError) and _is_of(name, error.name)):
            said = " ".join(str(error).split())
            problem = f"cannot be imported ({type(error).__name__}: {said})"
    if not hasattr(module, needed):
        raise ConfigurationError(f"module {name}", problem, remedy)
    return module


def _is_of(name: str, missing: str | None) -> bool:
    """Whether what was not found is the module `name`, or a package that would hold it."""
    return f"{name}.".startswith(f"{missing}.")
