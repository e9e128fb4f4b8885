"""A device that comes and goes is opened again and again, and what it says is said once."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from edge.errors import EngineError, MediaError
from edge.senses.live import again_and_again

GONE = MediaError("camera", "is not there", "plug it in")


class Closed:
    """An event that nobody waits for: it remembers for how long they would have."""

    def __init__(self, after):
        self.pauses, self._after, self._is_set = [], after, False

    def is_set(self):
        return self._is_set or len(self.pauses) >= self._after

    def set(self):
        self._is_set = True

    def wait(self, pause_s):
        self.pauses.append(pause_s)


class Device:
    """What each opening gives: an error, or items of which the last may be an error."""

    def __init__(self, *openings):
        self._openings, self.n_open = list(openings), 0

    @contextmanager
    def opened(self):
        found = self._openings.pop(0) if self._openings else GONE
        if isinstance(found, Exception):
            raise found
        self.n_open += 1
        try:
            yield self._items(found)
        finally:
            self.n_open -= 1

    @staticmethod
    def _items(found):
        for item in found:
            if isinstance(item, Exception):
                raise item
            yield item


def said(caplog):
    return [record.getMessage().split(" ", 1)[1] for record in caplog.records]


def test_one_that_is_not_there_is_tried_less_and_less_often_and_is_missed_once(caplog):
    caplog.set_level("INFO")
    closed = Closed(after=7)
    assert list(again_and_again("front", Device().opened, closed)) == []
    assert closed.pauses == [0.25, 0.5, 1.0, 2.0, 4.0, 4.0, 4.0]
    assert said(caplog) == [f"event=lost error={GONE}"]


def test_one_that_comes_back_is_told_and_tried_at_once_again(caplog):
    caplog.set_level("INFO")
    closed = Closed(after=6)
    device = Device([1, 2], GONE, GONE, [3, GONE], [4])
    assert list(again_and_again("front", device.opened, closed)) == [1, 2, 3, 4]
    assert closed.pauses == [0.25, 0.5, 1.0, 0.25, 0.25, 0.5]
    assert said(caplog) == [
        "event=lost error=it ended",
        "event=back",
        f"event=lost error={GONE}",
        "event=back",
        "event=lost error=it ended",
    ]
    assert device.n_open == 0


def test_one_that_is_closed_ends_in_silence(caplog):
    caplog.set_level("INFO")
    closed, device = Closed(after=9), Device([1, 2, 3])
    items = again_and_again("front", device.opened, closed)
    assert next(items) == 1
    assert device.n_open == 1
    closed.set()
    assert list(items) == []
    assert (device.n_open, closed.pauses, said(caplog)) == (0, [], [])


def test_one_that_fails_while_it_is_closed_is_not_missed(caplog):
    closed = Closed(after=9)

    @contextmanager
    def opened():
        closed.set()
        raise GONE
        yield  # an iterator, as the others are

    assert list(again_and_again("front", opened, closed)) == []
    assert said(caplog) == []


def test_a_defect_is_no_absence():
    with pytest.raises(EngineError):
        list(again_and_again("front", Device(EngineError("a", "b", "c")).opened, Closed(after=9)))
