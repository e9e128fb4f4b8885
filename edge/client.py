"""Clients of a running service: this one is synchronous and needs the standard library only.

`edge.async_client` has the same calls for asyncio. What both send and read is in `edge.wire`.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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
    Finished,
    Text,
    Triggered,
    UnreadableError,
    Watch,
    bounded,
    checked,
    events_target,
    payload_of,
    read,
    refusal,
    text_of,
    trigger_target,
    unreachable,
    unreadable,
)

__all__ = ["Ask", "Client", "Event", "Finished", "Text", "Triggered", "Watch"]


class Client:
    """Asks the service that listens on a Unix socket.

    Every call raises SocketError where nobody serves, the service dies or sends what no service
    does, AccessError where this
    user may not do that, ProtocolError where the request is wrong, CapacityError where there is no
    room for it now, and EngineError where the service failed.

    Args:
        path: the service's socket.
        timeout_s: the longest silence that is taken for work.
    """

    def __init__(self, path: Path | str, timeout_s: float = 300.0) -> None:
        self._path, self._timeout_s = Path(path), timeout_s

    def models(self) -> list[str]:
        """The names of the served models."""
        return [model["id"] for model in self._get("/v1/models", MODELS)["data"]]

    def health(self) -> dict[str, Any]:
        """What the service tells of itself: ready, context tokens, counters."""
        return self._get("/healthz", HEALTH)

    def metrics(self) -> str:
        """The same for Prometheus."""
        with self._answer("GET", "/metrics") as response:
            return text_of(_body(response))

    def ask(
        self,
        text: str,
        *,
        thinking: bool | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        remember: bool | None = None,
        recall_s: tuple[float, float] | None = None,
        deadline_s: float | None = None,
        consistency: bool | None = None,
        sound: bytes | None = None,
    ) -> Iterator[Event]:
        """Ask about what the service sees and hears; closing the iterator cancels the turn.

        Args:
            text: the question; may be empty where `sound` asks it.
            sound: a WAV or MP3 file's bytes that the question brings along, at most 30 s.
            thinking: see `edge.wire.Ask` for this one and the others.

        Returns:
            Text as it is generated, then one Finished.
        """
        asked = Ask(
            *(text, thinking, max_tokens, temperature, seed),
            *(remember, recall_s, deadline_s, consistency, sound),
        )
        answer = Answer()
        with self._answer("POST", "/v1/chat/completions", asked.body()) as response:
            for payload in self._payloads(response, ends=True):
                yield from answer.push(payload)
            finished = answer.finished()
        yield finished

    def say(self, path: Path, text: str = "", **settings: Any) -> Iterator[Event]:
        """Ask with a recording: what it says is the question.

        Args:
            path: a WAV file of at most 30 s.
            text: in writing behind it, such as "Answer the question."
            settings: as `ask`.
        """
        return self.ask(text, sound=path.read_bytes(), **settings)

    def watch(self, condition: str, **settings: Any) -> Iterator[Triggered]:
        """Hear when something begins and ends to be so; closing the iterator ends the watch.

        Args:
            condition: in plain language.
            settings: of `edge.wire.Watch`.
        """
        body = Watch(condition, **settings).body(stream=True)
        with self._answer("POST", "/v1/edge/triggers", body) as response:
            for payload in self._payloads(response):
                if (triggered := Triggered.of(payload)) is not None:
                    yield triggered

    def events(self, types: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
        """What happens in the service from now on, by the key `type`.

        Args:
            types: only those that begin so, such as "edge.trigger".
        """
        with self._answer("GET", events_target(types)) as response:
            for payload in self._payloads(response):
                yield checked(payload, TOLD)

    def triggers(self) -> list[dict[str, Any]]:
        """All triggers, and how each stands."""
        found: list[dict[str, Any]] = self._get("/v1/edge/triggers", TRIGGERS)["data"]
        return found

    def create_trigger(self, condition: str, **settings: Any) -> str:
        """Let the service watch for something until `delete_trigger`; the trigger's id.

        Args:
            condition: in plain language.
            settings: of `edge.wire.Watch`.
        """
        body = Watch(condition, **settings).body()
        with self._answer("POST", "/v1/edge/triggers", body) as response:
            return str(read(_body(response), CREATED)["id"])

    def delete_trigger(self, trigger_id: str) -> None:
        """Watch for it no longer."""
        with self._answer("DELETE", trigger_target(trigger_id)) as response:
            _body(response)

    def _get(self, target: str, shape: Any) -> dict[str, Any]:
        with self._answer("GET", target) as response:
            answer: dict[str, Any] = read(_body(response), shape)
            return answer

    @contextlib.contextmanager
    def _answer(
        self, method: str, target: str, body: bytes | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """A response with status 200; everything else is raised."""
        with contextlib.closing(_UnixConnection(self._path, self._timeout_s)) as connection:
            try:
                connection.connect()
            except OSError as error:
                raise unreachable(self._path, error) from error
            try:
                # A service that refuses us says why before it reads what we send.
                with contextlib.suppress(BrokenPipeError):
                    connection.request(method, target, body, {"Content-Type": "application/json"})
                with connection.getresponse() as response:
                    if response.status != 200:
                        raise refusal(response.status, _body(response))
                    yield response
            except UnreadableError as error:
                raise unreadable(self._path, error) from error
            except TimeoutError as error:
                problem = f"was silent for {self._timeout_s:g} s"
                raise SocketError(self._path, problem, SEE_LOG) from error
            except (OSError, http.client.HTTPException) as error:
                raise self._died() from error

    def _payloads(
        self, response: http.client.HTTPResponse, ends: bool = False
    ) -> Iterator[dict[str, Any]]:
        """The objects of a stream of server-sent events, which `ends` with [DONE] or never."""
        while line := response.readline(MAX_LINE_BYTES + 1):
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


def _body(response: http.client.HTTPResponse) -> bytes:
    return bounded(response.read(MAX_BODY_BYTES + 1))


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
