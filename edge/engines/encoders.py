"""The vision and audio encoders on ONNX Runtime, for any processor."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from edge.engines.bundle import REBUILD
from edge.engines.encoder_inputs import Inputs, audio_inputs, image_inputs, tubelet_inputs
from edge.engines.onnx_runtime import onnxruntime
from edge.errors import BundleError
from edge.model.spec import ModelSpec
from edge.types import Float32

VISION, AUDIO = NAMES = ("vision.onnx", "audio.onnx")


class Encoders:
    """vision.onnx and audio.onnx of one folder."""

    def __init__(
        self, folder: Path, spec: ModelSpec, n_threads: int = 0, frugal: bool = False
    ) -> None:
        """Load none yet: each is loaded when it is first used, or by `load`.

        Args:
            n_threads: 0 is one a core of those that the process may use.
            frugal: drop the other one then.
        """
        self._folder, self._spec = folder, spec
        self._options = onnxruntime.SessionOptions()
        # Left to itself, ONNX Runtime makes a thread a core of the machine, and binds each to one.
        self._options.intra_op_num_threads = n_threads or len(os.sched_getaffinity(0))
        # A thread that spins after a call keeps its core from the decoder, and from sleeping.
        self._options.add_session_config_entry("session.intra_op.allow_spinning", "0")
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
        return self._loader.submit(self._session, self._folder / name)

    def _session(self, path: Path) -> onnxruntime.InferenceSession:
        try:
            return onnxruntime.InferenceSession(
                str(path), self._options, providers=["CPUExecutionProvider"]
            )
        # ONNX Runtime's errors have no base of their own.
        except Exception as error:
            problem = " ".join(f"cannot be loaded ({error})".split())
            raise BundleError(path, problem, REBUILD) from error

    def _run(self, name: str, inputs: Inputs) -> Float32:
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
        embeddings: Float32 = self._run(VISION, image_inputs(self._spec.vision, patches, grid))[0]
        return embeddings

    def encode_tubelets(self, patches: Float32, grid: tuple[int, int]) -> Float32:
        return self._run(VISION, tubelet_inputs(self._spec.vision, patches, grid))

    def encode_audio(self, mel: Float32) -> Float32:
        embeddings: Float32 = self._run(AUDIO, audio_inputs(self._spec.audio, mel))[0]
        return embeddings
