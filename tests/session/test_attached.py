"""Pictures, sounds, tools and formats of a question, through the real engine."""

from __future__ import annotations

import contextlib
import gc
import json
import weakref
from dataclasses import asdict

import jsonschema
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.clock import VirtualClock
from edge.engines.engine import MAX_PREFILL_TOKENS
from edge.errors import CapacityError, ProtocolError
from edge.features.evs import retention_mask
from edge.features.mel import log_mel
from edge.features.pixels import image_grids, image_patches, tubelet_patches, video_grid
from edge.model import constrain, grammars
from edge.model.prompt import ChatTemplate, audio_text, image_text
from edge.model.sampling import Sampling
from edge.model.tokenizer import Tokenizer
from edge.model.tool_calls import parse_tool_call, tool_call_lark
from edge.session.answer import Answering, answer
from edge.session.answers import Answers
from edge.session.attached import encode_attached
from edge.session.context import LiveContext
from edge.session.live_prompt import LivePrompt
from edge.session.perceive import embed_media
from edge.session.turn import Message, Question, TextDelta, ThinkingBudget, ToolCall, Turn
from edge.types import Film, Picture, Sound

MOVE = {
    "type": "function",
    "function": {
        "name": "move",
        "description": "Drive there.",
        "parameters": {
            "type": "object",
            "properties": {
                "to": {"type": "string", "enum": ["door", "table"]},
                "steps": {"type": "integer", "minimum": 1, "maximum": 9},
                "note": {"type": "string"},
            },
            "required": ["to", "steps"],
        },
    },
}
STOP = {"type": "function", "function": {"name": "stop"}}
NOTE = {
    "type": "function",
    "function": {
        "name": "note",
        "parameters": {"properties": {"text": {"type": "string"}}, "required": ["text"]},
    },
}
MANY_PROPERTIES = {"type": "object", "properties": {f"{n:x}": {} for n in range(8000)}}


@pytest.fixture
def parts(bundle, engine):
    folder = bundle("base")
    loaded = engine("base")
    loaded.load_encoders()
    prompt = LivePrompt(Tokenizer(folder), ChatTemplate(folder), system="")
    context = LiveContext(
        loaded, prompt.anchor(), prompt.separator(), max_tokens=400, keep_tokens=200
    )
    return context, prompt


def ask(parts, messages, **settings):
    context, prompt = parts
    settings = {"max_tokens": 12, "sampling": Sampling(), **settings}
    events = []
    turn = Turn(Question(messages, **settings), 0, events.append)
    return answer(context, prompt, turn, VirtualClock()), events


@pytest.fixture
def media():
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (48, 96, 3), dtype=np.uint8)
    samples = rng.normal(size=16_000).astype(np.float32) / 10
    return Picture(pixels.tobytes(), 96, 48), Sound(samples.tobytes()), pixels, samples


def prefilled(answering, context):
    """The logits behind the question."""
    answering.begin(context)
    while answering._context is None or len(answering._waiting):
        answering.step()
    answering.give_way()
    return answering._logits


def by_hand(engine, prompt, content, rows):
    """The logits behind one prompt with the same media."""
    text = prompt.template.render([{"role": "user", "content": content}], thinking=False)
    state = engine.new_state()
    embeddings = embed_media(engine, prompt.tokenizer, text, np.concatenate(rows))
    for start in range(0, len(embeddings), MAX_PREFILL_TOKENS):
        logits = engine.prefill(state, embeddings[start : start + MAX_PREFILL_TOKENS])
    return logits


TIMES_S = (0.0, 0.396, 0.825, 1.221, 1.65)


@pytest.fixture
def film():
    """Five frames, and a second of sound; a part of each frame stays as it is."""
    rng = np.random.default_rng(4)
    frames = rng.integers(0, 256, (5, 48, 96, 3), dtype=np.uint8)
    frames[1:, :, :40] = frames[0, :, :40]
    samples = rng.normal(size=16_000).astype(np.float32) / 10
    sound = Sound(samples.tobytes())
    return Film(frames.tobytes(), 96, 48, TIMES_S, sound), frames, samples


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("with_sound", [False, True])
def test_a_film_is_prefilled_as_the_model_is_served_with_it(parts, film, rate, with_sound):
    """A line a tubelet, all tokens or those that the reference's choice keeps, then its sound."""
    context, prompt = parts
    engine, vision = context.engine, context.engine.spec.vision
    whole, frames, samples = film
    sent = msgspec.structs.replace(
        whole, pruning_rate=rate, sound=whole.sound if with_sound else None
    )
    question = Question((Message("user", "What?", (sent,)),), Sampling(), 8)
    answering = Answering(prompt, Turn(question, 0, lambda _: None), VirtualClock())
    got = prefilled(answering, context)
    grid = video_grid(96, 48, vision.video_target_patches)
    tubelets = engine.encode_tubelets(tubelet_patches([*frames], grid, vision), grid)
    keep = retention_mask(tubelets.reshape(3, grid[0] // 2, grid[1] // 2, -1), rate).reshape(3, -1)
    lines = [
        "Frame 1 sampled at 0.00 seconds and frame 2 sampled at 0.40 seconds: ",
        "Frame 3 sampled at 0.82 seconds and frame 4 sampled at 1.22 seconds: ",
        "Frame 5 sampled at 1.65 seconds: ",
    ]
    counts = keep.sum(1).tolist()
    content = "\n".join(line + image_text(n) for line, n in zip(lines, counts, strict=True))
    rows = [tubelets[keep]]
    if with_sound:
        rows.append(engine.encode_audio(log_mel(samples, engine.spec.audio.n_mels)))
        content += audio_text(len(rows[-1]))
    expected = by_hand(engine, prompt, f"{content}\nWhat?", rows)
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    assert (counts[0], sum(counts) < keep.size) == (keep.shape[1], rate > 0)


def test_a_film_that_does_not_fit_is_pruned(parts, film):
    context, prompt = parts
    sent = msgspec.structs.replace(film[0], sound=None)
    room = context.engine.spec.decoder.max_tokens

    def n_asked(max_tokens):
        question = Question((Message("user", "What?", (sent,)),), Sampling(), max_tokens)
        answering = Answering(prompt, Turn(question, 0, lambda _: None), VirtualClock())
        prefilled(answering, context)
        return answering._n_question

    whole = n_asked(8)
    n_too_many = 10
    n_of_film = next(iter(encoded(context.engine, (sent,)))).shape[0]
    tight = room - context.max_tokens - (n_of_film - n_too_many)
    assert n_asked(tight) == whole - n_too_many


def test_films_share_what_the_pictures_leave(parts, film, media):
    engine = parts[0].engine
    picture, sent = media[0], msgspec.structs.replace(film[0], sound=None)
    n_picture, n_film = (len(encoded(engine, (one,))[0]) for one in (picture, sent))
    n_free = n_picture + 2 * (n_film - 5) + 1
    assert len(encoded(engine, (sent, picture, sent), n_free)[0]) == n_free - 1
    # Where nothing is free the least of each is left.
    n_least = len(encoded(engine, (picture, sent), 0)[0])
    assert len(encoded(engine, (picture, sent), -1000)[0]) == n_least > 0


def attached(engine, media, n_free=10**6):
    steps = encode_attached(engine, media, n_free)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return done.value


def encoded(engine, media, n_free=10**6):
    return [attached(engine, media, n_free).rows]


def test_each_medium_has_a_text_of_its_own_length(parts):
    engine = parts[0].engine
    sizes, seconds = [(96, 48), (160, 96), (64, 64)], [1, 2]
    pictures = [Picture(bytes(3 * w * h), w, h) for w, h in sizes]
    sounds = [Sound(bytes(4 * 16_000 * n)) for n in seconds]
    lengths = [len(encoded(engine, (one,))[0]) for one in (*pictures, *sounds)]
    assert len({*lengths[:3]}) > 1
    assert lengths[3] != lengths[4]
    found = attached(engine, (*pictures, *sounds))
    assert found.texts == tuple(
        (image_text if k < len(sizes) else audio_text)(n) for k, n in enumerate(lengths)
    )
    assert len(found.rows) == sum(lengths)


def test_a_picture_has_all_the_room_that_is_free(parts):
    """As the model is served: none of it is the text's, which is not there yet."""
    engine, picture = parts[0].engine, Picture(bytes(3 * 640 * 480), 640, 480)
    for n_free in range(40, 90):
        grids = image_grids([(640, 480)], engine.spec.vision, n_free, 0)
        n_rows = grids[0][0] * grids[0][1] // engine.spec.vision.merge**2
        assert len(encoded(engine, (picture,), n_free)[0]) == n_rows


def test_media_are_encoded_a_call_at_a_time_and_others_go_on(parts, film, media):
    """While they are, the question stands on nothing: the context may change."""
    context, prompt = parts
    picture, sound, *_ = media
    messages = (Message("user", "What?", (picture, film[0], sound)),)
    turn = Turn(Question(messages, Sampling(), 8), 0, lambda _: None)
    answering = Answering(prompt, turn, VirtualClock())
    answering.begin(context)
    n_steps = 0
    while answering._attached is None:
        assert not answering.stands_on(context)
        assert answering.step() is None
        n_steps += 1
    assert n_steps == 1 + 3 + 1 + 1 + 1  # a picture, tubelets, its sound, a sound, and the end
    assert answering.stands_on(context)
    answering.give_way()


def test_a_turn_that_is_cancelled_while_it_is_encoded_keeps_nothing(parts, film, monkeypatch):
    context, prompt = parts
    n_calls, events = [], []
    encode = context.engine.encode_tubelets
    monkeypatch.setattr(
        context.engine, "encode_tubelets", lambda *some: n_calls.append(1) or encode(*some)
    )
    messages = (Message("user", "?", (film[0], film[0])),)
    turn = Turn(Question(messages, Sampling(), 8), 0, events.append)
    answers = Answers(prompt, VirtualClock(), lambda _: context, lambda *_: ())
    answers.open(turn)
    for _ in range(4):
        answers.step([])
    assert 0 < len(n_calls) < 6
    n_before, held = len(n_calls), weakref.ref(answers._open[0])
    turn.cancel()
    answers.step(answers.cancelled())
    assert [event.finish_reason for event in events] == ["cancelled"]
    gc.collect()
    assert held() is None
    assert (len(answers), len(n_calls), context.is_forked) == (0, n_before, False)


def test_media_that_were_encoded_are_not_encoded_again(parts, film, monkeypatch):
    context, prompt = parts
    n_calls = []
    encode = context.engine.encode_tubelets
    monkeypatch.setattr(
        context.engine, "encode_tubelets", lambda *some: n_calls.append(1) or encode(*some)
    )
    turn = Turn(Question((Message("user", "?", (film[0],)),), Sampling(), 8), 0, lambda _: None)
    answering = Answering(prompt, turn, VirtualClock())
    for _ in range(12):  # gives way after each step
        answering.begin(context)
        answering.step()
        answering.give_way()
    assert len(n_calls) == 3


def test_what_a_message_brings_along_is_prefilled_as_the_template_has_it(parts, media):
    """The logits are those of one prompt with the same media, made by hand."""
    context, prompt = parts
    picture, sound, pixels, samples = media
    engine, spec = context.engine, context.engine.spec
    question = Question((Message("user", "What?", (picture, sound)),), Sampling(), 8)
    answering = Answering(prompt, Turn(question, 0, lambda _: None), VirtualClock())
    got = prefilled(answering, context)
    room = spec.decoder.max_tokens - 400 - 8
    (grid,) = image_grids([(96, 48)], spec.vision, room, 0)
    rows = [
        engine.encode_image(image_patches(pixels, grid, spec.vision), grid),
        engine.encode_audio(log_mel(samples, spec.audio.n_mels)),
    ]
    content = f"{image_text(len(rows[0]))}\n{audio_text(len(rows[1]))}\nWhat?"
    expected = by_hand(engine, prompt, content, rows)
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_media_leave_no_trace_unless_they_are_remembered(parts, media):
    context, _ = parts
    picture, sound, *_ = media
    before = context.n_tokens
    message = Message("user", "What?", (picture, sound))
    first, events = ask(parts, (message,))
    assert context.n_tokens == before
    assert ask(parts, (message,))[1][:-1] == events[:-1]
    done, _ = ask(parts, (Message("user", "What?", (picture,)),), remember=True)
    assert before < context.n_tokens <= done.n_prompt_tokens + done.n_completion_tokens + 8
    assert first.n_prompt_tokens > before + 20


def test_a_question_with_media_can_be_recorded(media):
    picture, sound, *_ = media
    message = Message("user", "What?", (picture, sound), (ToolCall("move", {"to": "door"}),))
    budget = {"thinking": True, "thinking_budget": ThinkingBudget(5, 3)}
    question = Question((message,), Sampling(), 8, tools=(MOVE,), grammar="start: call", **budget)
    stored = msgspec.json.decode(msgspec.json.encode(asdict(question)))
    assert msgspec.convert(stored, Question) == question


def test_tools_stand_where_a_system_message_does(parts):
    _, prompt = parts
    question = Question((Message("user", "Go."),), Sampling(), 8, tools=(MOVE,), channel="operator")
    text = prompt.template.tools_text(question.tools)
    assert text.startswith("# Tools")
    assert '"name": "move"' in text
    asked = prompt.tokenizer.encode(text + "\nGo.")
    ids = prompt.question(question, after_media=False)
    assert asked.tolist() == ids[: len(asked)].tolist()
    ambient = Question((Message("user", "Go."),), Sampling(), 8, tools=(MOVE,))
    assert len(prompt.question(ambient, after_media=False)) < len(asked)


def test_a_history_of_calls_is_the_templates_own(parts):
    _, prompt = parts
    messages = (
        Message("user", "Go."),
        Message("assistant", "", calls=(ToolCall("move", {"to": "door", "steps": 3}),)),
        Message("tool", "blocked"),
    )
    ids = prompt.question(Question(messages, Sampling(), 8), after_media=False)
    text = prompt.tokenizer._tokenizer.decode(ids.tolist(), skip_special_tokens=False)
    call = "<tool_call>\n<function=move>\n<parameter=to>\ndoor\n</parameter>\n"
    assert f"<think></think>{call}<parameter=steps>\n3\n</parameter>\n</function>\n" in text
    assert "<tool_response>\nblocked\n</tool_response>" in text


@pytest.mark.parametrize("seed", range(6))
def test_a_demanded_call_is_always_a_call(parts, seed):
    """An untrained model, sampled hot: only the grammar makes a call of it."""
    grammar = constrain.grammar_of_lark("tools", tool_call_lark([MOVE, STOP]))
    sampling = Sampling(temperature=1.5, seed=seed)
    settings = {"sampling": sampling, "tools": (MOVE, STOP), "grammar": grammar}
    done, events = ask(
        parts, (Message("user", "Go."),), channel="operator", max_tokens=300, **settings
    )
    calls = [event for event in events if isinstance(event, ToolCall)]
    if done.finish_reason == "length":  # a note without an end
        assert not any(call.is_whole for call in calls)
        return
    (call,) = calls
    assert not any(isinstance(event, TextDelta) for event in events)
    if call.name == "move":
        assert call.arguments["to"] in ("door", "table")
        assert 1 <= call.arguments["steps"] <= 9
    else:
        assert (call.name, call.arguments) == ("stop", {})


def test_nobody_but_an_operator_causes_a_call(parts):
    """The same tokens, asked by anybody who can be heard, are text at most."""
    grammar = constrain.grammar_of_lark("tools", tool_call_lark([STOP]))
    settings = {"tools": (STOP,), "grammar": grammar, "max_tokens": 60}
    _, events = ask(parts, (Message("user", "Stop."),), **settings)
    assert not any(isinstance(event, ToolCall) for event in events)
    _, events = ask(parts, (Message("user", "Stop."),), channel="operator", **settings)
    assert any(isinstance(event, ToolCall) for event in events)


def test_thinking_is_free_and_the_answer_is_not(parts):
    grammar = constrain.grammar_of_choice(["red", "green"])
    sampling = Sampling(temperature=1.0, seed=1)
    messages = (Message("user", "Which?"),)
    settings = {"grammar": grammar, "sampling": sampling}
    for thinking in (False, True):
        done, events = ask(parts, messages, thinking=thinking, max_tokens=250, **settings)
        said = "".join(e.text for e in events if isinstance(e, TextDelta) and not e.reasoning)
        assert said in (("", "red", "green") if thinking else ("red", "green"))
        assert done.finish_reason == ("stop" if said else "length")


def test_calls_are_read_back_as_the_schema_types_them():
    text = (
        "\n<function=move>\n<parameter=to>\n12\n</parameter>\n<parameter=steps>\n12\n</parameter>\n"
        "<parameter=more>\n[1, null]\n</parameter>\n<parameter=raw>\nas it is\n</parameter>\n"
        "</function>\n"
    )
    assert parse_tool_call(text, [MOVE]) == (
        "move",
        {"to": "12", "steps": 12, "more": [1, None], "raw": "as it is"},
    )
    assert parse_tool_call("\n<function=stop>\n</function>\n", [STOP]) == ("stop", {})


def pydantic_tool():
    """As pydantic describes parameters that are an enum, a model, an optional and a tree."""
    whole = {
        "$defs": {
            "Way": {"enum": ["left", "1", "true"], "type": "string"},
            "Place": {
                "type": "object",
                "properties": {"way": {"$ref": "#/$defs/Way"}, "m": {"type": "integer"}},
                "required": ["way", "m"],
                "additionalProperties": False,
            },
            "Alias": {"$ref": "#/$defs/Way"},
        },
        "properties": {
            "way": {"$ref": "#/$defs/Way", "description": "which way"},
            "place": {"$ref": "#/$defs/Place"},
            "maybe": {"anyOf": [{"$ref": "#/$defs/Place"}, {"type": "null"}]},
            "alias": {"$ref": "#/$defs/Alias"},
        },
        "required": ["way", "place", "maybe", "alias"],
    }
    return {"type": "function", "function": {"name": "go", "parameters": whole}}


@pytest.mark.parametrize("seed", range(3))
def test_a_demanded_call_follows_what_its_schema_refers_to(parts, seed):
    tool = pydantic_tool()
    grammar = constrain.grammar_of_lark("tools", tool_call_lark([tool]))
    sampling = Sampling(temperature=1.5, seed=seed)
    settings = {"sampling": sampling, "tools": (tool,), "grammar": grammar, "max_tokens": 300}
    _, events = ask(parts, (Message("user", "Go."),), channel="operator", **settings)
    (call,) = [event for event in events if isinstance(event, ToolCall)]
    jsonschema.validate(call.arguments, tool["function"]["parameters"])


def test_a_text_that_a_schema_refers_to_is_taken_as_it_is_written():
    text = "".join(
        f"<parameter={key}>\n{value}\n</parameter>\n"
        for key, value in (("way", "1"), ("alias", "true"), ("place", '{"way": "1", "m": 2}'))
    )
    found = parse_tool_call(f"<function=go>\n{text}</function>", [pydantic_tool()])
    assert found == ("go", {"way": "1", "alias": "true", "place": {"way": "1", "m": 2}})


@pytest.mark.parametrize("reference", ["#/$defs/none", "#/nowhere/b", "https://x/y", 3])
def test_what_refers_to_nothing_is_refused(reference):
    whole = {"$defs": {"A": {"type": "integer"}}, "properties": {"a": {"$ref": reference}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": whole}}
    with pytest.raises(ProtocolError, match="cannot be followed"):
        constrain.grammar_of_lark("tools", tool_call_lark([tool]))
    text = "<function=f><parameter=a>\n1\n</parameter></function>"
    assert parse_tool_call(text, [tool]) == ("f", {"a": 1})


@pytest.mark.parametrize("text", ["", "a", "a < b", "two\nlines", "<b>x</b>", "<</q>\n", "<think>"])
def test_a_demanded_call_may_say_any_text(parts, text):
    """Given token by token: the grammar allows each, and the call is read back as it was meant."""
    context, prompt = parts
    grammar = constrain.grammar_of_lark("tools", tool_call_lark([NOTE]))
    n_vocab, special = context.engine.spec.decoder.vocab_size, prompt.tokenizer.special
    vocabulary = grammars.vocabulary(prompt.tokenizer, n_vocab, (special.turn_end,))
    constraint = constrain.Constraint(vocabulary, grammar)
    call = f"\n<function=note>\n<parameter=text>\n{text}\n</parameter>\n</function>\n"
    ids = [special.tool_call, *prompt.tokenizer.encode_as_text(call), special.tool_call_end]
    for token in ids:
        assert np.isfinite(constraint.allow(np.zeros(n_vocab, np.float32))[token])
        constraint.take(token)
    assert np.isfinite(constraint.allow(np.zeros(n_vocab, np.float32))[special.turn_end])
    assert parse_tool_call(call, [NOTE]) == ("note", {"text": text})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "<function=fly></function>",
        "<function=stop",
        "<function=stop>words</function>",
        "<function=stop></function><function=stop></function>",
    ],
)
def test_what_is_no_call_is_none(text):
    assert parse_tool_call(text, [STOP]) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@given(
    parameters=st.fixed_dictionaries(
        {},
        optional={
            "properties": st.dictionaries(
                st.text(max_size=4), JSON | st.fixed_dictionaries({"enum": JSON}), max_size=3
            )
            | JSON,
            "required": JSON,
        },
    )
)
@settings(max_examples=300, deadline=None)
def test_tools_of_any_form_are_followed_or_refused(parameters):
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    with contextlib.suppress(ProtocolError):
        constrain.grammar_of_lark("tools", tool_call_lark([tool]))
    properties = parameters.get("properties")
    for key in properties if isinstance(properties, dict) else ["a"]:
        text = f"<function=f><parameter={key}>\n1\n</parameter></function>"
        parse_tool_call(text, [tool])


def test_tools_that_the_template_cannot_write_are_refused(parts, tmp_path):
    _, prompt = parts
    (tmp_path / "chat_template.jinja").write_text(
        "<|im_start|>system\n{{ tools[0].function.parameters.properties + 1 }}<|im_end|>\n"
        "{{ messages[-1].content }}"
    )
    odd = LivePrompt(prompt.tokenizer, ChatTemplate(tmp_path), "")
    question = Question((Message("user", "Go."),), Sampling(), 8, tools=(MOVE,), channel="operator")
    with pytest.raises(ProtocolError, match="failed on these messages"):
        odd.question(question, after_media=False)


def test_formats_of_all_kinds_and_the_abstention(parts):
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["n"],
        "additionalProperties": False,
    }
    seen = set()
    for seed in range(40):
        sampling = Sampling(temperature=2.0, seed=seed)
        grammar = constrain.grammar_of_schema(schema, "unknown")
        _, events = ask(parts, (Message("user", "n?"),), sampling=sampling, grammar=grammar)
        value = json.loads("".join(e.text for e in events if isinstance(e, TextDelta)))
        seen.add(type(value))
        assert value == "unknown" or 0 <= value["n"] <= 99
        grammar = constrain.grammar_of_regex("[ab]{2}/[0-9]", "don't know")
        _, events = ask(parts, (Message("user", "?"),), sampling=sampling, grammar=grammar)
        text = "".join(e.text for e in events if isinstance(e, TextDelta))
        assert text == "don't know" or (set(text[:2]) <= set("ab") and text[2] == "/")
    assert seen == {str, dict}


@pytest.mark.parametrize(
    ("make", "thing"),
    [
        (lambda: constrain.grammar_of_schema({"type": "thing"}), "json_schema"),
        (lambda: constrain.grammar_of_schema({"not": {}}), "json_schema"),
        (lambda: constrain.grammar_of_regex("("), "regex"),
        (lambda: constrain.grammar_of_regex("a(?=b)"), "regex"),
        (lambda: constrain.grammar_of_choice([]), "choice"),
        (lambda: constrain.grammar_of_choice(["a", ""]), "choice"),
        (lambda: constrain.grammar_of_choice([f"choice {n}" for n in range(5000)]), "choice"),
        (lambda: constrain.grammar_of_regex("a|" * 40_000 + "b"), "regex"),
        (lambda: constrain.grammar_of_schema(MANY_PROPERTIES), "json_schema"),
    ],
)
def test_a_format_that_cannot_be_followed_is_named(make, thing):
    with pytest.raises(ProtocolError) as caught:
        make()
    assert caught.value.thing == thing


def begun(parts, max_tokens, media=()):
    """A question that waits to be prefilled, and the tokens that it takes."""
    context, prompt = parts
    question = Question((Message("user", "What?", media),), Sampling(), max_tokens)
    answering = Answering(prompt, Turn(question, 0, lambda _: None), VirtualClock())
    answering.begin(context)
    while answering._attached is None:
        answering.step()
    return answering, len(answering._waiting)


def test_a_question_and_its_answer_may_take_all_the_room_there_is(parts):
    context, _ = parts
    n_room = context.engine.spec.decoder.max_tokens
    n_question = begun(parts, 8)[1]
    n_left = n_room - context.n_tokens - n_question
    begun(parts, n_left)
    with pytest.raises(CapacityError, match="do not fit behind"):
        begun(parts, n_left + 1)


def test_a_picture_is_shrunk_so_that_the_answer_fits(parts):
    context, _ = parts
    engine = context.engine
    n_free = 60
    picture = Picture(bytes(1024 * 1024 * 3), 1024, 1024)
    max_tokens = engine.spec.decoder.max_tokens - context.max_tokens - n_free
    answering, _ = begun(parts, max_tokens, (picture,))
    ((rows, columns),) = image_grids([(1024, 1024)], engine.spec.vision, n_free, 0)
    assert len(answering._attached.rows) == rows * columns // 4 <= n_free
    roomy, _ = begun(parts, 8, (picture,))
    assert len(roomy._attached.rows) > n_free
