"""What one client of /v1/realtime has: settings, conversation, sound, a response, triggers.

    loop's thread ── outbox ──> told() ──> the client
    the client ──> take() ──> settings, conversation, sound ──> session.ask()

Everything about a client happens in the event loop's thread; the session's thread only puts into
its outbox. What the model makes of a turn is the session's affair; this is only the form.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from edge.config import Config
from edge.errors import EdgeError, ProtocolError, TurnError
from edge.model.sampling import Sampling
from edge.senses.still import from_base64
from edge.senses.turn_events import Ended, Played, SpeechStarted
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
from edge.serve.messages import wrong_field
from edge.serve.outbox import Outbox, first_text_hurried
from edge.serve.playback import Playback, PlaybackAppend
from edge.serve.protocol import (
    AudioAppend,
    AudioClear,
    AudioCommit,
    ItemCreate,
    ItemDelete,
    ItemRetrieve,
    ResponseCancel,
    ResponseCreate,
    ResponseSettings,
    SessionUpdate,
    Topic,
)
from edge.serve.reply import Begun, Reply, error_body
from edge.serve.room import Room
from edge.serve.schema import AnyClientEvent, AnyServerEvent
from edge.serve.server_events import (
    AudioCleared,
    AudioCommitted,
    EdgeHealth,
    Error,
    ItemAdded,
    ItemDeleted,
    ItemDone,
    ItemRetrieved,
    ResponseDone,
    SessionCreated,
    SessionUpdated,
    SpeechStopped,
    new_id,
)
from edge.serve.server_events import SpeechStarted as SpeechStartedEvent
from edge.serve.session_events import TOPICS, dropped_events, told_event
from edge.serve.settings import changed, first_settings, question_of, vad_of
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
_DECODER = msgspec.json.Decoder(AnyClientEvent)


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
        room: Room,
    ) -> None:
        self._session, self._config, self._outbox = session, config, outbox
        self._role = role
        self._thinking_sampling = thinking_sampling
        self._settings = first_settings(new_id("sess"), model, config)
        self._conversation_id = new_id("conv")
        self._room, self._conversation = room, ClientConversation(room)
        self._sound, self._playback = ClientSound(), Playback()
        self._sound.detect_turns(True)
        self._speech_id = new_id("item")
        self._reply: Reply | None = None
        self._n_bytes = 0
        """Of the reply's own input, that the room holds."""
        self._next: _Wanted | None = None
        """To be answered as soon as the cancelled reply has ended; the room holds its input."""
        self._topics: frozenset[Topic] = frozenset()
        self._triggers: set[str] = set()
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
        try:
            event = _DECODER.decode(message)
        except msgspec.ValidationError as error:
            self.refuse(wrong_field(error, ("type",)), _event_id(message))
            return
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            self.refuse(ProtocolError("event", f"is not JSON ({error})", "send a JSON object"))
            return
        try:
            if not isinstance(event, SessionUpdate):  # an observer chooses what it hears of
                require(self._role, "operator", "talking with the model")
            await self._do(event)
        except EdgeError as error:
            self.refuse(error, event.event_id)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this event's
            self.refuse(TurnError.of(error), event.event_id)

    async def _do(self, event: AnyClientEvent) -> None:
        if isinstance(event, AudioAppend):
            pcm = from_base64("audio", event.audio)
            # Finding speech takes its time; others are served meanwhile.
            self._found(await asyncio.to_thread(self._sound.push, pcm))
        elif isinstance(event, ItemCreate):
            item_id = event.item.id or new_id("item")
            if event.previous_item_id not in (None, self._conversation.last_id):
                remedy = "leave it out: items come last"
                raise ProtocolError("previous_item_id", "is not the last item's", remedy)
            self._add(await _entry(event, item_id))
        elif isinstance(event, ResponseCreate):
            await self._create(event.response or ResponseSettings())
        elif isinstance(event, ResponseCancel):
            self._cancel(event.response_id)
        elif isinstance(event, SessionUpdate):
            # A format may take its time to check; others are served meanwhile.
            parts = self._settings, event.session, self._config
            self._settings = await asyncio.to_thread(changed, *parts)
            self._topics = frozenset((self._settings.edge and self._settings.edge.events) or ())
            self._sound.detect_turns(vad_of(self._settings) is not None)
            self._say(SessionUpdated(session=self._settings))
        elif isinstance(event, AudioCommit):
            found = await asyncio.to_thread(self._sound.commit)
            if not any(isinstance(one, Ended) for one in found):
                raise ProtocolError("input_audio_buffer", "holds no speech", "append sound first")
            self._found(found, respond=False)
        elif isinstance(event, AudioClear):
            self._sound.clear()
            self._say(AudioCleared())
        elif isinstance(event, ItemDelete):
            self._conversation.delete(event.item_id)
            self._say(ItemDeleted(item_id=event.item_id))
        elif isinstance(event, ItemRetrieve):
            self._say(ItemRetrieved(item=self._conversation[event.item_id]))
        elif isinstance(event, PlaybackAppend):
            starts_ns = event.starts_ns(time.monotonic_ns())
            pcm = from_base64("audio", event.audio)
            played = await asyncio.to_thread(self._playback.push, pcm, starts_ns)
            self._session.control(Played(played))
        elif isinstance(event, TriggerCreate):
            name = self._session.triggers.create(event.trigger)
            self._triggers.add(name)
            self._say(EdgeTriggerCreated(trigger_id=name, trigger=event.trigger))
        elif isinstance(event, TriggerDelete):
            self._session.triggers.delete(event.trigger_id)
            self._say(EdgeTriggerDeleted(trigger_id=event.trigger_id))

    def _add(self, entry: Entry) -> None:
        before = self._conversation.last_id
        for item_id in self._conversation.add(entry):
            self._say(ItemDeleted(item_id=item_id))
        self._say(ItemAdded(item=entry.item, previous_item_id=before))
        self._say(ItemDone(item=entry.item, previous_item_id=before))

    def _found(self, found: list[SpeechStarted | Ended], *, respond: bool = True) -> None:
        """What happened in the client's sound."""
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
                end_ms = self._sound.heard_ms if said is None else said.end_ns // NS_PER_MS
                self._say(SpeechStopped(audio_end_ms=end_ms, item_id=self._speech_id))
            item_id, before = self._speech_id, self._conversation.last_id
            self._speech_id = new_id("item")
            entry = sound_entry(self._sound.take(event), item_id)
            self._say(AudioCommitted(item_id=item_id, previous_item_id=before))
            self._add(entry)
            if respond and vad is not None and vad.create_response:
                self._respond(_Wanted(ResponseSettings()), by_voice=True)

    async def _create(self, settings: ResponseSettings) -> None:
        """Decode the input and check the format, if it has its own; others are served meanwhile."""
        if settings.tools or settings.edge is not None:  # the answer is then known to the cache
            own = self._config, self._thinking_sampling
            await asyncio.to_thread(question_of, self._settings, settings, [], *own)
        if settings.input is None:
            self._respond(_Wanted(settings))
            return
        wanted = _Wanted(settings, await asyncio.to_thread(input_of, settings.input))
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
        question = question_of(
            self._settings, wanted, [*turns], self._config, self._thinking_sampling
        )
        is_kept = wanted.conversation == "auto"
        reply = Reply(self._conversation_id if is_kept else None, wanted.metadata)
        reply.remembers, reply.may_call = question.remember, bool(question.callable_tools)

        def deliver(event: AnswerEvent, hurried: bool) -> None:
            self._outbox.deliver(_Answered(reply, event), hurried)

        reply.turn = self._session.ask(question, first_text_hurried(deliver))
        self._reply = reply
        self._hold(response.n_bytes)
        self._outbox.deliver(_Answered(reply, Begun()))

    def _cancel(self, response_id: str | None) -> None:
        if self._reply is None or response_id not in (None, self._reply.id):
            raise ProtocolError("response", "is not being answered", "create one first")
        self._wait_with(None)
        self._reply.cancel("client_cancelled")

    def _answered(self, reply: Reply, event: AnswerEvent | Begun) -> Iterator[AnyServerEvent]:
        for told in reply.events(event):
            if isinstance(told, ResponseDone):
                self._reply = None
                self._hold(0)
                yield from self._keep(reply, told)
            yield told
        if self._reply is None and self._next is not None:
            wanted, self._next = self._next, None
            try:
                self._respond(wanted)
            except EdgeError as error:
                self._room.give(wanted.n_bytes)
                self.refuse(error)

    def _keep(self, reply: Reply, done: ResponseDone) -> Iterator[AnyServerEvent]:
        """The answer joins the conversation, or both are in the live context now."""
        if reply.remembers and done.response.status in ("completed", "incomplete"):
            for item_id in self._conversation.clear():
                yield ItemDeleted(item_id=item_id)
        elif reply.conversation_id is not None:
            for item in reply.output:
                before = self._conversation.last_id
                for item_id in self._conversation.add(entry_of(item, item.id or "")):
                    yield ItemDeleted(item_id=item_id)
                yield ItemAdded(item=item, previous_item_id=before)
                yield ItemDone(item=item, previous_item_id=before)


async def _entry(event: ItemCreate, item_id: str) -> Entry:
    """Media take their time to decode; others are served meanwhile."""
    is_text = len(msgspec.json.encode(event.item)) < 1 << 14
    if is_text:
        return entry_of(event.item, item_id)
    return await asyncio.to_thread(entry_of, event.item, item_id)


class _Named(msgspec.Struct):
    event_id: str | None = None


def _event_id(message: str) -> str | None:
    """The event's own id, if that at least can be read."""
    try:
        return msgspec.json.decode(message, type=_Named).event_id
    except (msgspec.DecodeError, UnicodeError, RecursionError):  # the decoder stopped before that
        return None
