"""TensorRT's runtime on the fake GPU: plans are descriptions, and an enqueue computes in numpy.

A decoder's enqueue reads everything, weights too, from where its bindings point, and writes what
the reference operations make of it; an encoder's runs its ONNX file. So a wrong address, order or
length gives wrong numbers. Rules that TensorRT states are enforced: every binding has an address
and a shape within the profile, a captured context is not touched again, and it has run once with
its shapes before it is captured.
"""

from __future__ import annotations

import enum
import json
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from fake_cuda import FakeDriver, Misuse
from graphs.decoder_session import DecoderSession

from build_engine.decoder_layout import bundle_layout
from build_engine.graphs.decoder import REFERENCE, decoder_model
from edge.engines.bundle import Bundle
from edge.engines.onnx_runtime import onnxruntime
from edge.engines.plan import DTYPES
from edge.engines.reference_ops import ReferenceOps
from edge.engines.safetensors import SafetensorsFile
from edge.engines.state import DecoderState, KVCache
from edge.engines.weights import DecoderWeights
from edge.model.decoder import advance
from edge.model.spec import DecoderSpec, ModelSpec

VERSION = "10.13.0.35"
SCRATCH_BYTES = 4096
N_TOP = 3
KIND_OF = {
    "float32": "FLOAT",
    "float16": "HALF",
    "bfloat16": "BF16",
    "float8_e4m3fn": "INT8",
    "uint8": "INT8",
    "int8": "INT8",
    "int32": "INT32",
}
BIG = 1 << 20


class TensorIOMode(enum.Enum):
    INPUT, OUTPUT = 1, 2


class TensorLocation(enum.Enum):
    DEVICE, HOST = 0, 1


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = 0, 1, 2


class FakeTensorRT:
    """The module."""

    __version__ = VERSION
    TensorIOMode, TensorLocation = TensorIOMode, TensorLocation
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy

    def __init__(self, driver: FakeDriver) -> None:
        self.driver = driver
        self.contexts: weakref.WeakSet[FakeContext] = weakref.WeakSet()
        self.n_contexts_made = 0

    def Logger(self) -> object:  # noqa: N802
        return object()

    def Runtime(self, logger: object) -> Any:  # noqa: N802
        if self.driver.no_library or "cuInit" in self.driver.failing:
            raise Misuse("a TensorRT runtime without a driver ends the process")
        return SimpleNamespace(deserialize_cuda_engine=self._deserialize)

    def _deserialize(self, plan: bytes) -> FakeEngine | None:
        try:
            return FakeEngine(self, json.loads(plan))
        except json.JSONDecodeError:
            return None


class FakeEngine:
    def __init__(self, trt: FakeTensorRT, plan: dict[str, Any]) -> None:
        self.trt, self.plan = trt, plan
        self.num_io_tensors = len(plan["bindings"])
        self.num_optimization_profiles = len(plan["profiles"])
        self.compute: Any = lambda values: _decode(plan, values)
        if "encoder" in plan:
            session = onnxruntime.InferenceSession(
                plan["encoder"], providers=["CPUExecutionProvider"]
            )
            self.compute = lambda values: {"embeddings": session.run(["embeddings"], values)[0]}
        elif "decoder" in plan:
            self.compute = DecoderSession(onnx.load(plan["decoder"]), {})

    def get_tensor_name(self, i: int) -> str:
        return list(self.plan["bindings"])[i]

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self.plan["bindings"][name][1])

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.DEVICE

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if self.plan["bindings"][name][0] else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> list[int]:
        return self.plan["bindings"][name][2]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[list[int]]:
        return self.plan["profiles"][profile][name]

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return SCRATCH_BYTES

    def create_execution_context(self, strategy: Any) -> FakeContext:
        if strategy is not ExecutionContextAllocationStrategy.USER_MANAGED:
            raise Misuse("a context that takes its own memory")
        context = FakeContext(self)
        self.trt.contexts.add(context)
        self.trt.n_contexts_made += 1
        return context


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.driver = engine, engine.trt.driver
        self.profile, self.scratch = -1, 0
        self.addresses: dict[str, int] = {}
        self.input_shapes: dict[str, tuple[int, ...]] = {
            name: tuple(shape)
            for name, (is_input, _, shape) in engine.plan["bindings"].items()
            if is_input and -1 not in shape
        }
        self.has_run = False
        """With these shapes and addresses, outside a capture."""
        self.version, self.is_captured = 0, False

    def _changed(self) -> None:
        self.version += 1
        self.has_run = False

    def set_device_memory(self, address: int, n_bytes: int) -> None:
        if address % 256 or n_bytes < SCRATCH_BYTES:
            raise Misuse("scratch memory that is too small or not aligned")
        self.driver.span(address, n_bytes)
        self._changed()
        self.scratch = address

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        if self.driver.capturing(stream):
            raise Misuse("a profile is chosen within a capture")
        self._changed()
        self.profile = profile
        return 0 <= profile < self.engine.num_optimization_profiles

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._changed()
        self.addresses[name] = address
        return name in self.engine.plan["bindings"] and address % 256 == 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        static = self.engine.plan["bindings"][name][2]
        if -1 in static:
            least, _, most = self.engine.plan["profiles"][self.profile][name]
        else:
            least = most = static
        if len(shape) != len(least) or any(
            not a <= n <= b for a, n, b in zip(least, shape, most, strict=True)
        ):
            return False
        self._changed()
        self.input_shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.input_shapes:
            return self.input_shapes[name]
        shape, shapes = self.engine.plan["bindings"][name][2], self.input_shapes
        if "patches" in shapes:
            n, n_patches, _ = shapes["patches"]
            return n, n_patches // 4, shape[-1]
        if "mel" in shapes:
            return 1, -(-shapes["mel"][1] // 8), shape[-1]
        return tuple(shapes["embeddings"][0] if n == -1 else n for n in shape)

    def execute_async_v3(self, stream: int) -> bool:
        bindings = self.engine.plan["bindings"]
        if self.profile < 0 or not self.scratch:
            raise Misuse("an enqueue without a profile or scratch memory")
        for name in bindings:
            if name not in self.addresses:
                raise Misuse(f"{name} has no address")
            if bindings[name][0] and name not in self.input_shapes:
                raise Misuse(f"{name} has no shape")
        if self.driver.capturing(stream):
            if not self.has_run:
                raise Misuse("a capture before the context has run with its shapes")
            self.is_captured = True
        elif self.is_captured:
            raise Misuse("a captured context is used again")
        else:
            self.has_run = True
        # as it is now: what changes later does not count
        shapes = {name: self.get_tensor_shape(name) for name in bindings}
        addresses, version = dict(self.addresses), self.version

        def work() -> None:
            if self.is_captured and self.version != version:
                raise Misuse("a captured context was changed")
            self._compute(addresses, shapes)

        self.driver.give(stream, "enqueue", work)
        return True

    def _compute(self, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
        bindings, values, spans = self.engine.plan["bindings"], {}, []
        for name, (is_input, kind, _) in bindings.items():
            n_bytes = int(np.prod(shapes[name], dtype=int)) * DTYPES[kind].itemsize
            spans.append((addresses[name], addresses[name] + n_bytes, is_input, name))
            if is_input:
                read = self.driver.read(addresses[name], n_bytes)
                values[name] = read.view(DTYPES[kind]).reshape(shapes[name])
        spans.append((self.scratch, self.scratch + SCRATCH_BYTES, False, "scratch"))
        _check_overlap(spans)
        self.driver.write(self.scratch, np.full(SCRATCH_BYTES, 0x5A, np.uint8))
        results = self.engine.compute(values)
        for name, (is_input, kind, _) in bindings.items():
            if not is_input:
                made = np.ascontiguousarray(results[name].astype(DTYPES[kind]))
                if made.shape != shapes[name]:
                    raise Misuse(f"{name} {made.shape} is no {shapes[name]}")
                self.driver.write(addresses[name], made.reshape(-1).view(np.uint8))


def _check_overlap(spans: list[tuple[int, int, bool, str]]) -> None:
    """What is written overlaps nothing."""
    spans = sorted(spans)
    for i, (_, end, is_input, name) in enumerate(spans):
        for start, _, other_is_input, other in spans[i + 1 :]:
            if start >= end:
                break
            if not (is_input and other_is_input):
                raise Misuse(f"{name} and {other} overlap")


def _decode(plan: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """A step of the decoder, computed by the reference operations."""
    spec, past = DecoderSpec(**plan["spec"]), int(values["past_len"][0])
    rows = values["embeddings"].astype(np.float32)
    state = DecoderState(past, {}, {}, {})
    for layer in spec.layers("*"):
        k, v = (values[f"past_{kind}.{layer}"].astype(np.float32) for kind in "kv")
        if past > len(k):
            raise Misuse(f"{past} rows are past, {len(k)} are bound")
        if not (np.isfinite(k).all() and np.isfinite(v).all()):
            raise Misuse("a masked row is not finite: zero times it is no zero")
        state.kv[layer] = KVCache(k, v)
    for layer in spec.layers("M"):
        state.conv[layer] = values[f"conv.{layer}"].astype(np.float32)
        state.ssm[layer] = values[f"ssm.{layer}"].astype(np.float32)
    weights = {name: as_stored(values[name], dtype) for name, dtype in plan["weights"].items()}
    logits = advance(ReferenceOps(spec, DecoderWeights(weights), state), spec, rows)
    top = np.argsort(-logits[0], kind="stable")[:N_TOP]
    results = {"logits": logits, "top_values": logits[:, top], "top_ids": top[None]}
    for layer, cache in state.kv.items():
        results[f"new_k.{layer}"] = cache.keys[past : past + len(rows)]
        results[f"new_v.{layer}"] = cache.values[past : past + len(rows)]
    for layer in state.ssm:
        results[f"new_conv.{layer}"] = state.conv[layer]
        results[f"new_ssm.{layer}"] = state.ssm[layer]
    return results


def as_stored(values: Any, dtype: str) -> Any:
    """Bytes of a binding as the type that decoder.safetensors has."""
    wanted = np.dtype(getattr(ml_dtypes, dtype, dtype))
    return values if values.dtype == wanted else values.reshape(values.shape).view(wanted)


def write_plans(folder: Path, spec: ModelSpec, kind: str, max_rows: int, max_tokens: int) -> None:
    """Write vision.plan, audio.plan and decoder.plan for a bundle in `folder`.

    Args:
        kind: FLOAT or HALF, of the decoder's activations.
        max_rows: of the K/V cache.
        max_tokens: of one prefill call.
    """
    import msgspec

    vision, audio, decoder = spec.vision, spec.audio, spec.decoder
    hidden, table = decoder.hidden_size, vision.position_grid
    features = vision.tubelet_frames * 3 * vision.patch_size**2
    bindings: dict[str, Any] = {
        "patches": (True, "FLOAT", [-1, -1, features]),
        "embedder": (True, "INT32", [1]),
        "row_weights": (True, "FLOAT", [-1, table]),
        "column_weights": (True, "FLOAT", [-1, table]),
        "embeddings": (False, "FLOAT", [-1, -1, hidden]),
    }

    def seen(batch: int, patches: int) -> dict[str, Any]:
        sides = [[2, table], [8, table], [64, table]]
        shapes = [[1, 4, features], [1, 16, features], [batch, patches, features]]
        return {"patches": shapes, "row_weights": sides, "column_weights": sides}

    profiles = [seen(1, 4096), seen(2, 1024)]
    plan: dict[str, Any] = {"bindings": bindings, "profiles": profiles}
    _write(folder / "vision.plan", plan | {"encoder": str(folder / "vision.onnx")})
    bindings = {
        "mel": (True, "FLOAT", [1, -1, audio.n_mels]),
        "embeddings": (False, "FLOAT", [1, -1, hidden]),
    }
    mel = [[1, 1, audio.n_mels], [1, 500, audio.n_mels], [1, 3000, audio.n_mels]]
    plan = {"bindings": bindings, "profiles": [{"mel": mel}]}
    _write(folder / "audio.plan", plan | {"encoder": str(folder / "audio.onnx")})

    kv = [-1, decoder.n_kv_heads, decoder.head_dim]
    ssm = [decoder.mamba_n_heads, decoder.mamba_head_dim, decoder.state_size]
    file = SafetensorsFile(folder / "decoder.safetensors")
    weights = {n: file.dtype(n).name for n in reversed(file.names()) if n != "embeddings"}
    bindings = {"embeddings": (True, kind, [-1, hidden]), "past_len": (True, "INT32", [1])}
    bindings |= {n: (True, KIND_OF[dtype], list(file.shape(n))) for n, dtype in weights.items()}
    for prefix, is_input in (("", True), ("new_", False)):
        for layer in decoder.layers("M"):
            conv = [decoder.conv_kernel - 1, decoder.conv_dim]
            bindings[f"{prefix}conv.{layer}"] = (is_input, kind, conv)
            bindings[f"{prefix}ssm.{layer}"] = (is_input, "FLOAT", ssm)
        for layer in decoder.layers("*"):
            for which in "kv":
                bindings[f"{prefix or 'past_'}{which}.{layer}"] = (is_input, kind, kv)
    bindings["logits"] = (False, "FLOAT", [1, decoder.vocab_size])
    bindings["top_values"] = (False, "FLOAT", [1, N_TOP])
    bindings["top_ids"] = (False, "INT32", [1, N_TOP])
    past = {
        f"past_{which}.{layer}": [[n, *kv[1:]] for n in (1, max_rows, max_rows)]
        for layer in decoder.layers("*")
        for which in "kv"
    }
    profiles = [
        {"embeddings": [[1, hidden], [n, hidden], [n, hidden]]} | past for n in (1, max_tokens)
    ]
    spec_fields = msgspec.to_builtins(decoder)
    plan = {"bindings": bindings, "profiles": profiles, "weights": weights, "spec": spec_fields}
    _write(folder / "decoder.plan", plan)


def use_real_graph(folder: Path) -> None:
    """Let decoder.plan compute the builder's own graph, by its own inputs and outputs."""
    spec = Bundle(folder, check_hashes=False).manifest.spec.decoder
    model = decoder_model(spec, bundle_layout(folder), REFERENCE)
    onnx.save(model, folder / "decoder.onnx")
    plan = json.loads((folder / "decoder.plan").read_text())
    bindings: dict[str, Any] = {}
    for is_input, values in ((True, model.graph.input), (False, model.graph.output)):
        for value in values:
            kind = KIND_OF[
                onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
            ]
            dims = value.type.tensor_type.shape.dim
            shape = [-1 if dim.dim_param else dim.dim_value for dim in dims]
            bindings[value.name] = (is_input, kind, shape)
    _write(
        folder / "decoder.plan",
        plan | {"bindings": bindings, "decoder": str(folder / "decoder.onnx")},
    )


def _write(path: Path, plan: dict[str, Any]) -> None:
    path.write_text(json.dumps(plan))
