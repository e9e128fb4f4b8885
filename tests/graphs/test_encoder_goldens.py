"""The encoders' graphs against stored outputs of transformers, without the rest of an engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from make_tiny_checkpoint import PRESETS
from parity import GOLDENS, RELATIVE, difference, media

from build_engine.checkpoint import Checkpoint
from build_engine.encoder_graphs import write_encoders
from build_engine.graphs.audio import audio_model, relative_positions
from build_engine.graphs.vision import vision_model
from edge.engines.encoders import Encoders
from edge.features.pixels import image_grid, tubelet_patches, video_grid


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_features_equal_the_goldens(
    preset: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    source = Checkpoint(checkpoint(preset))
    write_encoders(source, tmp_path)
    encoders, vision, shown = (
        Encoders(tmp_path, source.spec, frugal=True),
        source.spec.vision,
        media(),
    )
    with np.load(GOLDENS / f"{preset}.npz") as stored:
        expected = dict(stored)
    height, width = shown.image.shape[:2]
    at = image_grid(width, height, vision.max_patches, vision.min_patches, vision.patch_size)
    video_at = video_grid(90, 50, vision.video_target_patches)
    got = {
        "image_features": encoders.encode_image(expected["patches"], at),
        "tubelet_features": encoders.encode_tubelets(
            tubelet_patches(shown.frames, video_at, vision), video_at
        ),
        "audio_features": encoders.encode_audio(expected["mel"]),
    }
    for name, values in got.items():
        assert difference(name, values, expected[name]) <= RELATIVE[name], name


def constants(model: onnx.ModelProto) -> list[tuple[int, ...]]:
    return [tuple(tensor.dims) for tensor in model.graph.initializer]


def test_weights_are_in_the_file_beside_a_graph_and_small_ones_in_it(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """From 1024 bytes on; each begins on a page, so that it can be mapped."""
    source, told = Checkpoint(checkpoint("base")), list[tuple[str, int, int]]()
    write_encoders(source, tmp_path, lambda *step: told.append(step))
    assert told == [("vision", 0, 1), ("vision", 1, 1), ("audio", 0, 1), ("audio", 1, 1)]
    for stage, emit in (("vision", vision_model), ("audio", audio_model)):
        model = onnx.load(tmp_path / f"{stage}.onnx", load_external_data=False)
        data = (tmp_path / f"{stage}.onnx.data").read_bytes()
        inner = emit(source)
        assert model.graph.name == inner.graph.name == stage
        assert constants(model) == constants(inner)
        ends = [0]
        for kept, whole in zip(model.graph.initializer, inner.graph.initializer, strict=True):
            is_large = len(whole.raw_data) >= 1024
            assert (kept.data_location == onnx.TensorProto.EXTERNAL) is is_large
            if not is_large:
                assert kept.raw_data == whole.raw_data
                continue
            where = {entry.key: entry.value for entry in kept.external_data}
            start, length = int(where["offset"]), int(where["length"])
            assert where["location"] == f"{stage}.onnx.data"
            assert start % 4096 == 0
            assert ends[-1] <= start < ends[-1] + 4096
            assert data[start : start + length] == whole.raw_data
            ends.append(start + length)
        assert ends[-1] == len(data)


def names_of(bindings: object) -> list[tuple[str, list[int | str]]]:
    return [
        (b.name, [d.dim_param or d.dim_value for d in b.type.tensor_type.shape.dim])
        for b in bindings  # type: ignore[attr-defined]
    ]


def test_bindings_are_those_that_engines_ask_for(checkpoint: Callable[[str], Path]) -> None:
    source = Checkpoint(checkpoint("wide"))
    spec, hidden = source.spec, source.spec.decoder.hidden_size
    features, table = 3 * 16**2 * spec.vision.tubelet_frames, spec.vision.position_grid
    vision, audio = vision_model(source).graph, audio_model(source).graph
    assert names_of(vision.input) == [
        ("patches", ["batch", "patches", features]),
        ("embedder", [1]),
        ("row_weights", ["rows", table]),
        ("column_weights", ["columns", table]),
    ]
    assert names_of(vision.output) == [("embeddings", ["batch", "tokens", hidden])]
    assert names_of(audio.input) == [("mel", [1, "frames", spec.audio.n_mels])]
    assert names_of(audio.output) == [("embeddings", [1, "tokens", hidden])]


def test_relative_positions_are_sinusoids() -> None:
    table = relative_positions(3, 6)
    assert table.dtype == np.float32
    assert table.shape == (5, 6)
    for row, position in zip(table, (2, 1, 0, -1, -2), strict=True):
        for pair, rate in enumerate((1, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3))):
            expected = np.sin(position * rate), np.cos(position * rate)
            np.testing.assert_allclose(row[2 * pair : 2 * pair + 2], expected, rtol=1e-6, atol=1e-7)
