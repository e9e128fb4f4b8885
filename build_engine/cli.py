"""The `build-engine` command."""

from __future__ import annotations

import argparse
import getpass
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

import edge
from build_engine import plans
from build_engine.boards import BOARDS
from build_engine.building import kept
from build_engine.bundle import TARGETS, Progress, build_bundle, save_manifest
from build_engine.check import check
from build_engine.checkpoint import Checkpoint
from build_engine.describe import describe
from build_engine.evaluate import compare
from build_engine.plan import make_plan, read_spec
from build_engine.plans import Options, check_bundle, compile_bundle
from build_engine.quantize import Job, quantize
from build_engine.recipe import known_recipes, load_recipe
from build_engine.samples import read_samples, samples_of_checkpoint
from build_engine.signing import read_secret_key, signature_of
from build_engine.verify import marked, verify
from edge.engines.bundle import MANIFEST, Bundle
from edge.engines.choose import ENGINES
from edge.engines.cpu import CpuEngine
from edge.errors import CheckpointError, ConfigurationError, DeviceError, EdgeError

EXIT_USAGE, EXIT_IO_ERROR = 2, 74


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
    # asks for a password before it works for an hour
    key = read_secret_key(arguments.sign, getpass.getpass) if arguments.sign else None
    manifest = build_bundle(arguments.checkpoint, arguments.out, arguments.target, progress, key)
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


def sign(arguments: argparse.Namespace) -> None:
    """Sign a bundle: `edge run` with bundle.trusted_keys takes those of its keys only.

    Compiling a bundle, and verifying its plans, change what was signed: sign it again then.
    """
    key = read_secret_key(arguments.key, getpass.getpass)
    with kept(arguments.bundle):
        Bundle(arguments.bundle)  # nobody vouches for what is damaged
        signed = key.sign(arguments.bundle / MANIFEST)
    if arguments.json:
        print(json.dumps({"bundle": str(arguments.bundle), "key": signed.key_id}))
    else:
        print(f"{arguments.bundle}: signed by the key {signed.key_id}")


def quantize_(arguments: argparse.Namespace) -> None:
    """BF16 checkpoint -> quantized checkpoint, in a layout that other runtimes read as well.

    Block by block: memory for one block is enough. A run that was killed continues when the
    same command is given again.
    """
    started = time.monotonic()
    checkpoint, recipe = Checkpoint(arguments.checkpoint), load_recipe(arguments.recipe)
    samples = samples_of_checkpoint(checkpoint, arguments.samples)
    quiet = arguments.json or not sys.stderr.isatty()
    with tqdm(desc="quantize", unit="B", unit_scale=True, disable=quiet) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        counts = quantize(Job(checkpoint, recipe, samples, arguments.out), progress)
    seconds = time.monotonic() - started
    n_bytes = sum(path.stat().st_size for path in arguments.out.iterdir())
    if arguments.json:
        report = {"linears": counts, "n_bytes": n_bytes, "seconds": round(seconds, 3)}
        print(json.dumps(report))
    else:
        linears = ", ".join(f"{n} linears {name}" for name, n in counts.items())
        print(f"{arguments.out}: {linears}; {n_bytes / 1e6:.1f} MB, {seconds:.1f} s")


def compile_(arguments: argparse.Namespace) -> None:
    """A bundle's graphs -> TensorRT plans in the bundle, for the GPU of this machine.

    With --check nothing is written: TensorRT-RTX compiles for a GPU of the target's generation, on
    any machine.
    """
    report = _progress(quiet=arguments.json or not sys.stderr.isatty())
    options = Options(arguments.context, arguments.kernels)
    if arguments.check and arguments.kernels:
        raise ConfigurationError(
            "--kernels", "cannot be checked without their GPU", "check the operators: leave it out"
        )
    if not arguments.check:
        _tell_unsigned(arguments.bundle)
        built = compile_bundle(arguments.bundle, arguments.target, options, report)
    elif arguments.target in plans.TARGETS:
        built = check_bundle(arguments.bundle, plans.TARGETS[arguments.target], options, report)
    else:
        raise ConfigurationError(
            f"--check --target {arguments.target}",
            "has nothing to stand for it",
            f"check for {' or '.join(plans.TARGETS)}",
        )
    print(json.dumps(plans.as_dict(built)) if arguments.json else plans.table(built))


def inspect(arguments: argparse.Namespace) -> None:
    """What is in a checkpoint or a bundle: formats, sizes, hashes."""
    found = describe(arguments.path)
    print(json.dumps(found.as_dict()) if arguments.json else found.table())


def evaluate(arguments: argparse.Namespace) -> None:
    """How far a bundle's decoder is from another's: each block, and what it would say next."""
    engine, reference = (
        CpuEngine(Bundle(path), exact=True) for path in (arguments.bundle, arguments.against)
    )
    samples = read_samples(reference, arguments.against, arguments.samples)
    found = compare(engine, reference, samples)
    if arguments.picture:
        arguments.picture.write_text(found.picture())
    if arguments.json:
        print(json.dumps(found.as_dict()))
        return
    print("block    cosine  relative error")
    for i, kind in enumerate(found.layers):
        print(f"{i:3} {kind}  {found.cosine[i]:8.5f}  {found.relative_error[i]:14.2e}")
    print(
        f"{found.n_tokens} tokens: KL {found.kl:.2e} nats, same likeliest token {found.top_1:.1%}"
    )


def plan(arguments: argparse.Namespace) -> None:
    """What a board needs for a recipe: memory, context, and the bandwidth limit on decode."""
    folder, context = arguments.checkpoint, arguments.context
    options = arguments.board, arguments.recipe, context, arguments.fps
    result = make_plan(read_spec(folder), *options, folder)
    print(json.dumps(result.as_dict()) if arguments.json else result.table())
    result.require_fit()


def check_checkpoint(arguments: argparse.Namespace) -> None:
    """Check a checkpoint, and tell all that is found in one report, which names no person or place.

    Its files, keys, tensors, tokenizer and template, and each block and tower beside transformers'
    own (where torch and transformers are installed). One that was interrupted goes on.
    """
    progress = _progress(quiet=arguments.json or not sys.stderr.isatty())
    name = arguments.report
    report = check(arguments.checkpoint, name, arguments.against, progress)
    print(json.dumps(report.summary()) if arguments.json else report.table())
    if report.faults:
        first = report.faults[0]
        raise CheckpointError(
            first.thing,
            f"{first.problem} ({len(report.faults)} faults)",
            f"see {name}.txt; {name}.json can be sent",
        )


def verify_bundle(arguments: argparse.Namespace) -> None:
    """Check a bundle's bytes, and replay its self-check on the engine that it was built for.

    Plans that are found right are marked as verified on this GPU; `edge run` asks for that.
    """
    # Whoever compiles meanwhile would have its plans marked for those that were tried here.
    with kept(arguments.bundle):
        found = verify(arguments.bundle, arguments.engine)
        report = json.dumps(found.as_dict())
        if arguments.report:
            arguments.report.write_text(report + "\n")
        print(report if arguments.json else found.table())
        found.require(arguments.bundle)
        if found.gpu:
            before = Bundle(arguments.bundle, check_hashes=False).manifest
            if marked(before, found) != before:
                _tell_unsigned(arguments.bundle)
                save_manifest(marked(before, found), arguments.bundle)
    if not arguments.json:
        where = f", verified on this {found.gpu}" if found.gpu else ""
        print(f"{arguments.bundle}: every byte as built{where}")


def _tell_unsigned(bundle: Path) -> None:
    """Say that a signature is about to go."""
    if signature_of(bundle).exists():
        line = "what was signed changes; sign it again with `build-engine sign`"
        print(f"build-engine: {bundle}: {line}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="build-engine",
        description="Turn a Nemotron 3 Nano Omni checkpoint into a verified bundle.",
        epilog="example: build-engine bundle ./checkpoint ./bundle --target cpu",
    )
    recipes = f"{', '.join(known_recipes())}, or a TOML file"
    top.add_argument("--version", action="version", version=f"build-engine {edge.__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND")
    command = commands.add_parser("bundle", help="build a bundle", description=bundle.__doc__)
    command.add_argument("checkpoint", type=Path, help="folder in the published layout")
    command.add_argument("out", type=Path, help="folder to create")
    command.add_argument("--target", choices=TARGETS, required=True, help="what will execute it")
    command.add_argument(
        "--sign", type=Path, metavar="KEY", help="minisign's secret key to sign with"
    )
    command.set_defaults(run=bundle)
    command = commands.add_parser("sign", help="sign a bundle", description=sign.__doc__)
    command.add_argument("bundle", type=Path)
    command.add_argument("key", type=Path, help="minisign's secret key; `minisign -G` makes one")
    command.set_defaults(run=sign)
    command = commands.add_parser(
        "quantize", help="quantize a checkpoint", description=quantize_.__doc__
    )
    command.add_argument("checkpoint", type=Path, help="folder in the published BF16 layout")
    command.add_argument("out", type=Path, help="folder to create")
    command.add_argument("--recipe", required=True, help=recipes)
    command.add_argument(
        "--samples",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="recordings, pictures, sounds and texts like those that the robot will meet",
    )
    command.set_defaults(run=quantize_)
    command = commands.add_parser(
        "compile", help="compile a bundle for a GPU", description=compile_.__doc__
    )
    command.add_argument("bundle", type=Path)
    command.add_argument("--target", choices=[*plans.TARGETS, plans.THIS_GPU], required=True)
    command.add_argument("--check", action="store_true", help="only see that it compiles")
    command.add_argument(
        "--context", type=int, default=8192, help="most tokens of a sequence (default: 8192)"
    )
    command.add_argument(
        "--kernels",
        type=Path,
        metavar="FOLDER",
        help="of scripts/compile_gpu_kernels.py: they compute the routed experts",
    )
    command.add_argument("-v", "--verbose", action="store_true", help="say where an error is from")
    command.set_defaults(run=compile_)
    command = commands.add_parser("inspect", help="what is in it", description=inspect.__doc__)
    command.add_argument("path", type=Path, help="a checkpoint's or a bundle's folder")
    command.set_defaults(run=inspect)
    command = commands.add_parser(
        "evaluate", help="compare two bundles", description=evaluate.__doc__
    )
    command.add_argument("bundle", type=Path)
    command.add_argument("--against", type=Path, required=True, help="the reference bundle")
    command.add_argument("--samples", type=Path, nargs="+", required=True, metavar="FILE")
    command.add_argument("--picture", type=Path, help="write the error by block as an SVG")
    command.set_defaults(run=evaluate)
    command = commands.add_parser("plan", help="what fits a board", description=plan.__doc__)
    command.add_argument(
        "checkpoint",
        type=Path,
        help="folder; its config.json is enough, or a bundle, compiled or not",
    )
    command.add_argument("--board", choices=BOARDS, required=True)
    command.add_argument("--recipe", required=True, help=recipes)
    command.add_argument("--context", type=int, default=8192, help="tokens (default: 8192)")
    command.add_argument("--fps", type=float, default=2.0, help="frames a second (default: 2)")
    command.set_defaults(run=plan)
    command = commands.add_parser(
        "check", help="check a checkpoint", description=check_checkpoint.__doc__
    )
    command.add_argument("checkpoint", type=Path, help="folder in the published layout")
    command.add_argument(
        "--report",
        type=Path,
        default=Path("checkpoint-report"),
        metavar="NAME",
        help="write NAME.json and NAME.txt (default: checkpoint-report)",
    )
    command.add_argument(
        "--against", type=Path, metavar="FILE", help="another report's JSON: name what differs"
    )
    command.set_defaults(run=check_checkpoint)
    command = commands.add_parser(
        "verify", help="check a bundle", description=verify_bundle.__doc__
    )
    command.add_argument("bundle", type=Path)
    command.add_argument(
        "--engine", choices=ENGINES, help="default: tensorrt if the bundle holds plans, else cpu"
    )
    command.add_argument("--report", type=Path, metavar="FILE", help="write what was found as JSON")
    command.set_defaults(run=verify_bundle)
    for command in commands.choices.values():
        command.add_argument("--json", action="store_true", help="one JSON line for machines")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; one clear line on failure."""
    command_line = parser()
    arguments = command_line.parse_args(argv)
    if "run" not in arguments:
        command_line.print_help(sys.stderr)
        return EXIT_USAGE
    try:
        arguments.run(arguments)
    except EdgeError as error:
        if "verbose" in arguments and arguments.verbose and error.__cause__:
            print(error.__cause__, file=sys.stderr)
        print(f"build-engine: {error}", file=sys.stderr)
        return error.exit_code
    except MemoryError:
        print("build-engine: memory: is too small for this; end what else runs", file=sys.stderr)
        return DeviceError.exit_code
    except OSError as error:
        where = error.filename or "while writing"  # a full disk names no file
        print(f"build-engine: {where}: {error.strerror}", file=sys.stderr)
        return EXIT_IO_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
