"""A device's encoders: the float32 graphs with their products in 16 bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs.byte_casts import byte_casts
from graphs.decoder_session import Arrays, relative_error

from build_engine.graphs.half import narrowed
from build_engine.graphs.onnx_ops import ExternalData
from build_engine.graphs.weight_formats import BFLOAT16
from edge.engines.bundle import Bundle
from edge.engines.encoders import AUDIO, VISION
from edge.engines.onnx_runtime import onnxruntime
from edge.features.positions import interpolation_weights
from edge.model.spec import ModelSpec

FLOAT16 = np.dtype(np.float16)
TOLERANCE = 5e-4
"""Of the largest value. Measured: 5e-5. ONNX Runtime multiplies float16 as float32 and drops casts
back and forth: this shows that the right things are multiplied, not what rounding does to them."""


def inputs(spec: ModelSpec, file: str) -> Arrays:
    rng, vision = np.random.default_rng(0), spec.vision
    if file == AUDIO:
        return {"mel": rng.standard_normal((1, 43, spec.audio.n_mels), np.float32)}
    n_features = 3 * vision.patch_size**2 * vision.tubelet_frames
    return {
        "patches": rng.standard_normal((2, 24, n_features), np.float32),
        "embedder": np.array([1], np.int32),
        "row_weights": interpolation_weights(4, 6, vision.position_grid),
        "column_weights": interpolation_weights(6, 6, vision.position_grid),
    }


def written(path: Path, to: Path, dtype: np.dtype) -> onnx.ModelProto:  # type: ignore[type-arg]
    with ExternalData(to.with_suffix(".onnx.data")) as weights:
        model = narrowed(onnx.load(path, load_external_data=False), path.parent, weights, dtype)
    to.write_bytes(model.SerializeToString())
    return model


def run(path: Path, given: Arrays) -> np.ndarray:  # type: ignore[type-arg]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, given)[0]


@pytest.mark.parametrize("file", [VISION, AUDIO])
def test_products_in_16_bits(bundle: Callable[[str], Path], tmp_path: Path, file: str) -> None:
    path, to = bundle("wide") / file, tmp_path / file
    before, after = onnx.load(path, load_external_data=False), written(path, to, FLOAT16)
    onnx.checker.check_model(str(to), full_check=True)
    given = inputs(Bundle(bundle("wide")).manifest.spec, file)
    error = relative_error(run(to, given), run(path, given))
    assert error <= TOLERANCE
    for side in ("input", "output"):
        assert getattr(before.graph, side) == getattr(after.graph, side)
    # the device's type, which ONNX Runtime cannot multiply on a CPU
    model = written(path, to, BFLOAT16)
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    assert products
    held = {kinds[name] for node in products for name in node.input if name in kinds}
    assert held == {onnx.TensorProto.BFLOAT16}
    assert byte_casts(model) == []
    sizes = [file.with_suffix(".onnx.data").stat().st_size for file in (path, to)]
    assert sizes[1] < 0.8 * sizes[0]


def test_convolutions_stay_in_float32(bundle: Callable[[str], Path], tmp_path: Path) -> None:
    """TensorRT has had no kernel for depthwise ones in bfloat16."""
    model = written(bundle("wide") / AUDIO, tmp_path / AUDIO, BFLOAT16)
    # the file itself, types inferred: a wrong one would be refused
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    kinds = {t.name: t.data_type for t in graph.initializer}
    kinds |= {v.name: v.type.tensor_type.elem_type for v in graph.value_info}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    groups = {a.i for node in convolutions for a in node.attribute if a.name == "group"}
    assert max(groups) > 1
    names = {name for node in convolutions for name in (*node.input, *node.output)}
    assert {kinds[name] for name in names} == {onnx.TensorProto.FLOAT}
