"""What every request for an answer may say, and the question that comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from edge.config import Config
from edge.errors import ProtocolError
from edge.model.sampling import Sampling
from edge.senses.clip import FPS, MAX_FRAMES
from edge.serve.fields import decoded, ignored, told_of, unless
from edge.serve.messages import FilmSettings
from edge.serve.protocol import (
    ChoiceFormat,
    EdgeAnswer,
    Json,
    JsonObjectFormat,
    JsonSchema,
    JsonSchemaFormat,
    RegexFormat,
    ResponseFormat,
    TextFormat,
)
from edge.serve.replies import NotFoundError
from edge.serve.wishes import (
    ChatTool,
    ToolChoice,
    abstention_of,
    checked,
    chosen_tools,
    grammar_of,
    must_call,
    recalled,
    remembered,
)
from edge.session.turn import Message, Question, ThinkingBudget

MAX_STOP_CHARACTERS = 256
StopText = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARACTERS)]
MAX_CHOICES = 8
"""Answers to one request: each is decoded by itself, and others wait."""
MAX_ALTERNATIVES = 20
MAX_BIASES = 1024
MOST_FRAMES = 512
"""Of a film, if a request asks for more than the usual."""
ALONE = "leave one out"


class ModelNotFoundError(NotFoundError):
    """A request names a model that is not served here: HTTP 404."""


_CACHE = ignored("Nothing is cached between requests but the live context.")
_TRACE = ignored("It is for the records of whoever runs the service.")
_SHOWN = ignored("Special tokens are the form of an answer, never part of its text.")


class StreamOptions(msgspec.Struct, frozen=True):
    """How an answer is streamed."""

    include_usage: bool | None = None
    include_obfuscation: Annotated[Any, ignored("Nothing is padded on this machine.")] = None
    continuous_usage_stats: Annotated[
        Any, unless(False, why="Usage is known at the end of an answer.")
    ] = None


Budget = Annotated[int, Meta(ge=-1)]
"""Tokens; -1 is no bound."""
GRACE_TOKENS = 1024
"""What NVIDIA gives a thought to come to the end of its line."""


class TemplateSettings(msgspec.Struct, frozen=True):
    """What the model's chat template is told."""

    enable_thinking: bool | None = None
    reasoning_budget: Budget | None = None
    truncate_history_thinking: Annotated[
        Any, unless(True, why="The thinking that led to a past answer is not part of the prompt.")
    ] = None


class StructuredOutputs(msgspec.Struct, frozen=True):
    """vLLM's form of `response_format`."""

    json: Json | str | None = None
    regex: str | None = None
    choice: list[str] | None = None
    json_object: bool | None = None
    grammar: Annotated[Any, unless(why="Send a JSON Schema, a regex or a choice instead.")] = None
    structural_tag: Annotated[
        Any, unless(why="Send a JSON Schema, a regex or a choice instead.")
    ] = None
    disable_any_whitespace: Annotated[Any, ignored("JSON is written without white space.")] = None
    disable_fallback: Annotated[Any, ignored("There is one implementation.")] = None
    disable_additional_properties: Annotated[
        Any, unless(False, why="Say it in the schema: additionalProperties.")
    ] = None
    whitespace_pattern: Annotated[Any, unless(why="JSON is written without white space.")] = None


class VideoSettings(msgspec.Struct, frozen=True):
    """What is taken of a film."""

    fps: Annotated[float, Meta(ge=-1.0, le=60.0)] | None = None
    num_frames: Annotated[int, Meta(ge=-1, le=MOST_FRAMES)] | None = None


class MediaSettings(msgspec.Struct, frozen=True):
    """How media are read, by their kind."""

    video: VideoSettings | None = None
    image: Annotated[Any, ignored("A picture is read in the one way that the model knows.")] = None
    audio: Annotated[Any, ignored("A sound is read in the one way that the model knows.")] = None


class ProcessorSettings(msgspec.Struct, frozen=True):
    """What the model's processor is told."""

    use_audio_in_video: Annotated[
        bool | None,
        told_of("The sound of films is heard too, where the request has no sound of its own."),
    ] = None
    video_pruning_rate: Annotated[
        Annotated[float, Meta(ge=0.0, lt=1.0)] | None,
        told_of("Share of a film's tokens that may go, the most redundant ones (EVS)."),
    ] = None


Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Bias = Annotated[float, Meta(ge=-100.0, le=100.0)]
TokenText = Annotated[str, Meta(pattern="^[0-9]{1,9}$")]


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer should be: OpenAI's fields, then what vLLM adds, then ours.

    Clients send null for what they leave open, so None is the default throughout.
    """

    model: str | None = None
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    seed: Annotated[
        Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None,
        told_of("The same seed, settings and state give the same answer; with n, each one adds 1."),
    ] = None
    stop: StopText | Annotated[list[StopText], Meta(max_length=4)] | None = None
    presence_penalty: Annotated[
        Penalty | None, told_of("Of what the answer has said, its thinking too.")
    ] = None
    frequency_penalty: Annotated[Penalty | None, told_of("Likewise.")] = None
    logit_bias: Annotated[dict[TokenText, Bias], Meta(max_length=MAX_BIASES)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_ALTERNATIVES)] | None = None
    parallel_tool_calls: Annotated[bool | None, told_of("false shows the first call only.")] = None
    moderation: Annotated[Any, unless(why="Nothing here moderates.")] = None
    service_tier: Annotated[Any, ignored("There is one service.")] = None
    user: Annotated[Any, _TRACE] = None
    safety_identifier: Annotated[Any, _TRACE] = None
    prompt_cache_key: Annotated[Any, _CACHE] = None
    prompt_cache_options: Annotated[Any, _CACHE] = None
    prompt_cache_retention: Annotated[Any, _CACHE] = None

    # vLLM's.
    top_k: Annotated[int, Meta(ge=-1, le=1 << 31)] | None = None
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    repetition_penalty: Annotated[
        Annotated[float, Meta(gt=0.0, le=2.0)] | None,
        told_of("Of the request's text and the answer's; what was perceived is no text."),
    ] = None
    reasoning_budget: Annotated[
        Budget | None, told_of("NVIDIA's: then the thinking ends with its line.")
    ] = None
    thinking_token_budget: Annotated[Budget | None, told_of("Then the thinking ends.")] = None
    enable_thinking: Annotated[
        bool | None, told_of("As in chat_template_kwargs, where some clients do not put it.")
    ] = None
    include_reasoning: Annotated[bool | None, told_of("false hides the thinking.")] = None
    chat_template_kwargs: TemplateSettings | None = None
    media_io_kwargs: Annotated[
        MediaSettings | None,
        told_of("Of a film 2 frames a second are taken, and at most 256: the model's card."),
    ] = None
    mm_processor_kwargs: ProcessorSettings | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Json | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: Annotated[
        Any, unless(why="Send a JSON Schema, a regex or a choice instead.")
    ] = None
    guided_decoding_backend: Annotated[Any, ignored("There is one implementation.")] = None
    guided_whitespace_pattern: Annotated[
        Any, unless(why="JSON is written without white space.")
    ] = None
    use_beam_search: Annotated[Any, unless(False, why="Answers are sampled.")] = None
    length_penalty: Annotated[Any, unless(1.0, 1, why="Answers are sampled.")] = None
    best_of: Annotated[Any, unless(1, why="Every answer is shown: ask for n.")] = None
    stop_token_ids: Annotated[Any, unless([], why="Send the text as a stop.")] = None
    include_stop_str_in_output: Annotated[
        Any, unless(False, why="A stop is not part of the answer.")
    ] = None
    ignore_eos: Annotated[Any, unless(False, why="An answer ends where the model ends it.")] = None
    min_tokens: Annotated[Any, unless(0, why="An answer ends where the model ends it.")] = None
    skip_special_tokens: Annotated[Any, _SHOWN] = None
    spaces_between_special_tokens: Annotated[Any, _SHOWN] = None
    truncate_prompt_tokens: Annotated[Any, unless(why="A prompt is whole, or refused.")] = None
    truncation_side: Annotated[Any, ignored("A prompt is whole, or refused.")] = None
    prompt_logprobs: Annotated[
        Any, unless(0, why="The prompt begins with what was perceived, which is no text.")
    ] = None
    logprob_token_ids: Annotated[Any, unless([], why="Ask for top_logprobs.")] = None
    allowed_token_ids: Annotated[Any, unless([], why="Send a logit_bias or a format.")] = None
    bad_words: Annotated[Any, unless([], why="Send a logit_bias.")] = None
    echo: Annotated[Any, unless(False, why="An answer is the model's words alone.")] = None
    add_generation_prompt: Annotated[Any, unless(True, why="An answer is asked for.")] = None
    continue_final_message: Annotated[
        Any, unless(False, why="An answer begins a message of its own.")
    ] = None
    add_special_tokens: Annotated[
        Any, unless(False, why="The chat template says which there are.")
    ] = None
    documents: Annotated[Any, unless([], why="Put them into a message.")] = None
    chat_template: Annotated[Any, unless(why="The bundle's own is what the model knows.")] = None
    return_tokens_as_token_ids: Annotated[Any, unless(False, why="Tokens are shown as text.")] = (
        None
    )
    return_token_ids: Annotated[Any, unless(False, why="Tokens are shown as text.")] = None
    return_prompt_text: Annotated[
        Any, unless(False, why="The prompt begins with what was perceived, which is no text.")
    ] = None
    return_token_offsets: Annotated[Any, ignored("vLLM ignores it here too.")] = None
    return_mm_kwargs: Annotated[Any, ignored("vLLM ignores it here too.")] = None
    routed_experts_prompt_start: Annotated[Any, ignored("No routing is told.")] = None
    repetition_detection: Annotated[Any, unless(why="An answer ends where the model ends it.")] = (
        None
    )
    watermarking: Annotated[Any, unless(False, why="Answers bear no mark.")] = None
    vllm_xargs: Annotated[Any, unless({}, why="vLLM's own extensions are not here.")] = None
    kv_transfer_params: Annotated[Any, unless({}, why="There is one process.")] = None
    ec_transfer_params: Annotated[Any, unless({}, why="There is one process.")] = None
    priority: Annotated[Any, ignored("Who asks is served before what watches and notes.")] = None
    stream_interval: Annotated[Any, ignored("Text leaves as it comes.")] = None
    request_id: Annotated[Any, _TRACE] = None
    session_id: Annotated[Any, _TRACE] = None
    cache_salt: Annotated[Any, _CACHE] = None

    edge: EdgeAnswer | None = None


def question_of(
    request: Wanted,
    config: Config,
    thinking_sampling: Sampling,
    *,
    messages: Sequence[Message],
    tools: Sequence[ChatTool],
    choice: ToolChoice,
    wanted: ResponseFormat | None,
    effort: str | None,
    max_tokens: int | None,
    logprobs: bool,
    n_choices: int = 1,
) -> Question:
    """The question of a request, with every setting filled in.

    Args:
        config: gives what the request leaves open, and the bound on max_tokens.
        thinking_sampling: the checkpoint's own, where request and config leave it open.
        wanted: the answer's format.
        effort: of reasoning.

    Raises:
        ProtocolError: it cannot be asked so; the error's thing is the field.
    """
    answer = config.answer
    edge = request.edge or EdgeAnswer()
    for name in ("remember", "consistency"):
        if n_choices > 1 and getattr(edge, name):
            raise ProtocolError(f"edge.{name}", f"is asked together with n = {n_choices}", ALONE)
    thinking = _thinks(request, effort, config)
    chosen = chosen_tools(tools, choice)
    stop = request.stop or ()
    # More tokens than there can be are no wish for more: the answer says `length` if it ends there.
    limit = min(max_tokens or answer.max_tokens, config.context.max_tokens)
    return Question(
        messages=tuple(messages),
        sampling=_sampling(request, config, thinking_sampling if thinking else Sampling()),
        max_tokens=limit,
        thinking=thinking,
        thinking_budget=_thinking_budget(request),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        remember=remembered(edge, config) and n_choices == 1,
        recall_s=recalled(edge),
        consistency=checked(edge, thinking=thinking),
        deadline_s=edge.deadline_s or answer.deadline_s,
        tools=chosen,
        grammar=grammar_of(
            _format(request, wanted), abstention_of(edge, config), chosen, calls=must_call(choice)
        ),
        n_choices=n_choices,
        n_alternatives=_alternatives(request, logprobs),
        channel="operator",
    )


def films_of(request: Wanted, *, has_sound: bool) -> FilmSettings:
    """What is taken of a request's films.

    Args:
        has_sound: the request has a sound of its own.
    """
    video = (request.media_io_kwargs or MediaSettings()).video or VideoSettings()
    processor = request.mm_processor_kwargs or ProcessorSettings()
    n_frames = _first(video.num_frames, MAX_FRAMES)
    return FilmSettings(
        fps=_first(video.fps, FPS),
        max_frames=n_frames if n_frames > 0 else MOST_FRAMES,
        with_sound=bool(processor.use_audio_in_video) and not has_sound,
        pruning_rate=processor.video_pruning_rate or 0.0,
    )


def check_model(named: str | None, model_name: str) -> None:
    """Refuse another model.

    Raises:
        ModelNotFoundError: it is not served here.
    """
    if named and named != model_name:
        raise ModelNotFoundError(
            "model", f"{named!r} is not served here", f"ask for {model_name!r}"
        )


def _thinks(request: Wanted, effort: str | None, config: Config) -> bool:
    """Whether the answer thinks first; an effort says so too, as in vLLM."""
    template = request.chat_template_kwargs or TemplateSettings()
    by_effort = None if effort is None else effort != "none"
    wanted = (template.enable_thinking, request.enable_thinking, by_effort)
    return bool(_first(*wanted, config.answer.thinking))


def _thinking_budget(request: Wanted) -> ThinkingBudget | None:
    """NVIDIA's budget ends a thought at the end of a line, vLLM's at once."""
    template = request.chat_template_kwargs or TemplateSettings()
    at_once, at_line = request.thinking_token_budget, request.reasoning_budget
    at_line = template.reasoning_budget if at_line is None else at_line
    if at_line is None or at_line < 0:
        given = at_line if at_once is None else at_once
        return None if given is None else ThinkingBudget(given)
    if at_once is None or at_once < 0:
        # A budget of 0 is the wish not to think.
        return ThinkingBudget(at_line, GRACE_TOKENS if at_line else 0)
    return ThinkingBudget(min(at_line, at_once), max(0, at_once - at_line))


def _sampling(request: Wanted, config: Config, own: Sampling) -> Sampling:
    answer = config.answer
    bias = request.logit_bias or {}
    return Sampling(
        temperature=_first(request.temperature, answer.temperature, own.temperature),
        top_p=_first(request.top_p, answer.top_p, own.top_p),
        top_k=max(_first(request.top_k, own.top_k), 0),
        seed=None if request.seed is None else request.seed % (1 << 64),
        min_p=request.min_p or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        repetition_penalty=request.repetition_penalty or 1.0,
        logit_bias=tuple((int(token), more) for token, more in bias.items() if more),
    )


def _alternatives(request: Wanted, logprobs: bool) -> int | None:
    """How many likely tokens are told beside each that was said; None: no probabilities at all."""
    n_top = request.top_logprobs
    if n_top and not logprobs:
        raise ProtocolError("top_logprobs", f"is {n_top} without logprobs", "ask for logprobs too")
    return n_top or 0 if logprobs else None


def _format(request: Wanted, wanted: ResponseFormat | None) -> ResponseFormat | None:
    """The answer's format, in OpenAI's form or in vLLM's."""
    others = request.structured_outputs or StructuredOutputs()
    schema = _first(others.json, request.guided_json, "")
    regex = _first(others.regex, request.guided_regex, "")
    choice = _first(others.choice, request.guided_choice, [])
    given: list[ResponseFormat] = []
    if wanted is not None and not isinstance(wanted, TextFormat):
        given.append(wanted)
    if schema != "":
        given.append(JsonSchemaFormat(json_schema=JsonSchema(schema=_schema(schema))))
    if regex:
        given.append(RegexFormat(regex=regex))
    if choice:
        given.append(ChoiceFormat(choice=choice))
    if others.json_object:
        given.append(JsonObjectFormat())
    if len(given) > 1:
        raise ProtocolError("response_format", "is given more than once", "send one format")
    return given[0] if given else None


def _schema(schema: Json | str) -> Json:
    if isinstance(schema, dict):
        return schema
    found = decoded(schema, "structured_outputs.json")
    if not isinstance(found, dict):
        problem = f"is {type(found).__name__}"
        raise ProtocolError("structured_outputs.json", problem, "send a JSON object")
    return found


def _first(*values: Any) -> Any:
    """The first that is given."""
    return next(value for value in values if value is not None)
