"""The encoders' graphs by themselves: well-formed, standard, and their worked examples."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from make_tiny_checkpoint import make_checkpoint

from build_engine.checkpoint import Checkpoint
from build_engine.graphs.audio import MAX_TOKENS, audio_model, relative_shift
from build_engine.graphs.onnx_ops import Graph
from build_engine.graphs.vision import pixel_shuffle, vision_model
from edge.engines.engine import MAX_AUDIO_FRAMES
from edge.engines.onnx_runtime import onnxruntime
from edge.types import Float32


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(folder, "wide")
    return Checkpoint(folder)


@pytest.fixture(scope="module", params=[vision_model, audio_model])
def model(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> onnx.ModelProto:
    return request.param(checkpoint)


def test_is_well_formed(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 21)]
    assert model.ir_version == 10
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions


def test_binds_no_int64(model: onnx.ModelProto) -> None:
    types = {b.type.tensor_type.elem_type for b in [*model.graph.input, *model.graph.output]}
    assert types <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT32}
    with pytest.raises(ValueError, match="int32, not int64"):
        Graph().input("ids", np.int64, ["n"])


def test_every_length_of_audio_gives_an_eighth_of_it(checkpoint: Checkpoint) -> None:
    session = onnxruntime.InferenceSession(audio_model(checkpoint).SerializeToString())
    assert -(-MAX_AUDIO_FRAMES // 8) == MAX_TOKENS
    for n_frames in (1, 7, 8, 9, 24, 25, MAX_AUDIO_FRAMES):
        (out,) = session.run(None, {"mel": np.ones((1, n_frames, 128), np.float32)})
        assert out.shape == (1, -(-n_frames // 8), checkpoint.spec.decoder.hidden_size)


def run(graph: Graph, value: str, **inputs: np.ndarray[Any, Any]) -> Float32:
    graph.output(value, "out", np.float32, ["a", "b", "c", "d"])
    session = onnxruntime.InferenceSession(graph.model("piece").SerializeToString())
    (out,) = session.run(None, inputs)
    return out


@pytest.mark.parametrize("n_tokens", [1, 2, 3, 7])
def test_relative_shift_reads_row_t_minus_1_minus_i_plus_j(n_tokens: int) -> None:
    graph = Graph()
    scores = graph.input("scores", np.float32, [1, 2, "t", "positions"])
    shifted = relative_shift(graph, scores, 2, graph.size(scores, 2))
    row_numbers = np.arange(2 * n_tokens - 1, dtype=np.float32)
    values = np.broadcast_to(row_numbers, (1, 2, n_tokens, 2 * n_tokens - 1))
    i, j = np.indices((n_tokens, n_tokens))
    out = run(graph, shifted, scores=np.ascontiguousarray(values))
    assert (out == n_tokens - 1 - i + j).all()
    if n_tokens == 3:
        assert out[0, 0].tolist() == [[2, 3, 4], [1, 2, 3], [0, 1, 2]]


def test_pixel_shuffle_joins_2_x_2_blocks() -> None:
    graph = Graph()
    x = graph.input("x", np.float32, ["batch", "patches", 1])
    row = graph.input("row", np.float32, ["columns"])
    shuffled = pixel_shuffle(graph, x, graph.size(row, 0), 1)
    grid = np.arange(8, dtype=np.float32).reshape(1, 8, 1)
    out = run(graph, graph.reshape(shuffled, 1, 1, -1, 4), x=grid, row=np.zeros(4, np.float32))
    assert out[0, 0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]
