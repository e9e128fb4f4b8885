"""Write the goldens that `make test` compares with: transformers' outputs on every preset.

Needs torch and transformers (`make goldens` installs them). Run it only when the goldens are
meant to move, and say in the commit why.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "tests")]

from make_tiny_checkpoint import PRESETS, make_checkpoint  # noqa: E402
from oracle.conversation import reference_outputs  # noqa: E402
from oracle.reference import load  # noqa: E402
from parity import GOLDENS, golden_part  # noqa: E402


def main() -> None:
    GOLDENS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for preset in sorted(PRESETS):
            folder = Path(scratch) / preset
            make_checkpoint(folder, preset)
            outputs = golden_part(reference_outputs(load(folder), folder))
            path = GOLDENS / f"{preset}.npz"
            np.savez_compressed(path, **outputs)
            print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
