"""What one client of /v1/realtime has: settings, conversation, sound, a response, triggers.

    loop's thread ── outbox ──> told() ──> the client
    the client ──> take() ──> settings, conversation, sound ──> session.ask()

Everything about a client happens in the event loop's thread; the session's thread only puts into
its outbox. What the model makes of a turn is the session's affair; this is only the form.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, get_args

from edge.config import Config
from edge.errors import EdgeError, ProtocolError, TurnError
from edge.model.sampling import Sampling
from edge.senses.sent import Budget, Decode
from edge.senses.still import from_base64
from edge.senses.turn_events import Ended, Played, SpeechStarted
from edge.serve import fields
from edge.serve.access import Role, require
from edge.serve.client_sound import ClientSound
from edge.serve.completion import health_of
from edge.serve.conversation import (
    ClientConversation,
    Entry,
    as_turns,
    entry_of,
    input_of,
    sound_entry,
)
from edge.serve.outbox import Outbox, first_text_hurried
from edge.serve.playback import Playback, PlaybackAppend
from edge.serve.protocol import (
    AudioAppend,
    AudioClear,
    AudioCommit,
    InputAudio,
    InputImage,
    Item,
    ItemCreate,
    ItemDelete,
    ItemReference,
    ItemRetrieve,
    ItemTruncate,
    Json,
    MessageItem,
    ResponseCancel,
    ResponseCreate,
    ResponseSettings,
    SessionUpdate,
    SoundFormat,
    Topic,
)
from edge.serve.reply import Begun, Reply, error_body
from edge.serve.room import Share
from edge.serve.schema import AnyClientEvent, AnyServerEvent
from edge.serve.server_events import (
    AudioCleared,
    AudioCommitted,
    EdgeHealth,
    EdgeSessionStarted,
    Error,
    ItemAdded,
    ItemDeleted,
    ItemDone,
    ItemRetrieved,
    OutputItemAdded,
    OutputItemDone,
    ResponseDone,
    SessionCreated,
    SessionUpdated,
    SpeechStopped,
    new_id,
)
from edge.serve.server_events import SpeechStarted as SpeechStartedEvent
from edge.serve.session_events import TOPICS, dropped_events, told_event
from edge.serve.settings import (
    changed,
    first_settings,
    format_of,
    question_of,
    response_settings,
    vad_of,
)
from edge.serve.trigger_events import (
    EdgeTriggerCreated,
    EdgeTriggerDeleted,
    TriggerCreate,
    TriggerDelete,
)
from edge.session.turn import AnswerEvent, Asked, SpokenEvent

LOOK_S = 1.0
"""Between two looks at the session for edge.health and edge.dropped."""
NS_PER_MS = 1_000_000
Read = Callable[[Callable[[Decode], Any]], Awaitable[Any]]
"""Reads what brings media, off the event loop: `Decoding.read` for this client."""
InThread = Callable[..., Awaitable[Any]]
"""Runs something that takes its time in another thread: `LoopTime.in_thread` for this client."""
_KINDS: dict[str, type] = {kind.__struct_config__.tag: kind for kind in get_args(AnyClientEvent)}
"""A client's events by their type."""


@dataclass(frozen=True, slots=True, eq=False)
class _Answered:
    """An event of the answer that a reply is made of."""

    reply: Reply
    event: AnswerEvent | Begun


@dataclass(frozen=True, slots=True, eq=False)
class _Wanted:
    """A response that is to be created."""

    settings: ResponseSettings
    input: list[Entry] | None = None
    """What is asked, decoded; None: the conversation."""

    @property
    def n_bytes(self) -> int:
        """Of the input's pictures and sounds."""
        return sum(entry.n_bytes for entry in self.input or ())


class Client:
    """One client's session."""

    def __init__(
        self,
        session: Asked,
        config: Config,
        model: str,
        thinking_sampling: Sampling,
        outbox: Outbox[object],
        role: Role,
        room: Share,
        run_id: str,
        read: Read,
        in_thread: InThread,
    ) -> None:
        self._session, self._config, self._outbox = session, config, outbox
        self._role, self._run_id = role, run_id
        self._read, self._in_thread = read, in_thread
        self._thinking_sampling = thinking_sampling
        self._settings = first_settings(new_id("sess"), model, config)
        self._conversation_id = new_id("conv")
        self._room, self._conversation = room, ClientConversation(room)
        self._sound, self._playback = ClientSound(), Playback()
        self._sound.detect_turns(True)
        self._speech_id = new_id("item")
        self._reply: Reply | None = None
        self._behind: str | None = None
        """The item before the one that is being answered."""
        self._n_bytes = 0
        """Of the reply's own input, that the room holds."""
        self._next: _Wanted | None = None
        """To be answered as soon as the cancelled reply has ended; the room holds its input."""
        self._topics: frozenset[Topic] = frozenset()
        self._triggers: set[str] = set()
        self._naming = threading.Lock()
        """Held until a trigger's name is known: nothing is told of it before."""
        self._start_ns = session.status().start_ns
        self._say(SessionCreated(session=self._settings))

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Hear of the session's events for as long as the block runs, then leave nothing behind."""
        leave, unwatch = self._session.observe(self._observed), self._session.watch(self._heard)
        try:
            yield
        finally:
            leave()
            unwatch()
            for name in self._triggers:
                with contextlib.suppress(ProtocolError):  # somebody else has deleted it
                    self._session.triggers.delete(name)
            if self._reply is not None:
                self._reply.cancel("client_cancelled")
            self._conversation.clear()
            self._wait_with(None)
            self._hold(0)

    # From the session's thread.

    def _observed(self, event: object) -> None:
        topic = TOPICS.get(type(event))
        with self._naming:
            if topic in self._topics or getattr(event, "id", None) in self._triggers:
                self._outbox.deliver(event)

    def _heard(self, event: SpokenEvent) -> None:
        if "speech" in self._topics:
            self._outbox.deliver(event)

    # In the event loop's thread.

    def told(self, waiting: object) -> Iterator[AnyServerEvent]:
        """What was in the outbox, as events for the client."""
        if isinstance(waiting, _Answered):
            yield from self._answered(waiting.reply, waiting.event)
        elif isinstance(waiting, AnyServerEvent):
            yield waiting
        elif (told := told_event(waiting, self._start_ns)) is not None:
            yield told

    async def look(self) -> None:
        """Once a second, tell who wants it how the session is."""
        before = self._session.status().counters
        while True:
            await asyncio.sleep(LOOK_S)
            status = self._session.status()
            if "dropped" in self._topics:
                for event in dropped_events(before, status.counters):
                    self._say(event)
            if "health" in self._topics:
                self._say(EdgeHealth(health=health_of(status)))
            before = status.counters

    def _say(self, event: AnyServerEvent) -> None:
        self._outbox.deliver(event)

    def refuse(self, error: EdgeError, event_id: str | None = None) -> None:
        """Tell the client what is wrong."""
        self._say(Error(error=error_body(error, event_id)))

    async def take(self, message: str) -> None:
        """Do what an event of the client wants."""
        event_id: str | None = None
        try:
            wanted = _object(message)
            event_id = wanted["event_id"] if isinstance(wanted.get("event_id"), str) else None
            kind = _KINDS.get(str(wanted.get("type")))
            if kind is None:
                problem = f"is {str(wanted.get('type'))[:40]!r}"
                raise ProtocolError("type", problem, f"send one of {sorted(_KINDS)}")
            if self._role == "observer":
                _check_observes(wanted)
            await self._do(kind, wanted, event_id)
        except EdgeError as error:
            self.refuse(error, event_id)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this event's
            self.refuse(TurnError.of(error), event_id)

    async def _do(self, kind: type[Any], wanted: Json, event_id: str | None) -> None:
        if kind is SessionUpdate:
            await self._update(_part(wanted, "session"), event_id)
            return
        if kind is ResponseCreate:
            settings, refused, unheard = response_settings(_part(wanted, "response"))
            self._tell_of(refused, unheard, event_id)
            await self._create(settings)
            return
        event, unheard = fields.settle(wanted, kind)
        fields.told(unheard)
        if isinstance(event, AudioAppend):
            data = from_base64("audio", event.audio)
            # Finding speech takes its time; others are served meanwhile.
            self._found(await self._in_thread(self._sound.push, data), event_id)
        elif isinstance(event, ItemCreate):
            entry = await self._entry(event, event.item.id or new_id("item"))
            self._add(entry, event.previous_item_id)
        elif isinstance(event, ResponseCancel):
            self._cancel(event.response_id)
        elif isinstance(event, AudioCommit):
            found = await self._in_thread(self._sound.commit)
            if not any(isinstance(one, Ended) for one in found):
                raise ProtocolError(
                    "input_audio_buffer",
                    "holds no speech",
                    "append sound first",
                    code="input_audio_buffer_commit_empty",
                )
            self._found(found, event_id, respond=False)
        elif isinstance(event, AudioClear):
            if self._sound.clear():
                self._stopped(self._sound.heard_ms)
            self._say(AudioCleared())
        elif isinstance(event, ItemDelete):
            self._conversation.delete(event.item_id)
            self._say(ItemDeleted(item_id=event.item_id))
        elif isinstance(event, ItemTruncate):
            self._conversation[event.item_id]
            problem, remedy = "was not said aloud", "delete it, or leave it: all of it was sent"
            raise ProtocolError("item_id", problem, remedy, code="unsupported_content_type")
        elif isinstance(event, ItemRetrieve):
            self._say(ItemRetrieved(item=self._conversation[event.item_id].item))
        elif isinstance(event, PlaybackAppend):
            starts_ns = event.starts_ns(time.monotonic_ns())
            data = from_base64("audio", event.audio)
            played = await self._in_thread(self._playback.push, data, starts_ns, self._format)
            self._session.control(Played(played))
        elif isinstance(event, TriggerCreate):
            with self._naming:
                name = self._session.triggers.create(event.trigger)
                self._triggers.add(name)
                self._say(EdgeTriggerCreated(trigger_id=name, trigger=event.trigger))
        elif isinstance(event, TriggerDelete):
            self._session.triggers.delete(event.trigger_id)
            self._say(EdgeTriggerDeleted(trigger_id=event.trigger_id))

    async def _entry(self, event: ItemCreate, item_id: str) -> Entry:
        """Media take their time to decode; others are served meanwhile."""
        item, form = event.item, self._format
        if not _brings_media(item):
            return entry_of(item, item_id, form)
        entry: Entry = await self._read(
            lambda decode: entry_of(item, item_id, form, Budget(decode))
        )
        return entry

    @property
    def _format(self) -> SoundFormat:
        return format_of(self._settings)

    async def _update(self, wanted: Json, event_id: str | None) -> None:
        """Change what can be changed, and tell of the rest."""
        before = self._topics
        # A format may take its time to check; others are served meanwhile.
        parts = self._settings, wanted, self._config
        self._settings, refused, unheard = await self._in_thread(changed, *parts)
        self._topics = frozenset((self._settings.edge and self._settings.edge.events) or ())
        if self._sound.detect_turns(vad_of(self._settings) is not None):
            self._stopped(self._sound.heard_ms)
        self._sound.hear(self._format)
        self._tell_of(refused, unheard, event_id)
        self._say(SessionUpdated(session=self._settings))
        if "session" in self._topics - before:
            self._say(EdgeSessionStarted(run_id=self._run_id))

    def _tell_of(
        self, refused: list[ProtocolError], unheard: list[str], event_id: str | None
    ) -> None:
        fields.told(unheard)
        for error in refused:
            self.refuse(error, event_id)

    def _add(self, entry: Entry, behind: str | None = None) -> None:
        for item_id in self._conversation.add(entry, behind):
            self._say(ItemDeleted(item_id=item_id))
        before = self._conversation.before(entry.item.id or "")
        self._say(ItemAdded(item=entry.item, previous_item_id=before))
        self._say(ItemDone(item=entry.item, previous_item_id=before))

    def _found(
        self, found: list[SpeechStarted | Ended], event_id: str | None, *, respond: bool = True
    ) -> None:
        """What happened in the client's sound. One turn that cannot be used hides no other."""
        vad = vad_of(self._settings)
        for event in found:
            if isinstance(event, SpeechStarted):
                self._speech_id = new_id("item")
                start_ms = max(0, event.onset_ns // NS_PER_MS)
                self._say(SpeechStartedEvent(audio_start_ms=start_ms, item_id=self._speech_id))
                if vad is not None and vad.interrupt_response and self._reply is not None:
                    self._reply.cancel("turn_detected")
                continue
            if vad is not None:
                said = event.utterance
                self._stopped(self._sound.heard_ms if said is None else said.end_ns // NS_PER_MS)
            try:
                self._commit(event)
                if respond and vad is not None and vad.create_response:
                    self._respond(_Wanted(ResponseSettings()), by_voice=True)
            except EdgeError as error:
                self.refuse(error, event_id)

    def _stopped(self, end_ms: int) -> None:
        self._say(SpeechStopped(audio_end_ms=end_ms, item_id=self._speech_id))

    def _commit(self, ended: Ended) -> None:
        """What was said becomes an item."""
        item_id, self._speech_id = self._speech_id, new_id("item")
        sound, before = self._sound.take(ended), self._conversation.last_id
        if sound is not None:
            self._say(AudioCommitted(item_id=item_id, previous_item_id=before))
            self._add(sound_entry(sound, item_id))

    async def _create(self, settings: ResponseSettings) -> None:
        """Decode the input and check the format, if it has its own; others are served meanwhile."""
        if settings.tools or settings.tool_choice or settings.edge is not None:
            own = self._config, self._thinking_sampling
            await self._in_thread(question_of, self._settings, settings, [], *own)
        if settings.input is None:
            self._respond(_Wanted(settings))
            return
        named = [item.id for item in settings.input if isinstance(item, ItemReference)]
        known = {item_id: self._conversation[item_id] for item_id in named}
        items, form = settings.input, self._format
        if any(map(_brings_media, items)):
            entries = await self._read(lambda decode: input_of(items, form, known, decode))
        else:
            entries = input_of(items, form, known)
        wanted = _Wanted(settings, entries)
        self._room.take("response.input", wanted.n_bytes)
        try:
            self._respond(wanted)
        except BaseException:
            self._room.give(wanted.n_bytes)
            raise

    def _wait_with(self, wanted: _Wanted | None) -> None:
        """Answer this next, and not what was to be next."""
        if self._next is not None:
            self._room.give(self._next.n_bytes)
        self._next = wanted

    def _hold(self, n_bytes: int) -> None:
        """The room holds so much for the reply, and not what it held for the last one."""
        self._room.give(self._n_bytes)
        self._n_bytes = n_bytes

    def _respond(self, response: _Wanted, *, by_voice: bool = False) -> None:
        if self._reply is not None:
            if not by_voice and self._reply.cancelled_by is None:
                raise ProtocolError(
                    "response",
                    f"{self._reply.id} is not done yet",
                    "wait for response.done, or send response.cancel first",
                    code="conversation_already_has_active_response",
                )
            self._wait_with(response)
            return
        wanted, messages = response.settings, self._conversation.messages()
        if response.input is not None:
            messages = [entry.message for entry in response.input]
        instructions = wanted.instructions
        if instructions is None:
            instructions = self._settings.instructions or ""
        turns = as_turns(messages, instructions)
        # Its format was checked when it was chosen, and this is the event loop.
        parts = self._settings, wanted, [*turns], self._config, self._thinking_sampling
        question = question_of(*parts, check=False)
        is_kept = wanted.conversation != "none"
        reply = Reply(self._conversation_id if is_kept else None, wanted.metadata)
        reply.remembers, reply.may_call = question.remember, bool(question.callable_tools)
        reply.one_call = self._settings.parallel_tool_calls is False
        if wanted.parallel_tool_calls is not None:
            reply.one_call = not wanted.parallel_tool_calls

        def deliver(event: AnswerEvent, hurried: bool) -> None:
            self._outbox.deliver(_Answered(reply, event), hurried)

        question = replace(question, user=self._room.user)
        reply.turn = self._session.ask(question, first_text_hurried(deliver))
        self._reply = reply
        self._hold(response.n_bytes)
        self._outbox.deliver(_Answered(reply, Begun()))

    def _cancel(self, response_id: str | None) -> None:
        if self._reply is None or response_id not in (None, self._reply.id):
            raise ProtocolError(
                "response",
                "is not being answered",
                "create one first",
                code="response_cancel_not_active",
            )
        self._wait_with(None)
        self._reply.cancel("client_cancelled")

    def _answered(self, reply: Reply, event: AnswerEvent | Begun) -> Iterator[AnyServerEvent]:
        is_kept = reply.conversation_id is not None and not reply.remembers
        for told in reply.events(event):
            if isinstance(told, ResponseDone):
                self._reply = None
                self._hold(0)
                if reply.remembers:
                    yield from self._remembered(reply, told)
            yield told
            if is_kept and isinstance(told, OutputItemAdded):
                self._behind = self._conversation.last_id
                yield ItemAdded(item=told.item, previous_item_id=self._behind)
            elif is_kept and isinstance(told, OutputItemDone):
                yield from self._keep(told.item, "" if told.output_index else reply.reasoning)
        if self._reply is None and self._next is not None:
            wanted, self._next = self._next, None
            try:
                self._respond(wanted)
            except EdgeError as error:
                self._room.give(wanted.n_bytes)
                self.refuse(error)

    def _keep(self, item: Item, reasoning: str) -> Iterator[AnyServerEvent]:
        """A part of an answer joins the conversation where it was begun."""
        entry = entry_of(item, item.id or "")
        entry = replace(entry, message=replace(entry.message, reasoning=reasoning))
        behind: str | None = self._behind or "root"
        if behind not in self._conversation and behind != "root":  # it was deleted since
            behind = None
        for item_id in self._conversation.add(entry, behind):
            yield ItemDeleted(item_id=item_id)
        before = self._conversation.before(item.id or "")
        yield ItemDone(item=item, previous_item_id=before)

    def _remembered(self, reply: Reply, done: ResponseDone) -> Iterator[AnyServerEvent]:
        """Question and answer are in the live context now, or the answer has failed."""
        if done.response.status in ("completed", "incomplete"):
            for item_id in self._conversation.clear():
                yield ItemDeleted(item_id=item_id)
            return
        for place, item in enumerate(reply.output):
            self._behind = self._conversation.last_id
            yield ItemAdded(item=item, previous_item_id=self._behind)
            yield from self._keep(item, "" if place else reply.reasoning)


def _object(message: str) -> Json:
    """An event as it came.

    Raises:
        ProtocolError: it is none.
    """
    event = fields.decoded(message, "event")
    if not isinstance(event, dict):
        raise ProtocolError("event", f"is {type(event).__name__}", "send a JSON object")
    return event


def _brings_media(item: Item | ItemReference) -> bool:
    """Whether anything in it is to be decoded."""
    return isinstance(item, MessageItem) and any(
        isinstance(part, InputImage | InputAudio) for part in item.content
    )


def _check_observes(event: Json) -> None:
    """Whether an observer may send an event: it chooses what it hears of, and nothing else.

    Raises:
        AccessError: it is more than that, which is named.
    """
    if event["type"] != "session.update":
        require("observer", "operator", f"talking with the model ({event['type']})")
    session = _part(event, "session")
    edge = session.get("edge")
    parts = [name for name in session if name not in ("type", "edge")]
    parts += [f"edge.{name}" for name in edge if name != "events"] if isinstance(edge, dict) else []
    for name in parts:
        require("observer", "operator", f"setting session.{name[:40]}")


def _part(event: Json, name: str) -> Json:
    """What an event wants of a session or a response."""
    wanted: Any = event.get(name)
    if wanted is None and name == "response":
        return {}
    if not isinstance(wanted, dict):
        raise ProtocolError(name, f"is {type(wanted).__name__}", "send a JSON object")
    return wanted
