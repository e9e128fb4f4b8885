"""The client for asyncio: the same calls as `edge.client`, on aiohttp (extra `runtime`)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong

from edge.errors import SocketError
from edge.wire import (
    CREATED,
    DONE,
    HEALTH,
    MAX_BODY_BYTES,
    MAX_LINE_BYTES,
    MODELS,
    SEE_LOG,
    TOLD,
    TRIGGERS,
    Answer,
    Ask,
    Event,
    Triggered,
    UnreadableError,
    Watch,
    bounded,
    checked,
    events_target,
    payload_of,
    read,
    refusal,
    trigger_target,
    unreachable,
    unreadable,
)


class AsyncClient:
    """Asks the service that listens on a Unix socket; an async context manager.

    Calls raise what those of `edge.client.Client` do. Closing an iterator (`aclose`, or leaving
    `contextlib.aclosing`) ends its turn, its watch or its stream.

    Args:
        path: the service's socket.
        timeout_s: the longest silence that is taken for work.
    """

    def __init__(self, path: Path | str, timeout_s: float = 300.0) -> None:
        self._path, self._timeout_s = Path(path), timeout_s
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> AsyncClient:
        self._http = aiohttp.ClientSession(
            "http://localhost",
            # A question's connection is closed behind it: that cancels what is left of it.
            connector=aiohttp.UnixConnector(str(self._path), force_close=True),
            timeout=aiohttp.ClientTimeout(total=None, sock_read=self._timeout_s),
            read_bufsize=MAX_LINE_BYTES // 2,  # it takes lines twice as long
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._http is not None:
            await self._http.close()

    async def models(self) -> list[str]:
        """The names of the served models."""
        return [model["id"] for model in (await self._get("/v1/models", MODELS))["data"]]

    async def health(self) -> dict[str, Any]:
        """What the service tells of itself: ready, context tokens, counters."""
        return await self._get("/healthz", HEALTH)

    async def ask(self, asked: Ask | str) -> AsyncGenerator[Event, None]:
        """Ask about what the service sees and hears.

        Returns:
            Text as it is generated, then one Finished.
        """
        asked = Ask(asked) if isinstance(asked, str) else asked
        answer = Answer()
        async with self._answer("POST", "/v1/chat/completions", asked.body()) as response:
            async for payload in self._payloads(response, ends=True):
                for event in answer.push(payload):
                    yield event
            finished = answer.finished()
        yield finished

    async def watch(self, wish: Watch | str) -> AsyncGenerator[Triggered, None]:
        """Hear when something begins and ends to be so."""
        wish = Watch(wish) if isinstance(wish, str) else wish
        body = wish.body(stream=True)
        async with self._answer("POST", "/v1/edge/triggers", body) as response:
            async for payload in self._payloads(response):
                if (triggered := Triggered.of(payload)) is not None:
                    yield triggered

    async def events(self, types: Sequence[str] = ()) -> AsyncGenerator[dict[str, Any], None]:
        """What happens in the service from now on; only types that begin as given."""
        async with self._answer("GET", events_target(types)) as response:
            async for payload in self._payloads(response):
                yield checked(payload, TOLD)

    async def triggers(self) -> list[dict[str, Any]]:
        """All triggers, and how each stands."""
        found: list[dict[str, Any]] = (await self._get("/v1/edge/triggers", TRIGGERS))["data"]
        return found

    async def create_trigger(self, wish: Watch | str) -> str:
        """Let the service watch for something until `delete_trigger`; the trigger's id."""
        wish = Watch(wish) if isinstance(wish, str) else wish
        async with self._answer("POST", "/v1/edge/triggers", wish.body()) as response:
            return str(read(await _body(response), CREATED)["id"])

    async def delete_trigger(self, trigger_id: str) -> None:
        """Watch for it no longer."""
        async with self._answer("DELETE", trigger_target(trigger_id)) as response:
            await _body(response)

    async def _get(self, target: str, shape: Any) -> dict[str, Any]:
        async with self._answer("GET", target) as response:
            answer: dict[str, Any] = read(await _body(response), shape)
            return answer

    @contextlib.asynccontextmanager
    async def _answer(
        self, method: str, target: str, body: bytes | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A response with status 200; everything else is raised."""
        if self._http is None:
            raise RuntimeError("use it as `async with AsyncClient(path) as client`")
        headers = {"Content-Type": "application/json"}
        try:
            async with self._http.request(
                method, target, data=body, headers=headers, allow_redirects=False
            ) as response:
                if response.status != 200:
                    raise refusal(response.status, await _body(response))
                yield response
        except UnreadableError as error:
            raise unreadable(self._path, error) from error
        except aiohttp.ClientConnectorError as error:
            raise unreachable(self._path, error.os_error) from error
        except asyncio.TimeoutError as error:
            problem = f"was silent for {self._timeout_s:g} s"
            raise SocketError(self._path, problem, SEE_LOG) from error
        except (aiohttp.ClientError, HttpProcessingError, OSError) as error:
            raise self._died() from error

    async def _payloads(
        self, response: aiohttp.ClientResponse, ends: bool = False
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The objects of a stream of server-sent events, which `ends` with [DONE] or never."""
        while line := await _line(response):
            payload = payload_of(line)
            if payload is DONE:
                if ends:
                    return
                break
            if payload is not None:
                yield payload
        raise self._died()

    def _died(self) -> SocketError:
        return SocketError(self._path, "the service ended before its answer did", SEE_LOG)


async def _line(response: aiohttp.ClientResponse) -> bytes:
    try:
        return await response.content.readline()
    except LineTooLong as error:
        raise UnreadableError(f"a line of more than {MAX_LINE_BYTES} bytes") from error


async def _body(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    while len(body) <= MAX_BODY_BYTES and (part := await response.content.readany()):
        body += part
    return bounded(bytes(body))
