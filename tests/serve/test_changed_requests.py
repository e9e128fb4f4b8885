"""What the service says to a thousand requests is what it said when somebody last looked at it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from serve.changed_requests import KEPT, Http, Realtime, bodies, events
from serve.scripted import TIMEOUT_S, ScriptedSession, answer, served

REMEDY = "if that is meant: python tests/serve/changed_requests.py, and read the difference"


@pytest.fixture
def session(tmp_path: Path) -> Iterator[tuple[Path, ScriptedSession]]:
    path, session = tmp_path / "edge.sock", ScriptedSession(answer("x"))
    with served(path, session):
        yield path, session


@pytest.mark.parametrize("name", bodies())
def test_requests_are_answered_as_they_were(name, session):
    path, scripted = session
    with httpx2.Client(
        transport=httpx2.HTTPTransport(uds=str(path)), base_url="http://edge", timeout=TIMEOUT_S
    ) as client:
        http = Http(client, scripted.questions)
        for row in rows(name):
            said = http.said(row.pop("of"), tuple(row.pop("at")), row.pop("put"))
            assert said == row, REMEDY


@pytest.mark.parametrize("name", events())
def test_events_are_answered_as_they_were(name, session):
    path, scripted = session
    realtime = Realtime(path, scripted.questions)
    for row in rows(f"realtime_{name}"):
        said = realtime.said(row.pop("of"), tuple(row.pop("at")), row.pop("put"))
        assert said == row, REMEDY


def rows(name):
    """What is kept."""
    return [json.loads(line) for line in (KEPT / f"{name}.jsonl").read_text().splitlines()]
