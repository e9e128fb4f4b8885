"""Which engine executes a bundle: what it was built for, or what is asked for; never another."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge import advice
from edge.engines.bundle import Bundle, Plans
from edge.engines.cpu import CpuEngine
from edge.engines.cuda import ON_CPU, Cuda, Device
from edge.engines.engine import AnyEngine
from edge.engines.plan import COMPILE, JETPACK
from edge.engines.tensorrt import TensorrtEngine
from edge.errors import BundleError, ConfigurationError

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
        ConfigurationError: TensorRT or cuda-python is not installed.
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
    plans, path = bundle.manifest.plans, bundle.path
    if plans is None:
        raise BundleError(
            path, "holds no TensorRT plans", f"make them with `build-engine compile`, {ON_CPU}"
        )
    cuda = open_cuda()
    try:
        trt = _module("tensorrt", "Runtime", f"install that of {JETPACK}")
        check_plans(path, plans, cuda.device(), trt.__version__, unverified=unverified)
    except BaseException:
        cuda.close()
        raise
    return TensorrtEngine(bundle, trt, cuda)


def open_cuda() -> Cuda:
    """This machine's GPU.

    Raises:
        DeviceError: it or its driver is missing.
        ConfigurationError: cuda-python is not installed.
    """
    return Cuda(_module("cuda.bindings.driver", "cuInit", advice.install("device")))


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


def _module(name: str, needed: str, remedy: str) -> Any:
    """An optional module, if it is really there: a folder of type stubs can be imported too."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError:
        module = None
    if not hasattr(module, needed):
        raise ConfigurationError(f"module {name}", "is not installed", f"{remedy}, {ON_CPU}")
    return module
