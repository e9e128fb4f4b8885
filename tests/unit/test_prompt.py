"""Prompts byte for byte, as the published processing writes them."""

from __future__ import annotations

import pytest

from edge.errors import CheckpointError
from edge.model.prompt import (
    LIVE,
    ChatTemplate,
    audio_text,
    expand,
    flatten,
    frame_times_s,
    image_text,
    tubelet_text,
    video_text,
)

USER = "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n"
ON = "<|im_end|>\n<|im_start|>assistant\n<think>\n"
OFF = "<|im_end|>\n<|im_start|>assistant\n<think></think>"


@pytest.fixture(scope="module")
def template(checkpoint):
    return ChatTemplate(checkpoint("base"))


def prompt(template, content, thinking):
    return template.render([{"role": "user", "content": content}], thinking=thinking)


@pytest.mark.parametrize(("thinking", "end"), [(True, ON), (False, OFF)])
def test_the_literal_prompts(template, thinking, end):
    assert prompt(template, "Hello", thinking) == f"{USER}Hello{end}"

    text = expand(flatten("Describe it.", ["<image>"]), images=[image_text(256)])
    expected = "<img>" + "<image>" * 256 + "</img>\nDescribe it."
    assert prompt(template, text, thinking) == USER + expected + end

    times = frame_times_s([0, 15, 30], 30)
    clip = video_text(times, [252, 252])
    text = expand(flatten("Describe it.", ["<video>"]), videos=[clip])
    expected = (
        "Frame 1 sampled at 0.00 seconds and frame 2 sampled at 0.49 seconds: <img>"
        + "<image>" * 252
        + "</img>\nFrame 3 sampled at 0.99 seconds: <img>"
        + "<image>" * 252
        + "</img>\nDescribe it."
    )
    assert prompt(template, text, thinking) == USER + expected + end

    text = expand(flatten("Transcribe.", ["<so_embedding>"]), audios=[audio_text(13)])
    expected = "<so_start>" + "<so_embedding>" * 13 + "<so_end>\nTranscribe."
    assert prompt(template, text, thinking) == USER + expected + end


def test_media_keep_the_order_of_their_markers():
    text = flatten("What?", ["<so_embedding>", "<image>", "<video>", "<image>"])
    got = expand(
        text,
        images=[image_text(1), image_text(2)],
        videos=[video_text([0.0, 0.5], [1])],
        audios=[audio_text(1)],
    )
    frame = "Frame 1 sampled at 0.00 seconds and frame 2 sampled at 0.50 seconds: "
    assert got == (
        "<so_start><so_embedding><so_end>\n<img><image></img>\n"
        f"{frame}<img><image></img>\n<img><image><image></img>\nWhat?"
    )


def test_a_pruned_tubelet_keeps_its_text():
    assert tubelet_text(5, [1.0, 1.5], 0) == (
        "Frame 5 sampled at 1.00 seconds and frame 6 sampled at 1.50 seconds: <img></img>"
    )


@pytest.mark.parametrize("images", [[], ["a", "b"]])
def test_markers_and_media_must_match(images):
    with pytest.raises(ValueError, match="marker"):
        expand("<image>", images=images)


def test_history_loses_its_thinking_and_the_system_prompt_stands_first(template):
    got = template.render(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "One?"},
            {"role": "assistant", "content": "1", "reasoning_content": "hm"},
            {"role": "user", "content": "Two?"},
        ],
        thinking=False,
    )
    assert got == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne?<|im_end|>\n"
        "<|im_start|>assistant\n<think></think>1<|im_end|>\n<|im_start|>user\nTwo?" + OFF
    )


def test_the_live_context_stands_inside_the_users_turn(template):
    before, after = template.around_live(
        [{"role": "user", "content": f"{LIVE}\nWhat is that?"}], thinking=True
    )
    assert before == USER
    assert after == "\nWhat is that?" + ON


def test_the_template_runs_in_a_sandbox(tmp_path):
    escape = "{{ messages.__class__.__mro__[-1].__subclasses__() }}"
    (tmp_path / "chat_template.jinja").write_text(escape)
    with pytest.raises(CheckpointError, match="chat_template"):
        ChatTemplate(tmp_path).render([{"role": "user", "content": "x"}], thinking=False)


@pytest.mark.parametrize("text", ["{% if %}", None])
def test_a_broken_or_missing_template_is_named(tmp_path, text):
    if text:
        (tmp_path / "chat_template.jinja").write_text(text)
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja"):
        ChatTemplate(tmp_path)


def rendered(folder, text, **settings):
    (folder / "chat_template.jinja").write_text(text, encoding="utf-8")
    messages = [{"role": "user", "content": "a <b> é"}]
    return ChatTemplate(folder).render(messages, thinking=False, **settings)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{% generation %}a{{ messages[0].role }}{% endgeneration %}b", "auserb"),
        ("{% set x = 1 %}{%- generation %}{% set x = 2 %}{{ x }}{%- endgeneration %}{{ x }}", "21"),
        ("{{ messages[0].content | tojson }}", '"a <b> é"'),
        ("{{ messages[0].content | tojson(ensure_ascii=True) }}", '"a <b> \\u00e9"'),
        ("{{ {'b': 1, 'a': [2]} | tojson(separators=(',', ':')) }}", '{"b":1,"a":[2]}'),
        ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=True) }}", '{"a": 2, "b": 1}'),
        ("{{ {'b': 1} | tojson(indent=2) }}", '{\n  "b": 1\n}'),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{{ strftime_now('%%') }}", "%"),
        ("{{ tools is none }}{{ documents is none }}", "TrueTrue"),
        ("{{ dict(a=1) | tojson }}{{ namespace(self=1, a=2).self }}", '{"a": 1}1'),
        ("{% set n = namespace(a=1) %}{% set n.a = 2 %}{{ n.a }}", "2"),
    ],
)
def test_a_template_may_use_what_transformers_gives_it(tmp_path, text, expected):
    assert rendered(tmp_path, text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "{{ raise_exception('no such role') }}",
        "{{ namespace(_a=1) }}",
        "{% set n = namespace() %}{% set n.__class__ = 2 %}",
        "{{ dict.__class__ }}{{ dict.__class__.mro() }}",
    ],
)
def test_a_template_may_not_use_more(tmp_path, text):
    with pytest.raises(CheckpointError, match="failed on these messages"):
        rendered(tmp_path, text)


def test_a_template_is_tried_on_a_conversation_of_every_kind(template):
    template.probe()
