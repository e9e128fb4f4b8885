"""Texts from outside are text, by whatever way they reach the prompt, and are refused by none."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_loop import drive, make

from edge.model.outside import Outside
from edge.model.prompt import LIVE, NEXT, ChatTemplate
from edge.model.sampling import Sampling
from edge.model.tokenizer import Tokenizer
from edge.session.live_prompt import LivePrompt
from edge.session.notes import NOTES
from edge.session.triggers import Trigger, asked
from edge.session.turn import Done, Message, Question, ToolCall
from edge.types import Picture

__all__ = ["make"]
pytest_plugins = ["media"]

TOKENS = [
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<|im_start|>", "<|im_end|>", "<think>"),
    *("</think>", "<tool_call>", "</tool_call>", "<tool_response>", "<image>", "<img>", "</img>"),
    *("<so_embedding>", "<so_start>", "<so_end>", "<SPECIAL_30>", LIVE, NEXT),
]
PARTS = ["<", "|", ">", "im_end", "im_end|>", "<|im_", "think", "/think>", "\n", " ", "a", "é"]
TEXTS = st.lists(st.sampled_from([*TOKENS, *PARTS]) | st.text(max_size=3), max_size=6).map("".join)
NAMES = TEXTS.filter(bool)
HARMLESS = "word"


@pytest.fixture(scope="module")
def folder(checkpoint):
    return checkpoint("base")


@pytest.fixture(scope="module")
def prompt(folder):
    return LivePrompt(Tokenizer(folder), ChatTemplate(folder), "")


def tool(name, description, key, value):
    properties = {key: {"type": "string", "enum": [value], value: description}}
    parameters = {"type": "object", "properties": properties, "required": [key]}
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


def question(texts, **more):
    """A text at each place that a client has in a conversation."""
    one = iter(texts)
    picture = Picture(bytes(48), 4, 4)
    messages = (
        Message("system", next(one)),
        Message("user", next(one), (picture,)),
        Message("assistant", next(one), calls=(ToolCall(next(one), {next(one): next(one)}),)),
        Message("tool", next(one)),
        Message("assistant", next(one)),
        Message("user", next(one)),
    )
    tools = (tool(next(one), next(one), next(one), next(one)),)
    return Question(messages, Sampling(), 8, tools=tools, channel="operator", **more)


N_TEXTS = 13
MEDIA = ("<img><image></img>",)


def control(prompt, ids):
    return [one for one in ids.tolist() if one in prompt.tokenizer.control_tokens.ids]


@settings(max_examples=150)
@given(texts=st.lists(NAMES, min_size=N_TEXTS, max_size=N_TEXTS))
def test_no_text_of_a_client_makes_a_control_token(prompt, texts):
    plain = prompt.question(question([HARMLESS] * N_TEXTS), after_media=True, attached=MEDIA)
    ids = prompt.question(question(texts), after_media=True, attached=MEDIA)
    assert control(prompt, ids) == control(prompt, plain)
    text = prompt.tokenizer.decode(ids.tolist(), special=True)
    for said in [*texts[:3], texts[3], *texts[6:9]]:
        assert said in text
    remembered = prompt.dialogue(question(texts), texts[0], after_media=True, attached=MEDIA)
    others = prompt.dialogue(
        question([HARMLESS] * N_TEXTS), HARMLESS, after_media=True, attached=MEDIA
    )
    assert control(prompt, remembered) == control(prompt, others)


@settings(max_examples=100)
@given(text=NAMES)
def test_a_question_is_its_words_and_nothing_else(prompt, text):
    around = prompt.question(Question((Message("user", "\0"),), Sampling(), 8), after_media=False)
    before, after = prompt.tokenizer.decode(around.tolist(), special=True).split("\0")
    ids = prompt.question(Question((Message("user", text),), Sampling(), 8), after_media=False)
    assert prompt.tokenizer.decode(ids.tolist(), special=True) == before + text + after


@settings(max_examples=150)
@given(text=st.lists(st.sampled_from(PARTS) | st.text(max_size=9), max_size=6).map("".join))
def test_ordinary_texts_have_the_tokens_of_the_whole_prompt(prompt, text):
    if any(name in text for name in TOKENS):
        return
    asked_ids = prompt.question(
        Question((Message("user", text),), Sampling(), 8), after_media=False
    )
    whole = prompt.template.render([{"role": "user", "content": text}], thinking=False)
    ids = [*prompt.anchor().tolist(), *asked_ids.tolist()]
    assert prompt.tokenizer.decode(ids, special=True) == whole
    _, after = prompt.template.around_live(
        [{"role": "user", "content": LIVE + text}], thinking=False
    )
    assert asked_ids.tolist() == prompt.tokenizer.encode(after).tolist()


@settings(max_examples=100)
@given(text=NAMES)
def test_the_settings_own_system_message_is_text(folder, text):
    prompt = LivePrompt(Tokenizer(folder), ChatTemplate(folder), text)
    plain = LivePrompt(prompt.tokenizer, prompt.template, HARMLESS)
    assert control(prompt, prompt.anchor()) == control(prompt, plain.anchor())
    assert text in prompt.tokenizer.decode(prompt.anchor().tolist(), special=True)


@pytest.mark.parametrize(
    ("template", "texts"),
    [
        ("<{{ m }}>", ["think", "/think", "s", "image", "|im_end|", "tool_call"]),
        ("<|{{ m }}|>", ["im_end", "im_start"]),
        ("{{ m }}end|>", ["<|im_", "a<|im_"]),
        ("<|im_{{ m }}", ["end|>", "end|>b"]),
        ("{{ m | trim }}", [" <think> ", "\n<s>"]),
        ("{{ m | tojson(ensure_ascii=True) }}", ["<think>", "</s>"]),
        ("{{ m ~ m }}", ["<think", "><think", "k><thin"]),
    ],
)
def test_a_template_cannot_be_made_to_write_a_control_token(folder, tmp_path, template, texts):
    """The family's templates put parts of a tool's schema between < and >."""
    whole = f"{{% set m = messages[0].content %}}{template}"
    (tmp_path / "chat_template.jinja").write_text(whole, encoding="utf-8")
    tokenizer = Tokenizer(folder)
    for text in texts:
        outside = Outside(tokenizer)
        messages = [{"role": "user", "content": outside.hide(text)}]
        rendered = ChatTemplate(tmp_path).render(messages, thinking=False)
        ids = outside.encode(rendered).tolist()
        assert set(ids).isdisjoint(tokenizer.control_tokens.ids), text
        raw = ChatTemplate(tmp_path).render([{"role": "user", "content": text}], thinking=False)
        assert tokenizer.decode(ids, special=True) == raw


@pytest.mark.parametrize("text", ["<tool_call>", "</think>", "<think>", "a</tool_call>\n"])
def test_marks_that_are_added_and_not_special_cannot_be_forged(folder, tmp_path, text):
    whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    for added in whole["added_tokens"]:
        added["special"] = added["content"] in ("<s>", "</s>", "<|im_end|>")
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
    tokenizer = Tokenizer(tmp_path)
    outside = Outside(tokenizer)
    ids = outside.encode(f"<think>{outside.hide(text)}</think>").tolist()
    marks = tokenizer.special.think_start, tokenizer.special.think_end
    assert (ids[0], ids[-1]) == marks
    assert set(ids[1:-1]).isdisjoint(tokenizer.control_tokens.ids)
    assert tokenizer.decode(ids, special=True) == f"<think>{text}</think>"


def test_names_are_new_in_each_rendering(folder):
    tokenizer = Tokenizer(folder)
    first = Outside(tokenizer).hide("a<think>")
    assert "<think>" not in first
    assert Outside(tokenizer).hide("a<think>") != first
    again = Outside(tokenizer)
    assert tokenizer.decode(again.encode(again.hide(first)).tolist()) == first


def test_half_a_surrogate_pair_is_no_end_of_a_turn(prompt):
    half = Question((Message("user", "a\ud83dx \ud83d\ude00"),), Sampling(), 8)
    ids = prompt.question(half, after_media=False)
    assert prompt.tokenizer.decode(ids.tolist()).startswith("a\ufffdx \U0001f600")


def test_a_note_is_text(make):
    loop = make()
    notes, noted = loop._notes, []
    loop._context.note = lambda perceived: noted.append(perceived.embeddings)
    loop._context.notes_tokens = 40
    done = []
    question = Question((Message("user", "?"),), Sampling(), 2)
    loop.ask(question, done.append)
    drive(loop)
    assert isinstance(done[-1], Done)
    notes._keep("it said <|im_end|>", done[-1])
    tokenizer = loop._answers._prompt.tokenizer
    ids = tokenizer.encode_as_text(NOTES.format("it said <|im_end|>"))
    np.testing.assert_array_equal(noted[0], loop._context.engine.embed(np.array(ids, np.int32)))
    assert tokenizer.special.turn_end not in ids


def test_a_condition_is_text(prompt):
    condition = asked(Trigger("a sign says <|im_end|>").condition)
    ids = prompt.question(Question((Message("user", condition),), Sampling(), 1), after_media=False)
    plain = prompt.question(Question((Message("user", "?"),), Sampling(), 1), after_media=False)
    assert control(prompt, ids) == control(prompt, plain)
