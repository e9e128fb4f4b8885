"""The cpu engine: the embedded default. Encoders on ONNX Runtime, the decoder on native kernels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge import _kernels
from edge.engines import kernels
from edge.engines.bundle import Bundle
from edge.engines.cpu_ops import CpuOps, KernelWeights
from edge.engines.encoder_inputs import CALL_IT_RIGHT
from edge.engines.encoders import Encoders
from edge.engines.engine import MAX_PREFILL_TOKENS
from edge.engines.state import DecoderState, KVCache
from edge.engines.weights import DecoderWeights
from edge.errors import EngineError
from edge.model.decoder import advance
from edge.model.ops import Ops
from edge.model.spec import ModelSpec
from edge.types import Float32, Int32


@dataclass(frozen=True, slots=True)
class CpuSnapshot:
    """The recurrent part and the length of the K/V cache, whose rows stay in place."""

    n_tokens: int
    conv: dict[int, Float32]
    ssm: dict[int, Float32]
    kv: dict[int, KVCache]
    """Of the state that it is of, and of no other."""


class CpuEngine:
    """Executes a bundle of target `cpu` with any number of threads."""

    def __init__(
        self, bundle: Bundle, n_threads: int = 0, *, exact: bool = False, frugal: bool = False
    ) -> None:
        """Map the decoder's weights; encoders are loaded when they are first used.

        Args:
            n_threads: threads of the encoders and, process-wide, of the kernels; 0 is one a core.
            exact: keep activations in float32 where 4-bit weights would meet them in 8 bits.
            frugal: keep one encoder or one block of the decoder in memory at a time: slower.
        """
        kernels.choose_instruction_set()
        _kernels.set_threads(n_threads)
        stored = bundle.decoder_weights(one_block=frugal)
        self.weights = DecoderWeights(stored)
        self._kernel_weights, self._exact = KernelWeights(stored), exact
        self._encoders = Encoders(bundle.path, bundle.manifest.spec, n_threads, frugal)
        self._spec = bundle.manifest.spec

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    def load_encoders(self) -> None:
        """Begin to load the encoders, in the background, instead of at their first use."""
        self._encoders.load()

    def encode_image(self, patches: Float32, grid: tuple[int, int]) -> Float32:
        return self._encoders.encode_image(patches, grid)

    def encode_tubelets(self, patches: Float32, grid: tuple[int, int]) -> Float32:
        return self._encoders.encode_tubelets(patches, grid)

    def encode_audio(self, mel: Float32) -> Float32:
        return self._encoders.encode_audio(mel)

    def embed(self, ids: Int32) -> Float32:
        vocab = self._spec.decoder.vocab_size
        if ids.size and not 0 <= ids.min() <= ids.max() < vocab:
            raise EngineError("token ids", f"reach from {ids.min()} to {ids.max()}", CALL_IT_RIGHT)
        return self.weights.rows("embeddings", ids)

    def new_state(self) -> DecoderState:
        return DecoderState.empty(self._spec.decoder)

    def n_tokens(self, state: DecoderState) -> int:
        return state.n_tokens

    def ops(self, state: DecoderState) -> Ops[Float32]:
        """The decoder's operations on `state`."""
        return CpuOps(self._spec.decoder, self._kernel_weights, state, self._exact)

    def prefill(self, state: DecoderState, embeddings: Float32) -> Float32:
        hidden_size = self._spec.decoder.hidden_size
        if embeddings.shape[1:] != (hidden_size,) or not len(embeddings):
            raise EngineError("embeddings", f"have shape {embeddings.shape}", CALL_IT_RIGHT)
        ops = self.ops(state)
        for start in range(0, len(embeddings), MAX_PREFILL_TOKENS):
            rows = embeddings[start : start + MAX_PREFILL_TOKENS]
            logits = advance(ops, self._spec.decoder, rows)
            state.n_tokens += len(rows)
        last: Float32 = logits[0]
        if not np.isfinite(last).all():
            raise EngineError("logits", "hold a NaN or an infinity", "run `build-engine verify`")
        return last

    def decode(self, state: DecoderState, token: int) -> Float32:
        return self.prefill(state, self.embed(np.array([token], np.int32)))

    def snapshot(self, state: DecoderState) -> CpuSnapshot:
        # Whoever advances a shared array next replaces it, so the snapshot's own stays.
        state.shared = set(state.ssm)
        return CpuSnapshot(state.n_tokens, dict(state.conv), dict(state.ssm), state.kv)

    def restore(self, state: DecoderState, snapshot: CpuSnapshot) -> None:
        if snapshot.kv is not state.kv:
            raise EngineError("snapshot", "is of another state", CALL_IT_RIGHT)
        state.n_tokens = snapshot.n_tokens
        state.conv, state.ssm = dict(snapshot.conv), dict(snapshot.ssm)
        state.shared = set(state.ssm)
