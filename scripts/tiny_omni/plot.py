"""Draw the curves of the training runs.

python scripts/tiny_omni/plot.py OUT_FOLDER
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

from settings import WORK

from build_engine.chart import curves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("out", type=Path, help="folder for the pictures")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for log in sorted(WORK.glob("*.jsonl")):
        trained: dict[str, list[tuple[float, float]]] = defaultdict(list)
        held_out: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for line in log.read_text().splitlines():
            row = json.loads(line)
            figures = row.get("held_out") or {k: row[k] for k in row if k not in ("step", "s")}
            for key, value in figures.items():
                (held_out if "held_out" in row else trained)[key].append((row["step"], value))
        for kind, series in (("training", trained), ("held out", held_out)):
            if series:
                path = out / f"{log.stem}-{kind.replace(' ', '-')}.svg"
                path.write_text(curves(f"{log.stem}, {kind}", series))
                print(path)


if __name__ == "__main__":
    main()
