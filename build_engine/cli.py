"""The `build-engine` command."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from build_engine.bundle import TARGETS, Progress, build_bundle
from build_engine.verify import verify
from edge.errors import EdgeError

EXIT_IO_ERROR = 74


def _progress(quiet: bool) -> Progress:
    bars: dict[str, tqdm[None]] = {}

    def show(stage: str, done: int, total: int) -> None:
        bar = bars.setdefault(stage, tqdm(total=total, desc=f"{stage:8}", disable=quiet))
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return show


def bundle(arguments: argparse.Namespace) -> None:
    """Checkpoint -> bundle."""
    started = time.monotonic()
    progress = _progress(quiet=arguments.json or not sys.stderr.isatty())
    manifest = build_bundle(arguments.checkpoint, arguments.out, arguments.target, progress)
    size = sum(entry.n_bytes for entry in manifest.files.values())
    seconds = time.monotonic() - started
    if arguments.json:
        report = {"bundle": str(arguments.out), "n_bytes": size, "seconds": round(seconds, 3)}
        print(json.dumps(report))
    else:
        print(
            f"{arguments.out}: {manifest.name} for {manifest.target}, {size / 1e6:.1f} MB, "
            f"verified, {seconds:.1f} s"
        )


def check(arguments: argparse.Namespace) -> None:
    """Check a bundle's bytes and replay its self-check."""
    differences = verify(arguments.bundle)
    if arguments.json:
        print(json.dumps(differences))
    else:
        worst = max(differences.values())
        print(f"{arguments.bundle}: every byte as built, self-check within {worst:.1e}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="build-engine",
        description="Turn a Nemotron 3 Nano Omni checkpoint into a verified bundle.",
        epilog="example: build-engine bundle ./checkpoint ./bundle --target cpu",
    )
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    command = commands.add_parser("bundle", help="build a bundle", description=bundle.__doc__)
    command.add_argument("checkpoint", type=Path, help="folder in the published layout")
    command.add_argument("out", type=Path, help="folder to create")
    command.add_argument("--target", choices=TARGETS, required=True, help="what will execute it")
    command.set_defaults(run=bundle)
    command = commands.add_parser("verify", help="check a bundle", description=check.__doc__)
    command.add_argument("bundle", type=Path)
    command.set_defaults(run=check)
    for command in commands.choices.values():
        command.add_argument("--json", action="store_true", help="one JSON line for machines")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; one clear line on failure."""
    arguments = parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except EdgeError as error:
        print(f"build-engine: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"build-engine: {error.filename}: {error.strerror}", file=sys.stderr)
        return EXIT_IO_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
