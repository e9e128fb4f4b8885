"""Writes the encoders of a checkpoint as ONNX files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx

from build_engine.checkpoint import Checkpoint
from build_engine.graphs.audio import audio_model
from build_engine.graphs.vision import vision_model


def write_encoders(
    checkpoint: Checkpoint,
    folder: Path,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> None:
    """Write vision.onnx and audio.onnx, one after the other."""
    for stage, emit in (("vision", vision_model), ("audio", audio_model)):
        progress(stage, 0, 1)
        path = folder / f"{stage}.onnx"
        # Weights go beside the graph: a protobuf file ends at 2 GB.
        onnx.save_model(
            emit(checkpoint), str(path), save_as_external_data=True, location=f"{path.name}.data"
        )
        progress(stage, 1, 1)
