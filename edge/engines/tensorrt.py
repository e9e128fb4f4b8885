"""The tensorrt engine: a bundle's plans on a CUDA GPU, every address fixed before the first call.

One step advances a state by T rows behind its past:

    pinned memory -- past_len and rows --> GPU -- enqueue --> logits --> pinned memory
        reads   the state's cache (a bucket of its rows) and the half that holds its conv and ssm
        writes  staged keys and values, and the state's other half
    then the staged rows are copied behind the past, and the halves change roles.

One row is a step of decode.plan, more are steps of prefill.plan; both read the same weights. Every
state takes one of a few fixed places, so that a step of one row is a CUDA graph, captured once for
each place, half and bucket. All work goes through one stream; a call returns when its
work is done. TensorRT asks for one context a graph, and that its shapes be used once beforehand.
"""

from __future__ import annotations

import contextlib
import gc
import math
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edge.engines.bundle import Bundle
from edge.engines.cuda import Cuda, Device
from edge.engines.encoder_inputs import CALL_IT_RIGHT, audio_inputs, image_inputs, tubelet_inputs
from edge.engines.engine import MAX_PREFILL_TOKENS
from edge.engines.plan import COMPILE, Context, Plan, TensorRT
from edge.engines.plan_encoder import PlanEncoder
from edge.engines.plan_memory import ALIGNMENT, Memory, aligned, load_weights, pieces
from edge.engines.weights import DecoderWeights
from edge.errors import BundleError, CapacityError, EngineError
from edge.model.spec import DecoderSpec, ModelSpec
from edge.types import Float32, Int32

if TYPE_CHECKING:
    import tensorrt

VISION, AUDIO, DECODE, PREFILL = PLANS = (
    "vision.plan",
    "audio.plan",
    "decode.plan",
    "prefill.plan",
)
FIRST_BUCKET_ROWS = 1024
"""Buckets double from here: a masked row costs bandwidth only, a graph costs memory."""
MAX_STATES = 3
"""The live one, the next one while it is rebuilt, and one that is recalled for a question."""
MAX_SNAPSHOTS = 2


@dataclass(frozen=True, slots=True)
class Place:
    """Where a state lives on the GPU."""

    number: int
    cache: int
    """Keys and values of all layers, the pieces one `cache_pitch` apart."""
    halves: tuple[int, int]
    """Two of everything recurrent: one is read while the other is written."""


@dataclass(eq=False)
class DeviceState:
    """A sequence's place, and how far it has come; the place is free again when this is gone."""

    place: Place
    half: int = 0
    n_tokens: int = 0


@dataclass(eq=False)
class DeviceSnapshot:
    """A copy of the recurrent part; the cache's rows stay in place behind the shorter length."""

    address: int
    state: weakref.ref[DeviceState]
    """Whose it is: not only its place, which a later state inherits."""
    n_tokens: int


class TensorrtEngine:
    """Executes a compiled bundle. Call `close` when done: the GPU's memory is freed in order."""

    def __init__(
        self,
        bundle: Bundle,
        trt: TensorRT,
        cuda: Cuda,
        max_states: int = MAX_STATES,
        max_snapshots: int = MAX_SNAPSHOTS,
    ) -> None:
        """Load plans and weights, take all memory, capture the graphs.

        Args:
            trt: the module `tensorrt`.
            cuda: closed with the engine, also when the engine cannot be made.
            max_states, max_snapshots: how many there can be at a time.
        Raises:
            BundleError: a plan is refused, or does not fit the weights or this engine.
            DeviceError: the GPU's memory is too small.
        """
        self._spec, self._cuda = bundle.manifest.spec, cuda
        self._embeddings = DecoderWeights(bundle.decoder_weights())
        with contextlib.ExitStack() as stack:
            stack.callback(cuda.close)
            self._memory = memory = Memory(cuda, stack)
            self._stream = memory.stream()
            logger: tensorrt.Logger = trt.Logger()
            self._runtime = runtime = trt.Runtime(logger)
            plans = vision, audio, decode, prefill = [
                Plan(trt, runtime, bundle.path / name) for name in PLANS
            ]
            self._bindings = prefill.bindings
            n_bytes = max(plan.scratch_bytes[0] for plan in plans)
            self._scratch = scratch = memory.on_device(n_bytes, "scratch memory")
            self._vision = PlanEncoder(vision, cuda, memory, scratch, self._stream)
            self._audio = PlanEncoder(audio, cuda, memory, scratch, self._stream)
            self._take_sizes(decode, prefill)
            fixed = self._weights(bundle) | self._fixed_addresses()
            self._places = [self._place(i) for i in range(max_states)]
            self._free_places = list(reversed(self._places))
            self._free_snapshots = [
                memory.on_device(self._recurrent_bytes, "snapshots") for _ in range(max_snapshots)
            ]
            self._prefill = prefill.context(0, self._stream)
            self._prefill.lend(scratch)
            self._prefill.bind(fixed)
            self._captured: list[Context] = []
            self._graphs = {
                at: self._capture(decode, fixed, *at)
                for at in product(range(max_states), (0, 1), self._buckets)
            }
            cuda.synchronize(self._stream)
            self._plans, self._closing = plans, stack.pop_all()

    def close(self) -> None:
        """Free everything; the engine cannot be used any more."""
        self._cuda.use()
        self._cuda.synchronize(self._stream)
        del self._captured, self._prefill, self._vision, self._audio  # contexts, then plans
        del self._plans, self._runtime
        self._closing.close()

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    @property
    def device(self) -> Device:
        """The GPU."""
        return self._cuda.device()

    @property
    def memory_bytes(self) -> dict[str, int]:
        """Taken on the GPU, by what for, and of the host's memory what is pinned for it."""
        return dict(self._memory.n_bytes)

    def encode_image(self, patches: Float32, grid: tuple[int, int]) -> Float32:
        embeddings: Float32 = self._vision.run(image_inputs(self._spec.vision, patches, grid))[0]
        return embeddings

    def encode_tubelets(self, patches: Float32, grid: tuple[int, int]) -> Float32:
        most = self._vision.max_batch("patches", patches.shape)
        parts = (patches[i : i + most] for i in range(0, len(patches), most))
        inputs = (tubelet_inputs(self._spec.vision, part, grid) for part in parts)
        return np.concatenate([self._vision.run(given) for given in inputs])

    def encode_audio(self, mel: Float32) -> Float32:
        embeddings: Float32 = self._audio.run(audio_inputs(self._spec.audio, mel))[0]
        return embeddings

    def embed(self, ids: Int32) -> Float32:
        vocab = self._spec.decoder.vocab_size
        if ids.size and not 0 <= ids.min() <= ids.max() < vocab:
            raise EngineError("token ids", f"reach from {ids.min()} to {ids.max()}", CALL_IT_RIGHT)
        return self._embeddings.rows("embeddings", ids)

    def new_state(self) -> DeviceState:
        if not self._free_places:
            gc.collect()  # an error's traceback may hold a state in a cycle
        if not self._free_places:
            raise CapacityError("states", f"all {len(self._places)} are in use", "ask again later")
        self._cuda.use()
        state = DeviceState(self._free_places.pop())
        weakref.finalize(state, self._free_places.append, state.place).atexit = False
        self._cuda.zero(state.place.halves[0], self._recurrent_bytes, self._stream)
        return state

    def n_tokens(self, state: DeviceState) -> int:
        return state.n_tokens

    def prefill(self, state: DeviceState, embeddings: Float32) -> Float32:
        hidden_size = self._spec.decoder.hidden_size
        if embeddings.shape[1:] != (hidden_size,) or not len(embeddings):
            raise EngineError("embeddings", f"have shape {embeddings.shape}", CALL_IT_RIGHT)
        n_tokens, most = state.n_tokens + len(embeddings), self._spec.decoder.max_tokens
        if n_tokens > most:
            raise CapacityError(
                "context",
                f"would reach {n_tokens} of {most} tokens",
                "lower context.max_tokens, or compile for a longer one",
            )
        self._cuda.use()
        for start in range(0, len(embeddings), MAX_PREFILL_TOKENS):
            self._advance(state, embeddings[start : start + MAX_PREFILL_TOKENS])
        logits: Float32 = self._logits_out.copy()
        if not np.isfinite(logits).all():
            raise EngineError("logits", "hold a NaN or an infinity", "run `build-engine verify`")
        return logits

    def decode(self, state: DeviceState, token: int) -> Float32:
        return self.prefill(state, self.embed(np.array([token], np.int32)))

    def snapshot(self, state: DeviceState) -> DeviceSnapshot:
        if not self._free_snapshots:
            gc.collect()
        if not self._free_snapshots:
            raise CapacityError("snapshots", "all are in use", "ask again later")
        self._cuda.use()
        snapshot = DeviceSnapshot(self._free_snapshots.pop(), weakref.ref(state), state.n_tokens)
        weakref.finalize(snapshot, self._free_snapshots.append, snapshot.address).atexit = False
        current = state.place.halves[state.half]
        self._cuda.copy(snapshot.address, current, self._recurrent_bytes, self._stream)
        return snapshot

    def restore(self, state: DeviceState, snapshot: DeviceSnapshot) -> None:
        if snapshot.state() is not state:
            raise EngineError("snapshot", "is of another state", CALL_IT_RIGHT)
        self._cuda.use()
        current = state.place.halves[state.half]
        self._cuda.copy(current, snapshot.address, self._recurrent_bytes, self._stream)
        state.n_tokens = snapshot.n_tokens

    def _advance(self, state: DeviceState, rows: Float32) -> None:
        """One step; the logits are in pinned memory afterwards."""
        n, past, place = len(rows), state.n_tokens, state.place
        bucket = next(n_rows for n_rows in self._buckets if n_rows >= past)
        self._past_in[0] = past
        self._rows_in[:n] = rows
        if n == 1:
            self._cuda.launch(self._graphs[place.number, state.half, bucket], self._stream)
        else:
            self._prefill.shape(self._shapes(n, bucket))
            self._prefill.bind(self._state_addresses(place, state.half))
            self._enqueue(self._prefill, n)
        self._append(place, past, n)
        self._cuda.synchronize(self._stream)
        state.n_tokens, state.half = past + n, 1 - state.half

    def _enqueue(self, context: Context, n: int) -> None:
        """Input, computation, output: what a graph holds."""
        n_bytes = ALIGNMENT + n * self._row_bytes
        self._cuda.upload(self._input, self._input_host, n_bytes, self._stream)
        context.enqueue(self._stream)
        n_bytes = self._logits_out.nbytes
        self._cuda.download(self._logits_host, self._logits, n_bytes, self._stream)

    def _append(self, place: Place, past: int, n: int) -> None:
        """Copy the staged keys and values behind the past, those of all layers at once."""
        if self._staged:
            to = (place.cache + past * self._kv_row_bytes, self._cache_pitch)
            staged = (self._staging, self._staging_pitch)
            n_bytes = n * self._kv_row_bytes
            self._cuda.copy_pieces(to, staged, n_bytes, len(self._staged), self._stream)

    def _capture(
        self, plan: Plan, fixed: dict[str, int], place: int, half: int, bucket: int
    ) -> int:
        """The graph of one row."""
        context = plan.context(0, self._stream)
        context.lend(self._scratch)
        context.bind(fixed | self._state_addresses(self._places[place], half))
        context.shape(self._shapes(1, bucket))
        self._captured.append(context)
        self._enqueue(context, 1)
        self._cuda.synchronize(self._stream)
        self._cuda.begin_capture(self._stream)
        self._enqueue(context, 1)
        return self._memory.graph(self._stream)

    def _take_sizes(self, decode: Plan, prefill: Plan) -> None:
        """Read off the plans what a call may be, and refuse plans of another shape."""
        spec, found = self._spec.decoder, prefill.bindings
        for plan, n_rows in ((decode, 1), (prefill, -1)):
            for name, shape in _expected(spec, n_rows):
                has = plan.bindings[name].shape if name in plan.bindings else None
                if has != shape:
                    has_it = f"has {name} {has}" if has else f"lacks {name}"
                    raise BundleError(plan.path, f"{has_it}, not {name} {shape}", COMPILE)
        (_, (most, _)) = prefill.shapes("embeddings", 0)
        if most < MAX_PREFILL_TOKENS:
            problem = f"is for {most} rows a call, not {MAX_PREFILL_TOKENS}"
            raise BundleError(prefill.path, problem, COMPILE)
        _require_same(decode, prefill, {name for name, _ in _expected(spec, -1)})
        self._row_bytes = found["embeddings"].n_bytes((1, spec.hidden_size))
        layers = spec.layers("*")
        self._staged = [f"{kind}.{layer}" for layer in layers for kind in "kv"]
        rows = [spec.max_tokens]
        if layers:
            first = f"past_k.{layers[0]}"
            rows += [plan.shapes(first, 0)[1][0] for plan in (decode, prefill)]
            self._kv_row_bytes = found[first].n_bytes((1, spec.n_kv_heads, spec.head_dim))
            self._cache_pitch = aligned(min(rows) * self._kv_row_bytes)
            self._staging_pitch = aligned(MAX_PREFILL_TOKENS * self._kv_row_bytes)
        n_doublings = math.ceil(math.log2(max(1, min(rows) / FIRST_BUCKET_ROWS)))
        self._buckets = [*(FIRST_BUCKET_ROWS << i for i in range(n_doublings)), min(rows)]
        self._spec = msgspec.structs.replace(  # as far as the plan goes
            self._spec, decoder=msgspec.structs.replace(spec, max_tokens=min(rows))
        )
        recurrent = [found[f"{kind}.{i}"] for i in spec.layers("M") for kind in ("conv", "ssm")]
        self._recurrent, self._recurrent_bytes = pieces(recurrent)

    def _weights(self, bundle: Bundle) -> dict[str, int]:
        """Upload what the plans take besides the state; address by name."""
        own = {name for name, _ in _expected(self._spec.decoder, -1)}
        wanted = [b for b in self._bindings.values() if b.is_input and b.name not in own]
        return load_weights(wanted, bundle, self._memory, self._cuda, self._stream)

    def _fixed_addresses(self) -> dict[str, int]:
        """Take memory for what every step shares; address by name."""
        memory, found, spec = self._memory, self._bindings, self._spec.decoder
        n_bytes = ALIGNMENT + MAX_PREFILL_TOKENS * self._row_bytes
        self._input, self._input_host = memory.on_device(n_bytes, "input"), memory.on_host(n_bytes)
        self._past_in = memory.host_array(self._input_host, np.dtype(np.int32), (1,))
        shape = (MAX_PREFILL_TOKENS, spec.hidden_size)
        rows_host = self._input_host + ALIGNMENT
        self._rows_in = memory.host_array(rows_host, found["embeddings"].dtype, shape)
        self._past_in[:], self._rows_in[:] = 0, 0  # what graphs are tried with
        addresses = {"past_len": self._input, "embeddings": self._input + ALIGNMENT}
        if self._staged:
            staging_bytes = len(self._staged) * self._staging_pitch
            self._staging = memory.on_device(staging_bytes, "staged keys and values")
        for i, name in enumerate(self._staged):
            addresses[f"new_{name}"] = self._staging + i * self._staging_pitch
        state = {f"new_{name}" for name in (*self._staged, *(p.name for p in self._recurrent))}
        for binding in found.values():
            if not binding.is_input and binding.name not in state:
                addresses[binding.name] = memory.on_device(binding.n_bytes(), binding.name)
        self._logits, n_bytes = addresses["logits"], found["logits"].n_bytes()
        self._logits_host = memory.on_host(n_bytes)
        dtype = found["logits"].dtype
        self._logits_out = memory.host_array(self._logits_host, dtype, (spec.vocab_size,))
        return addresses

    def _place(self, number: int) -> Place:
        """Take memory for one state; rows that are masked must be finite, so all are zero."""
        cache = 0
        if self._staged:
            n_bytes = len(self._staged) * self._cache_pitch
            cache = self._memory.on_device(n_bytes, "K/V cache")
            self._cuda.zero(cache, n_bytes, self._stream)
        first, second = (self._memory.on_device(self._recurrent_bytes, "state") for _ in range(2))
        for half in (first, second):
            self._cuda.zero(half, self._recurrent_bytes, self._stream)
        return Place(number, cache, (first, second))

    def _state_addresses(self, place: Place, half: int) -> dict[str, int]:
        read, written = place.halves[half], place.halves[1 - half]
        addresses = {
            f"past_{name}": place.cache + i * self._cache_pitch
            for i, name in enumerate(self._staged)
        }
        for piece in self._recurrent:
            addresses[piece.name] = read + piece.offset
            addresses[f"new_{piece.name}"] = written + piece.offset
        return addresses

    def _shapes(self, n: int, bucket: int) -> dict[str, tuple[int, ...]]:
        spec = self._spec.decoder
        cache = (bucket, spec.n_kv_heads, spec.head_dim)
        return {"embeddings": (n, spec.hidden_size)} | {f"past_{n}": cache for n in self._staged}


def _require_same(decode: Plan, prefill: Plan, known: set[str]) -> None:
    """See that two plans bind the same: of what is `known`, the shapes are right already."""
    for name in {**decode.bindings, **prefill.bindings}:
        one, other = (plan.bindings.get(name) for plan in (decode, prefill))
        if not (one and other):
            raise BundleError((prefill if one else decode).path, f"lacks {name}", COMPILE)
        if one != (replace(other, shape=one.shape) if name in known else other):
            problem = f"has {name} as {one.kind} {one.shape}, {prefill.path.name} as {other.kind}"
            raise BundleError(decode.path, f"{problem} {other.shape}", COMPILE)


def _expected(spec: DecoderSpec, n_rows: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Bindings of a decoder that are no weights, with their shapes; -1 rows are any number."""
    yield "embeddings", (n_rows, spec.hidden_size)
    yield "past_len", (1,)
    yield "logits", (1, spec.vocab_size)
    for layer, kind in product(spec.layers("*"), "kv"):
        for name, rows in ((f"past_{kind}.{layer}", -1), (f"new_{kind}.{layer}", n_rows)):
            yield name, (rows, spec.n_kv_heads, spec.head_dim)
    for layer in spec.layers("M"):
        conv = (spec.conv_kernel - 1, spec.conv_dim)
        ssm = (spec.mamba_n_heads, spec.mamba_head_dim, spec.state_size)
        for prefix in ("", "new_"):
            yield f"{prefix}conv.{layer}", conv
            yield f"{prefix}ssm.{layer}", ssm
