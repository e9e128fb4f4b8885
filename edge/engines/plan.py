"""One TensorRT plan: its bindings by name and its execution contexts; no failure goes unnoticed.

Only calls that TensorRT 10.9 and 11 share. Their API reports most failures by returning False or
None, here each becomes an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import ml_dtypes
import numpy as np

from edge.errors import BundleError, ConfigurationError, EngineError

if TYPE_CHECKING:
    import tensorrt

DTYPES: dict[str, np.dtype[Any]] = {
    "FLOAT": np.dtype(np.float32),
    "HALF": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "FP8": np.dtype(ml_dtypes.float8_e4m3fn),
    "INT32": np.dtype(np.int32),
    "INT8": np.dtype(np.int8),
    "INT4": np.dtype(ml_dtypes.int4),
    "FP4": np.dtype(ml_dtypes.float4_e2m1fn),
}
"""By TensorRT's name; the last two are packed in pairs, which numpy's are not."""
PACKED = ("INT4", "FP4")
COMPILE = "compile it again with `build-engine compile`"
MIN_TENSORRT = (10, 9)
"""The first whose plans take kernels compiled ahead of time (`tensorrt.plugin.aot_impl`). JetPack 6
has 10.3."""
JETPACK = "JetPack 7.2 on Orin, 7.0 or later on Thor"
"""What brings it."""


def check_tensorrt(version: str) -> None:
    """Refuse a TensorRT that is too old, before anything else of it is used.

    Args:
        version: its `__version__`, e.g. 10.16.2.10.
    Raises:
        ConfigurationError: it is older than MIN_TENSORRT.
    """
    if tuple(map(int, version.split(".")[:2])) < MIN_TENSORRT:
        needed = ".".join(map(str, MIN_TENSORRT))
        raise ConfigurationError(
            f"TensorRT {version}", f"is too old: plans need {needed}", f"flash {JETPACK}"
        )


class TensorRT(Protocol):
    """What is used of the module `tensorrt`."""

    @property
    def Logger(self) -> type[tensorrt.Logger]: ...  # noqa: N802
    @property
    def Runtime(self) -> type[tensorrt.Runtime]: ...  # noqa: N802
    @property
    def TensorIOMode(self) -> type[tensorrt.TensorIOMode]: ...  # noqa: N802
    @property
    def TensorLocation(self) -> type[tensorrt.TensorLocation]: ...  # noqa: N802
    @property
    def ExecutionContextAllocationStrategy(  # noqa: N802
        self,
    ) -> type[tensorrt.ExecutionContextAllocationStrategy]: ...


@dataclass(frozen=True, slots=True)
class Binding:
    """One input or output of a plan."""

    name: str
    is_input: bool
    kind: str
    """A key of DTYPES."""
    shape: tuple[int, ...]
    """-1 where a call decides."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its values."""
        return DTYPES[self.kind]

    def n_bytes(self, shape: Sequence[int] | None = None) -> int:
        """Of its values in this shape (default: its own)."""
        n = int(np.prod(self.shape if shape is None else shape, dtype=np.int64))
        return -(-n // 2) if self.kind in PACKED else n * self.dtype.itemsize


class Plan:
    """A deserialized plan."""

    def __init__(self, trt: TensorRT, runtime: tensorrt.Runtime, path: Path) -> None:
        """Read `path`.

        Raises:
            BundleError: TensorRT refuses it, or it wants something that no engine here gives.
        """
        self.path, self._trt = path, trt
        engine: tensorrt.ICudaEngine | None = runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise BundleError(path, "is refused by this TensorRT", COMPILE)
        self._engine = engine
        self.n_profiles = engine.num_optimization_profiles
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self.bindings = {name: self._binding(name) for name in names}
        sizes = [engine.get_device_memory_size_for_profile_v2(i) for i in range(self.n_profiles)]
        self.memory_bytes = max(sizes)
        """Scratch memory of a context; contexts that run one after the other can share it."""

    def _binding(self, name: str) -> Binding:
        engine = self._engine
        kind = engine.get_tensor_dtype(name).name
        if (
            kind not in DTYPES
            or engine.get_tensor_location(name) != self._trt.TensorLocation.DEVICE
        ):
            raise BundleError(self.path, f"has {name} of {kind}, or on the host", COMPILE)
        is_input = engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT
        return Binding(name, is_input, kind, _sizes(engine.get_tensor_shape(name)))

    def shapes(self, name: str, profile: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The smallest and the largest shape that an input may have under a profile."""
        if -1 not in self.bindings[name].shape:
            return self.bindings[name].shape, self.bindings[name].shape
        smallest, _, largest = self._engine.get_tensor_profile_shape(name, profile)
        return _sizes(smallest), _sizes(largest)

    def context(self, profile: int, memory: int, stream: int) -> Context:
        """Make a context.

        Args:
            memory: address of scratch memory, `memory_bytes` long.
        Raises:
            EngineError: TensorRT has none to give.
        """
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        made: tensorrt.IExecutionContext | None = self._engine.create_execution_context(strategy)
        if made is None:
            raise EngineError(self.path, "gives no execution context", "see TensorRT's message")
        made.set_device_memory(memory, self.memory_bytes)
        context = Context(self.path.name, made)
        context.check(made.set_optimization_profile_async(profile, stream), f"profile {profile}")
        return context


class Context:
    """A plan in one setting of profile, shapes and addresses."""

    def __init__(self, name: str, context: tensorrt.IExecutionContext) -> None:
        self._name, self._context = name, context

    def check(self, accepted: bool, what: str) -> None:
        """Refuse to go on after a False."""
        if not accepted:
            raise EngineError(f"{self._name}: {what}", "TensorRT refuses it", "see its message")

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Where inputs are read and outputs written from now on."""
        for name, address in addresses.items():
            self.check(self._context.set_tensor_address(name, address), f"address of {name}")

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Shapes of inputs from now on."""
        for name, shape in shapes.items():
            self.check(self._context.set_input_shape(name, shape), f"{name} of shape {shape}")

    def output_shape(self, name: str) -> tuple[int, ...]:
        """What an output will have, by the inputs' shapes."""
        return _sizes(self._context.get_tensor_shape(name))

    def enqueue(self, stream: int) -> None:
        """Compute, in the stream's order."""
        self.check(self._context.execute_async_v3(stream), "enqueue")


def _sizes(shape: tensorrt.Dims) -> tuple[int, ...]:
    return tuple(int(shape[i]) for i in range(len(shape)))
