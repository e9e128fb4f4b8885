"""Grammars, as this process has them followed by others: `edge.model.grammar_process`.

Nothing here computes: a thread that asks waits for a line, for a bounded time, and the interpreter
is free meanwhile. Whatever a grammar takes is taken, and bounded, where it is followed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import logging
import os
import pickle
import subprocess
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle

import llguidance

from edge.child import python
from edge.errors import CapacityError
from edge.model.grammar_process import COMPILE_S, MAX_BYTES, Tokens
from edge.model.tokenizer import OWN_TOKENS, Tokenizer

log = logging.getLogger(__name__)

MAX_GRAMMAR_CHARACTERS = 1 << 16
MAX_FOLLOWERS = 8
"""Grammars that are kept compiled, the newest; each takes a few MB."""
MAX_VERDICTS = 256
"""Of which it is remembered whether they can be followed: a client asks by the same again."""
MAX_CHECKS = 2
"""At once: each takes a core."""
MAX_WAITING_CHECKS = 2
"""More are refused at once: each waits in a thread that others need."""
PLACE_S = 0.5
"""So long a check waits for others."""
CHECK_S, WAIT_S = 20.0, 8.0
"""Until a check, and the mask that the loop waits for, is given up: long, for what a process takes
ends it sooner, and only one that gets no time on a core comes so far."""
FORGET_S = 60.0
"""So long a grammar counts as too costly: that was found out by a process that ended, and it may
have been ended from outside."""
TOO_COSTLY = f"it takes more than {COMPILE_S:g} s of a core or {MAX_BYTES >> 20} MiB to compile"


class UncheckedError(Exception):
    """A grammar is not known yet, and who asks must not wait: it runs an event loop."""


@dataclass
class Follower:
    """The process of one grammar."""

    line: Connection
    lock: threading.Lock = field(default_factory=threading.Lock)
    problem: str | None = None
    """None: not known yet."""

    def wait(self, until_s: float = 0.0) -> str | None:
        """What is wrong with the grammar, empty if nothing; None if that is not known by then."""
        if not self.lock.acquire(timeout=max(0.0, until_s - time.monotonic())):
            return None
        try:
            if self.problem is None and self.line.poll(max(0.0, until_s - time.monotonic())):
                self.problem = self.line.recv_bytes().decode()
        except (EOFError, OSError):
            self.problem = TOO_COSTLY
        finally:
            self.lock.release()
        return self.problem


class Vocabulary:
    """The model's tokens, and the processes that follow grammars over them; for any thread."""

    def __init__(self, tokens: Tokens) -> None:
        """Keep the tokens; the first process is begun when it is needed, or by `start`."""
        self.tokens = tokens
        self._file = os.memfd_create("edge-vocabulary")
        with os.fdopen(os.dup(self._file), "wb") as file:
            pickle.dump(tokens, file)
        weakref.finalize(self, os.close, self._file)
        self._lock = threading.Lock()
        self._keeper: Connection | None = None
        self._followers: OrderedDict[bytes, Follower] = OrderedDict()
        self._verdicts: OrderedDict[bytes, tuple[str, float]] = OrderedDict()
        self._places = threading.BoundedSemaphore(MAX_CHECKS)
        self._queue = threading.BoundedSemaphore(MAX_CHECKS + MAX_WAITING_CHECKS)
        self.counts = {"grammars_too_costly": 0, "grammar_processes_restarted": 0}

    def spell(self, token: int) -> bytes:
        """What a token says."""
        return self.tokens.spelled[token]

    def start(self) -> None:
        """Begin the keeper, which takes a while to have the vocabulary; nobody waits for it."""
        with self._lock:
            if self._keeper is None:
                self._keeper = self._begun()

    def problem_of(self, grammar: str) -> str:
        """What is wrong with a grammar; empty if it can be followed.

        Raises:
            CapacityError: that cannot be found out now.
            UncheckedError: it is not known, and this thread runs an event loop.
        """
        name = _digest(grammar)
        with self._lock:
            problem, until_s = self._verdicts.get(name, (None, 0.0))
            if problem is not None and time.monotonic() < until_s:
                self._verdicts.move_to_end(name)
                return problem
        if _runs_an_event_loop():
            raise UncheckedError
        with self._place():
            problem = self._follower(name, grammar).wait(time.monotonic() + CHECK_S)
        if problem is None:
            raise CapacityError("format", f"was not checked in {CHECK_S:g} s", "ask again later")
        self._remember(name, problem)
        return problem

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        busy = CapacityError("format", "others are being checked", "ask again later")
        if not self._queue.acquire(blocking=False):
            raise busy
        try:
            if not self._places.acquire(timeout=PLACE_S):
                raise busy
            try:
                yield
            finally:
                self._places.release()
        finally:
            self._queue.release()

    def follow(self, grammar: str) -> tuple[Connection, Follower]:
        """The line of a process that follows one answer, and the grammar's; waits for nothing."""
        name = _digest(grammar)
        for _ in range(2):
            follower = self._follower(name, grammar)
            ours, theirs = Pipe()
            try:
                with theirs:
                    send_handle(follower.line, theirs.fileno(), 0)
            except OSError:  # its process has ended
                self._forget(name, follower)
            else:
                break
        return ours, follower

    def _follower(self, name: bytes, grammar: str) -> Follower:
        with self._lock:
            follower = self._followers.get(name)
            if follower is None:
                ours, theirs = Pipe()
                with theirs:
                    self._send_to_keeper(theirs.fileno())
                with contextlib.suppress(OSError):  # whoever waits for it finds out
                    ours.send_bytes(grammar.encode())
                follower = self._followers[name] = Follower(ours)
                while len(self._followers) > MAX_FOLLOWERS:
                    self._followers.popitem(last=False)
            self._followers.move_to_end(name)
            return follower

    def _forget(self, name: bytes, follower: Follower) -> None:
        with self._lock:
            if self._followers.get(name) is follower:
                del self._followers[name]

    def _remember(self, name: bytes, problem: str) -> None:
        with self._lock:
            lasts_s = FORGET_S if problem == TOO_COSTLY else float("inf")
            self.counts["grammars_too_costly"] += problem == TOO_COSTLY
            self._verdicts[name] = problem, time.monotonic() + lasts_s
            if problem:
                self._followers.pop(name, None)
            while len(self._verdicts) > MAX_VERDICTS:
                self._verdicts.popitem(last=False)

    def _send_to_keeper(self, handle: int) -> None:
        if self._keeper is None:
            self._keeper = self._begun()
        try:
            send_handle(self._keeper, handle, 0)
        except OSError:
            log.warning("event=grammar_keeper_ended remedy=begun again")
            self.counts["grammar_processes_restarted"] += 1
            self._keeper = self._begun()
            send_handle(self._keeper, handle, 0)

    def _begun(self) -> Connection:
        ours, theirs = Pipe()
        with theirs:
            handles = theirs.fileno(), self._file
            code = "from edge.model.grammar_process import main\nmain()"
            process = subprocess.Popen(python(code, *handles), pass_fds=handles)
        weakref.finalize(ours, _end, process)
        return ours


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _digest(grammar: str) -> bytes:
    return hashlib.sha256(grammar.encode()).digest()


def _runs_an_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


_served: list[Vocabulary] = []
"""The newest first: a service has one model."""
MAX_SERVED = 2


@functools.lru_cache(maxsize=MAX_SERVED)
def vocabulary(tokenizer: Tokenizer, n_vocab: int, stop_ids: tuple[int, ...]) -> Vocabulary:
    """The tokens of a model; slow the first time, so call it before the first turn.

    Args:
        n_vocab: logits that the model gives; it may be more than the tokenizer knows.
    """
    known = llguidance.LLTokenizer(tokenizer.as_json(), n_vocab=n_vocab, eos_token=[*stop_ids])
    spelled = [b""] * known.vocab_size
    for token in tokenizer.tokens():
        spelled[token] = known.decode_bytes([token])
    special_ids = tokenizer.control_tokens.ids
    as_text = tokenizer.as_text_json()
    return _serve(Tokens(spelled, special_ids, [*stop_ids], n_vocab, as_text))


def problem_of(grammar: str) -> str:
    """`Vocabulary.problem_of`, with the model's that this process serves, or one of bytes."""
    if not _served:
        spelled = [*(bytes([byte]) for byte in range(256)), *map(str.encode, OWN_TOKENS)]
        special_ids = [*range(256, len(spelled))]
        _serve(Tokens(spelled, special_ids, [256], len(spelled), ""))
    return _served[0].problem_of(grammar)


def _serve(tokens: Tokens) -> Vocabulary:
    """One for the same tokens."""
    same = [one for one in _served if one.tokens == tokens]
    newest = same[0] if same else Vocabulary(tokens)
    _served[:] = [newest, *(one for one in _served if one is not newest)][:MAX_SERVED]
    return newest
