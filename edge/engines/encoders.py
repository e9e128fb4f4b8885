"""The vision and audio encoders on ONNX Runtime, for any processor."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from edge.engines.bundle import ENCODERS, REBUILD
from edge.engines.encoder_inputs import Inputs, audio_inputs, image_inputs, tubelet_inputs
from edge.engines.onnx_runtime import onnxruntime
from edge.errors import BundleError, EngineError
from edge.model.spec import ModelSpec
from edge.types import Float32

CHECK_IT = "end what else takes memory, or run `build-engine verify`"
VISION, AUDIO = NAMES = ENCODERS


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
        self._tried: set[str] = set()
        """Those that have computed something: what fails then is no fault of the bundle's."""

    def load(self) -> None:
        """Begin to load both, in the background."""
        for name in NAMES:
            if name not in self._sessions:
                self._sessions[name] = self._load(name)

    def _load(self, name: str) -> Future[onnxruntime.InferenceSession]:
        return self._loader.submit(self._session, self._folder / name)

    def _session(self, path: Path) -> onnxruntime.InferenceSession:
        try:
            session = onnxruntime.InferenceSession(
                str(path),
                self._options,
                providers=["CPUExecutionProvider"],
                enable_fallback=False,  # there is no other: it would print and try again
            )
        # ONNX Runtime's errors have no base of their own.
        except Exception as error:
            problem = " ".join(f"cannot be loaded ({error})".split())
            raise BundleError(path, problem, REBUILD) from error
        for place in (*session.get_inputs(), *session.get_outputs()):
            found, expected = (place.type, tuple(place.shape)), self._places(path.name)
            if found != expected.get(place.name):
                problem = f"has {place.name} as {found[0]} {list(found[1])}"
                raise BundleError(path, f"{problem}, not as its model does", REBUILD)
        return session

    def _places(self, name: str) -> dict[str, tuple[str, tuple[int | str, ...]]]:
        """Type and shape of all that a graph takes and gives, by name."""
        vision, audio, kind = self._spec.vision, self._spec.audio, "tensor(float)"
        n_features = vision.tubelet_frames * 3 * vision.patch_size**2
        hidden, side = self._spec.decoder.hidden_size, vision.position_grid
        if name == AUDIO:
            return {
                "mel": (kind, (1, "frames", audio.n_mels)),
                "embeddings": (kind, (1, "tokens", hidden)),
            }
        return {
            "patches": (kind, ("batch", "patches", n_features)),
            "embedder": ("tensor(int32)", (1,)),
            "row_weights": (kind, ("rows", side)),
            "column_weights": (kind, ("columns", side)),
            "embeddings": (kind, ("batch", "tokens", hidden)),
        }

    def _run(self, name: str, inputs: Inputs) -> Float32:
        if name not in self._sessions:
            if self._frugal:
                self._sessions.clear()
            self._sessions[name] = self._load(name)
        session = self._sessions[name].result()
        try:
            embeddings: Float32 = session.run(["embeddings"], inputs)[0]
        except Exception as error:
            problem = " ".join(f"cannot be computed ({error})".split())
            if name in self._tried or "alloc" in problem:
                raise EngineError(name, problem, CHECK_IT) from error
            raise BundleError(self._folder / name, problem, REBUILD) from error
        self._tried.add(name)
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
