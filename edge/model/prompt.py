"""The prompt: the checkpoint's chat template, and the text that stands around media.

Source: the published processing (vLLM 0.33 `nano_nemotron_vl`): markers, then their expansion.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils

from edge.errors import CheckpointError
from edge.model.tokenizer import (
    AUDIO,
    AUDIO_END,
    AUDIO_START,
    IMAGE,
    IMAGE_END,
    IMAGE_START,
    TEMPLATE,
    TURN_END,
    TURN_START,
    read_template,
)

VIDEO = "<video>"
"""Plain text to the tokenizer; stands for a clip until `expand`."""
LIVE = "\u27e6live\u27e7"
"""Stands for the live context while the template runs."""
NEXT = "\u27e6next\u27e7"
"""Stands for the content of the next user turn."""


MAX_STEPS, MAX_EXPONENT = 1_000_000, 64
"""What one rendering may count through and multiply. It bounds what is written by mistake: a
template is trusted as its bundle is, and can still take its time."""
_TEMPLATE_ERRORS = (
    *(jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError),
    *(ArithmeticError, RecursionError, MemoryError),
)
"""What a template may raise: clients' tools are in it, which can be of any form."""


class ChatTemplate:
    """The checkpoint's chat template, run in jinja2's sandbox as transformers runs it.

    Source: transformers 5.23.0, `utils/chat_template_utils.py` (`_compile_jinja_template`).
    """

    def __init__(self, folder: Path) -> None:
        """Compile the template of a checkpoint or a bundle.

        Raises:
            CheckpointError: it is absent or not a template.
        """
        self._path = folder / TEMPLATE
        text = read_template(folder)
        if text is None:
            raise CheckpointError(self._path, "is missing", "copy the checkpoint's again")
        environment = self._environment = _Sandbox(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _strftime_now
        environment.globals["dict"] = _Dict()
        environment.globals["namespace"] = _Namespace
        try:
            self._template = environment.from_string(text)
        # Python's compiler has words of its own for what is nested too deeply.
        except (ValueError, SyntaxError, MemoryError, *_TEMPLATE_ERRORS) as error:
            raise CheckpointError(
                self._path, f"is not a chat template ({error})", "copy the checkpoint's again"
            ) from None

    def probe(self) -> None:
        """Render conversations of every kind that a session has, so that none fails later.

        Raises:
            CheckpointError: the template fails on one, or leaves out what the user says.
        """
        for thinking in (False, True):
            self.around_live(PROBE[:2], thinking=thinking)
            self.around_live(PROBE, thinking=thinking)
            if PROBE[-1]["content"] not in self.render(PROBE, thinking=thinking, tools=PROBE_TOOLS):
                raise self._dropping()
        self.tools_text(PROBE_TOOLS)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        thinking: bool,
        generate: bool = True,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """The prompt's text.

        Args:
            messages: role and content, content as one string (see `flatten`).
            thinking: whether the answer starts inside <think>.
            generate: end with the start of the assistant's turn.
            tools: as OpenAI describes functions.
        Raises:
            CheckpointError: the template refuses the messages.
        """
        self._environment.n_left = MAX_STEPS
        try:
            return self._template.render(
                messages=messages,
                tools=tools or None,
                documents=None,
                add_generation_prompt=generate,
                enable_thinking=thinking,
            )
        except _TEMPLATE_ERRORS as error:
            raise CheckpointError(
                self._path, f"failed on these messages ({error})", "change the messages"
            ) from None

    def tools_text(self, tools: Sequence[Mapping[str, Any]]) -> str:
        """How the template describes tools: what it adds to the system message for them.

        Args:
            tools: as OpenAI describes functions.
        Raises:
            CheckpointError: the template refuses them.
        """
        messages = [{"role": "system", "content": LIVE}, {"role": "user", "content": ""}]
        text = self.render(messages, thinking=False, tools=tools)
        system = text.partition(f"{TURN_START}system\n")[2].partition(TURN_END)[0]
        return system.replace(LIVE, "").strip()

    def around_live(
        self, messages: Sequence[Mapping[str, Any]], *, thinking: bool
    ) -> tuple[str, str]:
        """The text before and after the live context.

        Args:
            messages: as `render`; one content holds `LIVE` where the live context goes.
        """
        before, found, after = self.render(messages, thinking=thinking).partition(LIVE)
        if not found:
            raise self._dropping()
        return before, after

    def _dropping(self) -> CheckpointError:
        remedy = "copy the checkpoint's template again"
        return CheckpointError(self._path, "drops the user's content", remedy)


PROBE: tuple[dict[str, Any], ...] = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": LIVE},
    {
        "role": "assistant",
        "content": "",
        "reasoning_content": "It is behind me.",
        "tool_calls": [
            {
                "type": "function",
                "function": {"name": "turn", "arguments": {"to": "left", "by": 90, "fast": False}},
            }
        ],
    },
    {"role": "tool", "content": "done"},
    {"role": "assistant", "content": "I see a door."},
    {"role": "user", "content": "Open it."},
)
PROBE_TOOLS: tuple[dict[str, Any], ...] = (
    {
        "type": "function",
        "function": {
            "name": "turn",
            "description": "Turn around.",
            "parameters": {
                "type": "object",
                "properties": {"to": {"type": "string", "enum": ["left"]}, "by": {}},
                "required": ["to"],
            },
        },
    },
)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """jinja2's own, in which numbers that are easily written cost no hours and no gigabytes."""

    intercepted_binops = frozenset(("*", "**"))
    n_left = MAX_STEPS

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.globals["range"] = self._range

    def _range(self, *arguments: Any) -> range:
        numbers = jinja2.sandbox.safe_range(*arguments)
        self.n_left -= len(numbers)
        if self.n_left < 0:
            raise jinja2.exceptions.SecurityError(f"its ranges have more than {MAX_STEPS} numbers")
        return numbers

    def call_binop(
        self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any
    ) -> Any:
        if operator == "**" and abs(right) > MAX_EXPONENT:
            raise jinja2.exceptions.SecurityError(f"its exponent is above {MAX_EXPONENT}")
        for one, other in ((left, right), (right, left)):
            if hasattr(one, "__len__") and len(one) * other > MAX_STEPS:
                problem = f"its product is longer than {MAX_STEPS}"
                raise jinja2.exceptions.SecurityError(problem)
        return super().call_binop(context, operator, left, right)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`, which marks what an assistant says for training: here it says it."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 has it so

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A block of its own, as in transformers: what is set inside stays inside.
        return jinja2.nodes.CallBlock(self.call_method("_say"), [], [], body).set_lineno(line)

    def _say(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """What makes a mapping, with nothing else of Python's type in reach."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(jinja2.utils.Namespace):
    """jinja2's own, without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be a name in it
        self, *given = args
        names = dict(*given, **kwargs)
        for name in names:
            _refuse_private(name)
        jinja2.utils.Namespace.__init__(self, names)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace takes no {name!r}")


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Unlike jinja2's own filter, prompts do not escape HTML or sort keys.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)


def flatten(text: str, media: Sequence[str]) -> str:
    """One content string: the media markers in order, then the text, joined by newlines."""
    return "\n".join([*media, text] if text else media)


def image_text(n_tokens: int) -> str:
    """An image's place in the prompt."""
    return f"{IMAGE_START}{IMAGE * n_tokens}{IMAGE_END}"


def audio_text(n_tokens: int) -> str:
    """A clip of sound's place in the prompt."""
    return f"{AUDIO_START}{AUDIO * n_tokens}{AUDIO_END}"


def tubelet_text(first_number: int, times_s: Sequence[float], n_tokens: int) -> str:
    """One tubelet's place in the prompt.

    Args:
        first_number: 1-based number of its first frame.
        times_s: when its frames were taken; the last tubelet of an odd clip has one.
        n_tokens: embeddings kept of it, possibly 0.
    """
    stamps = [f"Frame {first_number} sampled at {times_s[0]:.2f} seconds"]
    stamps += [
        f"frame {first_number + i} sampled at {time:.2f} seconds"
        for i, time in enumerate(times_s[1:], 1)
    ]
    return f"{' and '.join(stamps)}: {image_text(n_tokens)}"


def frame_times_s(frame_indices: Sequence[int], source_fps: float) -> list[float]:
    """Times of a clip's frames as the model was trained: whole milliseconds a frame."""
    frame_ms = int(1000 / source_fps)
    return [int(index) * frame_ms / 1000 for index in frame_indices]


def video_text(times_s: Sequence[float], n_tokens: Sequence[int], tubelet_frames: int = 2) -> str:
    """A whole clip's place in the prompt: one line a tubelet.

    Args:
        times_s: of every frame.
        n_tokens: embeddings kept of each tubelet.
    """
    starts = range(0, len(times_s), tubelet_frames)
    return "\n".join(
        tubelet_text(start + 1, times_s[start : start + tubelet_frames], n)
        for start, n in zip(starts, n_tokens, strict=True)
    )


def expand(
    text: str, images: Sequence[str] = (), videos: Sequence[str] = (), audios: Sequence[str] = ()
) -> str:
    """Replace each marker by its media's text, in order.

    Args:
        images: texts of `image_text`; likewise `videos` and `audios`.
    Raises:
        ValueError: a kind has more or fewer markers than media.
    """
    # Split at every marker first: the replacements contain markers themselves.
    waiting = {IMAGE: list(images), VIDEO: list(videos), AUDIO: list(audios)}
    pieces: list[str] = []
    rest = text
    while True:
        found = [(rest.index(marker), marker) for marker in waiting if marker in rest]
        if not found:
            break
        at, marker = min(found)
        if not waiting[marker]:
            raise ValueError(f"more {marker} markers than media")
        pieces += [rest[:at], waiting[marker].pop(0)]
        rest = rest[at + len(marker) :]
    for marker, left in waiting.items():
        if left:
            raise ValueError(f"{len(left)} media without a {marker} marker")
    return "".join([*pieces, rest])
