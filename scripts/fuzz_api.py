"""Send a running service what its own description allows and forbids: schemathesis, unmodified.

Reads GET /openapi.json with the stock validator too. Streams without an end are left out, and the
model is named as it is served, so that requests come further than its name. Ends with 1 if a reply
is not as described, or if what the description forbids is accepted.

Usage:
    python scripts/fuzz_api.py TOOLS BUNDLE FILM --seconds 600    # TOOLS: their environment's bin
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from attack import free_port
from fuzz_socket import SETTINGS, last_lines, perceiving, stop

from edge.client import Client
from edge.serve.openapi import describe

ROOT = Path(__file__).resolve().parent.parent
PHASES = "examples,coverage,fuzzing"
TCP = """
[socket]
tcp = "127.0.0.1:{port}"
"""


def tried(model: str) -> dict[str, Any]:
    """The description, without what has no end, and with the model's name."""
    description = describe()
    for path in ("/v1/edge/events", "/v1/realtime"):
        del description["paths"][path]
    schemas = description["components"]["schemas"]
    del schemas["Wish"]["properties"]["stream"]
    for kind in ("ChatBody", "ResponsesBody"):
        schemas[kind]["properties"]["model"] = {"enum": [model, None]}
    return description


def main() -> None:
    """Validate, try, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tools", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("film", type=Path)
    parser.add_argument("--n", type=int, default=50, help="examples of each operation")
    parser.add_argument("--seconds", type=int, default=600, help="it takes about so long")
    parser.add_argument("--seed", type=int, default=1)
    words = parser.parse_args()
    tools = words.tools.resolve()
    with tempfile.TemporaryDirectory(prefix="edge-fuzz-api-") as name:
        folder, port = Path(name), free_port()
        whole, file = folder / "whole.json", folder / "tried.json"
        whole.write_text(json.dumps(describe()))
        subprocess.run([tools / "openapi-spec-validator", whole], check=True)
        with perceiving(words, folder, SETTINGS + TCP.format(port=port)) as service:
            file.write_text(json.dumps(tried(Client(folder / "edge.sock").models()[0])))
            fuzz = [tools / "schemathesis", "--config-file"]
            fuzz += [ROOT / "tests/openapi/schemathesis.toml", "run", file]
            fuzz += ["--url", f"http://127.0.0.1:{port}", "--phases", PHASES, "--warnings", "off"]
            fuzz += ["--max-examples", str(words.n), "--seed", str(words.seed), "--no-color"]
            fuzz += ["--max-time", str(words.seconds)]
            fuzz += ["--continue-on-failure", "--request-timeout", "20"]
            code = subprocess.run(fuzz, check=False, cwd=folder).returncode
            ended = stop(service)
        told = last_lines((folder / "log").read_text(errors="replace"))
    if code or ended or told:
        sys.exit(f"fuzz-api: schemathesis {code}, the service {ended}, tracebacks {told}")


if __name__ == "__main__":
    main()
