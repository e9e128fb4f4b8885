"""The files of a recording: written by a thread, bounded, and left alone while the disk fails.

Whoever records never waits for a disk. What it gives waits here, up to a bound; beyond it, and
while nothing can be written, it is refused whole, and the file says that it ends there. Another
file begins when there is room again. With bounds, the oldest files give way to new ones.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mcap.writer import Writer

log = logging.getLogger(__name__)

LIBRARY = "omni-edge"
CHUNK_BYTES = 1 << 16
INDEX_BYTES = 256
"""Of a chunk, in the index at a file's end."""
FLUSH_S = 1.0
"""So much of a session is lost when the process is killed: the disk is given what there is."""
RETRY_S = 5.0
"""After a failure the disk is looked at so often."""
MAX_WAITING_BYTES = 64 << 20
"""What may wait to be written."""
ROOM_BYTES = 4 << 20
"""No file is begun on a disk with less room than this, beside what is to be kept free."""
CLOSE_S = 5.0
"""At the end what waits may take so long to be written."""
N_FILES = 16
"""A bounded recording consists of about so many files."""
MAX_FILE_S = 3600.0

Message = tuple[str, int, bytes]
"""Topic, time in ns, JSON."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of all files in a folder."""

    max_bytes: int
    """Together."""
    max_age_s: float = 0.0
    """Since their last change; 0: none is too old."""
    keep_free_bytes: int = 0
    """Of the disk."""

    @property
    def file_bytes(self) -> int:
        """What makes a file long enough for the next one to begin."""
        return self.max_bytes // N_FILES

    @property
    def file_s(self) -> float:
        """Likewise."""
        return min(MAX_FILE_S, self.max_age_s / N_FILES) if self.max_age_s else MAX_FILE_S


@dataclass(frozen=True, slots=True)
class Batch:
    """What belongs together: it is written whole, or not at all."""

    encode: Callable[[], Iterable[Message]]
    """Called in the writer's thread."""
    n_bytes: int
    """About what it takes in memory."""
    begins: bool = False
    """A file."""
    ends: bool = False
    """Likewise; all of it is there."""


class RecordFiles:
    """Files in one folder, `*.mcap`, which only their owner reads.

    Without bounds it is one file, and others beside it (`name-2.mcap`) only after a failure.
    """

    def __init__(
        self,
        path: Path,
        topics: dict[str, str],
        bounds: Bounds | None = None,
        *,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
    ) -> None:
        """Write nothing yet.

        Args:
            path: a file, or with bounds a folder.
            topics: topic -> name of its schema.
        """
        self.path, self.bounds = path, bounds
        self.problem = ""
        """Why the last file could not be written, until another one is."""
        self.is_blocked = False
        """Whether none can be begun, as far as known."""
        self.n_bytes = 0
        """Of the file that is being written."""
        self.n_head_bytes = 0
        """Of these, what stood in it when it was begun."""
        self.n_files = self.n_failures = self.n_lost = 0
        """Files that were begun; failures of the disk; batches that were taken and lost then."""
        self.began_s = 0.0
        """When the file was begun, by the monotonic clock."""
        self._topics, self._max_waiting = topics, max_waiting_bytes
        self._waiting: deque[Batch] = deque()
        self._n_waiting = 0
        self._changed = threading.Condition()
        self._has_file = self._is_closing = self._is_flush_wanted = False
        self._first: int | None = None
        self._file: _File | None = None
        self._told = ""
        self._due_s = 0.0
        self._others: list[tuple[Path, int, float]] = []
        self._number = 0
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    def open(self) -> None:
        """Begin to write what is put.

        Raises:
            OSError: the one file cannot be opened. A folder that fails is told as a problem.
        """
        if self.bounds is None:
            self._first = _opened(self.path, os.O_TRUNC)
        else:
            with self._failing():
                self.path.mkdir(0o700, parents=True, exist_ok=True)
        self._thread.start()

    def close(self) -> None:
        """Write what waits, for some seconds at most."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            log.warning("recording=%s event=not_finished remedy=a faster disk", self.path)

    @property
    def is_idle(self) -> bool:
        """Whether all that was put is written, or was lost."""
        with self._changed:
            return not self._n_waiting

    def wait(self) -> None:
        """Until all that was put is in the file, or was lost."""
        with self._changed:
            self._is_flush_wanted = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._n_waiting and not self._is_flush_wanted)

    def put(self, batch: Batch) -> bool:
        """Let it be written, never waiting for that.

        Returns:
            False: there is no file that it could belong to, as the disk has failed; or too much
            waits already, but what ends a file finds room.
        """
        with self._changed:
            is_full = self._n_waiting and self._n_waiting + batch.n_bytes > self._max_waiting
            if batch.begins:
                self._has_file = not self.is_blocked
            if not self._has_file or (is_full and not batch.ends):
                return False
            self._has_file = not batch.ends
            self._waiting.append(batch)
            self._n_waiting += batch.n_bytes + 1
            self._changed.notify()
        return True

    # What the writer's own thread does.

    def _run(self) -> None:
        while True:
            with self._changed:
                if not (self._waiting or self._is_closing or self._is_flush_wanted):
                    self._changed.wait(max(0.0, min(FLUSH_S, self._due_s - time.monotonic())))
                batch = self._waiting.popleft() if self._waiting else None
                is_over = batch is None and self._is_closing
            if batch is not None:
                with self._failing():
                    self._write(batch)
                with self._changed:
                    self._n_waiting = max(0, self._n_waiting - batch.n_bytes - 1)
            elif self._is_flush_wanted:
                with self._failing():
                    self._flush()
                self._is_flush_wanted = False
            with self._changed:
                self._changed.notify_all()
            if is_over:
                break
            if time.monotonic() >= self._due_s:
                self._due_s = time.monotonic() + FLUSH_S
                with self._failing():
                    self._look()
        with self._failing():
            self._finish()

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Whatever goes wrong ends the file, and no more than that."""
        try:
            yield
        except OSError as error:
            self._fail(error.strerror or str(error))
        except Exception as error:  # a thread's top
            log.debug("recording=%s", self.path, exc_info=error)
            self._fail(f"{type(error).__name__}: {error}")

    def _fail(self, problem: str) -> None:
        """What was put so far and is not written is lost: it cannot be read without what failed."""
        with self._changed:
            self.problem, self.is_blocked = problem, True
            self.n_lost += len(self._waiting)
            self._waiting.clear()
            self._n_waiting, self._has_file = 0, False
        self.n_failures += 1
        self._due_s = time.monotonic() + RETRY_S
        if self._file is not None:
            self._file.give_up()
            self._file = None
        if self._told != problem:
            self._told = problem
            log.error(
                "recording=%s event=stopped error=%s: %s",
                *(self.path, problem, "the session goes on without; make room"),
            )

    def _write(self, batch: Batch) -> None:
        if batch.begins:
            self._finish()
            self._begin()
        if self._file is None:
            return  # it belongs to a file that has failed
        for message in batch.encode():
            self._file.add(message)
        if batch.begins:
            self._file.flush()  # nothing can be read without it
            self.n_head_bytes = self._file.n_bytes
        self.n_bytes = self._file.n_bytes
        if batch.ends:
            self._finish()
        else:
            self._bound()

    def _begin(self) -> None:
        self._others = self._found()
        self._number = 1 + max(self._number, *(_number(path) for path, _, _ in self._others), 0)
        self._forget_old()
        if self.bounds is None:
            descriptor, self._first = self._first, None
            path = self.path
            if descriptor is None:
                path, descriptor = _unused(self.path.parent, self.path.stem)
        else:
            self.path.mkdir(0o700, parents=True, exist_ok=True)
            stem = f"edge-{self._number:06}-{time.strftime(TIME, time.gmtime())}"
            path, descriptor = _unused(self.path, stem)
        self._file = _File(path, descriptor, self._topics)
        self.n_bytes = self.n_head_bytes = 0
        self.began_s = time.monotonic()
        self.n_files += 1
        if self._told:
            self._told = self.problem = ""
            log.warning("recording=%s event=resumed", path)

    def _finish(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            file.finish()
        self.n_bytes = 0

    def _look(self) -> None:
        """Once a second: give the disk what there is; after a failure, see whether it is well."""
        if self.is_blocked:
            self._due_s = time.monotonic() + RETRY_S
            folder = self.path if self.bounds is not None else self.path.parent
            if self.bounds is not None:
                folder.mkdir(0o700, parents=True, exist_ok=True)
                self._others = self._found()
            free = _free_bytes(folder)
            while free < self._least_free() and self._remove_oldest():
                free = _free_bytes(folder)
            if free >= self._least_free() and os.access(folder, os.W_OK | os.X_OK):
                self.is_blocked = False
        elif self._file is not None:
            self._flush()
            self._forget_old()
            if self.bounds is not None:
                self._keep_free(self.bounds)
                self._bound()

    def _flush(self) -> None:
        if self._file is not None:
            self._file.flush()
            self._file.sync()

    def _least_free(self) -> int:
        return ROOM_BYTES + (0 if self.bounds is None else self.bounds.keep_free_bytes)

    def _bound(self) -> None:
        if self.bounds is None or self._file is None:
            return
        others = sum(size for _, size, _ in self._others)
        if others + self._file.n_bytes_at_end <= self.bounds.max_bytes:
            return
        if not self._remove_oldest():
            raise OSError(0, f"one file of {self._file.n_bytes} bytes: record.max_bytes is too low")

    def _keep_free(self, bounds: Bounds) -> None:
        while (free := _free_bytes(self.path)) < bounds.keep_free_bytes:
            if not self._remove_oldest():
                problem = f"{free >> 20} MiB are free, record.keep_free_bytes wants more"
                raise OSError(0, problem)

    def _forget_old(self) -> None:
        if self.bounds is None or not self.bounds.max_age_s:
            return
        least_s = time.time() - self.bounds.max_age_s
        while self._others and self._others[0][2] < least_s:
            self._remove_oldest()

    def _remove_oldest(self) -> bool:
        if not self._others:
            return False
        path, _, _ = self._others.pop(0)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        log.info("recording=%s event=removed", path)
        return True

    def _found(self) -> list[tuple[Path, int, float]]:
        """Ours in this folder, but the one that is written, the oldest first: path, size, last
        change."""
        if self.bounds is None:
            return []
        found = []
        for path in self.path.iterdir():
            if OURS.fullmatch(path.name) and (self._file is None or path != self._file.path):
                with contextlib.suppress(FileNotFoundError):
                    status = path.lstat()
                    found.append((path, status.st_size, status.st_mtime))
        return sorted(found, key=lambda one: _number(one[0]))


TIME = "%Y-%m-%dT%H-%M-%SZ"
OURS = re.compile(r"edge-(\d{6,9})-\d{4}-\d\d-\d\dT\d\d-\d\d-\d\dZ(-\d+)?\.mcap")


def _number(path: Path) -> int:
    """Of a file: they count up, also where somebody sets the clock back."""
    found = OURS.fullmatch(path.name)
    return int(found[1]) if found else 0


def files_of(folder: Path) -> list[Path]:
    """The recordings that a service has left in a folder, the oldest first."""
    return sorted((p for p in folder.iterdir() if OURS.fullmatch(p.name)), key=_number)


def _free_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _opened(path: Path, flags: int) -> int:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, 0o600)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.fchmod(descriptor, 0o600)  # it may have been there
    return descriptor


def _unused(folder: Path, stem: str) -> tuple[Path, int]:
    """A file that was not there."""
    for n in itertools.count(1):
        path = folder / (f"{stem}-{n}.mcap" if n > 1 else f"{stem}.mcap")
        with contextlib.suppress(FileExistsError):
            return path, _opened(path, os.O_EXCL)
    raise AssertionError


class _Counted:
    """What MCAP's writer needs of a stream, which may be a pipe."""

    def __init__(self, descriptor: int) -> None:
        self.n_bytes = 0
        self._out = open(descriptor, "wb")  # noqa: SIM115 - `close` does

    def write(self, data: bytes) -> int:
        self.n_bytes += len(data)
        return self._out.write(data)

    def tell(self) -> int:
        return self.n_bytes

    def flush(self) -> None:
        self._out.flush()

    def sync(self) -> None:
        """Give it to the disk."""
        with contextlib.suppress(OSError):  # a pipe; or the disk is full, which writing tells
            os.fdatasync(self._out.fileno())

    def close(self) -> None:
        """Whatever is left of it."""
        with contextlib.suppress(OSError):
            self._out.close()


class _File:
    """One MCAP file."""

    def __init__(self, path: Path, descriptor: int, topics: dict[str, str]) -> None:
        self.path = path
        self._out = _Counted(descriptor)
        self._writer = Writer(self._out, chunk_size=CHUNK_BYTES)  # type: ignore[arg-type]
        self._writer.start(library=LIBRARY)
        self._channels = {
            topic: self._writer.register_channel(
                f"/{topic}",
                "json",
                self._writer.register_schema(name, "jsonschema", b'{"type": "object"}'),
            )
            for topic, name in topics.items()
        }
        self._sequence = itertools.count()
        self._n_flushes = 0

    @property
    def n_bytes(self) -> int:
        """Written so far."""
        return self._out.n_bytes

    @property
    def n_bytes_at_end(self) -> int:
        """At most, if it ended now: the newest chunk, and an index of all of them."""
        n_chunks = self._n_flushes + self.n_bytes // CHUNK_BYTES
        return self.n_bytes + CHUNK_BYTES + INDEX_BYTES * n_chunks

    def add(self, message: Message) -> None:
        """Let a message wait for its chunk to be full."""
        topic, at_ns, data = message
        add = self._writer.add_message
        add(self._channels[topic], at_ns, data, at_ns, next(self._sequence))

    def flush(self) -> None:
        """Whoever reads it now finds all messages."""
        self._n_flushes += 1
        self._writer.flush()  # type: ignore[no-untyped-call]

    def sync(self) -> None:
        """So does who reads it after a power cut."""
        self._out.sync()

    def finish(self) -> None:
        """All is written."""
        try:
            self._writer.finish()  # type: ignore[no-untyped-call]
            self._out.flush()
            self._out.sync()
        finally:
            self._out.close()

    def give_up(self) -> None:
        """Leave it as it is."""
        self._out.close()
