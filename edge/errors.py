"""Every error that Omni Edge raises on purpose, and what follows from it.

    EdgeError
    ├── ConfigurationError   a setting is wrong                  refuse to start, exit 78
    ├── BundleError          a bundle cannot be trusted or used  refuse to start, exit 78
    ├── DeviceError          the GPU or its driver is missing    refuse to start, exit 75: try again
    ├── CheckpointError      a checkpoint cannot be built        stop the build, exit 65
    ├── MediaError           a recording cannot be played        refuse to start, exit 65
    ├── SocketError          the socket cannot be had or reached refuse to start, exit 73
    ├── ProtocolError        a client's request is wrong         HTTP 400, that request only
    ├── AccessError          this user may not do that           HTTP 403, that request only
    ├── CapacityError        no room for this turn               HTTP 503, that turn only
    │   └── DeadlineError    no time for it                      likewise
    ├── TurnError            what answers a question failed      HTTP 500, that turn only
    ├── ReplayError          a replay went another way           stop the replay, exit 65
    ├── ReleaseError         a release cannot be installed       what ran goes on, exit 65
    └── EngineError          the engine broke its contract       stop the service, exit 1

An error names the thing, what is wrong with its value, and the remedy, in one line.
"""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)

MAX_LENGTH = 4000
"""Of each of an error's three parts."""
REPORT = "report this, with the service's log"
"""The remedy for a defect of ours."""


class EdgeError(Exception):
    """Base of all: `thing: problem; remedy`.

    Args:
        thing: what the error is about: a path, a tensor name, a setting.
        problem: what is wrong, with the offending value in it.
        remedy: what to do about it.
    """

    exit_code = 1

    def __init__(self, thing: object, problem: str, remedy: str) -> None:
        self.thing, self.problem, self.remedy = map(_one_line, (str(thing), problem, remedy))
        super().__init__(f"{self.thing}: {self.problem}; {self.remedy}")


def _one_line(text: str) -> str:
    """A text with what a file of others put into it: it moves no cursor, and has an end."""
    if len(text) > MAX_LENGTH:
        text = f"{text[: MAX_LENGTH - 3]}..."
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class ConfigurationError(EdgeError):
    """A setting is unknown or has a bad value."""

    exit_code = 78


class BundleError(EdgeError):
    """A bundle is missing, damaged, too new, or made for something else."""

    exit_code = 78


class DeviceError(EdgeError):
    """The GPU, its driver or its memory is not what the bundle needs, or not yet."""

    exit_code = 75


class CheckpointError(EdgeError):
    """A checkpoint lacks something, or holds something that this builder does not know."""

    exit_code = 65


class MediaError(EdgeError):
    """A recording or an image cannot be decoded or used."""

    exit_code = 65


class SocketError(EdgeError):
    """The local socket cannot be bound or reached."""

    exit_code = 73


class ProtocolError(EdgeError):
    """A client sent a request that cannot be served as it stands.

    Args:
        code: what OpenAI's clients tell kinds of wrong requests apart by.
    """

    def __init__(
        self, thing: object, problem: str, remedy: str, code: str | None = "invalid_value"
    ) -> None:
        super().__init__(thing, problem, remedy)
        self.code = code


class AccessError(EdgeError):
    """This user may not do that."""

    exit_code = 77


class CapacityError(EdgeError):
    """There is no room for this turn now."""


class DeadlineError(CapacityError):
    """A turn could not be answered in time."""


class TurnError(EdgeError):
    """A turn ended by what is no fault of its client's and none of the engine's."""

    @classmethod
    def of(cls, error: Exception) -> TurnError:
        """What whoever asked hears of a defect; it is logged in full."""
        log.error("turn=failed", exc_info=error)
        problem = " ".join(f"cannot be answered ({type(error).__name__}: {error})".split())
        return cls("question", problem, REPORT)


class ReplayError(EdgeError):
    """A recorded session, run again, led to other events."""

    exit_code = 65


class ReleaseError(EdgeError):
    """A release is damaged, older, or made for another machine, or did not become ready."""

    exit_code = 65


class EngineError(EdgeError):
    """An engine was called outside its contract, or failed."""
