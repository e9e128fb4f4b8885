"""The cpu engine: the embedded default. Encoders on ONNX Runtime, the decoder on numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnxruntime

from edge.engines.bundle import Bundle
from edge.engines.cpu_ops import CpuOps, DecoderState
from edge.engines.engine import MAX_AUDIO_FRAMES, MAX_PREFILL_TOKENS
from edge.errors import EngineError
from edge.features.positions import interpolation_weights
from edge.model.decoder import advance
from edge.model.spec import ModelSpec
from edge.types import Float32, Int32

CALL_IT_RIGHT = "this is a defect of the caller"


@dataclass(frozen=True, slots=True)
class CpuSnapshot:
    """The recurrent part, copied, and the length of the K/V cache, whose rows stay in place."""

    n_tokens: int
    conv: dict[int, Float32]
    ssm: dict[int, Float32]


class CpuEngine:
    """Executes a bundle of target `cpu` with any number of threads."""

    def __init__(self, bundle: Bundle, n_threads: int = 0) -> None:
        """Map the decoder's weights and load the encoders.

        Args:
            n_threads: threads of the encoders; 0 is one a core.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = n_threads
        options.log_severity_level = 3
        self.weights = bundle.decoder_weights()
        self._vision, self._audio = (
            onnxruntime.InferenceSession(
                str(bundle.path / name), options, providers=["CPUExecutionProvider"]
            )
            for name in ("vision.onnx", "audio.onnx")
        )
        self._spec = bundle.manifest.spec

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    def encode_image(self, patches: Float32, grid: tuple[int, int]) -> Float32:
        n_features = patches.shape[-1]
        padding = (self._spec.vision.tubelet_frames - 1) * n_features
        padded = np.pad(patches, ((0, 0), (0, padding)))
        embeddings: Float32 = self._see(padded[None], grid, embedder=0)[0]
        return embeddings

    def encode_tubelets(self, patches: Float32, grid: tuple[int, int]) -> Float32:
        return self._see(patches, grid, embedder=1)

    def _see(self, patches: Float32, grid: tuple[int, int], embedder: int) -> Float32:
        vision = self._spec.vision
        rows, columns = grid
        n_features = vision.tubelet_frames * 3 * vision.patch_size**2
        if patches.shape[1:] != (rows * columns, n_features) or rows % 2 or columns % 2:
            raise EngineError(
                "patches", f"have shape {patches.shape} for grid {grid}", CALL_IT_RIGHT
            )
        longest = max(grid)
        inputs = {
            "patches": np.ascontiguousarray(patches, np.float32),
            "embedder": np.array([embedder], np.int32),
            "row_weights": interpolation_weights(rows, longest, vision.position_grid),
            "column_weights": interpolation_weights(columns, longest, vision.position_grid),
        }
        embeddings: Float32 = self._vision.run(["embeddings"], inputs)[0]
        return embeddings

    def encode_audio(self, mel: Float32) -> Float32:
        if mel.shape[1:] != (self._spec.audio.n_mels,) or not 1 <= len(mel) <= MAX_AUDIO_FRAMES:
            raise EngineError("mel", f"has shape {mel.shape}", CALL_IT_RIGHT)
        inputs = {"mel": np.ascontiguousarray(mel, np.float32)[None]}
        embeddings: Float32 = self._audio.run(["embeddings"], inputs)[0][0]
        return embeddings

    def embed(self, ids: Int32) -> Float32:
        vocab = self._spec.decoder.vocab_size
        if ids.size and not 0 <= ids.min() <= ids.max() < vocab:
            raise EngineError("token ids", f"reach from {ids.min()} to {ids.max()}", CALL_IT_RIGHT)
        embeddings: Float32 = self.weights["embeddings"][ids]
        return embeddings

    def new_state(self) -> DecoderState:
        return DecoderState.empty(self._spec.decoder)

    def n_tokens(self, state: DecoderState) -> int:
        return state.n_tokens

    def prefill(self, state: DecoderState, embeddings: Float32) -> Float32:
        hidden_size = self._spec.decoder.hidden_size
        if embeddings.shape[1:] != (hidden_size,) or not len(embeddings):
            raise EngineError("embeddings", f"have shape {embeddings.shape}", CALL_IT_RIGHT)
        ops = CpuOps(self._spec.decoder, self.weights, state)
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
        # The operations replace a layer's arrays and never write into them, so the old ones stay.
        return CpuSnapshot(state.n_tokens, dict(state.conv), dict(state.ssm))

    def restore(self, state: DecoderState, snapshot: CpuSnapshot) -> None:
        state.n_tokens = snapshot.n_tokens
        state.conv, state.ssm = dict(snapshot.conv), dict(snapshot.ssm)
