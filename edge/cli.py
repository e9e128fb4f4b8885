"""The `edge` command."""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edge
from edge import advice, board_commands
from edge.commands import add_commands
from edge.config import load_config
from edge.errors import ConfigurationError, DeviceError, EdgeError, MediaError, ReplayError
from edge.wire import DEFAULT_SOCKET

if TYPE_CHECKING:
    from edge.engines.checked import Checking

EXIT_USAGE, EXIT_IO_ERROR = 2, 74


def demo(_: argparse.Namespace) -> None:
    """Watch a recorded session with a small model, and answer five questions about it."""
    from edge import demo

    demo.run()


def run(arguments: argparse.Namespace) -> None:
    """Perceive and answer until stopped (SIGTERM or Ctrl-C)."""
    from edge.engines.checked import Checking
    from edge.notify import runtime_folder
    from edge.startup import SWITCH_INTERVAL_S

    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # First of all, so that its bytes are hashed while everything else is imported.
    with Checking(arguments.bundle, runtime_folder(os.environ)) as checking:
        _run(arguments, checking)


def _run(arguments: argparse.Namespace, checking: Checking) -> None:
    # Only this command needs the runtime's packages; a client works without them.
    from edge import service
    from edge.engines.choose import Choice
    from edge.notify import given_socket
    from edge.serve.refusal import tell_waiting
    from edge.session import journal

    journal.begin(logging.WARNING if arguments.quiet else logging.INFO, os.environ)
    changes: dict[str, dict[str, object]] = {}
    given = (
        ("socket", "path", arguments.socket),
        ("perception", "fps", arguments.fps),
        ("perception", "listen", arguments.listen),
    )
    for section, key, value in given:
        if value is not None:
            changes.setdefault(section, {})[key] = value
    reload = partial(load_config, arguments.config, changes)
    choice = Choice(arguments.engine, arguments.unverified)
    listener = given_socket(os.environ)
    try:
        config = load_config(arguments.config, changes)
        given_senses = (config, arguments.video, arguments.audio)
        senses = service.open_senses(
            *given_senses, sound=not arguments.no_sound, repeat=arguments.repeat
        )
        service.run(checking, config, senses, choice, arguments.record, reload, listener)
    except EdgeError as error:
        if listener is not None and error.exit_code == ConfigurationError.exit_code:
            n_told = tell_waiting(listener, error)
            logging.getLogger(__name__).error("event=refused waiting=%d error=%s", n_told, error)
        raise


def ingest(arguments: argparse.Namespace) -> None:
    """Hand a network camera's pictures on, for a service that has no network."""
    import threading

    from edge.senses.ingest import given_address, hand_on
    from edge.serve import unix_socket
    from edge.session import journal

    journal.begin(logging.INFO, os.environ)
    address = given_address(os.environ)
    listener = unix_socket.bind(Path(arguments.socket))
    hand_on(address, arguments.name, listener, threading.Event())


def replay(arguments: argparse.Namespace) -> None:
    """Run a recorded session again and compare every event with the recorded one. Of a folder, all
    recordings that a service has left there, each by itself."""
    from edge import service
    from edge.session import record, record_files

    path: Path = arguments.file
    paths = record_files.files_of(path) if path.is_dir() else [path]
    if not paths:
        raise MediaError(path, "holds no recording", "set record.folder, or give a file")
    found: list[record.Recorded] = []
    reports: list[dict[str, Any]] = []

    def opened() -> Iterator[record.Recorded]:
        for one in paths:
            try:
                found.append(record.read(one))
            except MediaError as error:
                if not path.is_dir():
                    raise
                reports.append({"file": str(one), "error": str(error)})
                print(f"edge: {error}", file=sys.stderr)
                continue
            yield found[-1]

    for steps in service.replays(arguments.bundle, opened()):
        n_steps = n_events = 0
        recorded = found[-1]
        for replayed in steps:
            n_steps += 1
            n_events += len(replayed.events)
            if not replayed.is_same:
                raise ReplayError(
                    f"step {replayed.number} of {recorded.path}",
                    f"led to {_shown(replayed.events)}, recorded is {_shown(replayed.step.events)}",
                    "replay it on the bundle and the version that recorded it",
                )
        report = {"steps": n_steps, "events": n_events, "same": True, "cut": recorded.cut}
        reports.append({"file": str(recorded.path), "began": recorded.began, **report})
        if recorded.cut:
            print(
                f"edge: {recorded.path}: {recorded.cut}; all before it was replayed",
                file=sys.stderr,
            )
        if not arguments.json:
            print(f"{recorded.path}: {n_steps} steps, {n_events} events, all as recorded")
    if arguments.json:
        print(json.dumps({"files": reports} if path.is_dir() else reports[0]))
    if n_unread := sum("error" in report for report in reports):
        problem = f"holds {n_unread} of {len(paths)} files that cannot be replayed"
        raise MediaError(path, problem, "see above; the others led to what was recorded")


def _shown(events: list[dict[str, Any]]) -> str:
    text = json.dumps(events)
    return text if len(text) <= 200 else f"{text[:197]}..."


def bench(arguments: argparse.Namespace) -> None:
    """Measure this machine with a bundle: figures, and their ratio to what memory allows."""
    from edge import bench
    from edge.engines.bundle import Bundle

    found: dict[str, float] = {}
    if arguments.what == "bandwidth":
        found = bench.bandwidth(arguments.threads, arguments.rounds)
    elif arguments.bundle is None:
        raise ConfigurationError("bundle", "is missing", f"edge bench {arguments.what} BUNDLE")
    else:
        bundle = Bundle(arguments.bundle, check_hashes=False)
        found = bench.BENCHES[arguments.what](bundle, arguments.threads, arguments.rounds)
    if not arguments.json:
        where = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
        print(f"{arguments.what}: median of {arguments.rounds}, {where}")
        for name, value in found.items():
            print(f"  {name:28} {value}")
    print(json.dumps(found))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="edge",
        description="Keep perceiving: camera and microphone in, answers out, one omni model.",
        epilog="example: edge demo, which says at its end what to type next",
    )
    top.add_argument("--version", action="version", version=f"edge {edge.__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND")

    command = commands.add_parser(
        "demo", help="watch a recorded session and answer about it", description=demo.__doc__
    )
    command.set_defaults(call=demo)

    command = commands.add_parser("run", help="perceive and serve", description=run.__doc__)
    command.add_argument("bundle", type=Path, help="folder made by `build-engine bundle`")
    command.add_argument("--video", type=Path, help="recording that stands for the camera")
    command.add_argument(
        "--audio", type=Path, help="recording that stands for the microphone (else the video's)"
    )
    command.add_argument("--no-sound", action="store_true", help="leave the video's sound out")
    command.add_argument("--repeat", action="store_true", help="play recordings again and again")
    command.add_argument("--config", type=Path, help="TOML file with settings")
    command.add_argument("--fps", type=float, help="frames a second to look at (perception.fps)")
    command.add_argument(
        "--listen", help="windows or utterances: what sound is cut into (perception.listen)"
    )
    command.add_argument(
        "--engine",
        choices=("cpu", "tensorrt"),
        help="what executes it (default: tensorrt if the bundle holds plans, else cpu)",
    )
    command.add_argument(
        "--unverified",
        action="store_true",
        help="also run plans that `build-engine verify` has not found right on this GPU",
    )
    command.add_argument("--quiet", action="store_true", help="log warnings only")
    command.add_argument(
        "--record", type=Path, metavar="FILE", help="write the session to an MCAP file"
    )
    command.set_defaults(call=run)

    command = commands.add_parser(
        "ingest", help="hand a network camera's pictures on", description=ingest.__doc__
    )
    command.add_argument("name", help="of the camera, in the log")
    command.set_defaults(call=ingest)

    command = commands.add_parser(
        "replay", help="run a recorded session again", description=replay.__doc__
    )
    command.add_argument("bundle", type=Path, help="the bundle that the session ran on")
    command.add_argument(
        "file", type=Path, help="made by `edge run --record`; or a folder of [record]"
    )
    command.set_defaults(call=replay)

    add_commands(commands)

    command = commands.add_parser("bench", help="measure this machine", description=bench.__doc__)
    command.add_argument("what", choices=("bandwidth", "decode", "prefill", "features", "load"))
    command.add_argument("bundle", type=Path, nargs="?", help="all but bandwidth need one")
    command.add_argument("--threads", type=int, default=0, help="0: one a core (default)")
    command.add_argument("--rounds", type=int, default=9, help="medians are taken of (default 9)")
    command.set_defaults(call=bench)
    board_commands.add(commands)
    for name, command in commands.choices.items():
        if name not in ("demo", "bench", "replay", "doctor", "devices", "update"):
            command.add_argument("--socket", help=f"Unix socket (default {DEFAULT_SOCKET})")
        if name not in ("demo", "run", "ingest", "mcp", "top"):
            command.add_argument("--json", action="store_true", help="one JSON line for machines")
    return top


def _call(arguments: argparse.Namespace) -> None:
    """Do what is asked.

    Raises:
        DeviceError: there is not enough memory, whatever that has broken.
        Exception: what else is wrong.
    """
    try:
        arguments.call(arguments)
    except (EdgeError, ImportError, MemoryError, OSError, RuntimeError) as error:
        if not _lacks_memory(error):
            raise
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        remedy = "give it more, such as by MemoryMax= of its unit or ulimit -v"
        problem = f"is not enough ({cause.replace(';', ',')})"
        raise DeviceError("memory", problem, remedy) from None


def _lacks_memory(error: BaseException | None) -> bool:
    """Whether that is what an error comes of: libraries and the kernel say it in many ways."""
    while error is not None:
        if isinstance(error, MemoryError) or "bad_alloc" in str(error):
            return True
        if isinstance(error, OSError) and error.errno in (errno.ENOMEM, errno.EAGAIN):
            return True
        if isinstance(error, ImportError) and "failed to map segment" in str(error):
            return True
        if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; one clear line on failure."""
    command_line = parser()
    arguments = command_line.parse_args(argv)
    if "call" not in arguments:
        command_line.print_help(sys.stderr)
        return EXIT_USAGE
    try:
        _call(arguments)
    except EdgeError as error:
        print(f"edge: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] in ("edge", "jetson"):
            raise
        print(f"edge: {error.name}: is not installed; {advice.install('runtime')}", file=sys.stderr)
        return ConfigurationError.exit_code
    except MemoryError:
        print("edge: memory: is too small for this; end what else runs", file=sys.stderr)
        return DeviceError.exit_code
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_IO_ERROR
    except OSError as error:
        print(f"edge: {error.filename}: {error.strerror}", file=sys.stderr)
        return EXIT_IO_ERROR
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
