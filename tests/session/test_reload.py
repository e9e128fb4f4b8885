"""Settings that change while the session runs: taken up as a whole, in a step, or not at all."""

from __future__ import annotations

from test_loop import Asker, drive, make

from edge.config import for_model, load_config
from edge.senses.turn_events import Choose
from edge.serve.app import CHANGE
from edge.service import Reload
from edge.session.sense import MAX_WISHES
from edge.session.turn import Done

__all__ = ["make"]
pytest_plugins = ["media"]


class Notifier:
    """Stands where the supervisor is told."""

    def __init__(self):
        self.said = []

    def reloading(self):
        pass

    def say(self, *lines):
        self.said.append(lines)


def reload(loop, files, n_tokens=16_384):
    """One that reads these settings, one after the other, and what the app was told."""

    def fitted(config):
        return for_model(config, n_tokens, n_tokens)

    told, wanted = [], iter(files)
    config = fitted(load_config(None, next(wanted)))
    app = {CHANGE: told.append}
    return Reload(
        loop, app, config, lambda: load_config(None, next(wanted)), fitted, Notifier()
    ), told


def test_what_waits_keeps_back_what_needs_it(make):
    long = {"context": {"max_tokens": 15_000}, "answer": {"max_tokens": 8}}
    short = {"context": {"max_tokens": 8000}, "answer": {"max_tokens": 4000}}
    loop = make(**long)
    changes, told = reload(loop, [long, short])
    changes.now()
    assert changes.config.answer.max_tokens == 8
    assert told == [changes.config]
    assert "restart for: context, answer" in changes.notifier.said[-1][1]
    asker = Asker(loop)
    asker.ask()
    drive(loop)
    assert isinstance(asker.events[-1], Done)


def test_what_cannot_be_taken_up_leaves_everything_as_it_is(make):
    """Utterances wait for a restart, and so does the mode that needs them; the rest is taken."""
    typed = {"answer": {"max_tokens": 20}}
    speech = {"perception": {"listen": "utterances"}, "turns": {"mode": "open"}}
    loop = make(**typed)
    changes, told = reload(loop, [typed, {**speech, "answer": {"max_tokens": 10}}, {"x": {}}])
    changes.now()
    assert changes.config.answer.max_tokens == 10
    assert changes.config.turns.mode == "typed"
    drive(loop)
    assert loop._config == changes.config == told[-1]
    before = changes.config
    changes.now()  # an unknown section
    drive(loop)
    assert loop._config == changes.config == before
    assert "unchanged" in changes.notifier.said[-1][1]


def test_what_the_loop_refuses_is_not_taken_for_done(make):
    heard = {"perception": {"listen": "utterances"}}
    loop = make(**heard)
    changes, told = reload(loop, [heard, {**heard, "turns": {"mode": "open"}}])
    before = changes.config
    for _ in range(MAX_WISHES):
        loop.control(Choose("typed"))
    changes.now()
    drive(loop)
    assert "unchanged" in changes.notifier.said[-1][1]
    assert (changes.config, told, loop._config.turns.mode) == (before, [], "typed")
