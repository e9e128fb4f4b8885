"""What the encoders' graphs are fed, whatever executes them."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge.engines.engine import MAX_AUDIO_FRAMES
from edge.errors import EngineError
from edge.features.positions import interpolation_weights
from edge.model.spec import AudioSpec, VisionSpec
from edge.types import Float32

Inputs: TypeAlias = dict[str, NDArray[Any]]
CALL_IT_RIGHT = "this is a defect of the caller"


def image_inputs(vision: VisionSpec, patches: Float32, grid: tuple[int, int]) -> Inputs:
    """One image [rows * columns, features of a frame], as a batch of one."""
    padding = (vision.tubelet_frames - 1) * patches.shape[-1]
    padded = np.pad(patches, ((0, 0), (0, padding)))
    return _vision_inputs(vision, padded[None], grid, embedder=0)


def tubelet_inputs(vision: VisionSpec, patches: Float32, grid: tuple[int, int]) -> Inputs:
    """Tubelets [n, rows * columns, features of all frames]."""
    return _vision_inputs(vision, patches, grid, embedder=1)


def _vision_inputs(
    vision: VisionSpec, patches: Float32, grid: tuple[int, int], embedder: int
) -> Inputs:
    rows, columns = grid
    n_features = vision.tubelet_frames * 3 * vision.patch_size**2
    if patches.shape[1:] != (rows * columns, n_features) or rows % 2 or columns % 2:
        raise EngineError("patches", f"have shape {patches.shape} for grid {grid}", CALL_IT_RIGHT)
    longest = max(grid)
    return {
        "patches": np.ascontiguousarray(patches, np.float32),
        "embedder": np.array([embedder], np.int32),
        "row_weights": interpolation_weights(rows, longest, vision.position_grid),
        "column_weights": interpolation_weights(columns, longest, vision.position_grid),
    }


def audio_inputs(audio: AudioSpec, mel: Float32) -> Inputs:
    """One clip [frames, mels], as a batch of one."""
    if mel.shape[1:] != (audio.n_mels,) or not 1 <= len(mel) <= MAX_AUDIO_FRAMES:
        raise EngineError("mel", f"has shape {mel.shape}", CALL_IT_RIGHT)
    return {"mel": np.ascontiguousarray(mel, np.float32)[None]}
