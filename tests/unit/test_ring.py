"""The queue between a sense and the loop: what goes when it is full, and which is next."""

from __future__ import annotations

import itertools

from edge.senses.ring import Ring, oldest_of


def ring(capacity=3, order=None):
    """Of items that are their own sizes."""
    return Ring[int](capacity, lambda: None, lambda item: item, order)


def test_the_oldest_go_until_the_newest_has_room():
    full = ring(capacity=6)
    for item in (1, 2, 3):
        full.put(item)
    assert (len(full), full.n_dropped) == (3, 0)
    full.put(3)
    assert full.n_dropped == 2
    assert [full.take() for _ in range(3)] == [3, 3, None]
    full.put(4)  # what was taken leaves its room
    full.put(2)
    assert (len(full), full.n_dropped) == (2, 2)


def test_the_newest_stays_however_large_it_is():
    full = ring()
    full.put(1)
    full.put(9)
    assert (len(full), full.n_dropped, full.take()) == (1, 1, 9)


def test_of_several_the_one_is_next_whose_oldest_item_came_first():
    order = itertools.count()
    one, other = ring(order=order), ring(order=order)
    assert oldest_of([one, other]) is None
    other.put(1)
    one.put(1)
    other.put(1)
    assert oldest_of([one, other]) is other
    other.take()
    assert oldest_of([one, other]) is one
    one.take()
    assert oldest_of([one, other]) is other
    other.take()
    assert oldest_of([one, other]) is None
