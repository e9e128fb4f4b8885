"""Special tokens by name, and text that comes out whole."""

from __future__ import annotations

import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import CheckpointError
from edge.model.outside import Outside
from edge.model.tokenizer import Detokenizer, Tokenizer


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return Tokenizer(checkpoint("base"))


def test_special_tokens_have_the_published_ids(tokenizer):
    text = "<unk><s></s><|im_start|><|im_end|><think></think><image><img></img>"
    text += "<so_embedding><so_start><so_end>"
    assert tokenizer.encode(text).tolist() == [0, 1, 2, 10, 11, 12, 13, 18, 19, 20, 27, 28, 29]


def test_video_is_plain_text(tokenizer):
    """Its id in config.json lies outside the vocabulary."""
    assert len(tokenizer.encode("<video>")) > 1


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_comes_back(tokenizer, text):
    ids = tokenizer.encode(text).tolist()
    if not any(i < 32 for i in ids):
        assert tokenizer.decode(ids) == text


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_streaming_never_emits_half_a_character(tokenizer, text):
    stream = Detokenizer(tokenizer)
    pieces = [stream.push(int(token)) for token in tokenizer.encode(text)]
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + stream.flush() == tokenizer.decode(tokenizer.encode(text).tolist())


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 460), max_size=40))
def test_streaming_gives_what_decoding_at_once_gives(tokenizer, ids):
    stream = Detokenizer(tokenizer)
    text = "".join(stream.push(token) for token in ids) + stream.flush()
    assert text == tokenizer.decode(ids)


def test_an_emoji_arrives_with_its_last_byte(tokenizer):
    ids = tokenizer.encode("🙂").tolist()
    assert len(ids) == 4
    stream = Detokenizer(tokenizer)
    assert [stream.push(token) for token in ids] == ["", "", "", "🙂"]


def re_escape(text):
    return text.replace("|", r"\|")


@pytest.mark.parametrize("name", ["<image>", "<so_end>", "</think>", "<|im_end|>"])
def test_a_missing_special_token_is_named(checkpoint, tmp_path, name):
    shutil.copy(checkpoint("base") / "tokenizer.json", tmp_path)
    path = tmp_path / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    for added in tokenizer["added_tokens"]:
        if added["content"] == name:
            added["content"] = "<gone>"
    tokenizer["model"]["vocab"]["<gone>"] = tokenizer["model"]["vocab"].pop(name)
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match=f"has no special token {re_escape(repr(name))}"):
        Tokenizer(tmp_path)


def test_a_broken_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: is not a tokenizer"):
        Tokenizer(tmp_path)


CONTROL = [f"<SPECIAL_{i}>" for i in range(21, 27)] + [
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "<|im_start|>", "<|im_end|>"),
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "<image>", "<img>"),
    *("</img>", "<so_embedding>", "<so_start>", "<so_end>"),
]
SPELLED = st.lists(
    st.sampled_from(CONTROL) | st.text(max_size=4) | st.sampled_from([*"<>[]|/", "think", "im_"]),
    max_size=8,
).map("".join)


@settings(max_examples=300, deadline=None)
@given(text=SPELLED)
def test_any_text_is_encoded_as_text(tokenizer, text):
    ids = tokenizer.encode_as_text(text)
    assert set(ids).isdisjoint(tokenizer.control_tokens.ids)
    assert tokenizer.decode(ids) == tokenizer.decode(ids, special=True) == text


@settings(max_examples=300, deadline=None)
@given(text=SPELLED)
def test_our_own_words_are_encoded_as_the_tokenizer_does(tokenizer, text):
    """`Outside` splits a text at its control tokens itself where it hides others."""
    outside = Outside(tokenizer)
    outside.hide("<think>")
    assert outside.encode(text).tolist() == tokenizer.encode(text).tolist()


def changed(checkpoint, folder, change):
    """A tokenizer.json that is not quite the tiny one."""
    whole = json.loads((checkpoint("base") / "tokenizer.json").read_text())
    change(whole)
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    return folder


def without_special(whole):
    """As Qwen's: these tokens are added, and not called special."""
    for added in whole["added_tokens"]:
        added["special"] = added["content"] in ("<s>", "</s>")


def outside_of_the_model(whole):
    """As where they are no part of the model's own vocabulary."""
    for added in whole["added_tokens"]:
        whole["model"]["vocab"].pop(added["content"])
    whole["model"]["vocab"] |= {f"<reserved{i}>": i for i in range(32)}
    whole["added_tokens"] += [
        {**whole["added_tokens"][0], "id": 512, "content": "wagon", "special": False}
    ]


def taken_whole(whole):
    """As tiktoken does: what is in the vocabulary is not merged."""
    whole["model"]["ignore_merges"] = True
    whole["pre_tokenizer"] = {**whole["pre_tokenizer"]["pretokenizers"][1]}


def with_space(whole):
    for added in whole["added_tokens"]:
        added["lstrip"] = added["content"] == "<think>"
        added["rstrip"] = added["content"] == "</think>"
        added["single_word"] = added["content"] == "[INST]"


@pytest.mark.parametrize("change", [without_special, outside_of_the_model, taken_whole, with_space])
def test_other_kinds_of_tokenizers_are_covered(checkpoint, tmp_path, change):
    folder = changed(checkpoint, tmp_path, change)
    if change is without_special:
        shutil.copy(checkpoint("base") / "chat_template.jinja", folder)
    tokenizer = Tokenizer(folder)
    written = CONTROL if change is not without_special else ["<tool_response>", "<think>", "<s>"]
    texts = [f"{a}{b}{c}" for a in ("", "x ") for b in written for c in ("", " x", "\n")]
    for text in [*texts, "".join(texts), "a wagon<think>wagon"]:
        ids = tokenizer.encode_as_text(text)
        assert set(ids).isdisjoint(tokenizer.control_tokens.ids)
        assert tokenizer.decode(ids, special=True) == text
        outside = Outside(tokenizer)
        hidden = outside.hide(text)
        assert outside.encode(hidden).tolist() == ids
        assert outside.encode(text).tolist() == tokenizer.encode(text).tolist()
    if change is outside_of_the_model:
        ids = tokenizer.encode_as_text("a wagon")
        assert ids == tokenizer.encode("a wagon").tolist()
        assert ids[-1] == tokenizer._id("wagon")  # it is a word, if an added one


def test_a_tokenizer_that_cannot_write_a_control_token_as_text_is_refused(checkpoint, tmp_path):
    def rename(whole):
        added = next(one for one in whole["added_tokens"] if one["content"] == "<SPECIAL_30>")
        vocabulary = whole["model"]["vocab"]
        added["content"], vocabulary["a"] = "a", added["id"]
        vocabulary["<SPECIAL_30>"] = 900

    with pytest.raises(CheckpointError, match=r"cannot write its control token '.*' as text"):
        Tokenizer(changed(checkpoint, tmp_path, rename))


ORDINARY = st.text(
    st.characters(exclude_characters="<>[]|", exclude_categories=["Cs"]), max_size=60
)


@settings(max_examples=200, deadline=None)
@given(text=ORDINARY)
def test_ordinary_texts_have_the_tokens_that_they_always_had(tokenizer, text):
    assert tokenizer.encode_as_text(text) == tokenizer.encode(text).tolist()
