"""A bundle's four plans: compiled for a target, or only checked to compile."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, get_args

import msgspec
import onnx

from build_engine.building import kept
from build_engine.bundle import save_manifest
from build_engine.compile import WORKSPACE_BYTES, Built, Order
from build_engine.decoder_layout import bundle_layout
from build_engine.footprint import decoded_bytes, scratch_bytes
from build_engine.graphs.decoder import DEVICE, DEVICE_FP8, Precision, decoder_model
from build_engine.graphs.half import narrowed
from build_engine.graphs.onnx_ops import ExternalData
from build_engine.graphs.weight_formats import BFLOAT16
from build_engine.isolated import compile_isolated, require
from build_engine.profiles import profiles_of
from edge import advice
from edge.engines.bundle import PLAN_SUFFIX, Bundle, Manifest, Plans
from edge.engines.choose import open_cuda
from edge.engines.encoders import AUDIO, VISION
from edge.engines.hashing import file_entry
from edge.engines.optional import load
from edge.engines.plan import check_tensorrt
from edge.engines.safetensors import Layout
from edge.errors import ConfigurationError
from edge.model.spec import ModelSpec
from gpu_kernels.plugins import Phase

Report: TypeAlias = Callable[[str, int, int], None]
"""Called with a graph's name, its steps done and its steps in all."""

CHECKER, COMPILER = "tensorrt_rtx", "tensorrt"
PHASES: tuple[Phase, ...] = get_args(Phase)
THIS_GPU = "this-gpu"
FIRST_WITH_FP8 = (8, 9)
SPARE_WORKSPACE = 4
"""One part in so many is allowed beyond the estimate."""


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of GPU that plans are for."""

    name: str
    compute_capability: tuple[int, ...]
    stand_in: str
    """The GPU generation that TensorRT-RTX compiles for in its place, without it."""

    @property
    def precision(self) -> Precision:
        """In which types its decoder computes."""
        return DEVICE_FP8 if self.compute_capability >= FIRST_WITH_FP8 else DEVICE


TARGETS = {
    target.name: target
    for target in (Target("thor", (11, 0), "SM121"), Target("orin", (8, 7), "SM86"))
}


@dataclass(frozen=True, slots=True)
class Options:
    """How plans are made."""

    max_past_rows: int
    kernels: Path | None = None
    """Folder of the compiled GPU kernels that compute the routed experts; None: operators do."""


def check_bundle(path: Path, target: Target, options: Options, report: Report) -> list[Built]:
    """See that a bundle's graphs compile for a target, here, without its GPU; write nothing.

    Raises:
        EdgeError: the bundle is damaged or being changed; TensorRT-RTX is missing, or refuses a
            graph or warns.
    """
    with kept(path, changes=False), tempfile.TemporaryDirectory() as work:
        bundle = Bundle(path)
        made = orders(bundle.manifest.spec, bundle_layout(path), path, Path(work), target, options)
        return list(check(made, target, report))


def check(made: Sequence[Order], target: Target, report: Report) -> Iterator[Built]:
    """Compile graphs for what stands for the target."""
    require(CHECKER, advice.install("dev"))
    for order in made:
        yield _compiled(CHECKER, replace(order, stand_in=target.stand_in), None, report)


def compile_bundle(path: Path, name: str, options: Options, report: Report) -> list[Built]:
    """Write a plan of each graph, for the GPU of this machine.

    Args:
        name: of the target; `this-gpu` takes whatever is here.
    Raises:
        EdgeError: the bundle is damaged, or another process has it; TensorRT, the driver or the GPU
            is missing or another; TensorRT is too old, refuses a graph or warns that it would
            compute something else.
    """
    remedy = "install JetPack's, or only --check the graphs"
    version = str(load(COMPILER, "__version__", remedy).__version__)
    check_tensorrt(version)
    capability = local_compute_capability()
    target = TARGETS.get(name, Target(THIS_GPU, capability, ""))
    if target.compute_capability != capability:
        wanted, here = (".".join(map(str, c)) for c in (target.compute_capability, capability))
        raise ConfigurationError(
            f"--target {name}", f"is sm {wanted}, this GPU is sm {here}", "compile on the device"
        )
    with kept(path), tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as work:
        bundle = Bundle(path, release_cache=True)
        spec = bundle.manifest.spec
        made = orders(spec, bundle_layout(path), path, Path(work), target, options)
        # what another TensorRT or GPU has measured is of no use here, and may be an error
        kind = f"{version}-sm{'.'.join(map(str, capability))}"
        cache = path.parent / f".{path.name}.{kind}.timing"
        built = [
            _compiled(COMPILER, replace(order, timing_cache=cache), options.kernels, report)
            for order in made
        ]
        _put_into(path, bundle.manifest, made, built, target, options, version)
    return built


def orders(
    spec: ModelSpec,
    layout: Layout,
    encoders: Path | None,
    work: Path,
    target: Target,
    options: Options,
) -> list[Order]:
    """What is to be compiled: the graphs, as the target takes them, in the folder `work`.

    Args:
        encoders: folder with vision.onnx and audio.onnx; None leaves them out.
        layout: dtype and shape of every tensor of decoder.safetensors.
    Raises:
        ConfigurationError: the bound of a sequence is none that the model has.
    """
    most = spec.decoder.max_tokens
    if not 1 <= options.max_past_rows <= most:
        problem = f"is {options.max_past_rows}"
        raise ConfigurationError("--context", problem, f"give 1..{most} tokens")
    profiles = profiles_of(spec, options.max_past_rows)
    uses_kernels, graphs = options.kernels is not None, list[Path]()
    for phase in PHASES:
        model = decoder_model(
            spec.decoder, layout, target.precision, kernels=uses_kernels, phase=phase
        )
        graphs.append(work / f"{phase}.onnx")
        graphs[-1].write_bytes(model.SerializeToString())
    for file in (VISION, AUDIO):
        if encoders is None:
            break
        graphs.append(work / file)
        with ExternalData(graphs[-1].with_suffix(".onnx.data")) as weights:
            model = onnx.load(encoders / file, load_external_data=False)
            model = narrowed(model, encoders, weights, BFLOAT16)
        graphs[-1].write_bytes(model.SerializeToString())
    workspace = workspace_bytes(spec, layout, target, options.max_past_rows)
    return [
        Order(
            *(graph.stem, graph, graph.with_suffix(PLAN_SUFFIX), profiles[graph.stem]),
            workspace_bytes=workspace,
        )
        for graph in graphs
    ]


def workspace_bytes(spec: ModelSpec, layout: Layout, target: Target, max_past_rows: int) -> int:
    """What a plan may need while it computes: attention's scores grow with the past."""
    needed = scratch_bytes(spec, decoded_bytes(layout, target.precision), max_past_rows)
    return max(WORKSPACE_BYTES, needed + needed // SPARE_WORKSPACE)


def _compiled(module: str, order: Order, kernels: Path | None, report: Report) -> Built:
    return compile_isolated(
        module, order, lambda done, total: report(order.graph, done, total), kernels
    )


def _put_into(
    path: Path,
    manifest: Manifest,
    made: Sequence[Order],
    built: Sequence[Built],
    target: Target,
    options: Options,
    tensorrt: str,
) -> None:
    """Name the plans last: a bundle that is interrupted here is one without plans."""
    files = {n: entry for n, entry in manifest.files.items() if not n.endswith(PLAN_SUFFIX)}
    save_manifest(msgspec.structs.replace(manifest, plans=None, files=files), path)
    for name in manifest.files.keys() - files.keys():
        (path / name).unlink(missing_ok=True)  # another builder may have named its plans otherwise
    plans = [order.plan for order in made]
    for plan in plans:
        plan.rename(path / plan.name)
        files[plan.name] = file_entry(path / plan.name)
    described = Plans(
        tensorrt=tensorrt,
        compute_capability=".".join(map(str, target.compute_capability)),
        max_past_rows=options.max_past_rows,
        scratch_bytes={
            plan.name: dict(zip(found.profiles, found.scratch_bytes, strict=True))
            for plan, found in zip(plans, built, strict=True)
        },
        warnings={found.graph: found.warnings for found in built if found.warnings},
    )
    whole = msgspec.structs.replace(manifest, target=target.name, plans=described, files=files)
    save_manifest(whole, path)


def local_compute_capability() -> tuple[int, ...]:
    """Of this machine's GPU.

    Raises:
        DeviceError: it, its driver or cuda-python is missing.
    """
    cuda = open_cuda()
    try:
        return tuple(map(int, cuda.device().compute_capability.split(".")))
    finally:
        cuda.close()


def table(built: Sequence[Built]) -> str:
    """The figures of a build, for a person."""
    lines = ["graph    profiles          seconds  plan MB  scratch MB        peak RSS MB  warnings"]
    lines += [
        f"{b.graph:8} {', '.join(b.profiles):16} {b.seconds:8.1f} {b.n_bytes / 1e6:8.1f}  "
        f"{', '.join(f'{n / 1e6:.1f}' for n in b.scratch_bytes):16} "
        f"{b.peak_bytes / 1e6:12.0f} {b.n_warnings:9}"
        for b in built
    ]
    lines += [f"{b.graph}: TensorRT warns: {text}" for b in built for text in b.warnings]
    return "\n".join(lines)


def as_dict(built: Sequence[Built]) -> dict[str, Any]:
    """The same, for machines."""
    return {b.graph: {**asdict(b), "seconds": round(b.seconds, 3)} for b in built}
