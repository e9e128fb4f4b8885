"""Which engine executes a bundle: what it was built for, or what is asked for; never another."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge import advice
from edge.engines.bundle import Bundle, Plans
from edge.engines.cpu import CpuEngine
from edge.engines.cuda import ON_CPU, Cuda, Device
from edge.engines.engine import AnyEngine
from edge.engines.optional import load
from edge.engines.plan import COMPILE, JETPACK, check_tensorrt
from edge.engines.tensorrt import PLANS, TensorrtEngine
from edge.errors import BundleError

CPU, TENSORRT = ENGINES = ("cpu", "tensorrt")


@dataclass(frozen=True, slots=True)
class Choice:
    """What a person may say about it."""

    engine: str | None = None
    """None: tensorrt if the bundle holds plans, cpu if it does not."""
    unverified: bool = False
    """Also run plans that `build-engine verify` has not found right on this GPU."""


@contextlib.contextmanager
def opened(bundle: Bundle, choice: Choice) -> Iterator[AnyEngine]:
    """The engine that is chosen, until the end of the context.

    Raises:
        BundleError: the bundle has no plans, or plans for another GPU or TensorRT.
        DeviceError: the GPU, its driver or its memory is missing.
        ConfigurationError: TensorRT or cuda-python is not installed, or TensorRT is too old.
    """
    if (choice.engine or (TENSORRT if bundle.manifest.plans else CPU)) == CPU:
        engine = CpuEngine(bundle)
        engine.load_encoders()
        yield engine
        return
    on_gpu = open_tensorrt(bundle, unverified=choice.unverified)
    yield on_gpu
    on_gpu.close()  # not after an error: the GPU may refuse all further calls, and hide the first


def open_tensorrt(bundle: Bundle, *, unverified: bool) -> TensorrtEngine:
    """The engine on this machine's GPU, or why it cannot be had, the first reason first.

    Raises:
        EdgeError: as `opened` says.
    """
    trt, cuda = _machine_for(bundle, unverified=unverified)
    return TensorrtEngine(bundle, trt, cuda)


def check_machine(bundle: Bundle) -> Device:
    """The GPU on which `opened` would run a bundle's plans; nothing of them is loaded.

    Raises:
        EdgeError: as `opened` says.
    """
    _, cuda = _machine_for(bundle, unverified=False)
    try:
        return cuda.device()
    finally:
        cuda.close()


def _machine_for(bundle: Bundle, *, unverified: bool) -> tuple[Any, Cuda]:
    """TensorRT, and the GPU, open, after every reason not to run the plans was looked for."""
    plans, path = bundle.manifest.plans, bundle.path
    if plans is None:
        raise BundleError(
            path, "holds no TensorRT plans", f"make them with `build-engine compile`, {ON_CPU}"
        )
    lacking = [name for name in PLANS if name not in bundle.manifest.files]
    if lacking:
        problem = f"holds an older builder's plans: it lacks {' and '.join(lacking)}"
        raise BundleError(path, problem, f"{COMPILE}, {ON_CPU}")
    cuda = open_cuda()
    try:
        trt = load("tensorrt", "Runtime", f"install that of {JETPACK}, {ON_CPU}")
        check_tensorrt(trt.__version__)  # first: where it is too old, compiling again is no remedy
        check_plans(path, plans, cuda.device(), trt.__version__, unverified=unverified)
    except BaseException:
        cuda.close()
        raise
    return trt, cuda


def open_cuda() -> Cuda:
    """This machine's GPU.

    Raises:
        DeviceError: it or its driver is missing.
        ConfigurationError: cuda-python is not installed.
    """
    return Cuda(load("cuda.bindings.driver", "cuInit", f"{advice.install('device')}, {ON_CPU}"))


def check_plans(
    path: Path, plans: Plans, device: Device, tensorrt: str, *, unverified: bool
) -> None:
    """Refuse plans that are not for this GPU and TensorRT, or not known to be right here.

    Raises:
        BundleError: so it is.
    """
    if plans.compute_capability != device.compute_capability:
        problem = f"is compiled for sm {plans.compute_capability}, this GPU is {device}"
        raise BundleError(path, problem, f"{COMPILE} on this machine, {ON_CPU}")
    if plans.tensorrt != tensorrt:
        problem = f"is compiled by TensorRT {plans.tensorrt}, here is {tensorrt}"
        raise BundleError(path, problem, f"{COMPILE} on this machine, {ON_CPU}")
    if plans.verified != str(device) and not unverified:
        verified = f"is verified on {plans.verified}, not" if plans.verified else "is not verified"
        remedy = "run `build-engine verify`, or give --unverified"
        raise BundleError(path, f"{verified} on this {device}", remedy)
