"""What a broken or hostile client sends: HTTP requests and WebSocket frames, wrong in every way.

Each maker returns the bytes of one message, from a seeded generator. A connection carries requests,
or after a good handshake frames.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

HANDSHAKE = (
    b"GET /v1/realtime HTTP/1.1\r\nHost: edge\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
ROUTES = (
    *("/v1/models", "/healthz", "/readyz", "/metrics", "/v1/chat/completions", "/v1/edge/turns"),
    *("/v1/edge/triggers", "/v1/edge/triggers/trigger_1", "/v1/realtime", "/nowhere", "/%00"),
)
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "get", "G\0T", "")
CHAT: dict[str, Any] = {
    "messages": [{"role": "user", "content": "?"}],
    "max_tokens": 1,
    "stream": True,
    "temperature": 0.5,
    "edge": {"remember": False, "recall_s": [30, 10]},
}
TRIGGER: dict[str, Any] = {"condition": "?", "modality": "any", "period_s": 1.0, "priority": "low"}
EVENTS: tuple[dict[str, Any], ...] = (
    {"type": "session.update", "session": {"type": "realtime", "instructions": "x", "tools": []}},
    {"type": "input_audio_buffer.append", "audio": "AAAA"},
    {"type": "input_audio_buffer.commit"},
    {"type": "input_audio_buffer.clear"},
    {
        "type": "conversation.item.create",
        "item": {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "?"}],
        },
    },
    {"type": "conversation.item.delete", "item_id": "item_1"},
    {"type": "conversation.item.retrieve", "item_id": "item_1"},
    {"type": "conversation.item.truncate", "item_id": "a", "content_index": 0, "audio_end_ms": 9},
    {"type": "response.cancel"},
    {"type": "edge.playback.append", "audio": "AAAA", "delay_ms": 20},
    {"type": "edge.trigger.create", "trigger": TRIGGER},
    {"type": "edge.trigger.delete", "trigger_id": "trigger_1"},
)


def junk(rng: random.Random) -> Any:
    """A JSON value of a wrong type or size."""
    values: tuple[Callable[[], Any], ...] = (
        lambda: None,
        lambda: rng.choice((True, False)),
        lambda: rng.choice((0, -1, 1 << 63, -(1 << 64), 10**400, 1e308, 1e-320)),
        lambda: "x" * rng.choice((0, 1, 100, 5000)),
        lambda: rng.choice(("\0", "\ud800", "<|im_start|>", "\u2028", "𝕏" * 50)),
        lambda: [junk(rng) for _ in range(rng.randrange(3))],
        lambda: {rng.choice(("type", "role", "", "x")): junk(rng)},
    )
    return rng.choice(values)()


def altered(rng: random.Random, value: Any) -> Any:
    """The same with one place wrong."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        if rng.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: altered(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return [*value[:at], altered(rng, value[at]), *value[at + 1 :]]
    return junk(rng)


def as_json(rng: random.Random, value: Any) -> bytes:
    """JSON, sometimes no longer."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    data = text.encode("utf-8", "surrogatepass")
    kind = rng.random()
    if kind < 0.1:
        return data[: rng.randrange(len(data) + 1)]
    if kind < 0.2:
        return scrambled(rng, data)
    if kind < 0.22:
        return b"[" * rng.choice((10, 1000, 100_000))
    if kind < 0.24:
        return b'{"type":' * 500
    return data


def scrambled(rng: random.Random, data: bytes) -> bytes:
    """With some bytes changed, taken out or put in."""
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(changed) + 1)
        changed[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
    return bytes(changed)


def request(rng: random.Random) -> bytes:
    """A request that a server can read to its end; what it says may be wrong."""
    target = rng.choice(("/v1/chat/completions", "/v1/edge/triggers", "/v1/edge/turns"))
    value = {"/v1/chat/completions": CHAT, "/v1/edge/triggers": TRIGGER}.get(target, {"mode": 1})
    body = as_json(rng, altered(rng, value))
    head = f"POST {target} HTTP/1.1\r\nHost: edge\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def look(rng: random.Random) -> bytes:
    """Something that is read, by any method."""
    method, route = rng.choice(METHODS), rng.choice(ROUTES)
    query = rng.choice(("", "?types=", "?model=x&model=y", "?%ff=%", "?" + "x" * 3000))
    return f"{method} {route}{query} HTTP/1.1\r\nHost: edge\r\n\r\n".encode()


def broken_request(rng: random.Random) -> bytes:
    """A request that is none: lengths that are not true, heads without an end, other protocols."""
    wrong_length = rng.choice(
        (b"-1", b"99999999999999999999", b"0x10", b"1e3", b"", b"5, 6", b"\xff", b"1073741824")
    )
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: edge\r\n"
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n"
    makers: tuple[Callable[[], bytes], ...] = (
        lambda: head + b"Content-Length: " + wrong_length + b"\r\n\r\n{}",
        lambda: chunked + rng.choice((b"FFFFFFFFFFFFFFFF", b"-1", b"zz", b"5")) + b"\r\nabc",
        lambda: head + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        lambda: head + b"X: " + b"x" * rng.choice((100, 9000, 70_000)) + b"\r\n\r\n",
        lambda: head + b"".join(b"X%d: x\r\n" % i for i in range(rng.choice((50, 5000)))),
        lambda: scrambled(rng, request(rng)),
        lambda: request(rng)[: rng.randrange(1, 200)],
        lambda: rng.randbytes(rng.choice((1, 16, 300))),
        lambda: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(32),
        lambda: b"GET /v1/models HTTP/" + rng.choice((b"0.9", b"2.0", b"9.9", b"")) + b"\r\n\r\n",
        lambda: scrambled(rng, HANDSHAKE),
    )
    return rng.choice(makers)()


def frame(opcode: int, payload: bytes, *, first: int = 0x80, masked: bool = True) -> bytes:
    """One WebSocket frame.

    Args:
        first: FIN and the reserved bits.
    """
    n = len(payload)
    mask = 0x80 if masked else 0
    if n < 126:
        head = struct.pack(">BB", first | opcode, mask | n)
    elif n < 1 << 16:
        head = struct.pack(">BBH", first | opcode, mask | 126, n)
    else:
        head = struct.pack(">BBQ", first | opcode, mask | 127, n)
    return head + bytes(4 if masked else 0) + payload  # a mask of zeros leaves it as it is


def event(rng: random.Random) -> bytes:
    """A frame that can be read to its end; what it says may be wrong."""
    value = rng.choice(EVENTS)
    if rng.random() < 0.7:
        value = altered(rng, value)
    data = as_json(rng, value)
    kind = rng.random()
    if kind < 0.05:
        data = b"\xff\xfe" + data  # no UTF-8: ends the connection
    if kind > 0.95:
        return frame(2, data)
    if 0.05 <= kind < 0.1:
        at = rng.randrange(len(data) + 1)  # fragments, with a ping between them
        return frame(1, data[:at], first=0) + frame(9, b"") + frame(0, data[at:])
    return frame(1, data)


def broken_frame(rng: random.Random) -> bytes:
    """A frame that ends the connection."""
    data = as_json(rng, rng.choice(EVENTS))
    makers: tuple[Callable[[], bytes], ...] = (
        lambda: frame(rng.choice((3, 7, 11, 15)), data),
        lambda: frame(1, data, first=0x80 | rng.choice((0x10, 0x20, 0x40))),
        lambda: frame(1, data, masked=False),
        lambda: struct.pack(">BBQ", 0x81, 0xFF, rng.choice((1 << 62, (1 << 64) - 1, 1 << 30))),
        lambda: frame(1, data)[: rng.randrange(1, 6)],
        lambda: frame(0, data),
        lambda: frame(9, b"x" * 126),
        lambda: frame(8, rng.choice((b"", b"\x03", b"\x03\xe8", b"\xff\xff\xff", b"\x00\x00x"))),
        lambda: rng.randbytes(rng.choice((2, 20, 200))),
    )
    return rng.choice(makers)()
