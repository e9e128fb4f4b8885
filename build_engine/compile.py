"""ONNX -> TensorRT plan, by TensorRT's parser and builder; nothing that they say is lost.

A warning may say that the plan would compute something else (an input that is not used, a type
that was changed): that fails the build. Others are about this board (a DLA that nobody asked for,
memory that was short while kernels were timed) and are handed on. Some come once a process:
`build_engine.isolated` builds each graph in its own. The module `tensorrt` is given: JetPack's on a
device; `tensorrt_rtx`, which compiles ahead of time without a GPU, where a graph is only to be
checked. There, on a machine where nothing is timed, any warning fails.
"""

from __future__ import annotations

import functools
import re
import resource
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import onnx
from onnx import ModelProto
from onnx.inliner import inline_local_functions

from build_engine.profiles import Profile
from edge.errors import BundleError, ConfigurationError

Progress: TypeAlias = Callable[[int, int], None]
"""Called with steps done and steps in all."""
LoadPlugins: TypeAlias = Callable[[Any], None]
"""Registers plugins with the given TensorRT."""
Inspect: TypeAlias = Callable[[str], None]
"""Called with what TensorRT says of a plan's kernels: which tensors each reads and writes."""

BENIGN = (
    "has Int64 binding",  # states a type, nothing is dropped
    "CUDA lazy loading is not enabled",  # about the process, not about the graph
)
"""In every warning that a check without a GPU lets pass."""
ABOUT_THE_BOARD = re.compile(r"\bDLA\b|skipping tactic|out ?of ?memory", re.IGNORECASE)
"""No plan uses the DLA; a kernel that could not be timed is not chosen."""
CHANGES_MEANING = re.compile(
    r"unused|is not being|ignor(e|es|ed|ing)\b|clamp|out of range|outside (of )?the range"
    r"|cast(ing)? down|truncat|fall(ing)? back to non|n[o']t support|\bunsupported\b|supports only"
    r"|plugin.* not found|not found in plugin|affect accuracy|subnormal|may be incorrect",
    re.IGNORECASE,
)
"""What TensorRT 8 to 11 say, and their parser, when a plan would compute another thing."""
MAX_KEPT_WARNINGS = 32
"""Of a graph, each with all that differ from it in numbers only; a long build gives thousands."""
MAX_REASONS = 3
WORKSPACE_BYTES = 2 << 30
"""Of scratch memory on a device, at least. The body of edge::MoE, at the published sizes, needs
more."""
LAYERS = "Layers:"
"""What TensorRT's description of a plan begins with."""
STANDARD_DOMAINS = ("", "ai.onnx")
PLUGIN_VERSION = "1"


@dataclass(frozen=True, slots=True)
class Order:
    """A graph to be compiled."""

    graph: str
    """Its name: vision, audio, decode or prefill."""
    onnx: Path
    plan: Path
    """Where the result goes."""
    profiles: Sequence[Profile]
    stand_in: str | None = None
    """TensorRT-RTX's name of the GPU generation to compile for, e.g. SM86; None: the GPU here."""
    timing_cache: Path | None = None
    """Kept between builds, where TensorRT measures."""
    workspace_bytes: int = WORKSPACE_BYTES
    """Limit of scratch memory on a device."""


@dataclass(frozen=True, slots=True)
class Built:
    """What a build gave and took."""

    graph: str
    profiles: tuple[str, ...]
    seconds: float
    n_bytes: int
    peak_bytes: int
    """Most memory of the process that was resident."""
    n_warnings: int = 0
    warnings: tuple[str, ...] = ()
    """Those that do not change what is computed, alike ones once, with their number."""
    scratch_bytes: tuple[int, ...] = ()
    """Of memory that the plan needs while it computes, in each profile."""


@dataclass(frozen=True, slots=True)
class Message:
    """What TensorRT said."""

    text: str
    is_error: bool = False

    @property
    def about_the_board(self) -> bool:
        """Whether it cannot be about what the plan computes."""
        return ABOUT_THE_BOARD.search(self.text) is not None

    @property
    def refuses(self) -> bool:
        """Whether no plan may be used after it: an error, or a warning of another meaning."""
        if self.about_the_board:
            return False
        return self.is_error or CHANGES_MEANING.search(self.text) is not None


def compile_graph(
    trt: Any,
    order: Order,
    progress: Progress,
    load_plugins: LoadPlugins | None = None,
    inspect: Inspect | None = None,
) -> Built:
    """Write `order.plan`.

    Args:
        trt: the module `tensorrt` (from `edge.engines.plan.MIN_TENSORRT`), or `tensorrt_rtx`.
    Raises:
        BundleError: TensorRT refuses the graph, or warns that it would compute something else;
            without a GPU, that it warns at all.
        ConfigurationError: operators are left for which there is no plugin.
    """
    started, log = time.monotonic(), _log(trt)
    log.messages.clear()
    log.layers = ""
    log.scratch_bytes.clear()
    if load_plugins:
        load_plugins(trt)
    # TensorRT's parser would put functions in place too, and warn of the names that come twice
    model = inline_local_functions(onnx.load(order.onnx, load_external_data=False))
    builder = trt.Builder(log)
    _check_plugins(builder, model)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model.SerializeToString(), str(order.onnx)):
        error = parser.get_error(0)
        at = f"{error.node_operator()} {error.node_name()}"
        raise _refused(order, f"does not parse at {at}: {error.desc()}")
    check_messages(order, log.messages)
    config = _config(trt, builder, order, progress)
    if order.timing_cache:
        _use_timing_cache(config, order.timing_cache, log.messages)
    if inspect:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _refused(order, f"gives no plan: {_reason(log.messages)}")
    check_messages(order, log.messages)
    order.plan.write_bytes(plan)
    if inspect:
        inspect(log.layers)
    if order.timing_cache:
        order.timing_cache.write_bytes(config.get_timing_cache().serialize())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    names = tuple(profile.name for profile in order.profiles)
    scratch = tuple(log.scratch_bytes) if order.stand_in else _scratch_bytes(trt, log, order, plan)
    seconds = time.monotonic() - started
    warnings = gathered(message.text for message in log.messages)
    found = len(log.messages), warnings, scratch
    return Built(order.graph, names, seconds, plan.nbytes, peak, *found)


def _scratch_bytes(trt: Any, log: Any, order: Order, plan: Any) -> tuple[int, ...]:
    """As the plan says on the GPU that it is for."""
    engine = trt.Runtime(log).deserialize_cuda_engine(plan)
    if engine is None:
        raise _refused(order, "gives a plan that TensorRT refuses")
    n_profiles = range(engine.num_optimization_profiles)
    return tuple(engine.get_device_memory_size_for_profile_v2(i) for i in n_profiles)


def _check_plugins(builder: Any, model: ModelProto) -> None:
    """TensorRT's own message names no missing plugin."""
    wanted = {(n.domain, n.op_type) for n in model.graph.node if n.domain not in STANDARD_DOMAINS}
    registry = builder.get_plugin_registry()
    missing = [
        f"{domain}::{name}"
        for domain, name in sorted(wanted)
        if registry.get_creator(name, PLUGIN_VERSION, domain) is None
    ]
    if missing:
        raise ConfigurationError(
            ", ".join(missing),
            "has no plugin",
            "compile the kernels and name their folder with --kernels",
        )


@functools.cache
def _log(trt: Any) -> Any:
    """The process's only one: TensorRT keeps the first that it is given."""

    class Log(trt.ILogger):  # type: ignore[misc]
        """Keeps what is worse than information, and what a finished plan is made of."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[Message] = []
            self.layers = ""
            self.scratch_bytes: list[int] = []

        def log(self, severity: Any, message: str) -> None:
            if message.startswith(LAYERS):
                self.layers = message
            levels = trt.ILogger.Severity
            if severity <= levels.WARNING:
                self.messages.append(Message(message, is_error=severity <= levels.ERROR))
            said = re.match(r"Total Activation Memory: (\d+) bytes", message)
            if said:  # once a profile; without a GPU nobody else tells
                self.scratch_bytes.append(int(said[1]))

    return Log()


def check_messages(order: Order, messages: Sequence[Message]) -> None:
    """Refuse a graph because of what TensorRT says of it.

    Raises:
        BundleError: it warns of another meaning; of an order for a stand-in, of anything.
    """
    if order.stand_in:
        found = [m.text for m in messages if not any(benign in m.text for benign in BENIGN)]
    else:
        found = [message.text for message in messages if message.refuses]
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise _refused(order, f"is warned of{more}: {found[0]}")


def _reason(messages: Sequence[Message]) -> str:
    """Why there is no plan: the errors, of which a lack of memory may be the first."""
    errors = gathered(message.text for message in messages if message.is_error)
    return "; ".join(errors[:MAX_REASONS]) or "TensorRT gives no reason"


def gathered(texts: Iterable[str]) -> tuple[str, ...]:
    """Messages in their order, those that differ in numbers only as the first of them."""
    alike: dict[str, tuple[str, int]] = {}
    for text in texts:
        one_line = " ".join(text.split())
        key = re.sub(r"0x[0-9a-f]+|\d+", "0", one_line)
        first, n = alike.get(key, (one_line, 0))
        alike[key] = first, n + 1
    kept = [f"{first} ({n} times)" if n > 1 else first for first, n in alike.values()]
    if len(kept) > MAX_KEPT_WARNINGS:
        more = f"and {len(kept) - MAX_KEPT_WARNINGS + 1} other kinds"
        kept = [*kept[: MAX_KEPT_WARNINGS - 1], more]
    return tuple(kept)


def _refused(order: Order, problem: str) -> BundleError:
    one_line = " ".join(problem.split())
    return BundleError(order.onnx.name, one_line, "report it with the versions of both")


def _network_flags(trt: Any) -> int:
    """Types are the graph's own. TensorRT 11 knows no other way, and may lack the flag."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _config(trt: Any, builder: Any, order: Order, progress: Progress) -> Any:
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default: float32 with 10 bits of mantissa
    config.progress_monitor = _monitor(trt, progress)
    if order.stand_in:
        config.num_compute_capabilities = 1  # before the next: the default asks the driver
        config.set_compute_capability(getattr(trt.ComputeCapability, order.stand_in), 0)
    else:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, order.workspace_bytes)
    for profile in order.profiles:
        shapes = builder.create_optimization_profile()
        for name, three in profile.shapes.items():
            shapes.set_shape(name, *three)
        if config.add_optimization_profile(shapes) < 0:
            raise _refused(order, f"does not take the profile {profile.name}")
    return config


def _use_timing_cache(config: Any, path: Path, messages: list[Message]) -> None:
    """What was measured before, or nothing: it saves time, and must not cost the plan."""
    known, n_before = path.read_bytes() if path.is_file() else b"", len(messages)
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        del messages[n_before:]  # of the old file, not of the graph
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _monitor(trt: Any, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Reports the outermost phase of the build."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._outermost, self._n_steps = "", 0

        def phase_start(self, name: str, parent: str | None, n_steps: int) -> None:
            if not parent:
                self._outermost, self._n_steps = name, n_steps
                progress(0, n_steps)

        def step_complete(self, name: str, step: int) -> bool:
            if name == self._outermost:
                progress(min(step + 1, self._n_steps), self._n_steps)
            return True

        def phase_finish(self, name: str) -> None:
            if name == self._outermost:
                progress(self._n_steps, self._n_steps)

    return Monitor()
