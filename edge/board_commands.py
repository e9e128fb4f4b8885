"""The commands about the machine: `edge doctor`, `edge devices`, `edge top`, `edge update`."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

from edge import advice
from edge.errors import ConfigurationError
from edge.wire import DEFAULT_SOCKET

# Each command imports what it needs when it runs: a client works without the runtime's packages.


def doctor(arguments: argparse.Namespace) -> None:
    """Can this machine run this bundle now, and does the service? Ends with 78 if not."""
    if arguments.board_report:
        from edge import board_report

        if arguments.bundle:
            raise ConfigurationError(
                "--board-report", "makes a bundle of its own", f"leave {arguments.bundle} out"
            )
        board_report.run(arguments.board_report, arguments.kernels)
        return
    from edge import service_checks
    from edge.config import load_config
    from jetson.doctor import examine, report

    settings = arguments.config
    if arguments.bundle == service_checks.INSTALLED and os.access(service_checks.SETTINGS, os.R_OK):
        settings = settings or service_checks.SETTINGS
    keys: tuple[str, ...] = ()
    try:
        keys = load_config(settings).bundle.trusted_keys
    except ConfigurationError:
        if arguments.config is not None:  # the service's own settings are told below
            raise
    looked = [examine(arguments.bundle, try_it=arguments.try_it, trusted_keys=keys)]
    if arguments.bundle in (None, service_checks.INSTALLED):
        state, start = service_checks.unit_state(), service_checks.last_start()
        looked.append(service_checks.examine_service(state, start=start))
    checks = []
    for check in chain.from_iterable(looked):
        checks.append(check)
        if not arguments.json:
            print(f"{check.verdict:8} {check.name:11} {check.found}")
            if check.remedy:
                print(f"{'':20} -> {check.remedy}")
    if arguments.json or arguments.report:
        text = json.dumps(report(checks))
        if arguments.report:
            arguments.report.write_text(f"{text}\n")
        if arguments.json:
            print(text)
    n_failed = sum(check.verdict == "failure" for check in checks)
    if n_failed:
        what = "1 check" if n_failed == 1 else f"{n_failed} checks"
        raise ConfigurationError("this machine", f"failed {what}", "do what it says above")


def devices(arguments: argparse.Namespace) -> None:
    """Cameras and microphones, what each is called in a configuration, and what it can give."""
    from edge.senses import devices

    found = [*devices.cameras(), *devices.microphones()]
    if arguments.json:
        print(json.dumps([asdict(device) for device in found]))
        return
    for device in found:
        print(f'{device.kind:10} source = "{device.source}"  # {device.description}')
        for line in devices.shown(device):
            print(f"{'':13}{line}")
    if not found:
        print("no camera and no microphone was found")
    if find_spec("pyaudio") is None:
        print(f"microphones need PyAudio: {advice.install('microphone')}")


def top(arguments: argparse.Namespace) -> None:
    """Watch a running service and its board."""
    try:
        from edge import top
    except ImportError:
        raise ConfigurationError("edge top", "needs rich", advice.install("top")) from None
    top.watch(arguments.socket or DEFAULT_SOCKET, once=arguments.once)


def update(arguments: argparse.Namespace) -> None:
    """Install a release from a file: the service runs it then, or what it ran before."""
    from edge.update import go_back, install

    if arguments.back == (arguments.release is not None):
        raise ConfigurationError("edge update", "takes a release, or --back", "edge update FILE")
    version = go_back() if arguments.back else install(arguments.release, older=arguments.older)
    print(json.dumps({"installed": version}) if arguments.json else f"{version} is installed")


def add(commands: Any) -> None:
    """Add them to the command line."""
    command = commands.add_parser(
        "doctor", help="can this machine run this bundle?", description=doctor.__doc__
    )
    command.add_argument("bundle", type=Path, nargs="?", help="else only the machine is examined")
    command.add_argument(
        "--try", dest="try_it", action="store_true", help="load the engine and try it"
    )
    command.add_argument(
        "--config", type=Path, help="the service's settings: whose signature is trusted"
    )
    command.add_argument(
        "--report", type=Path, metavar="FILE", help="write all of it, with nothing private in it"
    )
    command.add_argument(
        "--board-report",
        type=Path,
        metavar="FILE",
        help="try all that a board can do, in ten minutes, and write that, with nothing private",
    )
    command.add_argument(
        "--kernels",
        type=Path,
        metavar="FOLDER",
        help="for --board-report: of scripts/compile_gpu_kernels.py (default: compiled here)",
    )
    command.set_defaults(call=doctor)

    command = commands.add_parser(
        "devices", help="list cameras and microphones", description=devices.__doc__
    )
    command.set_defaults(call=devices)

    command = commands.add_parser("top", help="watch a service", description=top.__doc__)
    command.add_argument("--once", action="store_true", help="one look, then end")
    command.set_defaults(call=top)

    command = commands.add_parser(
        "update", help="install a release from a file", description=update.__doc__
    )
    command.add_argument(
        "release", nargs="?", help="the tar of `make wheels`, its file:// URL, or - for stdin"
    )
    command.add_argument("--older", action="store_true", help="also one that is older")
    command.add_argument(
        "--back", action="store_true", help="to the version that was there before instead"
    )
    command.set_defaults(call=update)
