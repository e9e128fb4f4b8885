"""The conversation of one client: its items, as events show them and as the session takes them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from edge.errors import CapacityError, ProtocolError
from edge.features.resample import resample
from edge.senses.sent import MAX_MEDIA_BYTES, Budget, Decode, decode
from edge.senses.still import check_length, from_base64, from_data_url, sound_of
from edge.serve.client_sound import PCM, rate_of, samples_of
from edge.serve.messages import arguments_of
from edge.serve.protocol import (
    FunctionCallItem,
    FunctionOutputItem,
    InputAudio,
    InputImage,
    Item,
    ItemReference,
    MessageItem,
    OldAudio,
    OutputAudio,
    SoundFormat,
)
from edge.serve.room import Share
from edge.session.turn import Message, ToolCall
from edge.types import Medium, Sound, n_media_bytes

MAX_ITEMS = 256
MAX_ALL_MEDIA_BYTES = 1 << 29
"""Of all clients'."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An item without its media, and what it says to the session."""

    item: Item
    message: Message

    @property
    def n_bytes(self) -> int:
        """Of its media."""
        return n_media_bytes(self.message.media)


def entry_of(
    item: Item, item_id: str, form: SoundFormat = PCM, budget: Budget | None = None
) -> Entry:
    """Decode an item. Pictures and sounds take their time.

    Args:
        form: of the item's sounds.
        budget: of what it belongs to; decodes its pictures.
    Raises:
        ProtocolError: it cannot be used.
        MediaError: a picture or a sound cannot be decoded.
    """
    if isinstance(item, FunctionCallItem):
        call = ToolCall(item.name, arguments_of(item.arguments, "item.arguments"))
        shown: Item = msgspec.structs.replace(item, id=item_id)
        return Entry(shown, Message("assistant", "", calls=(call,)))
    if isinstance(item, FunctionOutputItem):
        return Entry(msgspec.structs.replace(item, id=item_id), Message("tool", item.output))
    texts: list[str] = []
    media: list[Medium] = []
    budget = budget or Budget(decode)
    for k, part in enumerate(item.content):
        field = f"item.content[{k}]"
        if isinstance(part, InputImage):
            data = from_data_url(f"{field}.image_url", part.image_url or "")
            media.append(budget.decoded("picture", data))
        elif isinstance(part, InputAudio):
            budget.count("sound")
            samples = samples_of(from_base64(f"{field}.audio", part.audio or ""), form)
            check_length(len(samples), rate_of(form))
            media.append(sound_of(resample(samples, rate_of(form))))
        elif isinstance(part, OutputAudio | OldAudio):
            texts.append(part.transcript or "")
        else:
            texts.append(part.text)
    if media and item.role != "user":
        problem = f"holds pictures or sounds of the {item.role}"
        raise ProtocolError("item.content", problem, "let the user send them")
    message = Message(item.role, "\n".join(texts), tuple(media))
    return Entry(_without_media(item, item_id), message)


def input_of(
    items: Sequence[Item | ItemReference],
    form: SoundFormat,
    known: Mapping[str, Entry],
    decode: Decode = decode,
) -> list[Entry]:
    """Decode what a response is to be made of.

    Args:
        form: of the sounds.
        known: the entries of the conversation that are referred to.
        decode: makes pictures of files.
    Raises:
        ProtocolError: an item cannot be used.
        MediaError: a picture or a sound cannot be decoded.
        CapacityError: pictures and sounds are too large together.
    """
    entries: list[Entry] = []
    n_bytes, budget = 0, Budget(decode)
    for item in items:
        if isinstance(item, ItemReference):
            entries.append(known[item.id])
            continue
        entries.append(entry_of(item, item.id or "", form, budget))
        n_bytes += entries[-1].n_bytes
        _refuse_too_much("response.input", n_bytes)
    return entries


def _refuse_too_much(thing: str, n_bytes: int) -> None:
    if n_bytes > MAX_MEDIA_BYTES:
        raise CapacityError(
            thing,
            f"would hold more than {MAX_MEDIA_BYTES} bytes of pictures and sounds",
            "delete items, or send smaller pictures",
        )


def sound_entry(sound: Sound, item_id: str) -> Entry:
    """What a client has said."""
    item = MessageItem(role="user", content=[InputAudio()], id=item_id)
    return Entry(item, Message("user", "", (sound,)))


def _without_media(item: MessageItem, item_id: str) -> MessageItem:
    shown = [
        InputAudio()
        if isinstance(part, InputAudio)
        else msgspec.structs.replace(part, image_url=None)
        if isinstance(part, InputImage)
        else part
        for part in item.content
    ]
    return msgspec.structs.replace(item, content=shown, id=item_id, status="completed")


class ClientConversation:
    """Items in order. Bounded: the oldest make room for the newest."""

    def __init__(self, room: Share) -> None:
        """Begin with none.

        Args:
            room: for the pictures and sounds of all clients.
        """
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._room = room

    @property
    def last_id(self) -> str | None:
        """Of the newest item."""
        return next(reversed(self._entries), None)

    def __getitem__(self, item_id: str) -> Entry:
        """An item's.

        Raises:
            ProtocolError: there is no such item.
        """
        if item_id not in self._entries:
            raise ProtocolError(
                "item_id",
                f"{item_id!r} is not in the conversation",
                "name another",
                code="item_not_found",
            )
        return self._entries[item_id]

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._entries

    def before(self, item_id: str) -> str | None:
        """The id of the item before it; None for the first."""
        ids = [*self._entries]
        place = ids.index(item_id)
        return ids[place - 1] if place else None

    def add(self, entry: Entry, behind: str | None = None) -> list[str]:
        """Put an item behind the others.

        Args:
            behind: this one; "root": before all.

        Returns:
            The ids of those that have made room.
        Raises:
            ProtocolError: its id is taken, or there is no such item to be put behind.
            CapacityError: its pictures and sounds are too large together with the others', or
                with those of other clients.
        """
        item_id = entry.item.id or ""
        if item_id in self._entries:
            raise ProtocolError("item.id", f"{item_id!r} is taken", "choose another, or none")
        ids = [*self._entries]
        if behind not in (None, "root", *ids):
            problem, remedy = f"{behind!r} is not in the conversation", 'name another, or "root"'
            raise ProtocolError("previous_item_id", problem, remedy, code="item_not_found")
        n_bytes = sum(e.n_bytes for e in self._entries.values())
        _refuse_too_much("conversation", n_bytes + entry.n_bytes)
        self._room.take("conversation", entry.n_bytes)
        self._entries[item_id] = entry
        if behind is not None:
            for later in ids[0 if behind == "root" else ids.index(behind) + 1 :]:
                self._entries.move_to_end(later)
        n_over = max(0, len(self._entries) - MAX_ITEMS)
        oldest = [one for one in self._entries if one != item_id][:n_over]
        for old_id in oldest:
            self.delete(old_id)
        return oldest

    def delete(self, item_id: str) -> None:
        """Forget an item.

        Raises:
            ProtocolError: there is no such item.
        """
        self[item_id]
        self._room.give(self._entries.pop(item_id).n_bytes)

    def clear(self) -> list[str]:
        """Forget all; their ids."""
        forgotten = [*self._entries]
        for item_id in forgotten:
            self.delete(item_id)
        return forgotten

    def messages(self) -> list[Message]:
        """What it says to the session."""
        return [entry.message for entry in self._entries.values()]


def as_turns(messages: Sequence[Message], instructions: str) -> tuple[Message, ...]:
    """Messages as the chat template needs them: adjoining ones of one role are one, and the last
    is the user's or a tool's. Without any the answer is about the live context alone.
    """
    turns = [Message("system", instructions)] if instructions else []
    turns += [message for message in messages if message.role == "system"]
    said: list[Message] = []
    for message in messages:
        last = said[-1] if said else None
        if message.role == "system":
            continue
        if last is None or last.role != message.role or message.role == "tool":
            said.append(message)
            continue
        text = "\n".join(text for text in (last.content, message.content) if text)
        media, calls = last.media + message.media, last.calls + message.calls
        thoughts = "\n".join(one for one in (last.reasoning, message.reasoning) if one)
        said[-1] = Message(last.role, text, media, calls, thoughts)
    if not said or said[-1].role == "assistant" or not any(m.role == "user" for m in said):
        said.append(Message("user", ""))
    return (*turns, *said)
