"""`edge mcp` as a process, driven by the MCP SDK's own client."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from dataclasses import replace

import pytest
from serve.scripted import DONE, TIMEOUT_S, ScriptedSession, answer, served
from test_async_client import tell_watchers, unwatched

from edge.errors import CapacityError

if os.environ.get("CI") != "true":
    pytest.importorskip("mcp", reason="needs mcp: make .venv/.dev")
from mcp import Client, StdioServerParameters


def use(path, script):
    """Let an agent do something with the tools of a process of its own."""
    server = StdioServerParameters(
        command=sys.executable, args=["-m", "edge.cli", "mcp", "--socket", str(path)]
    )

    async def main():
        async with Client(server) as client:
            return await asyncio.wait_for(script(client), TIMEOUT_S)

    return asyncio.run(main())


def said(result):
    """What a tool gave."""
    assert not result.is_error, result.content
    return json.loads(result.content[0].text)


def test_an_agent_uses_all_tools(tmp_path):
    path = tmp_path / "edge.sock"
    session = ScriptedSession(answer("a red", " circle", reasoning="Hm", done=replace(DONE)))

    async def script(client):
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(tools) == {"look", "listen", "ask", "watch", "recall"}
        assert all(tool.description for tool in tools.values())
        assert "condition" in tools["watch"].input_schema["required"]
        seen = said(await client.call_tool("look", {}))
        assert (seen["answer"], seen["finish_reason"]) == ("a red circle", "stop")
        assert seen["evidence"][0]["source"] == "camera"
        assert seen["newest_capture_age_ms"] == 100.0
        assert seen["confidence"] == 0.875
        assert [source["stale"] for source in seen["sources"]] == [False, True]
        said(await client.call_tool("listen", {}))
        said(await client.call_tool("ask", {"question": "Why?", "max_tokens": 9, "thinking": True}))
        said(await client.call_tool("recall", {"from_s_ago": 30, "to_s_ago": 10}))
        nothing = said(await client.call_tool("watch", {"condition": "Is it?", "timeout_s": 0.05}))
        assert nothing == {"met": False, "waited_s": 0.05}

    with served(path, session):
        use(path, script)
        assert unwatched(session)
    asked = [(q.messages[-1].content, q.thinking, q.recall_s) for q in session.questions]
    assert asked == [
        ("What do you see?", False, None),
        ("What was said?", False, None),
        ("Why?", True, None),
        ("What happened?", False, (30, 10)),
    ]


def test_an_agent_is_told_what_it_watches_for(tmp_path):
    path, session = tmp_path / "edge.sock", ScriptedSession(answer("x"))

    async def script(client):
        return said(await client.call_tool("watch", {"condition": "Is it?"}))

    with served(path, session):
        teller = threading.Thread(target=tell_watchers, args=(session,))
        teller.start()
        met = use(path, script)
        teller.join(TIMEOUT_S)
        assert unwatched(session)
    assert (met["met"], met["confidence"]) == (True, 0.75)
    assert met["evidence"][0]["frame_ids"] == [3, 4]


def test_an_agent_does_not_watch_for_ever(tmp_path):
    path, session = tmp_path / "edge.sock", ScriptedSession(answer("x"))
    times_s = (0, -1, 3601, 1e400, "inf", "nan")

    async def script(client):
        (schema,) = [t.input_schema for t in (await client.list_tools()).tools if t.name == "watch"]
        assert schema["properties"]["timeout_s"]["maximum"] == 3600
        return [
            await client.call_tool("watch", {"condition": "Is it?", "timeout_s": time_s})
            for time_s in times_s
        ]

    with served(path, session):
        for result in use(path, script):
            assert result.is_error
            assert "timeout_s" in result.content[0].text
        assert unwatched(session)


def test_a_refusal_is_a_tools_error_and_the_server_lives_on(tmp_path):
    path = tmp_path / "edge.sock"

    async def script(client):
        absent = await client.call_tool("look", {})
        with served(path, ScriptedSession(answer("x"), refusal=CapacityError("q", "full", "wait"))):
            full = await client.call_tool("look", {})
        return absent, full

    absent, full = use(path, script)
    for result, text in ((absent, "is not there; start `edge run`"), (full, "q: full; wait")):
        assert result.is_error
        assert text in result.content[0].text
