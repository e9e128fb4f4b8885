"""A small synchronous client of a running service; needs the standard library only."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.errors import CapacityError, EdgeError, EngineError, ProtocolError, SocketError

DEFAULT_SOCKET = "/run/edge/edge.sock"


@dataclass(frozen=True, slots=True)
class Text:
    """More text of the answer."""

    text: str
    reasoning: bool = False
    """Part of the thinking, not of the answer."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete."""

    finish_reason: str
    """`stop` or `length`."""
    usage: dict[str, int]
    """prompt_tokens, completion_tokens, total_tokens."""
    timeline: dict[str, Any]
    """The response's key `edge`: see `edge.serve.chat.timing_of`."""


Event = Text | Finished

_SEE_LOG = "see the service's log (journalctl -u edge)"


class Client:
    """Asks the service that listens on a Unix socket.

    Args:
        path: the service's socket.
        timeout_s: the longest silence that is taken for work.
    """

    def __init__(self, path: Path | str, timeout_s: float = 300.0) -> None:
        self._path, self._timeout_s = Path(path), timeout_s

    def models(self) -> list[str]:
        """The names of the served models.

        Raises:
            SocketError: nobody serves there.
            ProtocolError: the service refuses.
        """
        return [model["id"] for model in self._get("/v1/models")["data"]]

    def health(self) -> dict[str, Any]:
        """What the service tells of itself: ready, context tokens, counters.

        Raises:
            SocketError: nobody serves there.
            ProtocolError: the service refuses.
        """
        return self._get("/healthz")

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
    ) -> Iterator[Event]:
        """Ask about what the service sees and hears; closing the iterator cancels the turn.

        Args:
            text: the question.
            thinking: reason first; None as the service is configured, as are all below.
            max_tokens: tokens of the answer, its reasoning included.
            temperature: 0 is greedy, at most 2.
            seed: same seed, state and question: same answer.
            remember: question and answer stay in the live context.
            recall_s: answer only from what was perceived between so many seconds ago, the longer
                first; of the past that the service keeps.

        Returns:
            Text as it is generated, then one Finished.

        Raises:
            SocketError: nobody serves there, or the service dies in mid-answer.
            ProtocolError: the request is wrong.
            CapacityError: too many questions are waiting.
            EngineError: the service failed.
        """
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": text}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "chat_template_kwargs": {"enable_thinking": thinking},
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
            "edge": {"remember": remember, "recall_s": recall_s},
        }
        with self._answer("POST", "/v1/chat/completions", json.dumps(body).encode()) as response:
            yield from _events(self._payloads(response))

    def _get(self, target: str) -> dict[str, Any]:
        with self._answer("GET", target) as response:
            answer: dict[str, Any] = json.loads(response.read())
            return answer

    @contextlib.contextmanager
    def _answer(
        self, method: str, target: str, body: bytes | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """A response with status 200; everything else is raised."""
        with contextlib.closing(_UnixConnection(self._path, self._timeout_s)) as connection:
            self._connect(connection)
            try:
                connection.request(method, target, body, {"Content-Type": "application/json"})
                with connection.getresponse() as response:
                    if response.status != 200:
                        raise _refusal(response.status, response.read())
                    yield response
            except TimeoutError as error:
                problem = f"was silent for {self._timeout_s:g} s"
                raise SocketError(self._path, problem, _SEE_LOG) from error
            except (OSError, http.client.HTTPException) as error:
                raise self._died() from error

    def _connect(self, connection: http.client.HTTPConnection) -> None:
        try:
            connection.connect()
        except FileNotFoundError as error:
            raise SocketError(self._path, "is not there", "start `edge run`") from error
        except ConnectionRefusedError as error:
            raise SocketError(self._path, "nobody listens there", "start `edge run`") from error
        except PermissionError as error:
            raise SocketError(
                self._path, "is closed to this user", "join the group that owns it"
            ) from error
        except OSError as error:
            raise SocketError(
                self._path, f"cannot be reached ({error})", "give the path of the service's socket"
            ) from error

    def _payloads(self, response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
        """The objects of a stream of server-sent events."""
        while line := response.readline():
            if line == b"data: [DONE]\n":
                return
            if line.startswith(b"data: ") and line.endswith(b"\n"):
                yield json.loads(line.removeprefix(b"data: "))
        raise self._died()

    def _died(self) -> SocketError:
        return SocketError(self._path, "the service ended before its answer did", _SEE_LOG)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _events(payloads: Iterator[dict[str, Any]]) -> Iterator[Event]:
    finish_reason = ""
    usage: dict[str, int] = {}
    timeline: dict[str, Any] = {}
    for payload in payloads:
        if "error" in payload:
            status = 503 if payload["error"]["code"] == "over_capacity" else 500
            raise _refusal(status, json.dumps(payload).encode())
        usage = payload.get("usage") or usage
        for choice in payload["choices"]:
            for key, reasoning in (("reasoning_content", True), ("content", False)):
                if text := choice["delta"].get(key):
                    yield Text(text, reasoning)
            if choice["finish_reason"]:
                finish_reason, timeline = choice["finish_reason"], payload["edge"]
    yield Finished(finish_reason, usage, timeline)


def _refusal(status: int, body: bytes) -> EdgeError:
    """The service's own error again, as it raised it."""
    kind = CapacityError if status == 503 else EngineError if status >= 500 else ProtocolError
    try:
        message = str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return kind("service", f"answered with HTTP {status}", _SEE_LOG)
    thing, _, rest = message.partition(": ")
    problem, _, remedy = rest.rpartition("; ")
    if not problem:
        return kind("service", message, _SEE_LOG)
    return kind(thing, problem, remedy)
