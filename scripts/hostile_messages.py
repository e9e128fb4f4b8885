"""What a hostile client sends that knows the protocol: valid in form, with one leaf that is not.

scripts/fuzz_messages.py breaks the form; here the form holds and its contents are chosen to harm:
texts that no UTF-8 has, depth, the prompt's own markers, giant numbers, patterns and schemas that
explode, pictures that do, wrong types, keys twice, arrays of very many things, odd Unicode.

A message is made once and sent many times: wherever it has `NONCE` other digits of the same length
are put, so that no cache has seen it.
"""

from __future__ import annotations

import base64
import gzip
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from fuzz_messages import frame

NONCE = b"@@@@@@@@"
_N = NONCE.decode()
_SLOT = "@slot@"
"""In a template: where the hostile leaf stands; its JSON is put there as text."""


@dataclass(frozen=True, slots=True)
class Hostile:
    """One message."""

    kind: str
    """Of its hostile leaf."""
    method: str
    path: str
    """The route's pattern, as in /openapi.json; of an event its type."""
    data: bytes
    """A whole HTTP request, or a WebSocket's frame."""

    def fresh(self, number: int) -> bytes:
        """The same with another nonce."""
        return self.data.replace(NONCE, b"%08d" % (number % 10**8))


# Leaves: each maker returns JSON.

Leaf = Callable[[random.Random], str]
MARKERS = (
    *("<|im_start|>system", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>"),
    *("<image>", "<video>", "<so_embedding>", "<so_start>", "⟦next⟧", "⟦live⟧", "<s>", "</s>"),
    *("{{ messages }}", "{% for x in y %}", "<|im_end|>\n<|im_start|>assistant\n", "[INST]"),
)
PATTERNS = (
    *("(a?){{{n}}}a{{{n}}}", "(a+)+$", "(a|a)*b{{{n}}}", "(.*a){{20}}", r"[\s\S]{{1,{n}}}"),
    *(
        r"\p{{L}}{{{n}}}",
        "(?=a)b",
        "(((((a{{9}}){{9}}){{9}}){{9}}){{9}})",
        ".*x.{{{n}}}y.*",
        "[z-a]",
    ),
    *(
        "(" * 200 + ")" * 200,
        "a{{99999999999}}",
        r"(a)\1",
        "(?P<a>x)(?P<a>y)",
        "\\",
        "(?i)É{{{n}}}",
    ),
)


def surrogate(rng: random.Random) -> str:
    """Half of a pair, alone or as a key, in JSON and in JSON within JSON."""
    half = f"\\u{rng.choice((0xD800, 0xDBFF, 0xDC00, 0xDFFF, 0xD83D)):04x}"
    return rng.choice(
        (f'"{half}"', f'"a{half}b"', f'{{"{half}": 1}}', json.dumps(f'{{"a": "{half}"}}'))
    )


def depth(rng: random.Random) -> str:
    """Arrays and objects within others, as they are and as a text."""
    n = rng.choice((33, 65, 130, 400, 600, 900, 980, 1000, 3000))
    nested = rng.choice(("[" * n + "]" * n, '{"a":' * n + "1" + "}" * n))
    return json.dumps(nested) if rng.random() < 0.3 else nested


def marker(rng: random.Random) -> str:
    """What the prompt is told apart by."""
    return json.dumps(rng.choice(MARKERS) + _N + rng.choice(("", *MARKERS)))


def number(rng: random.Random) -> str:
    """Numbers that some reader of JSON stumbles over."""
    return rng.choice(
        (
            *("1e400", "-1e400", "1E-400", "-0", "-0.0", "1e308", "5e-324", "0.1e99999", "1e1"),
            *("9" * 400, "-" + "9" * 5000, str(1 << 63), str(1 << 64), str(-(1 << 63) - 1)),
            *("1.0", "1.5", "-1", "0", str((1 << 53) + 1), "NaN", "Infinity", "0x10", "1_000"),
        )
    )


def odd_text(rng: random.Random) -> str:
    """Unicode that few expect."""
    text = rng.choice(
        (
            *("\0", "\x1b[2J", "\ufeff", "\u202e" + _N, "\u2028\u2029", "\uffff", "\U0010ffff"),
            *(
                "e" + "\u0301" * 500,
                "👩‍👩‍👧‍👦" * 40,
                "ﷺ" * 50,
                "ｓｙｓｔｅｍ",
                "\u200b" * 300,
                "İıſK",
            ),
            *("\r\n\r\nHTTP/1.1 200 OK", "%s%n{0}", "'; DROP TABLE x; --", "../../etc/passwd"),
        )
    )
    return json.dumps(text, ensure_ascii=rng.random() < 0.5)


def wrong_type(rng: random.Random) -> str:
    """A value of another type."""
    return rng.choice(("null", "true", "false", "0", '""', "[]", "{}", '"x"', "[[]]", "[null]"))


def crowd(rng: random.Random) -> str:
    """Very many very small things."""
    n = rng.choice((300, 3000, 20_000))
    one = rng.choice(("{}", "[]", "0", '""', '"a"', "null", '{"type":"text","text":"a"}'))
    if rng.random() < 0.3:
        return "{" + ",".join(f'"{k}":{one}' for k in range(n)) + "}"
    return "[" + ",".join([one] * n) + "]"


def twice(rng: random.Random) -> str:
    """Keys that an object has twice."""
    return rng.choice(
        (
            '{"type":"text","type":"image_url","text":"a","text":"b"}',
            '{"role":"user","role":"system","content":"a","content":"b"}',
            '{"name":"a","name":"b","arguments":"{}","arguments":"[]"}',
            '{"a":1,"a":2,"\\u0061":3}',
        )
    )


def pattern(rng: random.Random) -> str:
    """A regular expression."""
    n = rng.choice((30, 300, 3000))
    return json.dumps(rng.choice(PATTERNS).format(n=n) + rng.choice(("", _N)))


def schema(rng: random.Random) -> str:
    """A JSON Schema that is dear."""
    return json.dumps({"$comment": _N, **rng.choice(_SCHEMAS)(rng)})


def _nested(n: int) -> dict[str, Any]:
    inner: dict[str, Any] = {"type": "integer"}
    for _ in range(n):
        inner = {"type": "object", "properties": {"a": inner}, "required": ["a"]}
    return inner


_SCHEMAS: tuple[Callable[[random.Random], dict[str, Any]], ...] = (
    lambda rng: {
        "allOf": [
            {"type": "string", "pattern": f".*{chr(97 + k % 26)}.{{{k}}}x.*"}
            for k in range(rng.choice((2, 4, 8, 60)))
        ]
    },
    lambda rng: {"enum": [f"{_N}{k}" for k in range(rng.choice((30, 3000)))]},
    lambda _: {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
    lambda rng: {"$ref": rng.choice(("file:///etc/passwd", "http://127.0.0.1:9/x", "#/nowhere"))},
    lambda rng: {"type": "string", "minLength": 10 ** rng.randrange(3, 12)},
    lambda rng: {"type": "string", "maxLength": 10 ** rng.randrange(3, 12)},
    lambda rng: {
        "type": "array",
        "minItems": 10 ** rng.randrange(1, 9),
        "items": {"type": "array", "maxItems": 10**6, "items": {"type": "integer"}},
    },
    lambda rng: {"oneOf": [{"const": k} for k in range(rng.choice((20, 600)))]},
    lambda _: {"type": "object", "patternProperties": {"(a+)+$": {"type": "string"}}},
    lambda rng: {
        "type": "object",
        "properties": {f"p{k}": {"type": "integer"} for k in range(rng.choice((50, 2000)))},
    },
    lambda rng: _nested(rng.choice((30, 70, 200, 450))),
    lambda rng: {"type": "string", "format": rng.choice(("email", "uuid", "date-time", "regex"))},
    lambda rng: {"type": "string", "pattern": json.loads(pattern(rng))},
    lambda _: {"type": "integer", "minimum": -(10**300), "multipleOf": 1e-9},
    lambda _: {"not": {"not": {"not": {}}}, "if": True, "then": False, "type": 7},
)


def _png(width: int, height: int) -> bytes:
    """A picture whose header says so, with the pixels of one row."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    row = zlib.compress(bytes(1 + 3 * min(width, 64)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", row) + chunk(b"IEND", b"")


def medium(rng: random.Random) -> str:
    """A data: URL, or another, of a picture or a sound that is not what it seems."""
    wav = b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0\x01\0" + struct.pack(
        "<HIIHH", 64, 384000, 9, 9, 16
    )
    data, kind = rng.choice(
        (
            (_png(16000, 16000), "image/png"),
            (_png(1 << 31, 1), "image/png"),
            (_png(8, 8), "image/png"),
            (b"GIF89a" + b"\xff\xff\xff\xff" + bytes(20), "image/gif"),
            (b"\xff\xd8\xff\xe0" + bytes(60), "image/jpeg"),
            (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"),
            (wav + b"data\xff\xff\xff\xff" + bytes(200), "audio/wav"),
            (b"fLaC\0\0\0\x22" + bytes(60), "audio/flac"),
            (bytes(8) + b"ftypmp42" + bytes(60), "video/mp4"),
            (b"#EXTM3U\nfile:///etc/passwd\n", "video/mp4"),
        )
    )
    return json.dumps(
        rng.choice(
            (
                f"data:{kind};base64,{base64.b64encode(data).decode()}",
                f"data:{kind};base64,{base64.b64encode(data).decode()}",
                rng.choice(
                    ("file:///etc/passwd", "http://127.0.0.1:9/", "data:,x", "data:;base64,=")
                ),
            )
        )
    )


ANYWHERE: dict[str, tuple[float, Leaf]] = {
    "wrong type": (4.0, wrong_type),
    "number": (3.0, number),
    "surrogate": (3.0, surrogate),
    "depth": (2.0, depth),
    "twice": (2.0, twice),
    "crowd": (0.3, crowd),
    "marker": (0.6, marker),
    "odd text": (0.6, odd_text),
}
"""Leaves that may stand in any place of a template, with how often they are sent."""

# Templates: what a well-behaved client would send, but for the leaf.

_BRIEF: dict[str, Any] = {"max_tokens": 1, "edge": {"deadline_s": 0.002}}
"""What is answered at all keeps the engine for one token at most."""
_SCHEMA_OF_TOOL = {"type": "object", "properties": {"a": {"type": "string", "pattern": "[a-z]+"}}}


def _user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


_TOOL = {"name": "drive", "description": "Drive.", "parameters": _SCHEMA_OF_TOOL, "strict": True}
_CALLED = {"name": "drive", "arguments": '{"a": "b"}'}
CHATS: tuple[dict[str, Any], ...] = (
    {"messages": _user("?"), "stream": True, "temperature": 0.5, "seed": 1, "top_p": 0.9},
    {"messages": _user("?"), "logit_bias": {"5": 1.0}, "stop": ["x"], "n": 1, "logprobs": True},
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            *_user([{"type": "text", "text": "Go."}]),
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "Hm.",
                "tool_calls": [{"id": "call_1", "type": "function", "function": _CALLED}],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "Done."},
        ]
    },
    {
        "messages": _user("?"),
        "tools": [{"type": "function", "function": _TOOL}],
        "tool_choice": "auto",
    },
    {
        "messages": _user("?"),
        "chat_template_kwargs": {"enable_thinking": False},
        "media_io_kwargs": {"video": {"fps": 1.0}},
        "repetition_penalty": 1.1,
        "edge": {"recall_s": [30, 10], "abstain": "unknown", "deadline_s": 0.002},
    },
)
RESPONSES: tuple[dict[str, Any], ...] = (
    {"input": "?", "instructions": "Be brief.", "store": False, "metadata": {"a": "b"}},
    {
        "store": False,
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "?"}]},
            {"type": "function_call", "call_id": "c", **_CALLED},
            {"type": "function_call_output", "call_id": "c", "output": "Done."},
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {"type": "item_reference", "id": "msg_1"},
        ],
    },
    {
        "input": "?",
        "store": False,
        "tools": [{"type": "function", **_TOOL}],
        "reasoning": {"effort": "none"},
    },
)
TRIGGERS: tuple[dict[str, Any], ...] = (
    {"condition": "?", "modality": "any", "period_s": 1.0, "debounce_s": 1.0, "priority": "low"},
)
TURNS: tuple[dict[str, Any], ...] = ({"button": "cancel"}, {"mode": "typed"})
EVENTS: tuple[dict[str, Any], ...] = (
    {
        "type": "session.update",
        "session": {
            "type": "realtime",
            "instructions": "x",
            "tools": [{"type": "function", **_TOOL}],
            "tool_choice": "auto",
            "audio": {"input": {"format": {"type": "audio/pcm", "rate": 24000}}},
            "edge": {"events": ["degraded"], "temperature": 0.5},
        },
    },
    {"type": "session.update", "session": {"type": "realtime", "edge": {"events": ["degraded"]}}},
    {"type": "input_audio_buffer.append", "audio": "AAAA"},
    {"type": "input_audio_buffer.commit"},
    {"type": "input_audio_buffer.clear"},
    {
        "type": "conversation.item.create",
        "previous_item_id": "root",
        "item": {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "?"}],
        },
    },
    {"type": "conversation.item.create", "item": {"type": "function_call", **_CALLED}},
    {"type": "conversation.item.delete", "item_id": "item_1"},
    {"type": "conversation.item.retrieve", "item_id": "item_1"},
    {"type": "response.cancel", "response_id": "resp_1"},
    {
        "type": "response.create",
        "response": {
            "conversation": "none",
            "max_output_tokens": 1,
            "input": [{"type": "message", "role": "user", "content": []}],
            "edge": {"deadline_s": 0.002},
        },
    },
    {"type": "edge.playback.append", "audio": "AAAA", "delay_ms": 20},
    {"type": "edge.trigger.delete", "trigger_id": "trigger_1"},
    {"type": "edge.trigger.create", "trigger": {"condition": "?", "period_s": "@slot@"}},
)


def _format(kind: str, **fields: Any) -> dict[str, Any]:
    return {"messages": _user("?"), **_BRIEF, "response_format": {"type": kind, **fields}}


def _pictures(n: int) -> list[dict[str, Any]]:
    return [{"type": "image_url", "image_url": {"url": _SLOT}}] * n


AIMED: dict[str, tuple[float, Leaf, tuple[tuple[str, Any], ...]]] = {
    "pattern": (
        *(0.15, pattern),
        (
            ("/v1/chat/completions", _format("regex", regex=_SLOT)),
            ("/v1/chat/completions", {"messages": _user("?"), **_BRIEF, "guided_regex": _SLOT}),
            (
                "/v1/chat/completions",
                _format(
                    "json_schema", json_schema={"schema": {"type": "string", "pattern": _SLOT}}
                ),
            ),
            (
                "/v1/responses",
                {"input": "?", "text": {"format": {"type": "regex", "regex": _SLOT}}},
            ),
        ),
    ),
    "schema": (
        *(0.15, schema),
        (
            ("/v1/chat/completions", _format("json_schema", json_schema={"schema": _SLOT})),
            ("/v1/chat/completions", {"messages": _user("?"), **_BRIEF, "guided_json": _SLOT}),
            (
                "/v1/chat/completions",
                {
                    "messages": _user("?"),
                    **_BRIEF,
                    "tools": [{"type": "function", "function": {"name": "f", "parameters": _SLOT}}],
                    "tool_choice": "required",
                },
            ),
            (
                "/v1/responses",
                {"input": "?", "text": {"format": {"type": "json_schema", "schema": _SLOT}}},
            ),
        ),
    ),
    "medium": (
        *(0.15, medium),
        (
            ("/v1/chat/completions", {"messages": _user(_pictures(1)), **_BRIEF}),
            ("/v1/chat/completions", {"messages": _user(_pictures(40)), **_BRIEF}),
            (
                "/v1/chat/completions",
                {"messages": _user([{"type": "audio_url", "audio_url": _SLOT}]), **_BRIEF},
            ),
            (
                "/v1/chat/completions",
                {"messages": _user([{"type": "video_url", "video_url": _SLOT}]), **_BRIEF},
            ),
            (
                "/v1/responses",
                {
                    "input": [
                        {"role": "user", "content": [{"type": "input_image", "image_url": _SLOT}]}
                    ]
                },
            ),
        ),
    ),
    "past": (
        *(1.0, lambda rng: json.dumps(rng.choice((surrogate, depth, number, twice, crowd))(rng))),
        (
            (
                "/v1/chat/completions",
                {
                    **_BRIEF,
                    "messages": [
                        *_user("Go."),
                        {
                            "role": "assistant",
                            "tool_calls": [
                                {"type": "function", "function": {"name": "f", "arguments": _SLOT}}
                            ],
                        },
                    ],
                },
            ),
            (
                "/v1/responses",
                {"input": [{"type": "function_call", "name": "f", "arguments": _SLOT}]},
            ),
        ),
    ),
}
"""Leaves that harm in certain places only: how often, what, and where."""
AIMED_EVENTS: dict[str, tuple[float, Leaf, tuple[Any, ...]]] = {
    kind: (
        *(0.15, leaf),
        tuple(
            {"type": "session.update", "session": {"type": "realtime", **fields}}
            for fields in (
                {"edge": {"response_format": wanted}},
                {"tools": [{"type": "function", "name": "f", "parameters": schema_of_tool}]},
            )
        ),
    )
    for kind, leaf, wanted, schema_of_tool in (
        (
            "pattern",
            pattern,
            {"type": "regex", "regex": _SLOT},
            {"type": "string", "pattern": _SLOT},
        ),
        ("schema", schema, {"type": "json_schema", "json_schema": {"schema": _SLOT}}, _SLOT),
    )
}
LOOKS = (
    *("/v1/models/{name}", "/v1/responses/{id}", "/v1/realtime", "/v1/models", "/healthz"),
    *("/readyz", "/v1/edge/triggers", "/openapi.json", "/metrics", "/v1/edge/events"),
)
QUERIES = (
    *("", "?types={name}", "?model={name}", "?{name}", "?a=1&a=2&a=3", "?types=,,edge.,&types="),
    *("?types=" + "edge.trigger," * 300, "?types[]=edge&types=%00", "??&&==#", "?types=a;types=b"),
)
METHODS = ("HEAD", "POST", "PUT", "PATCH", "OPTIONS", "TRACE", "DELETE", "PROPFIND")
HEADERS = (
    *("Accept: text/nothing", "Accept: */*;q=nan", "Accept-Encoding: br;q=0, gzip;q=9, *;q="),
    *("Range: bytes=5-1,-0", "If-None-Match: *", "If-Modified-Since: Thu, 99 Foo", "TE: trailers"),
    *("Cookie: " + "a=b; " * 500, 'Cookie: =;;"', f"Authorization: Bearer {_N}"),
    *("Expect: 100-continue", "Authorization: Basic ===", "Origin: null", "Origin: {name}"),
    *("X-Forwarded-For: 127.0.0.1", "X-HTTP-Method-Override: DELETE"),
    *("Content-Type: {name}", "Content-Encoding: br", "Content-Length: 0", "Upgrade: h2c"),
    *("Connection: close, upgrade", "Last-Event-ID: {name}", "User-Agent:", "X: {name}; {name}"),
)


def request(rng: random.Random) -> Hostile:
    """An HTTP request."""
    if rng.random() < 0.05:
        return _look(rng)
    aimed = sum(weight for weight, _, _ in AIMED.values())
    anywhere = sum(weight for weight, _ in ANYWHERE.values())
    if rng.random() * (aimed + anywhere) < aimed:
        kind = rng.choices([*AIMED], [weight for weight, _, _ in AIMED.values()])[0]
        _, leaf, places = AIMED[kind]
        path, value = rng.choice(places)
        return _post(rng, kind, path, _filled(value, leaf(rng)))
    kind = rng.choices([*ANYWHERE], [weight for weight, _ in ANYWHERE.values()])[0]
    path, templates = rng.choices(
        (
            ("/v1/chat/completions", CHATS),
            ("/v1/responses", RESPONSES),
            ("/v1/edge/triggers", TRIGGERS),
            ("/v1/edge/turns", TURNS),
        ),
        (8, 6, 2, 1),
    )[0]
    brief = {} if path.startswith("/v1/edge") else _BRIEF
    if path == "/v1/responses":
        brief = {"max_output_tokens": 1, "edge": {"deadline_s": 0.002}}
    value = {**brief, **rng.choice(templates)}
    return _post(rng, kind, path, _filled(_with_slot(rng, value), ANYWHERE[kind][1](rng)))


def event(rng: random.Random) -> Hostile:
    """An event of the Realtime socket."""
    aimed = sum(weight for weight, _, _ in AIMED_EVENTS.values())
    anywhere = sum(weight for weight, _ in ANYWHERE.values())
    if rng.random() * (aimed + anywhere) < aimed:
        kind = rng.choices([*AIMED_EVENTS], [weight for weight, _, _ in AIMED_EVENTS.values()])[0]
        _, leaf, values = AIMED_EVENTS[kind]
        value = rng.choice(values)
        text = _filled(value, leaf(rng))
    else:
        kind = rng.choices([*ANYWHERE], [weight for weight, _ in ANYWHERE.values()])[0]
        value = rng.choice(EVENTS)
        text = _filled(_with_slot(rng, value), ANYWHERE[kind][1](rng))
    return Hostile(kind, "WS", value["type"], frame(1, text))


def _look(rng: random.Random) -> Hostile:
    """Something that is read, by a hostile name, or in another way than it is meant."""
    path = rng.choice(LOOKS)
    name = rng.choice(
        (
            *(
                "%ED%A0%80",
                "%00",
                "..%2f..%2fetc%2fpasswd",
                "%F0%9F%A4%96",
                _N,
                "x" * 3000,
                "%",
                "*",
            ),
            *("{id}", "%0d%0aX:%20y", "resp_" + "0" * 32, "a/b/c", "-1", "%E2%80%AE"),
        )
    )
    target = path.replace("{name}", name).replace("{id}", name.replace("/", ""))
    query = rng.choice(QUERIES).replace("{name}", name)
    method = rng.choice(("GET", "GET", "DELETE")) if "{id}" in path else "GET"
    kind, header = "name", ""
    if rng.random() < 0.3:
        kind, method = "method", rng.choice(METHODS)
    elif rng.random() < 0.5:
        kind, header = "header", rng.choice(HEADERS).replace("{name}", name) + "\r\n"
    head = f"{method} {target}{query} HTTP/1.1\r\nHost: localhost\r\n{header}\r\n"
    return Hostile(kind, method, path, head.encode("ascii"))


def _post(rng: random.Random, kind: str, path: str, body: bytes) -> Hostile:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    if rng.random() < 0.002:
        kind, body = "encoded", gzip.compress(b" " * rng.choice((10**4, 10**7)) + body)
        head += "Content-Encoding: gzip\r\n"
    return Hostile(kind, "POST", path, f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)


def _filled(value: Any, leaf: str) -> bytes:
    """JSON with a leaf in its slots."""
    text = json.dumps(value).replace(f'"{_SLOT}"', leaf)
    return text.encode("utf-8", "surrogatepass")


def _with_slot(rng: random.Random, value: Any) -> Any:
    """A template with its slot at a random place, any leaf as likely as another."""
    if _SLOT in json.dumps(value):
        return value
    places = [*_places(value, lambda new: new)]
    return rng.choice(places)(_SLOT)


def _places(value: Any, put: Callable[[Any], Any]) -> Iterator[Callable[[Any], Any]]:
    """For each place in a value, how to put something else there; `put` puts the value itself."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key != "type":

                def put_key(new: Any, key: str = key) -> Any:
                    return put({**value, key: new})

                yield from _places(item, put_key)
        yield lambda new: put({**value, f"x{_N}": new})
    elif isinstance(value, list):
        for k, item in enumerate(value):
            yield from _places(item, partial(_put_item, put, value, k))
        yield put
    else:
        yield put


def _put_item(put: Callable[[Any], Any], items: list[Any], k: int, new: Any) -> Any:
    return put([*items[:k], new, *items[k + 1 :]])
