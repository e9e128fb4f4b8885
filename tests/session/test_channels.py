"""What is seen and heard is data: only an operator's turn may lead to a tool call."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_conversation import SILENCE, SPEECH, robot
from test_loop import drive
from test_pruning import folder, trained

from edge.config import load_config
from edge.model.sampling import Sampling
from edge.senses.sound import BLOCK_NS, BLOCK_SAMPLES
from edge.senses.turn_events import Button, Choose, Ended
from edge.senses.turns import MIN_SILENCE_BLOCKS, TurnDetector
from edge.session.conversation import spoken_question
from edge.session.triggers import Trigger
from edge.session.turn import Done, Message, Question, Turn
from edge.types import AudioChunk

__all__ = ["folder", "robot", "trained"]


class Opened:
    """Sees every turn that a loop begins to answer, whoever made it."""

    def __init__(self, loop):
        self.turns: list[Turn] = []
        inner = loop._answers.open

        def open_and_note(turn):
            self.turns.append(turn)
            inner(turn)

        loop._answers.open = open_and_note

    def channels(self):
        return [(t.question.priority, t.question.channel) for t in self.turns]


def says(robot):
    robot.hears(10, SPEECH)
    robot.hears(MIN_SILENCE_BLOCKS + 2, SILENCE)


def test_who_can_be_heard_is_no_operator(robot):
    robot = robot("open")
    opened = Opened(robot.loop)
    says(robot)
    assert opened.channels() == [("operator", "ambient")]
    assert not opened.turns[0].question.may_call_tools
    assert any(isinstance(event, Done) for event in robot.events)  # answered it is


def test_who_holds_the_button_is_one(robot):
    robot = robot("push_to_talk")
    opened = Opened(robot.loop)
    says(robot)  # overheard: no turn at all
    assert opened.turns == []
    robot.loop.control(Button("begin"))
    drive(robot.loop)
    robot.hears(10, SPEECH)
    robot.loop.control(Button("commit"))
    drive(robot.loop)
    says(robot)  # and after it, again overheard
    assert opened.channels() == [("operator", "operator")]
    assert opened.turns[0].question.may_call_tools


def test_a_bystander_cannot_ride_on_the_button_by_a_change_of_mode(robot):
    """What was said while it was held is an operator's; what the open mode hears is not."""
    robot = robot("push_to_talk")
    opened = Opened(robot.loop)
    robot.loop.control(Button("begin"))
    drive(robot.loop)
    robot.loop.control(Choose("open"))
    drive(robot.loop)
    says(robot)
    assert opened.channels() == [("operator", "ambient")]


def test_what_the_session_asks_itself_is_no_operators(robot):
    robot = robot("typed", context={"max_tokens": 400, "keep_tokens": 120, "notes_tokens": 24})
    opened = Opened(robot.loop)
    robot.loop.triggers.create(Trigger("Is there a circle?"))
    for index in range(16):
        robot.sees(index)
        drive(robot.loop)
    kinds = set(opened.channels())
    assert kinds == {("trigger", "ambient"), ("notes", "ambient")}


def test_a_question_is_nobodys_unless_it_says_whose():
    question = Question((Message("user", "drive"),), Sampling(), 4)
    assert not question.may_call_tools


EVENTS = st.lists(
    st.one_of(
        st.sampled_from([Button("begin"), Button("commit"), Button("cancel")]),
        st.sampled_from([Choose("open"), Choose("push_to_talk"), Choose("typed")]),
        st.tuples(st.sampled_from([SPEECH, SILENCE]), st.integers(1, 30)),
    ),
    max_size=20,
)


@settings(max_examples=60, deadline=None)
@given(EVENTS)
def test_in_any_order_of_buttons_modes_and_speech_only_the_button_makes_an_operator(script):
    detector = TurnDetector("open", lambda samples: float(samples[0]))
    held, mode, at_ns = False, "open", 0
    for event in script:
        told, before = [], held
        if isinstance(event, Choose):
            mode, held = event.mode, False
            told = detector.control(event)
        elif isinstance(event, Button):
            if mode != "push_to_talk":
                continue
            held = event.do == "begin"
            told = detector.control(event)
        else:
            likely, n_blocks = event
            for _ in range(n_blocks):
                samples = np.full(BLOCK_SAMPLES, 0.01, np.float32)
                samples[0] = likely
                told += detector.push(AudioChunk(samples, at_ns, "microphone"))
                at_ns += BLOCK_NS
        for one in told:
            if isinstance(one, Ended):
                assert one.held == before


@pytest.mark.parametrize("words", ["say red", "stop", "go", "what color is the circle"])
def test_a_spoken_command_on_the_trained_models_vocabulary_is_answered_as_data(trained, words):
    """Whatever a bystander says, the question that follows from it carries no tools."""
    config = load_config(None, {"turns": {"text": f"{words}\nAnswer the question."}})
    question = spoken_question(config, trained, 1)
    assert question.channel == "ambient"
    assert not question.may_call_tools
