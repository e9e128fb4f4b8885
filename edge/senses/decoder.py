"""A process that decodes what clients send: it may be killed, and the service goes on.

The formats that clients may use have so many corners that nobody knows which file of a kilobyte
makes a decoder work for an hour, take ten gigabytes or fail altogether. So the operating system
bounds all of that, whatever the file is: the time on the processor, the memory, the process itself.

    Decoder ── job, file ──> a process: `sent.decode`
            <── what it is ──  its pixels and samples lie in a file in memory that both have
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import resource
import signal
import socket
import struct
import subprocess
import threading
import time
import warnings
from pathlib import Path

import msgspec

from edge.child import may_be_ended, may_wait, python
from edge.errors import CapacityError, MediaError
from edge.senses.sent import Job, Kind, decode
from edge.types import Film, Medium, Picture, Sound

MAX_CPU_S: dict[Kind, int] = {"picture": 10, "sound": 20, "film": 120}
"""Of all threads together. Two minutes of 1920x1080 at 60 frames a second take 30 s on a PC."""
MAX_BYTES = 1 << 30
"""What it may take beyond what an idle one has; the largest picture takes 0.6 GB."""
MAX_S = 300.0
"""Since it was asked, however busy the machine is."""
_HEAD = struct.Struct("<III")
"""Bytes of a message, and of the file behind it; seconds on the processor for the answer."""
_CODE = "from edge.senses.decoder import main\nmain(*map(int, sys.argv[1:]))"


class _Reply(msgspec.Struct, omit_defaults=True):
    """What came of a job."""

    n_rgb: int = 0
    n_samples: int = 0
    """Bytes in the file: pixels, then samples."""
    width: int = 0
    height: int = 0
    times_s: tuple[float, ...] = ()
    error: tuple[str, str, str] | None = None
    """A MediaError's."""
    is_last: bool = False
    """Its memory is used up: what is left may be in pieces. Another process decodes the next."""


class Decoder:
    """Decodes one file at a time, in a process that is there from the first one on."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._lock = threading.Lock()
        self._process: _Process | None = None
        self._is_closed = False

    def __call__(self, job: Job, data: bytes) -> Medium:
        """As `sent.decode`, but bounded; others wait until it is done. From any thread.

        Raises:
            MediaError: it cannot be decoded, or not within the bounds.
            CapacityError: the service ends, or there can be no process now.
        """
        with self._lock:
            process = self._begun()
            try:
                reply = process.ask(job, data)
            except (OSError, EOFError):
                status = self._end()
                if self._is_closed:
                    raise _stopping() from None
                raise _ended(job.kind, status) from None
            if reply.is_last:
                self._end()
            if reply.error is not None:
                raise MediaError(*reply.error)
            return process.take(job, reply)

    def _begun(self) -> _Process:
        """The process, or another where it has ended since: no file is to blame for that.

        Raises:
            CapacityError: the service ends, or there can be no process now.
        """
        if self._was_closed():
            raise _stopping()
        if self._process is not None and self._process.has_ended():
            self._end()
        try:
            process = self._process = self._process or _Process()
        except OSError as error:  # such as ENOMEM, EAGAIN and EMFILE: another time there is room
            problem = f"can have no decoder ({error})"
            raise CapacityError("pictures and sounds", problem, "send it again later") from None
        if self._was_closed():  # since then, by somebody who may not have seen it
            process.kill()
        return process

    def _was_closed(self) -> bool:
        return self._is_closed

    def _end(self) -> int:
        """What the process ended with; there is none then."""
        assert self._process is not None
        process, self._process = self._process, None
        return process.end()

    def close(self) -> None:
        """End the process, whatever it decodes."""
        self._is_closed = True
        process = self._process
        if process is not None:
            process.kill()
        with self._lock:
            if self._process is not None:
                self._end()


class _Process:
    """The process, and what leads to it."""

    def __init__(self) -> None:
        self._link, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as opened:
            opened.enter_context(self._link)
            self._link.settimeout(MAX_S)
            self._file = os.memfd_create("decoded")
            opened.callback(os.close, self._file)
            fds = theirs.fileno(), self._file
            self._process = subprocess.Popen(
                python(_CODE, *fds, MAX_BYTES),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=fds,
                start_new_session=True,  # Ctrl-C ends the service, which ends it
            )
            opened.pop_all()

    def ask(self, job: Job, data: bytes) -> _Reply:
        """What comes of a job.

        Raises:
            OSError, EOFError: it has ended, or is too late.
        """
        message = msgspec.json.encode(job)
        self._link.sendall(_HEAD.pack(len(message), len(data), MAX_CPU_S[job.kind]) + message)
        self._link.sendall(data)
        size, _, _ = _HEAD.unpack(_received(self._link, _HEAD.size))
        return msgspec.json.decode(_received(self._link, size), type=_Reply)

    def take(self, job: Job, reply: _Reply) -> Medium:
        """What lies in the file."""
        rgb = os.pread(self._file, reply.n_rgb, 0)
        samples = os.pread(self._file, reply.n_samples, reply.n_rgb)
        os.ftruncate(self._file, 0)
        if job.kind == "sound":
            return Sound(samples)
        if job.kind == "picture":
            return Picture(rgb, reply.width, reply.height)
        sound = Sound(samples) if samples else None
        return Film(rgb, reply.width, reply.height, reply.times_s, sound, job.pruning_rate)

    def has_ended(self) -> bool:
        """Whether it decodes no more."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """It decodes no more."""
        self._process.kill()

    def end(self) -> int:
        """It is gone; what it ended with, minus a signal."""
        # One that has ended by itself is not killed any more: Popen remembers.
        self._link.close()
        os.close(self._file)
        try:
            return self._process.wait(1.0)
        except subprocess.TimeoutExpired:  # it hangs
            self._process.kill()
            return self._process.wait()


def _stopping() -> CapacityError:
    return CapacityError("service", "is stopping", "ask again later")


def _ended(kind: Kind, status: int) -> MediaError:
    """What the end of the process says of the file."""
    problem = f"ends its decoder (status {status})"
    if status == -signal.SIGXCPU:
        problem = f"takes more than {MAX_CPU_S[kind]} s to decode"
    elif status == -signal.SIGKILL:
        problem = "takes too long to decode, or too much memory"
    return MediaError(kind, problem, "encode it again")


def _received(link: socket.socket, n_bytes: int) -> bytes:
    """So many bytes.

    Raises:
        EOFError: the other side has gone before.
    """
    data = bytearray(n_bytes)
    view, n = memoryview(data), 0
    while n < n_bytes:
        n_more = link.recv_into(view[n:])
        if not n_more:
            raise EOFError
        n += n_more
    return bytes(data)


# What the process does.


def main(link_fd: int, file_fd: int, max_bytes: int) -> None:
    """Decode until the other side has gone."""
    warnings.simplefilter("ignore")  # Pillow's, of notes beside a picture
    logging.disable()
    may_be_ended()
    may_wait()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most = _data_bytes() + max_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    with socket.socket(fileno=link_fd) as link:
        while True:
            try:
                size, n_bytes, max_cpu_s = _HEAD.unpack(_received(link, _HEAD.size))
                job = msgspec.json.decode(_received(link, size), type=Job)
                data = _received(link, n_bytes)
            except (EOFError, ConnectionError):
                return
            reply = msgspec.json.encode(_done(job, data, file_fd, max_cpu_s))
            del data
            with contextlib.suppress(ConnectionError):  # as above, the next time
                link.sendall(_HEAD.pack(len(reply), 0, 0) + reply)


def _done(job: Job, data: bytes, file_fd: int, max_cpu_s: int) -> _Reply:
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    until_s = math.ceil(time.process_time()) + max_cpu_s
    resource.setrlimit(resource.RLIMIT_CPU, (until_s, hard))
    try:
        medium = decode(job, data)
    except (MediaError, MemoryError) as error:
        return _refused(job.kind, error)
    except BlockingIOError:  # of a thread that cannot begin
        return _refused(job.kind, MemoryError())
    if isinstance(medium, Sound):
        return _Reply(n_samples=_write(file_fd, medium.samples, 0))
    n_rgb, n_samples = _write(file_fd, medium.rgb, 0), 0
    times_s: tuple[float, ...] = ()
    if isinstance(medium, Film):
        times_s = medium.times_s
        if medium.sound is not None:
            n_samples = _write(file_fd, medium.sound.samples, n_rgb)
    return _Reply(n_rgb, n_samples, medium.width, medium.height, times_s)


def _refused(kind: Kind, error: MediaError | MemoryError) -> _Reply:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, MemoryError):
        cause = cause.__context__
    if isinstance(error, MediaError) and cause is None:
        return _Reply(error=(error.thing, error.problem, error.remedy))
    problem = "takes too much memory to decode"
    return _Reply(error=(kind, problem, "send a smaller one"), is_last=True)


def _write(fd: int, data: bytes, at: int) -> int:
    n = 0
    while n < len(data):
        n += os.pwrite(fd, memoryview(data)[n:], at + n)
    return n


def _data_bytes() -> int:
    """What RLIMIT_DATA counts, of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kb,) = (line.split()[1] for line in lines if line.startswith("VmData:"))
    return 1024 * int(kb)
