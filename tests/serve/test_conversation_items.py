"""One client's conversation: what its items say, their order, their room, and its turns."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from serve.test_realtime import data_url, png

from edge.errors import CapacityError, ProtocolError
from edge.serve import conversation
from edge.serve.client_sound import PCM
from edge.serve.conversation import (
    MAX_ALL_MEDIA_BYTES,
    ClientConversation,
    Entry,
    as_turns,
    entry_of,
    input_of,
    sound_entry,
)
from edge.serve.protocol import (
    FunctionCallItem,
    FunctionOutputItem,
    InputAudio,
    InputImage,
    InputText,
    ItemReference,
    MessageItem,
    OldAudio,
    OldText,
    OutputAudio,
    OutputText,
)
from edge.serve.room import Room
from edge.session.turn import Message, ToolCall
from edge.types import Picture, Sound

PICTURE = data_url(png())
SOUND = base64.b64encode(np.full(4800, 8192, "<i2").tobytes()).decode()


def said(*parts, role="user", **fields):
    return MessageItem(role=role, content=[*parts], **fields)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (said(InputText(text="a"), InputText(text="b")), Message("user", "a\nb")),
        (said(InputText(text="Be brief."), role="system"), Message("system", "Be brief.")),
        (said(OutputText(text="a"), OldText(text="b"), role="assistant"),
         Message("assistant", "a\nb")),
        (said(OutputAudio(transcript="a"), OldAudio(transcript="b"), role="assistant"),
         Message("assistant", "a\nb")),
        (said(OutputAudio(), OldAudio(), role="assistant"), Message("assistant", "\n")),
        (said(), Message("user", "")),
        (FunctionCallItem(name="go", arguments='{"m": 1}'),
         Message("assistant", "", calls=(ToolCall("go", {"m": 1}),))),
        (FunctionOutputItem(call_id="c", output="done"), Message("tool", "done")),
    ],
)  # fmt: skip
def test_what_an_item_says(item, message):
    entry = entry_of(item, "item_1")
    assert entry.message == message
    assert (entry.item.id, entry.item.status, entry.n_bytes) == ("item_1", "completed", 0)


def test_pictures_and_sounds_are_taken_and_not_sent_back():
    shown = said(
        InputText(text="a"), InputImage(image_url=PICTURE, detail="low"), InputAudio(audio=SOUND),
        status="incomplete",
    )  # fmt: skip
    entry = entry_of(shown, "item_1")
    assert entry.message.content == "a"
    picture, sound = entry.message.media
    assert isinstance(picture, Picture)
    assert isinstance(sound, Sound)
    assert len(sound.samples) == 3200 * 4  # 0.2 s
    assert entry.n_bytes == len(picture.rgb) + len(sound.samples)
    parts = [InputText(text="a"), InputImage(detail="low"), InputAudio()]
    assert entry.item == said(*parts, id="item_1")


@pytest.mark.parametrize(
    ("item", "thing"),
    [
        (said(InputText(text=""), InputImage()), "item.content[1].image_url"),
        (said(InputImage(image_url="http://a/b.png")), "item.content[0].image_url"),
        (said(InputAudio(audio="?")), "item.content[0].audio"),
        (said(InputImage(image_url=PICTURE), role="assistant"), "item.content"),
        (said(InputAudio(audio=SOUND), role="system"), "item.content"),
        (FunctionCallItem(name="go", arguments="["), "item.arguments"),
    ],
)
def test_what_cannot_be_used_is_named(item, thing):
    with pytest.raises(ProtocolError) as refused:
        entry_of(item, "item_1")
    assert refused.value.thing == thing
    if thing == "item.content":
        assert str(refused.value).endswith(
            f"holds pictures or sounds of the {item.role}; let the user send them"
        )


def test_what_a_response_is_made_of(monkeypatch):
    known = {"old": Entry(said(id="old"), Message("user", "before"))}
    items = [ItemReference(id="old"), said(InputText(text="a"), id="mine"), said()]
    entries = input_of(items, PCM, known)
    assert [entry.item.id for entry in entries] == ["old", "mine", ""]
    assert [entry.message.content for entry in entries] == ["before", "a", ""]
    pictures = [said(InputImage(image_url=PICTURE))] * 2
    n_bytes = entry_of(pictures[0], "a").n_bytes
    monkeypatch.setattr(conversation, "MAX_MEDIA_BYTES", 2 * n_bytes)
    assert len(input_of(pictures, PCM, {})) == 2
    monkeypatch.setattr(conversation, "MAX_MEDIA_BYTES", 2 * n_bytes - 1)
    with pytest.raises(CapacityError, match=r"response\.input: would hold more than"):
        input_of(pictures, PCM, {})


@pytest.fixture
def room():
    return Room(MAX_ALL_MEDIA_BYTES, "are held")


def entry(name, n_bytes=0):
    return Entry(said(id=name), Message("user", name, (Sound(bytes(n_bytes)),) if n_bytes else ()))


def order(items):
    return [message.content for message in items.messages()]


def test_items_stand_where_they_are_put(room):
    items = ClientConversation(room)
    assert items.last_id is None
    for name in "abc":
        assert items.add(entry(name)) == []
    items.add(entry("d"), "a")
    items.add(entry("e"), "root")
    items.add(entry("f"), "c")
    assert order(items) == [*"eadbcf"]
    assert items.last_id == "f"
    assert [items.before(name) for name in "eaf"] == [None, "e", "c"]
    assert ("a" in items, "x" in items) == (True, False)
    assert items["a"].message.content == "a"
    for behind, thing in (("x", "previous_item_id"), ("", "previous_item_id")):
        with pytest.raises(ProtocolError, match="is not in the conversation") as refused:
            items.add(entry("g"), behind)
        assert (refused.value.thing, refused.value.code) == (thing, "item_not_found")
    with pytest.raises(ProtocolError, match=r"item\.id: 'a' is taken"):
        items.add(entry("a"))
    with pytest.raises(ProtocolError, match="'x' is not in the conversation") as refused:
        items.delete("x")
    assert (refused.value.thing, refused.value.code) == ("item_id", "item_not_found")
    items.delete("a")
    assert items.clear() == [*"edbcf"]
    assert order(items) == []


def test_the_oldest_make_room_and_never_the_newest(room, monkeypatch):
    monkeypatch.setattr(conversation, "MAX_ITEMS", 3)
    items = ClientConversation(room)
    for name in "abc":
        assert items.add(entry(name)) == []
    assert items.add(entry("d"), "root") == ["a"]
    assert order(items) == [*"dbc"]
    assert items.add(entry("e")) == ["d"]
    assert order(items) == [*"bce"]


def test_media_of_one_and_of_all_clients_are_bounded(monkeypatch):
    room = Room(250, "are held")
    monkeypatch.setattr(conversation, "MAX_MEDIA_BYTES", 150)
    mine, others = ClientConversation(room), ClientConversation(room)
    mine.add(entry("a", 100))
    mine.add(entry("b", 50))
    with pytest.raises(CapacityError, match="conversation: would hold more than 150 bytes"):
        mine.add(entry("c", 1))
    others.add(entry("a", 100))
    with pytest.raises(CapacityError):
        others.add(entry("b", 1))
    assert order(others) == ["a"]
    mine.delete("b")
    others.add(entry("b", 50))
    mine.clear()
    others.clear()
    mine.add(entry("a", 150))
    others.add(entry("a", 100))


def test_what_a_client_has_said_is_an_item_without_its_sound():
    found = sound_entry(Sound(b"1234"), "item_1")
    assert found.item == said(InputAudio(), id="item_1")
    assert found.message == Message("user", "", (Sound(b"1234"),))


U, A, T, S = (lambda text, role=role, **more: Message(role, text, **more)
              for role in ("user", "assistant", "tool", "system"))  # fmt: skip
CALL = ToolCall("go", {})


@pytest.mark.parametrize(
    ("messages", "turns"),
    [
        ([], [U("")]),
        ([U("a")], [U("a")]),
        ([U("a"), U("b")], [U("a\nb")]),
        ([U("a"), U(""), U("b")], [U("a\nb")]),
        ([U("a"), A("b")], [U("a"), A("b"), U("")]),
        ([A("b")], [A("b"), U("")]),
        ([U("a"), S("s"), U("b")], [S("s"), U("a\nb")]),
        ([U("a"), A("", calls=(CALL,)), T("1"), T("2")],
         [U("a"), A("", calls=(CALL,)), T("1"), T("2")]),
        ([A("", calls=(CALL,)), T("1")], [A("", calls=(CALL,)), T("1"), U("")]),
        ([U("a"), A("b", reasoning="x"), A("c", calls=(CALL,), reasoning="y"), U("d")],
         [U("a"), A("b\nc", calls=(CALL,), reasoning="x\ny"), U("d")]),
        ([U("a", media=(Sound(b"1"),)), U("b", media=(Sound(b"2"),))],
         [U("a\nb", media=(Sound(b"1"), Sound(b"2")))]),
    ],
)  # fmt: skip
def test_messages_become_turns(messages, turns):
    assert as_turns(messages, "") == tuple(turns)
    assert as_turns(messages, "Be brief.") == (S("Be brief."), *turns)
