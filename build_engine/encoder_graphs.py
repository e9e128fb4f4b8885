"""Writes the encoders of a checkpoint as ONNX files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from build_engine.checkpoint import Checkpoint
from build_engine.graphs.audio import audio_model
from build_engine.graphs.onnx_ops import ExternalData
from build_engine.graphs.vision import vision_model


def write_encoders(
    checkpoint: Checkpoint,
    folder: Path,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> None:
    """Write vision.onnx and audio.onnx, one after the other, holding one weight at a time."""
    for stage, emit in (("vision", vision_model), ("audio", audio_model)):
        progress(stage, 0, 1)
        path = folder / f"{stage}.onnx"
        with ExternalData(path.with_suffix(".onnx.data")) as weights:
            model = emit(checkpoint, weights)
        path.write_bytes(model.SerializeToString(deterministic=True))
        checkpoint.release()
        progress(stage, 1, 1)
