"""The loop: what comes first, what is dropped and counted, what ends it."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.clock import NS_PER_S, VirtualClock
from edge.config import load_config
from edge.errors import CapacityError, EngineError, MediaError
from edge.features.pixels import tubelet_patches, video_grid
from edge.model.prompt import ChatTemplate, tubelet_text, video_text
from edge.model.sampling import Sampling
from edge.model.tokenizer import Tokenizer
from edge.senses.recording import Recording
from edge.senses.ring import Ring, oldest_of
from edge.senses.sound import end_ns
from edge.service import _collector, _senses
from edge.session.budget import Rung
from edge.session.intake import Refused
from edge.session.live_prompt import LivePrompt
from edge.session.loop import LiveLoop
from edge.session.perceive import Listener, Watcher, WindowCollector, embed_media
from edge.session.sense import Sense, audio_sense, video_sense
from edge.session.turn import Done, Failed, Message, Question
from edge.types import AudioChunk, Frame

pytest_plugins = ["media"]

TIMEOUT_S = 30


class Scripted:
    """A source of a list, with an error or a pause at its end."""

    def __init__(self, items, error=None, hold=None):
        self.items, self.error, self.hold = items, error, hold
        self.closed = threading.Event()

    def frames(self):
        for item in self.items:
            if self.closed.is_set():
                return
            yield item
        if self.hold:
            self.closed.wait(TIMEOUT_S)
        if self.error:
            raise self.error

    chunks = frames

    def close(self):
        self.closed.set()


def frame(index, fps=2.0, shape=(50, 90)):
    rng = np.random.default_rng(index)
    pixels = rng.integers(0, 256, (*shape, 3), np.uint8)
    return Frame(pixels, int(index / fps * NS_PER_S), index, "camera")


def chunk(index, n=1600):
    samples = np.random.default_rng(index).standard_normal(n).astype(np.float32) * 0.1
    return AudioChunk(samples, index * NS_PER_S // 10, "microphone")


@pytest.fixture
def make(bundle, engine):
    def build(video=None, audio=None, **changes):
        folder = bundle("base")
        config = load_config(None, {"perception": {"audio_window_s": 0.3}, **changes})
        prompt = LivePrompt(Tokenizer(folder), ChatTemplate(folder), config.context.system)
        parts, clock = (engine("base"), prompt.tokenizer), VirtualClock()
        collector = _collector(config)
        senses = [
            audio_sense(Listener(*parts, clock, collector), audio or Scripted([])),
            video_sense(Watcher(*parts, clock, 0), video or Scripted([])),
        ]
        return LiveLoop(engine("base"), prompt, config, clock, "base", senses, start_ns=0)

    return build


class Asker:
    """Collects the events of turns; `ended` is set by the last event of each."""

    def __init__(self, loop):
        self.loop, self.events, self.ended = loop, [], threading.Event()

    def ask(self, text="Hello", max_tokens=4):
        question = Question((Message("user", text),), Sampling(), max_tokens)
        return self.loop.ask(question, self.deliver)

    def deliver(self, event):
        self.events.append(event)
        if isinstance(event, Done | Failed):
            self.ended.set()


def drive(loop):
    """Step until there is nothing to do."""
    n = 0
    while loop.step():
        n += 1
    return n


def put(loop, frames=(), chunks=()):
    sound, sight = loop._senses
    for item in frames:
        sight.put(item)
    for item in chunks:
        sound.put(item)


def modalities(loop):
    return [segment.modality for segment in loop._context.ledger[1:]]


def test_two_frames_make_a_tubelet_and_chunks_a_window(make):
    loop = make()
    put(loop, [frame(0)], [chunk(0), chunk(1)])
    drive(loop)
    assert modalities(loop) == []
    put(loop, [frame(1)], [chunk(2)])
    drive(loop)
    assert sorted(modalities(loop)) == ["audio", "video"]
    video, audio = sorted(loop._context.evidence(), key=lambda evidence: evidence.source)
    assert (video.source, video.frame_ids) == ("camera", (0, 1))
    assert (video.start_ns, video.end_ns) == (0, NS_PER_S // 2)
    assert (audio.source, audio.start_ns, audio.end_ns) == ("microphone", 0, 3 * NS_PER_S // 10)
    assert loop.status().counters["video_segments"] == 1


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(st.integers(0, 6), min_size=24, max_size=24))
def test_any_arrival_pattern_gives_the_ledger_and_the_logits_of_one_prefill(make, steps):
    """However many steps the loop finds time for between two arrivals, and whoever asks."""
    loop = make()
    for index, n_steps in enumerate(steps):
        put(loop, chunks=[chunk(index)])
        if n_steps == 6:
            Asker(loop).ask()
        for _ in range(n_steps):
            loop.step()
    drive(loop)
    context = loop._context
    whole = make()
    clips = [chunk(index) for index in range(24)]
    put(whole, chunks=clips)
    drive(whole)
    assert context.ledger == whole._context.ledger
    assert sum(segment.n_tokens for segment in context.ledger) == context.n_tokens
    engine = context.engine
    state = engine.new_state()
    rows = [segment.embeddings for segment in context._kept]
    line = context.slots.separator
    parts = [context.slots.anchor, rows[0], *(part for row in rows[1:] for part in (line, row))]
    engine.prefill(state, np.concatenate(parts))
    with context.fork() as fork:
        got, wanted = engine.decode(fork.state, 5), engine.decode(state, 5)
    np.testing.assert_allclose(got, wanted, atol=2e-5 * np.abs(wanted).max())


def test_a_window_ends_where_sound_was_lost(make):
    loop = make()
    put(loop, chunks=[chunk(0), chunk(1), chunk(5), chunk(6), chunk(7)])
    drive(loop)
    tenths = NS_PER_S // 10
    bounds = [(found.start_ns, found.end_ns) for found in loop._context.evidence()]
    assert bounds == [(0, 2 * tenths), (5 * tenths, 8 * tenths)]


@pytest.mark.parametrize("listen", ["windows", "utterances"])
def test_what_a_gap_completes_is_not_late(make, listen):
    """A microphone and a camera that come back after a minute: nobody was late for that minute."""
    loop = make(perception={"audio_window_s": 2.0, "listen": listen})
    clock = loop._clock
    spoken = np.random.default_rng(0).standard_normal(1600).astype(np.float32)
    for at in (*range(55), *range(655, 700)):  # tenths of a second
        clock.sleep_until((at + 1) * NS_PER_S // 10)
        put(loop, chunks=[AudioChunk(spoken, at * NS_PER_S // 10, "microphone")])
        if at in (0, 5, 50, 655, 660):
            put(loop, [frame(at // 5)])
        drive(loop)
    assert loop.status().counters["video_segments"] == 3
    assert list(loop.degraded) == []


def test_what_waits_for_the_loop_is_late(make):
    loop = make()
    for at_s in range(4):
        loop._clock.sleep_until(at_s * NS_PER_S)
        loop.step()
    put(loop, [frame(0), frame(1)], [chunk(i) for i in range(3)])
    loop._clock.sleep_until(4 * NS_PER_S)
    while loop._intake.lateness_ns == 0:
        loop._perception.step()
        loop._listen()
    assert loop._intake.lateness_ns == pytest.approx(3.7 * NS_PER_S, abs=NS_PER_S / 4)


def test_a_tubelet_does_not_go_over_a_gap_nor_over_a_change_of_size(make):
    loop = make()
    put(loop, [frame(0), frame(1)])
    drive(loop)
    put(loop, [frame(2)])
    drive(loop)
    put(loop, [frame(7200)])  # the camera was away for an hour
    drive(loop)
    put(loop, [frame(7201)])
    drive(loop)
    put(loop, [frame(7202)])
    drive(loop)
    put(loop, [frame(7203, shape=(60, 90))])
    drive(loop)
    put(loop, [frame(7204, shape=(60, 90))])
    drive(loop)
    found = [s.evidence.frame_ids for s in loop._context.ledger if s.evidence]
    assert found == [(0, 1), (2,), (7200, 7201), (7202,), (7203, 7204)]
    asker = Asker(loop)
    question = Question((Message("user", "Hello"),), Sampling(), 4, recall_s=(2000.0, 1000.0))
    loop.ask(question, asker.deliver, asked_ns=3600 * NS_PER_S)
    drive(loop)
    assert "nothing is kept of that time" in str(asker.events[-1].error)
    early = Question((Message("user", "Hello"),), Sampling(), 4, recall_s=(9000.0, 8000.0))
    loop.ask(early, asker.deliver, asked_ns=3600 * NS_PER_S)
    drive(loop)
    assert "the session began 3600.0 s ago, after the time" in str(asker.events[-1].error)


def test_frames_that_come_slowly_are_joined_as_ever(make):
    """By the rate that was asked for, by the budget's share of it, and by what a busy loop left."""
    one, tokenizer, clock = make()._context.engine, make()._prompt.tokenizer, VirtualClock()
    for fps, one_in, apart_s, joins in (
        *((2.0, 1, 1.9, True), (2.0, 1, 2.1, False), (0.2, 1, 12.0, True), (0.2, 1, 13.0, False)),
        *((1.0, 2, 4.9, True), (1.0, 2, 5.1, False)),
    ):
        watcher = Watcher(one, tokenizer, clock, 0, fps=fps)
        watcher.rung = Rung("", one_frame_in=one_in)
        watcher.take(frame(0))
        watcher.take(replace(frame(1), capture_ns=int(apart_s * NS_PER_S)))
        assert watcher.n_waiting
        assert (not watcher._frames) is joins


def test_sound_longer_than_a_clip_is_encoded_in_clips(make):
    loop = make(perception={"audio_window_s": 30.0})
    put(loop, chunks=[chunk(0, 483_096)])
    drive(loop)
    (found,) = loop._context.evidence()
    assert found.end_ns - found.start_ns == 483_096 * NS_PER_S // 16_000


def test_a_window_of_30_s_is_one_clip_however_its_sound_is_cut(make):
    for length in (512, 1600, 7000):
        loop, clips = make(perception={"audio_window_s": 30.0}), []
        one = loop._context.engine
        listener = Listener(one, loop._prompt.tokenizer, loop._clock, WindowCollector(30.0))
        one.encode_audio = lambda mel, encode=one.encode_audio, clips=clips: (
            clips.append(len(mel)) or encode(mel)
        )
        for start in range(0, 3 * 480_000, length):
            listener.take(AudioChunk(np.full(length, 0.1, np.float32), start * 62_500, "m"))
        while listener.n_waiting:
            listener.encode()
        assert len(clips) in (2, 3)
        assert min(clips) > 2950


def test_speech_is_one_segment_and_silence_none(make, speech):
    name = "Front_Center.wav"
    spoken = list(Recording.open(speech / name).sound(VirtualClock(), NS_PER_S).chunks())
    before = AudioChunk(np.zeros(16_000, np.float32), 0, name)
    after_ns = end_ns(spoken[-1])
    after = AudioChunk(np.zeros(16_000, np.float32), after_ns, name)
    loop = make(perception={"listen": "utterances"})
    put(loop, chunks=[before, *spoken, after])
    drive(loop)
    (found,) = loop._context.evidence()
    assert found.start_ns > 3 * NS_PER_S // 4
    assert found.end_ns < after_ns + NS_PER_S // 4
    assert loop.status().counters["audio_segments"] == 1


def test_a_question_about_a_part_of_the_past_stands_on_that_part(make):
    loop = make()
    put(loop, [frame(0), frame(1)])
    drive(loop)
    put(loop, [frame(8), frame(9)])
    drive(loop)
    asker = Asker(loop)
    n_live = loop._context.n_tokens
    question = Question((Message("user", "Hello"),), Sampling(), 4, recall_s=(4.0, 1.5))
    loop.ask(question, asker.deliver, asked_ns=5 * NS_PER_S)  # so from 1 s to 3.5 s
    drive(loop)
    assert isinstance(asker.events[-1], Failed)
    assert "nothing is kept" in str(asker.events[-1].error)
    question = Question((Message("user", "Hello"),), Sampling(), 4, recall_s=(5.0, 4.2))
    loop.ask(question, asker.deliver, asked_ns=5 * NS_PER_S)  # so from 0 s to 0.8 s
    drive(loop)
    timeline = asker.events[-1].timeline
    assert [evidence.frame_ids for evidence in timeline.evidence] == [(0, 1)]
    assert timeline.n_context_tokens < n_live == loop._context.n_tokens


def test_a_question_comes_before_sound_and_sound_before_sight(make):
    loop = make()
    asker = Asker(loop)
    put(loop, [frame(0), frame(1)], [chunk(0), chunk(1), chunk(2)])
    asker.ask()
    while not asker.ended.is_set():
        assert loop.step()
        assert modalities(loop) == []
    assert isinstance(asker.events[-1], Done)
    drive(loop)
    assert modalities(loop) == ["audio", "video"]


def test_frames_that_wait_too_long_give_way_to_newer_ones(make):
    loop = make()
    put(loop, [frame(i) for i in range(9)])
    drive(loop)
    assert loop._context.evidence()[0].frame_ids == (7, 8)
    assert loop.status().counters["video_dropped"] == 7
    assert loop.status().senses["video"]["dropped"] == 7
    assert loop.status().senses.keys() == {"video", "audio"}


def test_the_prompt_counts_frames_and_seconds_from_the_start(make):
    loop = make()
    put(loop, [frame(0), frame(1)])
    drive(loop)
    put(loop, [frame(5), frame(6)])
    drive(loop)
    # Equal to the whole prompt rendered at once by the published rules.
    engine, tokenizer = loop._context.engine, loop._prompt.tokenizer
    vision = engine.spec.vision
    grid = video_grid(90, 50, vision.video_target_patches)
    pixels = [frame(i).pixels for i in (0, 1, 5, 6)]
    media = engine.encode_tubelets(tubelet_patches(pixels, grid, vision), grid)
    text = video_text([0.0, 0.5, 2.5, 3.0], [len(media[0])] * 2)
    before = "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n"
    rows = embed_media(engine, tokenizer, before + text, np.concatenate(list(media)))
    state = engine.new_state()
    expected = engine.prefill(state, rows)
    assert loop._context.n_tokens == len(rows)
    with loop._context.fork() as fork:
        got, same = engine.decode(fork.state, 5), engine.decode(state, 5)
    assert np.abs(got - same).max() <= 2e-5 * np.abs(expected).max()


def test_several_cameras_are_told_apart_by_the_names_before_their_frames(make):
    """Each counts its own frames; all times are the session's."""
    loop = make()
    engine, tokenizer = loop._context.engine, loop._prompt.tokenizer
    vision = engine.spec.vision
    for name, first in (("front", 0), ("arm", 4)):
        watcher = Watcher(engine, tokenizer, VirtualClock(), 0, name=name, is_named=True)
        for index in (first, first + 1):
            watcher.take(frame(index))
        seen = watcher.encode().perceived
        grid = video_grid(90, 50, vision.video_target_patches)
        pixels = [frame(first).pixels, frame(first + 1).pixels]
        media = engine.encode_tubelets(tubelet_patches(pixels, grid, vision), grid)[0]
        said = f"{name}: {tubelet_text(1, [first / 2, first / 2 + 0.5], len(media))}"
        assert said.startswith(f"{name}: Frame 1 sampled at {first / 2:.2f} seconds and frame 2")
        assert seen.evidence.source == name
        wanted = embed_media(engine, tokenizer, said, media)
        np.testing.assert_array_equal(seen.embeddings, wanted)


def test_a_camera_may_be_called_as_the_command_lines_recording_is(make):
    """Which alone has no name of its own."""
    loop = make()
    parts = (loop._context.engine, loop._prompt.tokenizer, load_config(None), loop._clock, 0)
    named = _senses(*parts, dict.fromkeys(["audio", "mast"]), dict.fromkeys(["video", "rear"]))
    found = [(sense.source, sense._perceiver._prefix) for sense in named]
    assert found == [(name, f"{name}: ") for name in ("audio", "mast", "video", "rear")]
    alone = _senses(*parts, {"audio": None}, {"video": None})
    assert [(s._perceiver.name, s._perceiver._prefix) for s in alone] == [("", ""), ("", "")]


def test_too_many_questions_are_refused_and_the_others_answered(make):
    loop = make(socket={"max_waiting": 2})
    asker = Asker(loop)
    asker.ask()
    asker.ask()
    with pytest.raises(CapacityError, match="2 others are waiting"):
        asker.ask()
    drive(loop)
    assert sum(isinstance(event, Done) for event in asker.events) == 2


def test_a_refused_question_fails_alone(make):
    loop = make()
    asker = Asker(loop)
    asker.ask("Hello", max_tokens=1 << 20)
    asker.ask("Hello")
    drive(loop)
    assert isinstance(asker.events[0], Failed)
    assert isinstance(asker.events[-1], Done)
    assert loop.status().counters["answers_refused"] == 1


def test_a_segment_without_room_is_dropped_and_counted(make):
    loop = make(context={"max_tokens": 60, "keep_tokens": 20}, answer={"max_tokens": 4})
    told = []
    loop.observe(told.append)
    put(loop, [frame(0), frame(1)])
    drive(loop)
    assert modalities(loop) == []
    assert loop.status().counters["segments_refused"] == 1
    (refused,) = told
    assert isinstance(refused, Refused)
    assert refused.source == "camera"
    assert "has 43 tokens, the context keeps 20; raise context.keep_tokens" in refused.reason


def running(loop):
    failures = []

    def run():
        try:
            loop.run()
        except EngineError as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, failures


def test_the_end_of_a_source_flushes_what_is_left_and_goes_on(make):
    video, audio = Scripted([frame(0)]), Scripted([chunk(0, 500)])
    loop = make(video, audio)
    asker = Asker(loop)
    thread, failures = running(loop)
    # Questions go on being answered; by then the loop has seen both ends.
    while loop.status().counters.get("video_segments", 0) == 0 or "audio" not in modalities(loop):
        asker.ended.clear()
        asker.ask()
        assert asker.ended.wait(TIMEOUT_S)
    loop.stop()
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()
    assert failures == []
    assert video.closed.is_set()
    assert sorted(modalities(loop)) == ["audio", "video"]


def test_a_source_that_fails_is_counted_and_the_rest_goes_on(make):
    video = Scripted([frame(0), frame(1)], MediaError("clip.mp4", "broke", "copy it again"))
    loop = make(video)
    asker = Asker(loop)
    thread, _ = running(loop)
    while not loop.status().counters["video_failed"]:
        asker.ended.clear()
        asker.ask()
        assert asker.ended.wait(TIMEOUT_S)
    loop.stop()
    thread.join(TIMEOUT_S)
    assert loop.status().counters["video_failed"] == 1


def test_an_engine_failure_reaches_the_client_and_ends_the_loop(make, monkeypatch):
    loop = make(Scripted([], hold=True))
    asker = Asker(loop)
    error = EngineError("engine", "gave NaN", "restart")

    def fail(*_):
        raise error

    monkeypatch.setattr("edge.session.answers.Answering.step", fail)
    thread, failures = running(loop)
    asker.ask()
    assert asker.ended.wait(TIMEOUT_S)
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()
    assert failures == [error]
    assert asker.events == [Failed(error)]


def test_a_ring_drops_its_oldest_and_never_blocks():
    woken = []
    ring = Ring(3, lambda: woken.append(1))
    for item in range(10):
        ring.put(item)
    assert [ring.take() for _ in range(4)] == [7, 8, 9, None]
    assert ring.n_dropped == 7
    assert len(woken) == 10


def test_bad_sound_or_pictures_are_dropped_and_counted(make):
    loop = make()
    told = []
    loop.observe(told.append)
    poisoned = chunk(0, 4800)
    poisoned.samples[7] = np.nan
    put(loop, [frame(0, shape=(4, 90)), frame(1, shape=(4, 90))], [poisoned])
    drive(loop)
    assert loop.status().counters["segments_refused"] == 2
    assert [(type(event), event.source) for event in told] == [
        *((Refused, "audio"), (Refused, "video"))
    ]
    put(loop, [frame(2), frame(3)], [chunk(1), chunk(2), chunk(3)])
    drive(loop)
    assert sorted(modalities(loop)) == ["audio", "video"]


def test_questions_that_wait_at_the_stop_are_told(make, monkeypatch):
    loop = make(Scripted([], hold=True))
    asker = Asker(loop)
    asker.ask()
    loop.stop()
    loop.run()
    assert isinstance(asker.events[-1], Failed)
    assert "is stopping" in str(asker.events[-1].error)


def test_a_question_after_the_end_is_refused_at_once(make):
    loop = make()
    loop.stop()
    loop.run()
    asker = Asker(loop)
    with pytest.raises(CapacityError, match="is stopping"):
        asker.ask()
    assert loop.n_turns == 0


@pytest.mark.alone
def test_sources_that_take_their_time_to_close_do_not_add_up(make, monkeypatch):
    monkeypatch.setattr("edge.session.loop.FEED_JOIN_S", 0.4)
    loop, released = make(), threading.Event()
    slow = [Scripted([]) for _ in range(4)]
    for one in slow:
        one.frames = lambda: iter(lambda: released.wait(TIMEOUT_S) and None, None)
    loop._senses = [
        Sense(f"eye{n}", loop._senses[1]._perceiver, 2, one.frames) for n, one in enumerate(slow)
    ]
    loop.stop()
    began_s = time.monotonic()
    loop.run()
    took_s = time.monotonic() - began_s
    released.set()
    assert 0.4 <= took_s < 1.2


def test_a_source_that_is_silent_at_the_end_keeps_nothing_of_the_session(make, monkeypatch):
    """Its thread cannot be ended, and whatever it held would never be freed."""
    monkeypatch.setattr("edge.session.loop.FEED_JOIN_S", 0.0)
    released, silent = threading.Event(), Scripted([])
    silent.frames = lambda: iter(lambda: released.wait(TIMEOUT_S) and None, None)
    loop = make(silent)
    loop.stop()
    loop.run()
    watcher = weakref.ref(loop._senses[1]._perceiver)
    del loop
    gc.collect()
    kept = watcher()
    released.set()
    assert kept is None


def test_what_a_source_gives_before_it_ends_is_taken(make, monkeypatch):
    """Its thread may put the last frame and end between the loop's looks at both."""
    loop = make()
    _, sight = loop._senses
    look = oldest_of

    def between(rings):
        found = look(rings)
        if found is None:
            monkeypatch.setattr("edge.session.sense.oldest_of", look)
            sight.put(frame(0))
            sight.end()
        return found

    monkeypatch.setattr("edge.session.sense.oldest_of", between)
    while sight.take() is not None or sight.take() is not None:
        pass
    drive(loop)
    assert [s.evidence.frame_ids for s in loop._context.ledger if s.evidence] == [(0,)]


def test_a_defect_of_a_source_ends_the_loop(make):
    loop = make(Scripted([], ZeroDivisionError("defect")))
    with pytest.raises(ZeroDivisionError):
        loop.run()
