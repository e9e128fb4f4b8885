"""Can this board run this bundle now? Each check says what it found, and else cause and remedy."""

from __future__ import annotations

import ctypes
import importlib
import os
import platform
import shutil
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import edge
from edge.engines.bundle import MANIFEST, Bundle, prompts
from edge.engines.optional import load
from edge.engines.plan import JETPACK, MIN_TENSORRT
from edge.engines.signature import Signed, told
from edge.errors import ConfigurationError, EdgeError
from edge.session.health import SYSTEM
from jetson.board import Board, HealthReader, rails_w, read_board

Verdict = Literal["ok", "warning", "failure"]
GB = 1_000_000_000
NEEDED_BYTES = 3 * GB // 2
"""ESTIMATE: the service beside its weights."""
NEEDED_DISK_BYTES = GB


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    verdict: Verdict
    """warning: it runs, but not as it could; failure: it does not."""
    found: str
    remedy: str = ""


def examine(
    bundle: Path | None = None,
    root: Path = SYSTEM,
    *,
    try_it: bool = False,
    trusted_keys: Collection[str] = (),
) -> Iterator[Check]:
    """Look at everything, the machine first.

    Args:
        bundle: the one that it is about; None looks at the machine only.
        root: of the file system that describes the board.
        trusted_keys: as `Bundle` takes them.
        try_it: also load the engine and replay the bundle's self-check, which takes its memory.
    """
    board = read_board(root)
    yield _machine(board)
    yield _jetpack(board)
    yield _cuda(root)
    yield check_tensorrt()
    yield _power_mode(board)
    yield _heat(root)
    yield _power(board, root)
    yield _disk(bundle)
    yield _kernels()
    if bundle is None:
        yield Check("memory", "ok", f"{board.free_memory_bytes / GB:.1f} GB are free")
        return
    try:
        opened = Bundle(bundle, trusted_keys=trusted_keys)
        prompts(opened)
        signer = told(bundle / MANIFEST)
    except EdgeError as error:
        thing = Path(error.thing).name if error.thing.startswith("/") else error.thing
        yield Check("bundle", "failure", f"{thing} {error.problem}", error.remedy)
        return
    manifest = opened.manifest
    yield Check("bundle", "ok", f"{manifest.name}: every byte as built")
    if opened.unknown:
        found = f"{', '.join(opened.unknown)}: no part of it, and not read"
        yield Check("its folder", "warning", found, "look at them, and remove them")
    yield _signature(opened, signer)
    yield _memory(board, sum(entry.n_bytes for entry in manifest.files.values()))
    if manifest.plans:
        plans = _plans(opened)
        yield plans
        try_it = try_it and plans.verdict == "ok"
    if try_it:
        yield _self_check(opened)


def report(checks: list[Check], root: Path = SYSTEM) -> dict[str, Any]:
    """What may be shown to anybody: the board and the checks, no names of people, hosts or files
    and no serial numbers."""
    from edge.board_report import private_words, without

    words = private_words({})
    return {
        "omni_edge": edge.__version__,
        "python": platform.python_version(),
        "architecture": platform.machine(),
        "kernel": platform.release(),
        "board": asdict(read_board(root)),
        "rails_w": rails_w(root),
        "health": asdict(HealthReader(root)()),
        "checks": [
            asdict(check)
            | {"found": without(words, check.found), "remedy": without(words, check.remedy)}
            for check in checks
        ],
    }


def _machine(board: Board) -> Check:
    if board.family:
        return Check(
            "machine", "ok", f"{board.model}, compute capability {board.compute_capability}"
        )
    what = board.model or f"{platform.machine()} without a device tree"
    return Check(
        "machine", "warning", f"{what}: no Jetson Orin or Thor", "expect only the cpu engine here"
    )


def _jetpack(board: Board) -> Check:
    if not board.l4t:
        return Check("JetPack", "warning", "not found", f"to use a board's GPU: {JETPACK}")
    found = f"JetPack {board.jetpack or '?'} (L4T {board.l4t})"
    if not board.runs_plans:
        found += ": only the cpu engine runs"
        return Check("JetPack", "warning", found, f"to use the GPU, flash {JETPACK}")
    return Check("JetPack", "ok", found)


def _cuda(root: Path) -> Check:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Check(
            "CUDA", "warning", "no driver", "install JetPack's: sudo apt install nvidia-jetpack"
        )
    wanted = {root / "dev/nvmap": os.R_OK}  # some boards let nobody write there
    wanted |= dict.fromkeys((root / "dev/dri").glob("renderD*"), os.R_OK | os.W_OK)
    closed = [path.name for path in wanted if path.exists() and not os.access(path, wanted[path])]
    if closed:
        groups = "usermod -aG video,render USER, and log in again"
        return Check("CUDA", "warning", f"{', '.join(closed)} closed to this user", groups)
    return Check("CUDA", "ok", "driver found")


def check_tensorrt() -> Check:
    """Whether it is there, and runs plans."""
    remedy = "sudo apt install python3-libnvinfer; then sudo make install"
    try:
        version = str(load("tensorrt", "__version__", remedy).__version__)
    except ConfigurationError as error:
        return Check("TensorRT", "warning", error.problem, error.remedy)
    release = tuple(int(part) for part in version.split(".")[:2])
    if release < MIN_TENSORRT:
        found = f"{version} is older than {'.'.join(map(str, MIN_TENSORRT))}"
        found += ": only the cpu engine runs"
        return Check("TensorRT", "warning", found, f"to use the GPU, flash {JETPACK}")
    return Check("TensorRT", "ok", version)


def _power_mode(board: Board) -> Check:
    if not board.family:
        return Check("power mode", "ok", "none on this machine")
    if not board.power_mode:
        return Check("power mode", "warning", "unknown", "look at it: sudo nvpmodel -q")
    if not board.power_mode.startswith("MAXN"):
        remedy = "for full speed: sudo nvpmodel -m 0"
        return Check("power mode", "warning", f"{board.power_mode} caps the clocks", remedy)
    return Check("power mode", "ok", board.power_mode)


def _heat(root: Path) -> Check:
    health = HealthReader(root)()
    now_c, limit_c = health.temperature_c, health.max_temperature_c
    if now_c is None or limit_c is None:
        return Check("heat", "ok", "the machine does not say")
    found = f"{now_c:.0f} °C, clocks are lowered at {limit_c:.0f} °C"
    if health.is_throttled or now_c >= limit_c:
        return Check("heat", "warning", f"{found}: lowered now", "check the fan and the heat sink")
    return Check("heat", "ok", found)


def _power(board: Board, root: Path) -> Check:
    health = HealthReader(root)()
    if health.power_w is None:
        return Check("power", "ok", "the machine does not say")
    if health.max_power_w is not None and health.power_w > health.max_power_w:
        return Check(
            "power",
            "warning",
            f"{health.power_w:.1f} W, {board.power_mode} allows {health.max_power_w:.0f} W",
            "end what else runs, or choose a higher mode: sudo nvpmodel -m 0",
        )
    return Check("power", "ok", f"{health.power_w:.1f} W")


def _disk(bundle: Path | None) -> Check:
    place = bundle if bundle is not None and bundle.exists() else SYSTEM
    free = shutil.disk_usage(place).free
    if free < NEEDED_DISK_BYTES:
        return Check("disk", "warning", f"{free / GB:.1f} GB are free", "make room: 1 GB is little")
    return Check("disk", "ok", f"{free / GB:.1f} GB are free")


def _kernels() -> Check:
    try:
        kernels = importlib.import_module("edge.engines.kernels")
        kernels.choose_instruction_set()
        return Check("kernels", "ok", f"{platform.machine()}: loaded")
    except (ImportError, EdgeError) as error:
        return Check("kernels", "failure", str(error), "install again: sudo make install")


def _signature(bundle: Bundle, signer: Signed | None) -> Check:
    """By whom, and whether anybody has checked that."""
    if bundle.signed:
        found = f"by the trusted key {bundle.signed.key_id}: {bundle.signed.comment}"
        return Check("signature", "ok", found)
    if signer is None:
        return Check("signature", "ok", "none, and none is asked for")
    found = f"by the key {signer.key_id}, as it says itself"
    return Check("signature", "ok", found, "to have it checked: --config, with bundle.trusted_keys")


def _memory(board: Board, weights_bytes: int) -> Check:
    needed, free = weights_bytes + NEEDED_BYTES, board.free_memory_bytes
    found = f"{needed / GB:.1f} GB needed, {free / GB:.1f} of {board.memory_bytes / GB:.1f} GB free"
    if board.memory_bytes < needed:
        return Check(
            "memory", "failure", found, "choose a smaller recipe: build-engine plan --board ..."
        )
    if free < needed:
        return Check("memory", "warning", found, "end what else runs, such as the desktop")
    return Check("memory", "ok", found)


def _plans(bundle: Bundle) -> Check:
    """Whether `edge run` takes them: here what the machine lacks is no warning."""
    from edge.engines.choose import check_machine

    try:
        device = check_machine(bundle)
    except EdgeError as error:
        found = f"{Path(error.thing).name} {error.problem}"
        return Check("plans", "failure", found, error.remedy)
    return Check("plans", "ok", f"verified on this {device}")


def _self_check(bundle: Bundle) -> Check:
    from edge.engines.choose import Choice, opened
    from edge.engines.self_check import warm_up

    try:
        with opened(bundle, Choice()) as engine:
            distances = warm_up(engine, bundle)
    except EdgeError as error:
        return Check("self-check", "failure", f"{error.thing} {error.problem}", error.remedy)
    return Check("self-check", "ok", f"within {max(distances.values()):.1e} of what was built")
