"""The encoders' graphs on onnxruntime against transformers, both in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from build_engine.checkpoint import Checkpoint
from build_engine.graphs.audio import audio_model
from build_engine.graphs.vision import IMAGE, TUBELET, vision_model
from edge.engines.onnx_runtime import onnxruntime
from edge.features.positions import interpolation_weights
from edge.types import Float32

# Measured worst: 1.2e-6 for vision, 1.3e-6 for audio. Mutants: a projector's eps 1e-6 for 1e-5
# gives 1e-5, the tanh form of GELU 2e-4, the audio LayerNorm's eps 1e-6 for 1e-5 4e-4, the
# position table without its half-pixel shift 1.
TOLERANCE = 5e-6


def relative_error(actual: Float32, expected: Float32) -> float:
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def session(model: Any) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


@pytest.fixture(scope="module")
def opened(checkpoint_folder: Path) -> Checkpoint:
    return Checkpoint(checkpoint_folder)


@pytest.fixture(scope="module")
def vision(opened: Checkpoint) -> onnxruntime.InferenceSession:
    return session(vision_model(opened))


@pytest.fixture(scope="module")
def audio(opened: Checkpoint) -> onnxruntime.InferenceSession:
    return session(audio_model(opened))


def encode(
    vision: onnxruntime.InferenceSession, patches: Float32, embedder: int, rows: int, columns: int
) -> Float32:
    """Patches (batch, rows * columns, features) through the graph."""
    table, side = vision.get_inputs()[2].shape[1], max(rows, columns)
    features = vision.get_inputs()[0].shape[2]
    padding = ((0, 0), (0, 0), (0, features - patches.shape[2]))
    (embeddings,) = vision.run(
        ["embeddings"],
        {
            "patches": np.pad(patches, padding),
            "embedder": np.array([embedder], np.int32),
            "row_weights": interpolation_weights(rows, side, table),
            "column_weights": interpolation_weights(columns, side, table),
        },
    )
    return embeddings


# The presets' position tables are 16 x 16 and 8 x 8: grids smaller, equal and larger.
@pytest.mark.parametrize(
    ("rows", "columns"), [(2, 4), (6, 4), (10, 2), (8, 8), (16, 16), (16, 6), (20, 18), (4, 34)]
)
def test_image(vision, reference, rows: int, columns: int) -> None:
    rng = np.random.default_rng([rows, columns])
    image = rng.integers(0, 256, (16 * rows + 5, 16 * columns - 3, 3), np.uint8)
    patches = reference.patches(image, rows, columns)
    actual = encode(vision, patches[None], IMAGE, rows, columns)
    expected = reference.image_features(patches, rows, columns)
    assert relative_error(actual[0], expected) <= TOLERANCE


def test_images_in_one_batch_do_not_see_each_other(vision, reference) -> None:
    patches = np.random.default_rng(0).standard_normal((3, 24, 768), np.float32)
    actual = encode(vision, patches, IMAGE, 4, 6)
    expected = np.stack([reference.image_features(p, 4, 6) for p in patches])
    assert relative_error(actual, expected) <= TOLERANCE


def tubelet_patches(frames: Float32, rows: int, columns: int) -> Float32:
    """Frames (n, 3, height, width) -> (tubelets, rows * columns, (frame, channel, y, x))."""
    if len(frames) % 2:
        frames = np.concatenate([frames, frames[-1:]])
    cut = frames.reshape(-1, 2, 3, rows, 16, columns, 16).transpose(0, 3, 5, 1, 2, 4, 6)
    return cut.reshape(len(cut), rows * columns, -1)


@pytest.mark.parametrize("n_frames", [1, 2, 3, 6])
@pytest.mark.parametrize(("rows", "columns"), [(2, 4), (10, 6)])
def test_tubelets(vision, reference, n_frames: int, rows: int, columns: int) -> None:
    rng = np.random.default_rng([n_frames, rows])
    frames = rng.standard_normal((n_frames, 3, 16 * rows, 16 * columns), np.float32)
    actual = encode(vision, tubelet_patches(frames, rows, columns), TUBELET, rows, columns)
    assert relative_error(actual, reference.tubelet_features(frames)) <= TOLERANCE


# Every length that the three stride-2 convolutions round differently, and the longest clip.
@pytest.mark.parametrize("n_frames", [8, 9, 10, 11, 13, 16, 17, 37, 100, 128, 3000])
def test_audio(audio, reference, n_frames: int) -> None:
    mel = np.random.default_rng(n_frames).standard_normal((n_frames, 128), np.float32)
    (actual,) = audio.run(["embeddings"], {"mel": mel[None]})
    assert relative_error(actual[0], reference.audio_features(mel)) <= TOLERANCE


@pytest.mark.parametrize("n_samples", [1600, 15999, 20480])
def test_audio_from_sound(audio, reference, n_samples: int) -> None:
    samples = np.random.default_rng(n_samples).standard_normal(n_samples, np.float32) * 0.1
    mel = reference.mel(samples)
    assert mel.shape == (n_samples // 160, 128)
    (actual,) = audio.run(["embeddings"], {"mel": mel[None]})
    assert relative_error(actual[0], reference.audio_features(mel)) <= TOLERANCE
