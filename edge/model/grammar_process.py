"""The processes that follow grammars: what a client's grammar costs, it costs there.

    service ── keeper          has the vocabulary
                └─ follower    one for each grammar: has compiled it, and its first mask
                    └─ answer  one for each answer: is told tokens, says masks

Each is a fork of the one above it, has one thread, and ends when the other end of its line is
closed. The kernel ends one that takes more than its time or memory, wherever it is: a grammar may
be small and take for ever, at once or many tokens later. The one above it says so then: a line that
ends without a word was ended from outside, or there was no room for a process.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import recv_handle
from typing import NoReturn

import llguidance
import tokenizers

from edge.child import may_be_ended, may_wait, waits_no_more

COMPILE_S = 0.5
"""Of a core, to compile a grammar and to find its first mask."""
SPARE_S, TOKEN_S = 0.5, 0.02
"""Of a core for one token at most, and for many of them on the average."""
MAX_BYTES = 256 << 20
"""Of memory, beside what the keeper has."""
CHECKED, MASK, REFUSED, TOO_COMPLEX, COSTLY = b"g", b"m", b"r", b"c", b"x"
"""First byte of what a process says: what is wrong with its grammar follows, a mask, or an error;
the last is said of it, when it has taken too much."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A vocabulary, as llguidance needs it."""

    spelled: list[bytes]
    """Of each token."""
    special_ids: list[int]
    stop_ids: list[int]
    n_vocab: int
    as_text: str
    """A tokenizer.json that finds no special tokens; empty: texts are spelled byte by byte."""


class _Vocabulary:
    """The same tokens, but what spells a special token in a format is text like any other.

    Where a grammar leaves one continuation, llguidance tokenizes it to find the one token that it
    allows. The checkpoint's tokenizer finds the special token there, which the grammar refuses.
    """

    bos_token_id = None

    def __init__(self, tokens: Tokens) -> None:
        self.eos_token_id = tokens.stop_ids[0]
        self.tokens, self.special_token_ids = tokens.spelled, tokens.special_ids
        self._bytes = {one: k for k, one in enumerate(tokens.spelled) if len(one) == 1}
        self._as_text = tokenizers.Tokenizer.from_str(tokens.as_text) if tokens.as_text else None

    def __call__(self, text: str) -> list[int]:
        if self._as_text is None:
            return [self._bytes[bytes([byte])] for byte in text.encode()]
        return list(self._as_text.encode(text, add_special_tokens=False).ids)


def main() -> None:
    """Be the keeper: the arguments are its line and the file that holds the vocabulary."""
    # Ctrl-C and systemd tell all processes of a service to end: answers under way need these.
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    may_be_ended()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    line = Connection(int(sys.argv[1]))
    with os.fdopen(int(sys.argv[2]), "rb") as file:
        file.seek(0)
        tokens: Tokens = pickle.load(file)
    known = llguidance.LLTokenizer(
        llguidance.TokenizerWrapper(_Vocabulary(tokens)),
        n_vocab=tokens.n_vocab,
        eos_token=tokens.stop_ids,
    )
    gc.freeze()
    _fork_for_each(line, lambda line: _follow(known, line))


def _fork_for_each(line: Connection, begin: Callable[[Connection], None]) -> None:
    """A child for each line that comes down this one, until it is closed and they have ended."""
    children: dict[int, tuple[int, Connection]] = {}
    is_open = True
    while is_open or children:
        for ready in wait([*children, *([line] if is_open else [])]):
            if isinstance(ready, int):
                pid, its_line = children.pop(ready)
                os.close(ready)
                _, status = os.waitpid(pid, 0)
                with its_line, contextlib.suppress(OSError):
                    if os.waitstatus_to_exitcode(status) not in (0, -signal.SIGKILL):
                        its_line.send_bytes(COSTLY)
                continue
            try:
                its_line = Connection(recv_handle(line))
            except (EOFError, OSError):
                is_open = False
                continue
            try:
                pid = os.fork()
            except OSError:  # no room for one more: who waits for it sees the line end
                its_line.close()
                continue
            if pid:
                children[os.pidfd_open(pid)] = pid, its_line
                continue
            for handle, (_, anothers) in children.items():
                os.close(handle)
                anothers.close()
            line.close()
            _be(begin, its_line)


def _be(begin: Callable[[Connection], None], line: Connection) -> NoReturn:
    """A child's life; it ends with 0 unless its grammar ends it."""
    status = 1
    try:
        with contextlib.suppress(EOFError, OSError):
            begin(line)
        status = 0
    finally:
        os._exit(status)


def _follow(tokens: llguidance.LLTokenizer, line: Connection) -> None:
    """Compile the grammar that comes, say what is wrong with it, and follow it for each answer."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # its last words would fill the log
    with os.fdopen(recv_handle(line), "rb") as file:
        file.seek(0)
        grammar = file.read().decode()
    with open("/proc/self/statm") as statm:
        n_bytes = int(statm.read().split()[0]) * resource.getpagesize() + MAX_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (n_bytes, n_bytes))
    nice = may_wait()
    signal.setitimer(signal.ITIMER_PROF, COMPILE_S)
    matcher = llguidance.LLMatcher(tokens, grammar, log_level=0)
    mask = MASK + matcher.compute_bitmask()
    signal.setitimer(signal.ITIMER_PROF, 0)
    is_good = not matcher.is_error()
    with contextlib.suppress(OSError):  # who asked may be gone, and others ask by it
        line.send_bytes(CHECKED + matcher.get_error().encode())
    if is_good:
        _fork_for_each(line, lambda line: _answer(matcher, mask, nice, line))


def _answer(matcher: llguidance.LLMatcher, mask: bytes, nice: int, line: Connection) -> None:
    """Say the first mask, and one for each token that comes; an answer waits for them."""
    waits_no_more(nice)
    left_s = SPARE_S
    while True:
        line.send_bytes(mask)
        if mask[:1] != MASK:
            return
        token = int.from_bytes(line.recv_bytes(), "little")
        signal.setitimer(signal.ITIMER_PROF, left_s)
        was_allowed = mask[1 + token // 8] >> token % 8 & 1
        matcher.consume_token(token)
        mask = MASK + matcher.compute_bitmask()
        left_s = min(SPARE_S, signal.setitimer(signal.ITIMER_PROF, 0)[0] + TOKEN_S)
        if matcher.is_error():
            # A token that was allowed is refused where a bound of llguidance's is met.
            mask = (TOO_COMPLEX if was_allowed else REFUSED) + matcher.get_error().encode()
