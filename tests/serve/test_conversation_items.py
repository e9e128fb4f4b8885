"""Items of a client's conversation: what they say to the session, what is shown of them, and where
they come to stand."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from edge.errors import CapacityError, MediaError, ProtocolError
from edge.serve import conversation
from edge.serve.client_sound import PCM
from edge.serve.conversation import ClientConversation, as_turns, entry_of, input_of
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
    SoundFormat,
)
from edge.session.turn import Message, ToolCall

SOUND = base64.b64encode(np.full(4800, 1000, "<i2").tobytes()).decode()


class Room:
    """Counts what is taken and given."""

    n_bytes = 0

    def take(self, thing, n_bytes):
        assert thing == "conversation"
        self.n_bytes += n_bytes

    def give(self, n_bytes):
        self.n_bytes -= n_bytes


def message(*parts, role="user", item_id=None):
    return MessageItem(role=role, content=list(parts), id=item_id, status="in_progress")


def text(item_id, said="x", role="user"):
    return entry_of(message(InputText(text=said), role=role), item_id)


def test_what_an_item_says_to_the_session():
    answer = message(
        OutputText(text="a"), OutputAudio(transcript="b"), OutputAudio(), OldText(text="c"),
        OldAudio(transcript="d"), OldAudio(), role="assistant",
    )  # fmt: skip
    assert entry_of(answer, "i").message == Message("assistant", "a\nb\n\nc\nd\n")
    call = FunctionCallItem(name="drive", arguments='{"n": 1}', call_id="c")
    entry = entry_of(call, "i")
    assert entry.message == Message("assistant", "", calls=(ToolCall("drive", {"n": 1}),))
    assert (entry.item.id, entry.item.name, entry.item.status) == ("i", "drive", "completed")
    entry = entry_of(FunctionOutputItem(call_id="c", output="done"), "i")
    assert entry.message == Message("tool", "done")
    assert (entry.item.id, entry.item.output, entry.n_bytes) == ("i", "done", 0)


def test_of_a_sound_only_its_transcript_is_shown_again():
    asked = message(InputText(text="a"), InputAudio(audio=SOUND), InputText(text="b"))
    entry = entry_of(asked, "i")
    assert entry.message.content == "a\nb"
    (sound,) = entry.message.media
    assert len(np.frombuffer(sound.samples, np.float32)) == 3200  # 0.2 s
    assert entry.n_bytes == 4 * 3200
    assert entry.item.content == [InputText(text="a"), InputAudio(), InputText(text="b")]
    assert (entry.item.id, entry.item.status) == ("i", "completed")
    slow = entry_of(asked, "i", SoundFormat(type="audio/pcmu")).message.media[0]
    assert len(np.frombuffer(slow.samples, np.float32)) == 9600 * 2


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_pictures_and_sounds_are_the_users(role):
    with pytest.raises(ProtocolError) as caught:
        entry_of(message(InputAudio(audio=SOUND), role=role), "i")
    assert str(caught.value) == (
        f"item.content: holds pictures or sounds of the {role}; let the user send them"
    )


@pytest.mark.parametrize(
    ("part", "place"),
    [
        (InputAudio(audio="!"), "item.content[1].audio"),
        (InputImage(image_url="http://x/y.png"), "item.content[1].image_url"),
        (InputImage(), "item.content[1].image_url"),
    ],
)
def test_a_part_that_cannot_be_used_is_named_by_its_place(part, place):
    with pytest.raises(ProtocolError) as caught:
        entry_of(message(InputText(text="a"), part), "i")
    assert caught.value.thing == place
    with pytest.raises(MediaError):
        entry_of(message(InputAudio()), "i")  # too short


def test_what_a_response_is_made_of(monkeypatch):
    known = {"k": text("k", "known")}
    new = message(InputText(text="new"), item_id="n")
    made = input_of([ItemReference(id="k"), new, message(InputText(text="no"))], PCM, known)
    assert made[0] is known["k"]
    assert [entry.message.content for entry in made] == ["known", "new", "no"]
    assert [entry.item.id for entry in made] == ["k", "n", ""]
    monkeypatch.setattr(conversation, "MAX_MEDIA_BYTES", 4 * 3200 * 2)
    heard = message(InputAudio(audio=SOUND))
    assert len(input_of([heard, heard], PCM, {})) == 2
    with pytest.raises(CapacityError, match=r"response\.input: would hold more than 25600 bytes"):
        input_of([heard, heard, heard], PCM, {})


def test_items_stand_where_they_are_put():
    items = ClientConversation(Room())
    assert items.last_id is None
    for item_id, behind in (("b", None), ("d", None), ("a", "root"), ("c", "b"), ("e", "d")):
        assert items.add(text(item_id, item_id), behind) == []
    assert [one.content for one in items.messages()] == list("abcde")
    assert items.last_id == "e"
    assert [items.before(one) for one in "abe"] == [None, "a", "d"]
    assert "c" in items
    assert "x" not in items
    for act, said in (
        (lambda: items.add(text("a")), "item.id: 'a' is taken; choose another, or none"),
        (
            lambda: items.add(text("x"), "y"),
            "previous_item_id: 'y' is not in the conversation; name another, or \"root\"",
        ),
        (lambda: items["x"], "item_id: 'x' is not in the conversation; name another"),
        (lambda: items.delete("x"), "item_id: 'x' is not in the conversation; name another"),
    ):
        with pytest.raises(ProtocolError) as caught:
            act()
        assert str(caught.value) == said
    items.delete("c")
    assert items.clear() == list("abde")
    assert items.messages() == []


def test_items_and_their_media_are_bounded(monkeypatch):
    monkeypatch.setattr(conversation, "MAX_ITEMS", 3)
    monkeypatch.setattr(conversation, "MAX_MEDIA_BYTES", 4 * 3200 * 2)
    room = Room()
    items = ClientConversation(room)
    heard = message(InputAudio(audio=SOUND))
    for item_id in "ab":
        assert items.add(entry_of(heard, item_id)) == []
    assert room.n_bytes == 4 * 3200 * 2
    with pytest.raises(CapacityError, match=r"conversation: would .* delete items, or send"):
        items.add(entry_of(heard, "c"))
    assert room.n_bytes == 4 * 3200 * 2
    assert items.add(text("c")) == []
    assert items.add(text("d"), "root") == ["a"]  # not the one that was just put there
    assert room.n_bytes == 4 * 3200
    assert items.clear() == ["d", "b", "c"]
    assert room.n_bytes == 0


def test_messages_as_a_template_takes_them():
    call = ToolCall("drive", {})
    found = as_turns(
        [
            Message("user", "a"),
            Message("system", "s"),
            Message("user", ""),
            Message("user", "b"),
            Message("assistant", "", calls=(call,), reasoning="one"),
            Message("assistant", "c", calls=(call,), reasoning="two"),
            Message("tool", "1"),
            Message("tool", "2"),
        ],
        "Be brief.",
    )
    assert found == (
        Message("system", "Be brief."),
        Message("system", "s"),
        Message("user", "a\nb"),
        Message("assistant", "c", calls=(call, call), reasoning="one\ntwo"),
        Message("tool", "1"),
        Message("tool", "2"),
    )
    user = Message("user", "")
    assert as_turns([], "") == (user,)
    answer = Message("assistant", "a")
    assert as_turns([answer], "") == (answer, user)
    assert as_turns([Message("tool", "t")], "")[-1] == user
