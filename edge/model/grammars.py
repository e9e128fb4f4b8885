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
import socket
import struct
import subprocess
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Generic, TypeVar

import llguidance

from edge.child import places, python
from edge.errors import CapacityError
from edge.model.grammar_process import COMPILE_S, COSTLY, MAX_BYTES, Tokens
from edge.model.tokenizer import OWN_TOKENS, Tokenizer

log = logging.getLogger(__name__)

T = TypeVar("T")

USER: ContextVar[str] = ContextVar("user", default="")
"""Whose grammars are checked here: one user has at most half of the places."""
CHARGE: ContextVar[Callable[[float], None]] = ContextVar("charge")
"""Is told for how many seconds a check had a place, where somebody wants to know."""
MAX_GRAMMAR_BYTES = 1 << 16
MAX_FOLLOWERS = 8
"""Grammars that are kept compiled, the newest; each takes a few MB."""
MAX_VERDICTS = 256
"""Of those that cannot be followed, why: a client asks by the same again."""
MAX_CHECKS = 2
"""At once: each takes a core."""
MAX_WAITING_CHECKS = 2
"""More are refused at once: each waits in a thread that others need."""
PLACE_S = 0.5
"""So long a check waits for others."""
MIN_PROCESSES, MAX_PROCESSES = 4, 24
"""That follow grammars and answers at once; fewer than the most where memory is short."""
CHECK_S, LIVE_S = 20.0, 1.0
"""Until a check, and whatever the loop of a live session waits for, is given up. A check may take
long: what a process takes ends it sooner, and only one that gets no time on a core comes so far.
Who perceives meanwhile cannot wait for that."""
FORGET_S = 60.0
"""So long a grammar counts as too costly: the next time it may meet a machine that is less busy."""
TOO_COSTLY = f"it takes more than {COMPILE_S:g} s of a core or {MAX_BYTES >> 20} MiB to compile"


class UncheckedError(Exception):
    """A grammar is not known yet, and who asks must not wait: it runs an event loop."""


def lost() -> CapacityError:
    """A process ended, and not by what its grammar takes."""
    return CapacityError("format", "has lost the process that follows it", "ask again")


@dataclass(eq=False)
class Follower:
    """The process of one grammar."""

    line: Connection
    lock: threading.Lock = field(default_factory=threading.Lock)
    problem: str | None = None
    """None: not known yet."""
    answers: weakref.WeakSet[Connection] = field(default_factory=weakref.WeakSet)
    """Lines of the processes below it."""

    def wait(self, until_s: float = 0.0) -> str | None:
        """What is wrong with the grammar, empty if nothing; None if that is not known by then.

        Raises:
            CapacityError: the process has ended before it knew.
        """
        if not self.lock.acquire(timeout=max(0.0, until_s - time.monotonic())):
            return None
        try:
            if self.problem is None and self.line.poll(max(0.0, until_s - time.monotonic())):
                said = self.line.recv_bytes()
                self.problem = TOO_COSTLY if said[:1] == COSTLY else said[1:].decode()
        except (EOFError, OSError):
            raise lost() from None
        finally:
            self.lock.release()
        return self.problem

    @property
    def is_ready(self) -> bool:
        """Whether answers can begin at once."""
        return self.problem == "" and not self.has_ended

    @property
    def has_ended(self) -> bool:
        """Whether it has said what is wrong, and is gone since."""
        return self.problem is not None and self.line.poll()

    @property
    def is_idle(self) -> bool:
        """Whether nobody needs it now."""
        return not self.lock.locked() and not _n_open(self.answers)


class _Kept(Generic[T]):
    """What users have brought: for one too many, the oldest goes of whoever has most."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._things: dict[bytes, tuple[T, str]] = {}
        """The newest last."""

    def get(self, name: bytes) -> T | None:
        """One, which is the newest from now on."""
        if (found := self._things.pop(name, None)) is None:
            return None
        self._things[name] = found
        return found[0]

    def keep(self, name: bytes, thing: T) -> None:
        """Keep it for the user of this context."""
        self._things[name] = thing, USER.get()
        if len(self._things) > self._most:
            self.drop_one(lambda _: True)

    def drop(self, name: bytes) -> None:
        """Keep it no longer."""
        self._things.pop(name, None)

    def drop_one(self, may_go: Callable[[T], bool]) -> bool:
        """Keep one less; False: none may go."""
        going = [(name, user) for name, (thing, user) in self._things.items() if may_go(thing)]
        if not going:
            return False
        ((most, _),) = Counter(user for _, user in going).most_common(1)
        del self._things[next(name for name, user in going if user == most)]
        return True


class _Places:
    """Places, of which one user has at most half."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: Counter[str] = Counter()

    def take(self, user: str) -> bool:
        """Whether there was one."""
        if self._taken.total() >= self._most or self._taken[user] >= self._most // 2:
            return False
        self._taken[user] += 1
        return True

    def give(self, user: str) -> None:
        """It is free again."""
        self._taken[user] -= 1
        self._taken += Counter()  # without the zeros


class Vocabulary:
    """The model's tokens, and the processes that follow grammars over them; for any thread."""

    def __init__(self, tokens: Tokens) -> None:
        """Keep the tokens; the first process is begun when it is needed, or by `start`."""
        self.tokens = tokens
        self._file = _file_of(pickle.dumps(tokens))
        weakref.finalize(self, os.close, self._file)
        self._lock = threading.Lock()
        """Of what is kept. An event loop takes it too: nobody begins a process meanwhile, or
        writes to one."""
        self._beginning = threading.RLock()
        """Of what begins processes."""
        self._keeper: Connection | None = None
        self._followers: _Kept[Follower] = _Kept(MAX_FOLLOWERS)
        self._verdicts: _Kept[tuple[str, float]] = _Kept(MAX_VERDICTS)
        self._turn = threading.Condition()
        self._queue = _Places(MAX_CHECKS + MAX_WAITING_CHECKS)
        self._cores = _Places(MAX_CHECKS)
        self._lines: weakref.WeakSet[Connection] = weakref.WeakSet()
        """Of the processes below the keeper."""
        self._max_lines = places(MAX_BYTES, MIN_PROCESSES, MAX_PROCESSES)
        self.patience_s = CHECK_S
        """Of whoever follows an answer: LIVE_S in a live session."""
        self.counts = {"grammars_too_costly": 0, "grammar_processes_restarted": 0}

    def spell(self, token: int) -> bytes:
        """What a token says."""
        return self.tokens.spelled[token]

    def start(self) -> None:
        """Begin the keeper, which takes a while to have the vocabulary; nobody waits for it."""
        with self._beginning:
            if self._keeper is None:
                self._keeper = self._begun()

    def problem_of(self, grammar: str, *, answering: bool = False) -> str:
        """What is wrong with a grammar; empty if it can be followed.

        Args:
            answering: whether whoever answers asks, and has only its patience.
        Raises:
            CapacityError: that cannot be found out now.
            UncheckedError: it is not known, and this thread runs an event loop.
        """
        name = _digest(grammar)
        with self._lock:
            problem, lasts_until_s = self._verdicts.get(name) or ("", 0.0)
            follower = self._followers.get(name)
        if time.monotonic() < lasts_until_s:
            return problem
        if follower is not None and follower.is_ready:
            return ""
        if _runs_an_event_loop():
            raise UncheckedError
        within_s = self.patience_s if answering else CHECK_S
        until_s = time.monotonic() + within_s
        with _in_words(), self._place():
            follower = self._follower(name, grammar)
            try:
                found = follower.wait(until_s)
            except CapacityError:
                self._forget(name, follower)
                raise
        if found is None:
            raise CapacityError("format", f"was not checked in {within_s:g} s", "ask again later")
        if found:
            self._remember(name, found)
        return found

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        user = USER.get()
        busy = CapacityError("format", "others are being checked", "ask again later")
        with self._turn:
            if not self._queue.take(user):
                raise busy
            if not self._turn.wait_for(lambda: self._cores.take(user), PLACE_S):
                self._queue.give(user)
                raise busy
        began_s = time.monotonic()
        try:
            yield
        finally:
            if (charge := CHARGE.get(None)) is not None:
                charge(time.monotonic() - began_s)
            with self._turn:
                self._cores.give(user)
                self._queue.give(user)
                self._turn.notify_all()

    def follow(self, grammar: str) -> tuple[Connection, Follower]:
        """The line of a process that follows one answer, and the grammar's; waits for nothing.

        Raises:
            CapacityError: there can be no process for it now.
        """
        name = _digest(grammar)
        with _in_words():
            for _ in range(2):
                follower = self._follower(name, grammar)
                ours, theirs = self._pipe()
                follower.answers.add(ours)
                with theirs:
                    try:
                        _hand(follower.line, theirs.fileno())
                    except OSError:  # its process has ended
                        self._forget(name, follower)
                    else:
                        return ours, follower
        raise lost()

    def _follower(self, name: bytes, grammar: str) -> Follower:
        with self._beginning:
            with self._lock:
                follower = self._followers.get(name)
            if follower is not None and not follower.has_ended:
                return follower
            ours, theirs = self._pipe()
            file = _file_of(grammar.encode())
            try:
                with theirs:
                    _hand(ours, file)
                    self._hand_to_keeper(theirs.fileno())
            finally:
                os.close(file)
            follower = Follower(ours)
            with self._lock:
                self._followers.keep(name, follower)
            return follower

    def _pipe(self) -> tuple[Connection, Connection]:
        """Both ends of the line of one more process; what is kept and idle makes room for it."""
        with self._beginning:
            while _n_open(self._lines) >= self._max_lines:
                with self._lock:
                    is_dropped = self._followers.drop_one(lambda one: one.is_idle)
                if not is_dropped:
                    problem = f"would need more than {self._max_lines} processes"
                    raise CapacityError("format", problem, "ask again later")
            ours, theirs = Pipe()
            self._lines.add(ours)
            return ours, theirs

    def _forget(self, name: bytes, follower: Follower) -> None:
        with self._lock:
            if self._followers.get(name) is follower:
                self._followers.drop(name)

    def _remember(self, name: bytes, problem: str) -> None:
        with self._lock:
            lasts_s = FORGET_S if problem == TOO_COSTLY else float("inf")
            self.counts["grammars_too_costly"] += problem == TOO_COSTLY
            self._verdicts.keep(name, (problem, time.monotonic() + lasts_s))
            self._followers.drop(name)

    def _hand_to_keeper(self, handle: int) -> None:
        if self._keeper is None:
            self._keeper = self._begun()
        try:
            _hand(self._keeper, handle)
        except OSError:
            log.warning("event=grammar_keeper_ended remedy=begun again")
            self.counts["grammar_processes_restarted"] += 1
            self._keeper = self._begun()
            _hand(self._keeper, handle)

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


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    """What the system refuses, as who asks is told of it."""
    try:
        yield
    except OSError as error:
        problem = f"can have no process ({error})"
        raise CapacityError("format", problem, "ask again later") from None


def _file_of(data: bytes) -> int:
    """A file in memory: who writes it waits for nobody that reads it."""
    handle = os.memfd_create("edge-grammars")
    with os.fdopen(os.dup(handle), "wb") as file:
        file.write(data)
    return handle


def _hand(line: Connection, handle: int) -> None:
    """Send a descriptor for `recv_handle`, and wait for nothing.

    Raises:
        OSError: the other side has ended, or takes nothing.
    """
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", handle))]
    with socket.fromfd(line.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as end:
        end.sendmsg([b"\1"], rights, socket.MSG_DONTWAIT)


def _n_open(lines: weakref.WeakSet[Connection]) -> int:
    return sum(not line.closed for line in lines)


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


def problem_of(grammar: str, *, answering: bool = False) -> str:
    """`Vocabulary.problem_of`, with the model's that this process serves, or one of bytes."""
    if not _served:
        spelled = [*(bytes([byte]) for byte in range(256)), *map(str.encode, OWN_TOKENS)]
        special_ids = [*range(256, len(spelled))]
        _serve(Tokens(spelled, special_ids, [256], len(spelled), ""))
    return _served[0].problem_of(grammar, answering=answering)


def _serve(tokens: Tokens) -> Vocabulary:
    """One for the same tokens."""
    same = [one for one in _served if one.tokens == tokens]
    newest = same[0] if same else Vocabulary(tokens)
    _served[:] = [newest, *(one for one in _served if one is not newest)][:MAX_SERVED]
    return newest
