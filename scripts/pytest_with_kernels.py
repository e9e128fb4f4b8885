"""Run pytest on another build of the kernels: a sanitizer's, or another processor's.

python scripts/pytest_with_kernels.py build/sanitize/edge/_kernels*.so [pytest's arguments]
"""

from __future__ import annotations

import sys
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

NAME = "edge._kernels"


def main() -> None:
    path, *arguments = sys.argv[1:]
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    loader = ExtensionFileLoader(NAME, path)
    spec = spec_from_loader(NAME, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    sys.modules[NAME] = module
    import edge

    edge.__dict__["_kernels"] = module
    print(f"{path}: {', '.join(module.instruction_sets())}", flush=True)
    sys.exit(pytest.main(arguments))


if __name__ == "__main__":
    main()
