"""The vision and audio encoders on ONNX Runtime, for any processor."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edge.engines.engine import MAX_AUDIO_FRAMES
from edge.errors import EngineError
from edge.features.positions import interpolation_weights
from edge.model.spec import ModelSpec
from edge.types import Float32

VISION, AUDIO = NAMES = ("vision.onnx", "audio.onnx")
CALL_IT_RIGHT = "this is a defect of the caller"


class Encoders:
    """vision.onnx and audio.onnx of one folder."""

    def __init__(
        self, folder: Path, spec: ModelSpec, n_threads: int = 0, frugal: bool = False
    ) -> None:
        """Load none yet: each is loaded when it is first used, or by `load`.

        Args:
            n_threads: 0 is one a core.
            frugal: drop the other one then.
        """
        self._folder, self._spec = folder, spec
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = n_threads
        self._options.log_severity_level = 3
        self._loader = ThreadPoolExecutor(1, "encoders")
        self._sessions: dict[str, Future[onnxruntime.InferenceSession]] = {}
        self._frugal = frugal

    def load(self) -> None:
        """Begin to load both, in the background."""
        for name in NAMES:
            if name not in self._sessions:
                self._sessions[name] = self._load(name)

    def _load(self, name: str) -> Future[onnxruntime.InferenceSession]:
        path, providers = str(self._folder / name), ["CPUExecutionProvider"]
        return self._loader.submit(
            onnxruntime.InferenceSession, path, self._options, providers=providers
        )

    def _run(self, name: str, inputs: dict[str, NDArray[Any]]) -> Float32:
        if name not in self._sessions:
            if self._frugal:
                self._sessions.clear()
            self._sessions[name] = self._load(name)
        embeddings: Float32 = self._sessions[name].result().run(["embeddings"], inputs)[0]
        return embeddings

    @property
    def spec(self) -> ModelSpec:
        """The model whose encoders these are."""
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
        return self._run(VISION, inputs)

    def encode_audio(self, mel: Float32) -> Float32:
        if mel.shape[1:] != (self._spec.audio.n_mels,) or not 1 <= len(mel) <= MAX_AUDIO_FRAMES:
            raise EngineError("mel", f"has shape {mel.shape}", CALL_IT_RIGHT)
        inputs = {"mel": np.ascontiguousarray(mel, np.float32)[None]}
        embeddings: Float32 = self._run(AUDIO, inputs)[0]
        return embeddings
