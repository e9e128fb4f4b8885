"""What is told of TensorRT's messages: few of them, alike ones once."""

from __future__ import annotations

from build_engine.compile import MAX_KEPT_WARNINGS, Message, _reason, gathered


def test_the_reasons_of_no_plan_are_the_first_three_errors():
    told = [Message("slow"), *(Message(f"error {letter}", is_error=True) for letter in "abcd")]
    assert _reason(told) == "error a; error b; error c"
    assert _reason(told[:2]) == "error a"
    assert _reason(told[:1]) == "TensorRT gives no reason"


def test_alike_messages_are_one_and_no_more_than_so_many_are_kept():
    assert gathered(["a 1\n b", "c", "a 22 b", "a 3 b"]) == ("a 1 b (3 times)", "c")
    letters = [chr(ord("A") + k) * 2 for k in range(MAX_KEPT_WARNINGS)]
    assert gathered(letters) == tuple(letters)
    assert gathered([*letters, "one more"]) == (*letters[:-1], "and 2 other kinds")
