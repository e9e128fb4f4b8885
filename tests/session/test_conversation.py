"""Spoken turns in the loop: begun at a soft end, told at the end, undone when speech goes on."""

from __future__ import annotations

import copy

import msgspec
import numpy as np
import pytest
from test_loop import chunk as noise
from test_loop import drive, frame
from turn_scenes import chunks, conversations

from edge.clock import NS_PER_S, VirtualClock
from edge.config import load_config
from edge.errors import CapacityError, EngineError, ProtocolError
from edge.model.prompt import ChatTemplate
from edge.model.sampling import Sampling
from edge.model.tokenizer import Tokenizer
from edge.senses.sound import BLOCK_NS, BLOCK_SAMPLES
from edge.senses.turn_events import Button, Choose, Ended, Played, SpeechStarted
from edge.senses.turns import (
    MAX_GAP_NS,
    MIN_SILENCE_BLOCKS,
    MIN_SPEECH_BLOCKS,
    SOFT_END_BLOCKS,
    TurnDetector,
)
from edge.session.intake import Refused
from edge.session.live_prompt import LivePrompt
from edge.session.loop import LiveLoop
from edge.session.perceive import Listener, Watcher
from edge.session.record import RecordedClock, Recorder, read
from edge.session.replay import replay
from edge.session.sense import MAX_WISHES, Sense, audio_sense, video_sense
from edge.session.triggers import Trigger
from edge.session.turn import (
    Done,
    Failed,
    Message,
    Question,
    SpeechStopped,
    Spoken,
    TextDelta,
    Turn,
)
from edge.types import AudioChunk, Evidence

pytest_plugins = ["media"]
SPEECH, SILENCE = 0.9, 0.0


class Robot:
    """A loop with a microphone that hears what it is told, in blocks, and its own voice."""

    def __init__(self, folder, engine, mode, recorder=None, clock=None, start_ns=0, **changes):
        settings = {"turns": {"mode": mode}, "answer": {"max_tokens": 12}, **changes}
        config = load_config(None, {"perception": {"listen": "utterances"}, **settings})
        self.config, self.clock = config, clock or VirtualClock()
        prompt = LivePrompt(Tokenizer(folder), ChatTemplate(folder), "")
        parts = (engine, prompt.tokenizer, self.clock)
        # The sound is its own script: a block's first sample is its probability of speech.
        self.detector = detector = TurnDetector(mode, lambda samples: float(samples[0]))
        self.senses = [
            audio_sense(Listener(*parts, detector)),
            video_sense(Watcher(*parts, start_ns)),
        ]
        self.loop = LiveLoop(
            *(engine, prompt, config, self.clock, "base", self.senses),
            start_ns=start_ns,
            recorder=recorder,
        )
        self.events, self.n_blocks = [], 0
        self.loop.watch(self.events.append)

    def hears(self, n_blocks, probability, *, work=True):
        """So many blocks, while the loop works on everything it can."""
        for _ in range(n_blocks):
            samples = 0.1 * np.random.default_rng(self.n_blocks).standard_normal(BLOCK_SAMPLES)
            samples = samples.astype(np.float32)
            samples[0] = probability
            self.senses[0].put(AudioChunk(samples, self.n_blocks * BLOCK_NS, "microphone"))
            self.n_blocks += 1
            if isinstance(self.clock, VirtualClock):
                self.clock.sleep_until(self.n_blocks * BLOCK_NS)
            if work:
                drive(self.loop)

    def sees(self, index):
        for i in (2 * index, 2 * index + 1):
            self.senses[1].put(frame(i))

    def kinds(self):
        return [type(event) for event in self.events if not isinstance(event, TextDelta)]

    def answers(self):
        texts = [""]
        for event in self.events:
            if isinstance(event, TextDelta):
                texts[-1] += event.text
            elif isinstance(event, Done):
                texts.append("")
        return texts[:-1]

    def decoded(self):
        with self.loop._context.fork() as fork:
            return self.loop._context.engine.decode(fork.state, 5)

    def counts(self, name):
        return self.loop.status().counters.get(name, 0)


@pytest.fixture
def robot(bundle, engine):
    def make(mode="open", **settings):
        return Robot(bundle("base"), engine("base"), mode, **settings)

    return make


def test_an_answer_is_begun_at_the_soft_end_and_told_at_the_end(robot):
    robot = robot()
    robot.sees(0)
    robot.hears(10, SPEECH)
    assert robot.kinds() == [SpeechStarted]
    n_before = robot.loop._context.n_tokens
    robot.hears(SOFT_END_BLOCKS, SILENCE)
    assert robot.kinds() == [SpeechStarted]  # the answer is complete, and nobody has heard of it
    assert robot.loop._context.is_tentative
    assert robot.loop._context.n_tokens > n_before
    assert not len(robot.loop._answers)
    robot.hears(MIN_SILENCE_BLOCKS - SOFT_END_BLOCKS, SILENCE)
    assert robot.kinds() == [SpeechStarted, SpeechStopped, Spoken, Done]
    assert not robot.loop._context.is_tentative
    spoken = next(event for event in robot.events if isinstance(event, Spoken))
    assert spoken.evidence.source == "microphone"
    assert robot.answers()[0]
    # Nobody could have had its first token before the turn was over.
    timeline = robot.events[-1].timeline
    assert timeline.asked_ns == 10 * BLOCK_NS
    assert timeline.first_token_ns == (10 + MIN_SILENCE_BLOCKS) * BLOCK_NS
    assert [segment.modality for segment in robot.loop._context.ledger] == [
        "text",
        "video",
        "audio",
    ]
    assert robot.counts("speculations") == robot.counts("answers") == 1


def test_an_answer_is_the_same_whether_it_was_begun_early_or_not(robot):
    early, late = robot(), robot()
    for one in (early, late):
        one.sees(0)
        one.hears(10, SPEECH)
    early.hears(MIN_SILENCE_BLOCKS, SILENCE)
    late.hears(MIN_SILENCE_BLOCKS, SILENCE, work=False)  # the loop sleeps over the pause
    drive(late.loop)
    assert early.answers() == late.answers() != [""]
    np.testing.assert_array_equal(early.decoded(), late.decoded())


def test_a_pause_that_was_not_the_end_leaves_no_trace(robot):
    robot = robot()
    robot.sees(0)
    robot.hears(10, SPEECH)
    before, ledger = robot.decoded(), list(robot.loop._context.ledger)
    robot.hears(SOFT_END_BLOCKS + 3, SILENCE)
    assert robot.loop._context.is_tentative
    robot.hears(1, SPEECH)
    np.testing.assert_array_equal(robot.decoded(), before)
    assert robot.loop._context.ledger == ledger
    assert robot.kinds() == [SpeechStarted]
    robot.hears(6, SPEECH)
    robot.hears(MIN_SILENCE_BLOCKS, SILENCE)
    assert robot.kinds() == [SpeechStarted, SpeechStopped, Spoken, Done]
    assert robot.counts("speculations") == 2
    assert robot.counts("speculations_given_up") == 1
    # The clip that stays is the whole question.
    (heard,) = [e for e in robot.loop._context.evidence() if e.source == "microphone"]
    assert heard.end_ns - heard.start_ns > (10 + SOFT_END_BLOCKS + 3 + 7) * BLOCK_NS


def test_speech_that_resumes_while_the_answer_is_being_made_undoes_it(robot):
    robot = robot()
    robot.hears(10, SPEECH)
    before = robot.decoded()
    robot.hears(SOFT_END_BLOCKS, SILENCE, work=False)
    for _ in range(SOFT_END_BLOCKS + 3):  # in the middle of the answer
        assert robot.loop.step()
    assert len(robot.loop._answers) == 1
    robot.hears(1, SPEECH, work=False)
    assert robot.loop.step()
    assert not len(robot.loop._answers)
    np.testing.assert_array_equal(robot.decoded(), before)


def test_a_typed_question_in_the_pause_comes_first_and_both_are_answered(robot):
    robot = robot()
    robot.hears(10, SPEECH)
    robot.hears(SOFT_END_BLOCKS + 2, SILENCE)
    typed = []
    question = Question((Message("user", "Hello"),), Sampling(), 5)
    robot.loop.ask(question, typed.append)
    drive(robot.loop)
    assert isinstance(typed[-1], Done)
    assert not robot.loop._context.is_tentative
    robot.hears(MIN_SILENCE_BLOCKS, SILENCE)
    assert robot.kinds() == [SpeechStarted, SpeechStopped, Spoken, Done]
    assert sum(s.n_tokens for s in robot.loop._context.ledger) == robot.loop._context.n_tokens


def test_what_is_seen_in_the_pause_waits_and_enters_behind_the_question(robot):
    robot = robot()
    robot.hears(10, SPEECH)
    robot.hears(SOFT_END_BLOCKS, SILENCE)
    robot.sees(0)
    drive(robot.loop)
    assert [s.modality for s in robot.loop._context.ledger] == ["text", "audio"]
    robot.hears(MIN_SILENCE_BLOCKS, SILENCE)
    assert [s.modality for s in robot.loop._context.ledger] == ["text", "audio", "video"]


def test_a_microphone_that_goes_in_the_pause_does_not_blind_the_robot(robot):
    robot = robot()
    robot.hears(10, SPEECH)
    robot.hears(SOFT_END_BLOCKS, SILENCE)
    robot.clock.sleep_until(robot.clock.now_ns() + 2 * NS_PER_S)
    robot.sees(0)
    drive(robot.loop)
    assert [s.modality for s in robot.loop._context.ledger] == ["text", "video"]


def test_what_the_robot_plays_is_no_sign_that_its_microphone_is_there(robot):
    robot = robot()
    robot.hears(10, SPEECH)
    robot.hears(SOFT_END_BLOCKS, SILENCE)
    assert robot.loop._context.is_tentative
    for i in range(30):  # the microphone has gone, the loudspeaker has not
        robot.clock.sleep_until(robot.clock.now_ns() + NS_PER_S // 10)
        robot.loop.control(Played(noise(i)))
        if i == 15:
            robot.sees(0)
        drive(robot.loop)
    assert [s.modality for s in robot.loop._context.ledger] == ["text", "video", "audio"]
    assert robot.counts("speculations_given_up") == 1


def test_an_answer_that_is_being_made_does_not_keep_a_clip_tentative(robot):
    robot = robot(answer={"max_tokens": 200})
    robot.hears(10, SPEECH)
    robot.hears(SOFT_END_BLOCKS, SILENCE, work=False)
    while not len(robot.loop._answers):
        robot.loop.step()
    robot.clock.sleep_until(robot.clock.now_ns() + 2 * NS_PER_S)
    robot.loop.step()
    assert not robot.loop._context.is_tentative
    assert not len(robot.loop._answers)


def test_nothing_begins_by_itself_while_a_clip_is_tentative(robot):
    """Neither notes, which the clip itself makes wanted, nor the judgement of a trigger."""
    context = {"max_tokens": 400, "keep_tokens": 120, "notes_tokens": 24}
    robot = robot(context=context, answer={"max_tokens": 2})
    robot.loop.triggers.create(Trigger("Is it dark?", period_s=0.1))
    n_wanted_by_a_clip = 0
    for i in range(24):
        if i % 2:
            robot.sees(i)
        robot.hears(10 + 2 * i, SPEECH)
        n_before = robot.loop._context._n_noted
        robot.hears(SOFT_END_BLOCKS + 2, SILENCE)
        context = robot.loop._context
        assert context.is_tentative
        assert not len(robot.loop._answers)
        assert context._n_noted == n_before
        assert not robot.loop.step()
        assert 0 < robot.loop._wait_s() < 1  # and it sleeps, whatever is due
        wanted = copy.copy(context).takes_notes()
        n_wanted_by_a_clip += wanted
        robot.hears(3, SPEECH)  # it was not the end
        robot.hears(MIN_SILENCE_BLOCKS, SILENCE)
    assert n_wanted_by_a_clip > 0
    assert robot.counts("notes") > 0
    assert robot.counts("judgements") > 0
    assert robot.counts("answers") == 24


def test_no_turn_is_opened_behind_a_tentative_clip_whoever_wants_it(robot):
    robot = robot()
    robot.hears(10, SPEECH)
    robot.hears(SOFT_END_BLOCKS, SILENCE)
    question = Question((Message("user", "Hello"),), Sampling(), 5)
    with pytest.raises(RuntimeError, match="behind a tentative clip"):
        robot.loop._answers.open(Turn(question, 0, lambda _: None))
    # And if one were, with its fork open, the clip could be taken back all the same.
    answers, before = robot.loop._answers, list(robot.loop._context.ledger)[:-1]
    own, answers._tentative = answers._tentative, None
    answers.open(Turn(question, 0, lambda _: None))
    for _ in range(3):
        answers.step(())
    assert robot.loop._context.is_forked
    answers._tentative = own
    robot.loop._conversation.give_up()
    assert robot.loop._context.ledger == before


def test_speech_interrupts_the_answer_to_a_spoken_question(robot):
    robot = robot(answer={"max_tokens": 200})
    robot.hears(10, SPEECH)
    robot.hears(MIN_SILENCE_BLOCKS, SILENCE, work=False)
    while TextDelta not in map(type, robot.events):
        assert robot.loop.step()
    robot.hears(10, SPEECH, work=False)
    drive(robot.loop)
    assert robot.kinds() == [SpeechStarted, SpeechStopped, Spoken, SpeechStarted, Done]
    assert robot.events[-1].finish_reason == "cancelled"


@pytest.mark.parametrize("n_paused", [0, SOFT_END_BLOCKS + 2])
@pytest.mark.parametrize(("gap_s", "told"), [(1, [Spoken, Done]), (3600, [])])
def test_a_sentence_that_a_gap_cut_is_answered_only_if_somebody_may_still_wait(
    robot, gap_s, told, n_paused
):
    robot = robot()
    robot.hears(10, SPEECH)
    robot.hears(n_paused, SILENCE)
    robot.n_blocks += gap_s * NS_PER_S // BLOCK_NS
    robot.hears(10, SILENCE)
    assert robot.kinds() == [SpeechStarted, SpeechStopped, *told]
    assert [s.modality for s in robot.loop._context.ledger] == ["text", "audio"]
    assert not robot.loop._context.is_tentative


def test_typed_answers_are_not_interrupted_by_speech(robot):
    robot = robot()
    typed = []
    robot.loop.ask(Question((Message("user", "Hello"),), Sampling(), 60), typed.append)
    for _ in range(5):
        robot.loop.step()
    robot.hears(10, SPEECH, work=False)
    drive(robot.loop)
    assert typed[-1].finish_reason != "cancelled"


def test_typed_only_hears_and_does_not_answer(robot):
    robot = robot("typed")
    robot.hears(10, SPEECH)
    robot.hears(MIN_SILENCE_BLOCKS, SILENCE)
    assert robot.events == []
    assert [s.modality for s in robot.loop._context.ledger] == ["text", "audio"]


def test_the_button_decides_what_is_for_the_robot(robot):
    robot = robot("push_to_talk")
    robot.hears(10, SPEECH)
    robot.hears(MIN_SILENCE_BLOCKS, SILENCE)
    assert robot.kinds() == []  # overheard
    robot.loop.control(Button("begin"))
    robot.hears(10, SPEECH)
    robot.hears(3 * MIN_SILENCE_BLOCKS, SILENCE)
    assert Spoken not in robot.kinds()  # a pause ends nothing
    robot.loop.control(Button("commit"))
    drive(robot.loop)
    assert robot.kinds() == [SpeechStarted, SpeechStopped, Spoken, Done]
    robot.loop.control(Button("begin"))
    robot.hears(10, SPEECH)
    robot.loop.control(Button("cancel"))
    robot.hears(MIN_SILENCE_BLOCKS, SILENCE)
    assert robot.kinds().count(Spoken) == 1


def test_the_mode_may_change_and_is_told(robot):
    robot = robot("typed")
    with pytest.raises(ProtocolError, match="the mode is typed"):
        robot.loop.control(Button("begin"))
    robot.loop.control(Choose("open"))
    assert robot.loop.status().mode == "typed"  # for what it has heard so far
    drive(robot.loop)
    assert robot.loop.status().mode == "open"
    robot.hears(10, SPEECH)
    robot.hears(MIN_SILENCE_BLOCKS, SILENCE)
    assert robot.kinds() == [SpeechStarted, SpeechStopped, Spoken, Done]


def test_a_busy_loop_loses_sound_but_nothing_that_a_client_wants(robot):
    robot = robot("push_to_talk")
    robot.loop.control(Button("begin"))
    robot.hears(10, SPEECH)
    robot.loop.control(Button("commit"))
    robot.loop.control(Choose("typed"))
    robot.hears(1200, SPEECH, work=False)  # 38 s in one step
    for i in range(400):
        robot.loop.control(Played(noise(i)))
    assert robot.loop.status().mode == "push_to_talk"
    drive(robot.loop)
    assert robot.kinds() == [SpeechStarted, SpeechStopped, Spoken, Done]
    assert robot.loop.status().mode == "typed"
    assert not robot.detector._held
    assert robot.counts("audio_dropped") > 200  # of the sound, and of what was played


def test_sound_waits_for_as_many_seconds_however_it_is_cut(robot):
    for length in (160, 512, 1600):
        (sense, _), n = robot().senses, 40 * 16_000 // length
        for i in range(n):
            sense.put(AudioChunk(np.zeros(length, np.float32), i * length * 62_500, "microphone"))
        n_kept = n - sense.counts["dropped"]
        assert 30 * 16_000 - length < n_kept * length <= 30 * 16_000
        for i in range(2 * MAX_WISHES):
            sense.control(Played(noise(i)))
        assert n - sense.counts["dropped"] == n_kept


def test_wishes_that_nobody_takes_are_refused_and_not_dropped(robot):
    robot = robot("push_to_talk")
    for _ in range(MAX_WISHES):
        robot.loop.control(Button("begin"))
    with pytest.raises(CapacityError, match="64 others"):
        robot.loop.control(Choose("open"))
    drive(robot.loop)
    robot.loop.control(Choose("open"))
    drive(robot.loop)
    assert robot.loop.status().mode == "open"


def test_a_button_that_is_pressed_again_is_not_released(robot):
    robot = robot("push_to_talk")
    robot.loop.control(Button("begin"))
    robot.hears(10, SPEECH)
    robot.loop.control(Button("begin"))
    robot.hears(MIN_SILENCE_BLOCKS, SILENCE)
    assert robot.kinds() == [SpeechStarted]
    robot.loop.control(Button("commit"))
    drive(robot.loop)
    assert robot.kinds() == [SpeechStarted, SpeechStopped, Spoken, Done]


def test_a_button_that_a_dead_client_holds_is_let_go(robot):
    """What is said then is nobody's question; and one who holds on presses again."""
    n_minute = 60 * NS_PER_S // BLOCK_NS
    robot = robot("push_to_talk", context={"max_tokens": 6000, "keep_tokens": 2500})
    robot.loop.control(Button("begin"))
    robot.hears(n_minute - 10, SILENCE)
    robot.loop.control(Button("begin"))
    robot.hears(n_minute - 10, SILENCE)
    assert robot.detector._held
    robot.hears(40, SPEECH)
    assert not robot.detector._held
    robot.hears(MIN_SILENCE_BLOCKS, SILENCE)
    robot.loop.control(Button("commit"))
    drive(robot.loop)
    assert robot.kinds() == [SpeechStarted, SpeechStopped]
    assert robot.counts("audio_segments") == 2  # it is only heard


def forget_the_button(robot):
    robot.hears(60 * NS_PER_S // BLOCK_NS + 2, SILENCE)


def lose_sound(robot):
    robot.n_blocks += 100
    robot.hears(1, SILENCE)


def unplug(robot):
    """No sound comes any more; the loop is woken by what it waits for."""
    while (wait_s := robot.loop._wait_s()) is not None:
        robot.clock.sleep_until(robot.clock.now_ns() + int(wait_s * NS_PER_S) + 1)
        drive(robot.loop)


def press(what):
    def pressed(robot):
        robot.loop.control(Button(what))
        drive(robot.loop)

    return pressed


def choose(mode):
    def chosen(robot):
        robot.loop.control(Choose(mode))
        drive(robot.loop)

    return chosen


def end_the_source(robot):
    robot.senses[0].end()
    drive(robot.loop)


def shut_down(robot):
    robot.loop.stop()
    robot.loop.run()


class Broken:
    """An engine that fails whatever it is asked for, as a GPU does after an illegal access."""

    def __init__(self, engine):
        self.spec, self.embed = engine.spec, engine.embed

    def __getattr__(self, name):
        def fails(*_):
            raise EngineError("engine", f"{name}: an illegal memory access", "restart")

        return fails


def fail(robot):
    """In the middle of an answer to one who types, while another waits, in an encoder's call."""
    told = [[], []]
    for heard in told:
        robot.loop.ask(Question((Message("user", "Hello"),), Sampling(), 60), heard.append)
    while not robot.loop._context.is_forked:
        robot.loop.step()
    robot.loop._context.engine = broken = Broken(robot.loop._context.engine)
    robot.loop._step = broken.encode_tubelets
    with pytest.raises(EngineError, match="encode_tubelets"):
        robot.loop.run()
    ends = [[type(e) for e in heard if not isinstance(e, TextDelta)] for heard in told]
    assert ends == [[Failed], [Failed]]


def test_a_spoken_question_that_a_broken_engine_swallows_has_an_end(robot):
    robot = robot(answer={"remember": True})  # so that nothing is begun before the end
    robot.hears(10, SPEECH)
    robot.hears(MIN_SILENCE_BLOCKS - 1, SILENCE)
    robot.loop._context.engine = Broken(robot.loop._context.engine)
    robot.senses[0]._perceiver._engine = robot.loop._context.engine
    robot.hears(1, SILENCE, work=False)
    with pytest.raises(EngineError, match="encode_audio"):
        robot.loop.run()
    assert robot.kinds() == [SpeechStarted, SpeechStopped, Failed]
    assert robot.events[1].is_asked


@pytest.mark.parametrize("n_paused", [0, SOFT_END_BLOCKS + 2])
@pytest.mark.parametrize(
    ("mode", "end", "is_asked"),
    [
        ("open", lose_sound, False),
        ("open", unplug, False),
        ("open", choose("typed"), True),
        ("open", end_the_source, True),
        ("open", shut_down, False),
        ("open", fail, False),
        ("push_to_talk", forget_the_button, False),
        ("push_to_talk", unplug, False),
        ("push_to_talk", press("cancel"), False),
        ("push_to_talk", press("commit"), True),
        ("push_to_talk", choose("open"), True),
        ("push_to_talk", end_the_source, True),
        ("push_to_talk", shut_down, False),
    ],
)
@pytest.mark.parametrize("n_spoken", [3, 10])
def test_speech_that_was_told_to_start_is_told_to_stop_once(
    robot, mode, end, is_asked, n_paused, n_spoken
):
    """Whatever ends it; what is said afterwards is another one."""
    robot = robot(mode)
    if mode == "push_to_talk":
        robot.loop.control(Button("begin"))
    robot.hears(n_spoken, SPEECH)
    robot.hears(n_paused, SILENCE)
    is_told = mode == "push_to_talk" or n_spoken >= MIN_SPEECH_BLOCKS
    assert robot.kinds() == [SpeechStarted] * is_told
    end(robot)
    if end not in (shut_down, fail):
        robot.hears(2 * MIN_SILENCE_BLOCKS, SILENCE)
        assert not robot.loop._context.is_tentative
        assert robot.loop._wait_s() is None
    told = [e for e in robot.events if isinstance(e, SpeechStarted | SpeechStopped | Spoken)]
    kinds = [SpeechStarted, SpeechStopped, *([Spoken] * is_asked)] * is_told
    assert [type(event) for event in told] == kinds
    assert all(e.is_asked == is_asked for e in told if isinstance(e, SpeechStopped))


def test_a_loop_that_is_held_up_does_not_take_that_for_silence(robot):
    """The sound of that time waits in its ring, and is one sentence."""
    robot = robot()
    robot.hears(10, SPEECH)
    robot.hears(200, SPEECH, work=False)
    robot.hears(MIN_SILENCE_BLOCKS, SILENCE, work=False)
    drive(robot.loop)
    assert robot.kinds() == [SpeechStarted, SpeechStopped, Spoken, Done]


def test_a_microphone_whose_clips_wait_is_given_another_gap(robot, monkeypatch):
    robot = robot()
    robot.hears(10, SPEECH)
    conversation = robot.loop._conversation
    with monkeypatch.context() as full:
        full.setattr(Sense, "is_full", True)
        robot.clock.sleep_until(robot.clock.now_ns() + MAX_GAP_NS + 1)
        assert not conversation.end_if_silent()
        assert conversation.wait_s() == pytest.approx(MAX_GAP_NS / NS_PER_S)
    robot.clock.sleep_until(robot.clock.now_ns() + MAX_GAP_NS)
    assert not conversation.end_if_silent()
    robot.clock.sleep_until(robot.clock.now_ns() + 1)
    assert conversation.end_if_silent()
    assert robot.kinds()[:2] == [SpeechStarted, SpeechStopped]


@pytest.mark.parametrize(("is_held", "channel"), [(True, "operator"), (False, "ambient")])
def test_a_question_of_which_nothing_entered_is_asked_nowhere_and_by_somebody(
    robot, is_held, channel
):
    robot = robot()
    robot.loop._conversation.hear(robot.senses[0], [Ended(None, is_held)])
    (spoken,) = (event for event in robot.events if isinstance(event, Spoken))
    now_ns = robot.clock.now_ns()
    assert spoken == Spoken(now_ns, Evidence("", now_ns, now_ns))
    (turn,) = robot.loop._answers._open
    assert turn.turn.question.channel == channel


def test_a_held_button_keeps_the_turn_over_a_short_silence(robot):
    robot = robot("push_to_talk")
    robot.loop.control(Button("begin"))
    robot.hears(10, SPEECH)
    robot.clock.sleep_until(robot.clock.now_ns() + 10 * NS_PER_S)
    drive(robot.loop)
    assert robot.kinds() == [SpeechStarted]
    assert 49 < robot.loop._conversation.wait_s() < 62
    robot.n_blocks += 10 * NS_PER_S // BLOCK_NS
    robot.hears(10, SPEECH)
    press("commit")(robot)
    assert robot.kinds() == [SpeechStarted, SpeechStopped, Spoken, Done]


def test_without_utterances_there_are_no_turns(robot):
    robot = robot("typed", perception={"listen": "windows"})
    with pytest.raises(ProtocolError, match="only typed"):
        robot.loop.control(Choose("open"))


def test_a_long_question_is_cut_and_answered_once(robot):
    robot = robot(context={"max_tokens": 2000, "keep_tokens": 1500})
    robot.hears(500, SPEECH)
    robot.hears(MIN_SILENCE_BLOCKS, SILENCE)
    assert robot.kinds() == [SpeechStarted, SpeechStopped, Spoken, Done]
    assert [s.modality for s in robot.loop._context.ledger] == ["text", "audio", "audio"]


def test_a_spoken_question_without_room_is_told_to_those_who_watch(robot):
    robot = robot(context={"max_tokens": 60, "keep_tokens": 4})
    told = []
    robot.loop.observe(told.append)
    robot.hears(20, SPEECH)
    robot.hears(MIN_SILENCE_BLOCKS + 1, SILENCE)
    assert robot.answers() == []
    refused = [event for event in told if isinstance(event, Refused)]
    assert {event.source for event in refused} == {"microphone"}
    assert all("the context keeps 4" in event.reason for event in refused)
    assert len(refused) == robot.counts("segments_refused") > 0
    assert robot.kinds() == [SpeechStarted, SpeechStopped, Failed]


def test_a_spoken_question_may_be_remembered_and_thought_about(robot):
    settings = {"answer": {"max_tokens": 8, "remember": True, "temperature": 0.7}}
    first, second = robot(**settings), robot(**settings)
    for one in (first, second):
        one.hears(10, SPEECH)
        one.hears(MIN_SILENCE_BLOCKS, SILENCE)
        assert [s.modality for s in one.loop._context.ledger] == ["text", "audio", "text"]
        assert one.counts("speculations") == 0
    assert first.answers() == second.answers()


@pytest.mark.parametrize("remember", [False, True])
def test_a_deadline_begins_when_the_question_is_known_to_be_over(robot, remember):
    """The pause that ends it is longer than this."""
    robot = robot(answer={"max_tokens": 4, "deadline_s": 0.2, "remember": remember})
    robot.hears(10, SPEECH)
    robot.hears(MIN_SILENCE_BLOCKS, SILENCE)
    assert robot.kinds() == [SpeechStarted, SpeechStopped, Spoken, Done]
    assert robot.events[-1].finish_reason in ("stop", "length")


def test_the_robots_own_voice_does_not_interrupt_it_and_a_person_does(sentences, bundle, engine):
    """Real sound through the loop: what is played is given as a reference, before it is heard."""
    (talk,) = conversations(sentences, 1, np.random.default_rng(3))

    def started(person_db, reference):
        folder, one = bundle("base"), engine("base")
        config = load_config(
            None, {"perception": {"listen": "utterances"}, "turns": {"mode": "open"}}
        )
        prompt = LivePrompt(Tokenizer(folder), ChatTemplate(folder), "")
        clock = VirtualClock()
        sense = audio_sense(Listener(one, prompt.tokenizer, clock, TurnDetector("open")))
        loop = LiveLoop(one, prompt, config, clock, "base", [sense], start_ns=0)
        events = []
        loop.watch(events.append)
        voices, sounds = chunks(talk.played), chunks(talk.heard(person_db))
        for voice, sound in zip(voices, sounds, strict=True):
            if reference:
                loop.control(Played(AudioChunk(voice.samples, voice.capture_ns, "loudspeaker")))
            sense.put(sound)
            while loop._listen():
                pass
        return sum(isinstance(event, SpeechStarted) for event in events)

    assert started(None, reference=True) == 0
    assert started(None, reference=False) > 0
    assert started(5.0, reference=True) > 0


def test_a_recorded_conversation_replays_to_the_same_events(bundle, engine, tmp_path):
    """Modes, buttons, resumed speech, interruptions and clients that go, to the nanosecond."""
    path = tmp_path / "talk.mcap"
    clock = RecordedClock(Ticking())
    with Recorder(path, clock) as recorder:
        robot = Robot(
            *(bundle("base"), engine("base"), "open"),
            recorder=recorder,
            clock=clock,
            answer={"max_tokens": 30, "temperature": 0.8},
        )
        recorder.describe("base", 0, msgspec.to_builtins(robot.config))
        for i in range(6):
            robot.sees(i)
            robot.hears(10, SPEECH, work=i % 2 == 0)
            robot.hears(SOFT_END_BLOCKS + 2, SILENCE, work=i % 3 == 0)
            if i == 2:
                robot.hears(8, SPEECH)
            if i == 3:
                robot.loop.control(Choose("push_to_talk"))
                robot.loop.control(Button("begin"))
                robot.loop.control(Played(noise(0)))
            if i == 4:
                robot.loop.control(Button("commit"))
                robot.loop.control(Choose("open"))
            question = Question((Message("user", "Hello"),), Sampling(0.9, seed=i), 20)
            turn = robot.loop.ask(question, lambda _: None)
            for _ in range(12):
                robot.loop.step()
            if i % 2:
                turn.cancel()
            robot.hears(MIN_SILENCE_BLOCKS, SILENCE, work=i % 2 == 1)
        drive(robot.loop)
    assert robot.counts("speculations_given_up") > 0
    ended = [event.finish_reason for event in robot.events if isinstance(event, Done)]
    assert len(ended) > 2

    def build(about, replayed, observed):
        other = Robot(
            *(bundle("base"), engine("base"), "open"),
            recorder=observed,
            clock=replayed,
            start_ns=about["start_ns"],
            answer={"max_tokens": 30, "temperature": 0.8},
        )
        return other.loop, other.senses

    steps = list(replay(read(path), build))
    assert sum(len(step.events) for step in steps) > 50
    assert {event["type"] for step in steps for event in step.events} >= {
        *("SpeechStarted", "Spoken", "TextDelta", "Done", "Stages")
    }
    for step in steps:
        assert step.is_same, f"step {step.number}: {step.events} for {step.step.events}"


class Ticking:
    """A clock that goes on by a millisecond whenever it is read."""

    def __init__(self):
        self.at_ns = 0

    def now_ns(self):
        self.at_ns += 1_000_000
        return self.at_ns

    def sleep_until(self, deadline_ns):
        self.at_ns = max(self.at_ns, deadline_ns)
