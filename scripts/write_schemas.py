"""Write docs/schema/ and docs/fields.md: what goes over the socket, generated from the types.

python scripts/write_schemas.py
"""

from __future__ import annotations

import json
from pathlib import Path

from edge.serve.openapi import describe
from edge.serve.schema import event_schemas, policy_page

FOLDER = Path(__file__).resolve().parent.parent / "docs/schema"
POLICY = FOLDER.parent / "fields.md"


def schema_text(schema: object) -> str:
    """As it stands in a file."""
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, schema in event_schemas().items():
        (FOLDER / f"{name}.json").write_text(schema_text(schema))
    (FOLDER / "openapi.json").write_text(schema_text(describe()))
    POLICY.write_text(policy_page())


if __name__ == "__main__":
    main()
